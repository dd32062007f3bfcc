"""Keep the weights whose removal the others of their row cannot compensate for on unlabelled text (the score of SparseGPT).

This is the saliency of the optimal brain surgeon, ``w^2 / [H^-1]_jj``, with the diagonal of the full inverse of each matrix:
every weight is scored as if it alone were removed, and all masks are chosen at once, by layer. SparseGPT itself chooses
masks in blocks of columns while it sweeps over them, with updated weights and the inverse of the columns that are left; that
is not done here. It reads second moments of activations alone. Unlike `wanda` it knows that of two inputs alike one is
enough. It is meant to be followed by the refit that it presumes (`pruning.reconstruct`).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.masks import Scores, Weights
from xlmprune.pruning.moments import Moments, inverse_diagonal
from xlmprune.recipe.component import STRICT


@torch.no_grad()
def sparsegpt_scores(weights: Weights, moments: Moments, ridge: float) -> Scores:
    """Compute ``|w_ij| / sqrt([H^-1]_jj)``: the root of what the output loses without the weight, its row refitted.

    Args:
        weights: [out, in] each.
        moments: [in, in] each, second moments of the inputs; H is one plus the ridge. Inputs that several weights read are
            inverted once.
        ridge: relative to the mean square of an input; above 0.

    Returns:
        [out, in] each, not negative.

    Source: Frantar and Alistarh 2023 (arXiv:2301.00774), Eq. 3, the saliency; not its adaptive mask selection.
    """
    diagonals: dict[int, Tensor] = {}
    found = {}
    for name, weight in weights.items():
        moment = moments[name]
        if id(moment) not in diagonals:
            diagonals[id(moment)] = inverse_diagonal(moment, ridge).sqrt().to(weight.dtype)
        found[name] = weight.detach().abs() / diagonals[id(moment)]
    return found


@dataclass(config=STRICT)
class SparseGpt(Criterion):
    """Score every weight by what the output loses without it, the others of its row refitted."""

    needs_moments: ClassVar[bool] = True

    ridge: Annotated[float, Field(gt=0)] = 0.01
    """Value added to the second moment, relative to the mean square of an input."""

    def scores(self, context: PruningContext) -> Scores:
        """Measure inputs on unlabelled text with the weights as they are."""
        return sparsegpt_scores(context.weights, context.moments(), self.ridge)
