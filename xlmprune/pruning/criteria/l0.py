"""Keep the weights whose gates training leaves open (L0-MBP with hard concrete gates).

Every weight is multiplied by a random gate whose openness is learnt together with it, while a penalty closes gates.
Adds five float32 copies of the prunable weights to the memory of training, and some 0.4 s to an update of 21 M weights
on two CPU cores; choose it to compare with, seldom to ship.

Gates begin with the first pruning, so that the dense stage is the ordinary one. That first pruning, before
anything is learnt, goes by magnitude. The pruning paper does not say how it reaches a given density. Here each stage
keeps the exact count of the most open gates, and what it prunes stays pruned. The gate of a weight that a stage keeps
stays open with a probability of at least one half, so that the weight is not zero at the stage's end. There the gates
are multiplied into the weights for good, and the next stage begins with new ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.criteria.adam import Adam, named
from xlmprune.pruning.criteria.hard_concrete import (
    SHIFT,
    evaluation_gate,
    gate,
    gate_slope,
    probability_open_slope,
    sample,
)
from xlmprune.pruning.criteria.ties import break_ties
from xlmprune.pruning.masks import Masks, Scores, Weights
from xlmprune.recipe.component import STRICT

LEAST = -SHIFT
"""log alpha of a kept weight does not fall below this: its gate is open with probability 1/2, and 0.10 without noise."""


@dataclass(config=STRICT)
class L0(Criterion):
    """Learn a hard concrete gate for every weight; score by how open it is, then by magnitude."""

    acts_on_dense: ClassVar[bool] = False

    strength: Annotated[float, Field(ge=0)] = 125.0
    """Weight in the loss of the share of open gates, averaged over matrices."""

    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Constant learning rate of the gates, which have their own Adam optimizer."""

    initial: float = 2.197
    """Initial value of log alpha; 2.197 leaves a gate open with probability 0.978."""

    def __post_init__(self) -> None:
        self._alpha: dict[str, Tensor] = {}
        self._adam = Adam(self.learning_rate)
        self._folded = False
        """Whether the gates have been multiplied into the weights, so that they serve as scores only."""
        self._drawn: dict[str, Tensor] = {}
        """Concrete variables of the update under way."""
        self._ungated: dict[str, Tensor] = {}
        """Weights without their gates, while gated ones stand in the network."""

    @torch.no_grad()
    def before_forward(self, weights: Weights, masks: Masks) -> None:
        """Put gated weights into the network, gates drawn from torch's generator; nothing before the first pruning."""
        if all(bool(mask.all()) for mask in masks.values()):
            return
        if self._folded:
            self._alpha, self._folded = {}, False
            self._adam.reset()
        for name, weight in weights.items():
            if name not in self._alpha:
                self._alpha[name] = torch.full_like(
                    weight, self.initial, dtype=torch.float32, requires_grad=False
                )
            self._drawn[name] = sample(self._alpha[name])
            self._ungated[name] = weight.detach().clone()
            weight.mul_(gate(self._drawn[name]))

    @torch.no_grad()
    def observe(self, weights: Weights, masks: Masks, learning_rate: float) -> None:
        """Turn the gradient of the gated weights into that of weights and gates; update gates; take the gates out."""
        if not self._drawn:
            return
        self._adam.updates += 1
        for name, weight in weights.items():
            drawn, ungated = self._drawn.pop(name), self._ungated.pop(name)
            if weight.grad is not None:
                penalty = probability_open_slope(self._alpha[name]).mul_(
                    self.strength / (len(weights) * weight.numel())
                )
                slope = gate_slope(drawn).mul_(ungated).mul_(weight.grad).add_(penalty).mul_(masks[name])
                self._adam.step(name, self._alpha[name], slope)
                self._alpha[name].clamp_(min=LEAST)
                weight.grad.mul_(gate(drawn))
            weight.copy_(ungated)

    @torch.no_grad()
    def put_back(self, weights: Weights) -> None:
        """Take the gates out, and forget what was drawn."""
        for name, ungated in self._ungated.items():
            weights[name].copy_(ungated)
        self._drawn, self._ungated = {}, {}

    def scores(self, context: PruningContext) -> Scores:
        """Return sigmoid(log alpha), how open each gate is; the magnitude before there are gates."""
        return {
            name: self._alpha[name].sigmoid() if name in self._alpha else weight.abs()
            for name, weight in context.weights.items()
        }

    def ranking(self, context: PruningContext) -> Scores:
        """By log alpha, then by magnitude of the weight without its gate."""
        # Not by its sigmoid, which is 1 for all of the most open gates in float32.
        return {
            name: break_ties(self._alpha.get(name, torch.zeros_like(weight)), weight)
            for name, weight in context.weights.items()
        }

    @contextmanager
    def measured(self, weights: Weights, masks: Masks) -> Iterator[None]:
        """Multiply the gates without noise into the weights, and take them out afterwards."""
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        self._multiply(weights)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in before.items():
                    weights[name].copy_(weight)

    def end_stage(self, weights: Weights, masks: Masks) -> None:
        """Multiply the gates without noise into the weights for good."""
        if not self._folded:
            self._multiply(weights)
            self._folded = bool(self._alpha)

    @torch.no_grad()
    def _multiply(self, weights: Weights) -> None:
        for name, alpha in self._alpha.items():
            weights[name].mul_(evaluation_gate(alpha))

    def state(self) -> dict[str, Tensor]:
        """Return the gates, their Adam, and whether they have been multiplied into the weights."""
        gates = {f"alpha|{name}": tensor for name, tensor in self._alpha.items()}
        return {**gates, **self._adam.state(), "folded": torch.tensor(self._folded)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        self._alpha, self._folded = named(state, "alpha"), bool(state["folded"])
        self._adam.load_state(state)
        self._ungated, self._drawn = {}, {}
