"""Keep the weights that are large compared with the others that would remain in their matrix (LAMP).

Inside a matrix the order is that of magnitude; the score only decides, globally, how much of each matrix
remains, and never empties one. Choose it when a uniform density per matrix seems wasteful and no data should
be needed.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.masks import Scope, Scores
from xlmprune.recipe.component import STRICT


def layer_adaptive(weight: Tensor, mask: Tensor) -> Tensor:
    """``w(u)^2 / sum of w(v)^2 over v >= u``, remaining weights sorted upwards; in [0, 1], 1 for the largest.

    Of equal weights the one of lower index counts as larger.

    Args:
        weight: any shape.
        mask: boolean, same shape; only true entries are ranked and summed.

    Returns:
        float64, shaped like ``weight``; 0 where pruned.

    Source: Lee et al. 2021 (arXiv:2010.07611), Eq. 4.
    """
    # In float64 and from the large end: a float32 sum over 2.4 M squares loses the small ones, which are
    # being ranked.
    squares = weight[mask].double().square()
    order = squares.sort(descending=True, stable=True)
    sums = order.values.cpu().cumsum(dim=0).to(weight.device)  # not deterministic on CUDA
    ranked = torch.where(sums > 0, order.values / torch.where(sums > 0, sums, 1), 0)
    scores = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
    scores[mask] = torch.empty_like(ranked).scatter_(0, order.indices, ranked)
    return scores


@dataclass(config=STRICT)
class Lamp(Criterion):
    """Score every weight by its square relative to those above it in its matrix."""

    default_scope: ClassVar[Scope] = "global"

    def scores(self, context: PruningContext) -> Scores:
        """Meant for scope `global`; within `layer` it is magnitude pruning."""
        return {name: layer_adaptive(weight, context.masks[name]) for name, weight in context.weights.items()}
