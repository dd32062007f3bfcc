"""Keep the weights that fine-tuning moves away from zero (movement pruning).

Made for few weights and long fine-tuning: its authors find it ahead of magnitude below 15 %. It looks at the
training data alone, so watch the languages that were not trained on.

What differs from the original: masks change between stages only, they are nested, and their counts are exact.
There scores decide at every step, so that a pruned weight goes on collecting score and may return; here it is
gone. Soft movement's threshold thereby becomes a ranking over all matrices at once (its scope is global), and
its penalty on open scores remains. Scores follow plain gradient descent, where the original code runs them
through Adam.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.criteria.ties import break_ties
from xlmprune.pruning.masks import Masks, Scope, Scores, Weights
from xlmprune.recipe.component import STRICT


def movement(scores: Tensor, weight: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
    """``S - learning_rate * gradient * weight``: up where the update moves the weight away from zero.

    Args:
        scores: [out, in], S so far.
        weight: [out, in], before the update.
        gradient: [out, in], of the loss by the effective weight.

    Source: Sanh et al. 2020 (arXiv:2005.07683), Eq. 3, the straight-through gradient of S.
    """
    return scores - learning_rate * gradient * weight


def soft_penalty(scores: Tensor, strength: float) -> Tensor:
    """Gradient by S of ``strength * mean(sigmoid(S))`` over one matrix.

    Source: Sanh et al. 2020, section 4, soft movement pruning.
    """
    open_ = torch.sigmoid(scores)
    return (open_ * (1 - open_)).mul_(strength / scores.numel())


@dataclass(config=STRICT)
class Movement(Criterion):
    """Score every weight by how far, and from zero or to it, training has wanted to move it since the beginning."""

    acts_on_dense: ClassVar[bool] = True

    mode: Literal["hard", "soft"] = "hard"
    """`hard` ranks within each matrix; `soft` ranks over all of them, under a penalty on high scores."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    """Of the scores. Only against the penalty of `soft` does it matter."""

    strength: Annotated[float, Field(ge=0)] = 400.0
    """Of the penalty of `soft`: the mean of sigmoid(S), averaged over matrices."""

    def __post_init__(self) -> None:
        self._scores: dict[str, Tensor] = {}

    @property
    def default_scope(self) -> Scope:
        """`global` for soft movement, whose threshold is one for all matrices."""
        return "global" if self.mode == "soft" else "layer"

    @torch.no_grad()
    def observe(self, weights: Weights, masks: Masks, learning_rate: float) -> None:
        """Collect ``- gradient * weight``, before the optimizer moves the weight."""
        for name, weight in weights.items():
            if weight.grad is None:
                continue
            scores = self._scores.setdefault(
                name, torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
            )
            penalty = soft_penalty(scores, self.strength / len(weights)) if self.mode == "soft" else None
            # `movement` in place: 85 M scores are updated at every step.
            scores.addcmul_(weight.grad, weight, value=-self.learning_rate)
            if penalty is not None:
                scores.sub_(penalty.mul_(masks[name]), alpha=self.learning_rate)

    def scores(self, context: PruningContext) -> Scores:
        """By S, and by magnitude where that is equal (as before anything was observed)."""
        return {
            name: break_ties(self._scores.get(name, torch.zeros_like(weight)), weight)
            for name, weight in context.weights.items()
        }

    def state(self) -> dict[str, Tensor]:
        """S of every weight."""
        return dict(self._scores)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        self._scores = dict(state)
