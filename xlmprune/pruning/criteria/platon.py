"""Keep the weights that matter or might: sensitivity times its uncertainty, smoothed over updates (PLATON).

An upper confidence bound: a weight whose importance fluctuates is not pruned early. Global. As published it prunes with the
schedule `continuous` and `pruning.regrow`; with another schedule, masks change between stages and are nested.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.criteria.smoothing import Smoothed, confidence
from xlmprune.pruning.criteria.ties import break_ties
from xlmprune.pruning.masks import Masks, Scope, Scores, Weights
from xlmprune.recipe.component import STRICT


def sensitivity(weight: Tensor, gradient: Tensor) -> Tensor:
    """``|w * g|``, what the loss would change without the weight, to first order.

    Source: Zhang et al. 2022 (arXiv:2206.12562), Eq. 4.
    """
    return (weight * gradient).abs()


@dataclass(config=STRICT)
class Platon(Criterion):
    """Score every weight by the product of smoothed sensitivity and its uncertainty."""

    default_scope: ClassVar[Scope] = "global"
    acts_on_dense: ClassVar[bool] = True
    scores_pruned: ClassVar[bool] = True

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.85
    """Decay of the sensitivity, per window."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the uncertainty, per window; 0 uses only the distance of the current window, as the released code does."""

    window: Annotated[int, Field(ge=1)] = 10
    """Updates whose sensitivity is averaged before it is smoothed."""

    def __post_init__(self) -> None:
        self._smoothed = Smoothed(self.window, self.beta1, self.beta2)

    @torch.no_grad()
    def observe(self, weights: Weights, masks: Masks, learning_rate: float) -> None:
        """Measure the sensitivity before the optimizer moves the weights."""
        self._smoothed.add(
            {
                name: sensitivity(w.detach(), w.grad).float()
                for name, w in weights.items()
                if w.grad is not None
            }
        )

    def scores(self, context: PruningContext) -> Scores:
        """Return importance times uncertainty; the magnitude before anything was observed."""
        scores = {}
        for name, weight in context.weights.items():
            known = self._smoothed.current(name)
            scores[name] = weight.abs() if known is None else confidence(*known)
        return scores

    def ranking(self, context: PruningContext) -> Scores:
        """By importance times uncertainty, and by magnitude where that is equal (as before anything was observed)."""
        # The root ranks alike and does not fall below what float32 can hold.
        return {
            name: break_ties(score.sqrt(), context.weights[name])
            for name, score in self.scores(context).items()
        }

    def state(self) -> dict[str, Tensor]:
        """Return the moving averages."""
        return self._smoothed.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        self._smoothed.load_state(state)
