"""Pull the weights that remain toward zero: weight decay, as a term of the loss or AdamW's own.

The alternative that alignment is compared with. `decoupled` is AdamW's own decay, which bypasses the optimizer's scaling
and at usual learning rates hardly moves a weight. Unlike `training.weight_decay` it spares the head, and stage 0 too
unless `training.regularize_dense` is set.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.masks import Masks, Weights
from xlmprune.pruning.regularizers import Reference, Regularizer
from xlmprune.pruning.regularizers.gradients import at_least_float32, gradient_of
from xlmprune.recipe.component import STRICT


@dataclass(config=STRICT)
class L2(Regularizer):
    """Pull the remaining weights toward zero."""

    strength: Annotated[float, Field(ge=0)] = 1e-6
    """Weight of the sum of squares in the loss; 0 turns it off. Adam divides by the size of the gradient, so strengths that
    look small act: at 5e-4 the pull is as large as the task's own gradient."""

    reference: Reference = "pretrained"
    """Not used; present in every regularizer."""

    decoupled: bool = False
    """Decay the prunable matrices as AdamW does, ``w -= learning_rate * strength * w``, instead of adding to the loss."""

    @property
    def decay(self) -> float:
        """The strength, where AdamW applies it."""
        return self.strength if self.decoupled else 0.0

    @property
    def adds_gradient(self) -> bool:
        """False where AdamW decays instead."""
        return not self.decoupled

    def __call__(self, weights: Weights, reference: Weights, masks: Masks | None = None) -> Tensor:
        """``strength * sum of w ** 2``, differentiable; 0 where AdamW decays instead."""
        if self.decoupled:
            return next(iter(weights.values())).new_zeros(())
        return (
            self.strength * torch.stack([at_least_float32(w).square().sum() for w in weights.values()]).sum()
        )

    @torch.no_grad()
    def add_gradient(self, weights: Weights, reference: Weights, masks: Masks | None) -> Tensor:
        """Add ``2 * strength * w`` to every ``.grad``, nothing where AdamW decays instead; returns the value."""
        if self.decoupled:
            return torch.zeros(())
        value = torch.zeros((), dtype=torch.float64, device=next(iter(weights.values())).device)
        for parameter in weights.values():
            weight = at_least_float32(parameter.detach())
            value += torch.linalg.vector_norm(weight, dim=1).square().sum(dtype=torch.float64)
            with gradient_of(parameter) as gradient:
                gradient.add_(weight, alpha=2 * self.strength)
        return (self.strength * value).to(torch.get_default_dtype())
