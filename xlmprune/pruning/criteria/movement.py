"""Keep the weights that fine-tuning moves away from zero (movement pruning).

Made for few weights and long fine-tuning: its authors find it ahead of magnitude below 15 %. It looks at the
training data alone, so watch the languages that were not trained on.

As published it prunes with the schedule `continuous` and `pruning.regrow`: a pruned weight keeps its value, hidden from the
forward pass, collects score and may return. With another schedule, masks change between stages and are nested. Scores
have an Adam of their own, at a constant learning rate; the original's falls with that of the weights. `soft` ranks over
all matrices at once, so that its threshold is the one that leaves the scheduled density; its penalty on high scores grows
with the share pruned, and each matrix keeps at least 0.5 %.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.criteria.adam import Adam, named
from xlmprune.pruning.criteria.ties import break_ties
from xlmprune.pruning.masks import Masks, Scope, Scores, Weights
from xlmprune.recipe.component import STRICT


def movement_slope(weight: Tensor, gradient: Tensor) -> Tensor:
    """``gradient * weight``, the gradient of S: it falls where the update moves the weight away from zero, so S rises.

    Args:
        weight: [out, in], before the update.
        gradient: [out, in], of the loss by the effective weight.

    Source: Sanh et al. 2020 (arXiv:2005.07683), Eq. 3, the straight-through gradient of S.
    """
    return gradient * weight


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
    scores_pruned: ClassVar[bool] = True
    keeps_pruned_values: ClassVar[bool] = True
    least_of_matrix: ClassVar[float] = 0.005

    mode: Literal["hard", "soft"] = "hard"
    """`hard` ranks within each matrix; `soft` ranks over all of them, with a penalty on high scores."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    """Constant learning rate of the scores, which have their own Adam optimizer."""

    strength: Annotated[float, Field(ge=0)] = 400.0
    """Weight of the penalty of `soft` at the final density: the mean of sigmoid(S), averaged over matrices."""

    def __post_init__(self) -> None:
        self._scores: dict[str, Tensor] = {}
        self._adam = Adam(self.learning_rate)
        self._pruned = 0.0
        """Share pruned so far of what the schedule prunes in all, in [0, 1]."""

    @property
    def default_scope(self) -> Scope:
        """`global` for soft movement, whose threshold is one for all matrices."""
        return "global" if self.mode == "soft" else "layer"

    @torch.no_grad()
    def observe(self, weights: Weights, masks: Masks, learning_rate: float) -> None:
        """Move the scores by one step of their Adam, before the optimizer moves the weights."""
        self._adam.updates += 1
        for name, weight in weights.items():
            if weight.grad is None:
                continue
            scores = self._scores.setdefault(
                name, torch.zeros_like(weight, dtype=torch.float32, requires_grad=False)
            )
            slope = movement_slope(weight.detach(), weight.grad).float()
            if self.mode == "soft":
                slope.add_(soft_penalty(scores, self._pruned * self.strength / len(weights)))
            self._adam.step(name, scores, slope)

    def scores(self, context: PruningContext) -> Scores:
        """Return S; the magnitude before anything was observed."""
        return {name: self._scores.get(name, weight.abs()) for name, weight in context.weights.items()}

    def ranking(self, context: PruningContext) -> Scores:
        """By S, and by magnitude where that is equal (as before anything was observed)."""
        self._pruned = (1 - context.density) / max(1 - context.final_density, 1e-9)
        scores = self.scores(context)
        return {name: break_ties(scores[name], weight) for name, weight in context.weights.items()}

    def state(self) -> dict[str, Tensor]:
        """Return S of every weight, its Adam, and the share pruned."""
        scores = {f"scores|{name}": tensor for name, tensor in self._scores.items()}
        return {**scores, **self._adam.state(), "pruned": torch.tensor(self._pruned, dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        self._scores, self._pruned = named(state, "scores"), float(state["pruned"])
        self._adam.load_state(state)
