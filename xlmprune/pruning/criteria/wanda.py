"""Keep the weights that carry the most signal on unlabelled text (Wanda): magnitude times the size of the input.

From second moments of activations alone: no gradients, no labels. Weights are compared within each row (scope `row`), as in
the paper: each output keeps as many inputs as any other. For one-shot pruning and for masks that are refitted afterwards;
gradients (`pins`) know better what a task needs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.masks import Scope, Scores
from xlmprune.recipe.component import STRICT


@torch.no_grad()
def wanda(weight: Tensor, moment: Tensor) -> Tensor:
    """Compute ``|w_ij| sqrt(A_jj)``: what entry j of the inputs, of root mean square ``sqrt(A_jj)``, adds to output i.

    Args:
        weight: [out, in].
        moment: [in, in], second moment of the inputs.

    Returns:
        [out, in], not negative.

    Source: Sun et al. 2023 (arXiv:2306.11695), Eq. 1.
    """
    size = moment.diagonal().clamp_min(0).sqrt()
    return weight.detach().abs() * size.to(weight.dtype)


@dataclass(config=STRICT)
class Wanda(Criterion):
    """Score every weight by its magnitude times the size of its input."""

    default_scope: ClassVar[Scope] = "row"
    needs_moments: ClassVar[bool] = True

    def scores(self, context: PruningContext) -> Scores:
        """Measure inputs on unlabelled text with the weights as they are."""
        moments = context.moments()
        return {name: wanda(weight, moments[name]) for name, weight in context.weights.items()}
