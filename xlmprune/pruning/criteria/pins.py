"""Keep the weights that matter after the coming update as well (PINS).

Like `platon`, with the step of the optimizer taken into account. Global. As published it prunes with the schedule
`continuous` and `pruning.regrow`, beside a teacher that is the best model so far; with another schedule, masks change
between stages and are nested, and this is its importance score alone.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.criteria.smoothing import Smoothed, confidence
from xlmprune.pruning.criteria.ties import break_ties
from xlmprune.pruning.masks import Masks, Scope, Scores, Weights
from xlmprune.recipe.component import STRICT


def step_aware(weight: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
    """``- w g + learning_rate g^2``, signed: the highest are to be kept while one plain gradient step is taken.

    It maximises, to first order, what pruning together with the update wins: ``sum of g_i (m_i (w_i - lr g_i)
    - w_i)`` is least, over masks of a fixed size, for the masks that keep the highest scores.

    Source: Ren and Zhu 2023 (PINS), the equality-constrained 0-1 program.
    """
    return learning_rate * gradient * gradient - weight * gradient


@dataclass(config=STRICT)
class Pins(Criterion):
    """Score every weight by the smoothed effect of keeping it through an update."""

    default_scope: ClassVar[Scope] = "global"
    acts_on_dense: ClassVar[bool] = True
    scores_pruned: ClassVar[bool] = True

    score: Literal["abs", "signed"] = "abs"
    """`abs` smooths |S| and multiplies by its uncertainty, as the released code does; `signed` smooths S, as the program has
    it, and ranks by it alone: times an uncertainty, negative scores would fall with doubt and positive ones
    rise."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.85
    """Decay of the importance, per window."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the uncertainty, per window; 0 uses only the distance of the current window, as the released code does."""

    window: Annotated[int, Field(ge=1)] = 10
    """Updates whose importance is averaged before it is smoothed."""

    def __post_init__(self) -> None:
        self._smoothed = Smoothed(self.window, self.beta1, self.beta2)

    @torch.no_grad()
    def observe(self, weights: Weights, masks: Masks, learning_rate: float) -> None:
        """Measure before the optimizer moves the weights; ``learning_rate`` is that of the coming update."""
        measured = {
            name: step_aware(weight.detach(), weight.grad, learning_rate).float()
            for name, weight in weights.items()
            if weight.grad is not None
        }
        self._smoothed.add({name: s.abs_() if self.score == "abs" else s for name, s in measured.items()})

    def scores(self, context: PruningContext) -> Scores:
        """Return the smoothed importance, with `abs` times its uncertainty; the magnitude before anything was observed."""
        scores = {}
        for name, weight in context.weights.items():
            known = self._smoothed.current(name)
            if known is None:
                scores[name] = weight.abs()
            else:
                scores[name] = confidence(*known) if self.score == "abs" else known[0]
        return scores

    def ranking(self, context: PruningContext) -> Scores:
        """By smoothed importance, and by magnitude where that is equal (as before anything was observed)."""
        # The root ranks alike and does not fall below what float32 can hold.
        return {
            name: break_ties(score.sqrt() if self.score == "abs" else score, context.weights[name])
            for name, score in self.scores(context).items()
        }

    def state(self) -> dict[str, Tensor]:
        """Return the moving averages."""
        return self._smoothed.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        self._smoothed.load_state(state)
