"""Hold the weights that remain to their values in the unpruned reference (Frobenius-MBP).

Weight decay with its origin moved to the pretrained network. The paper's best average at 31 %; a large strength
freezes the task. It works against AdamW's own decay, so `training.weight_decay` belongs at 0 beside it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning import kernels
from xlmprune.pruning.masks import Masks, Weights
from xlmprune.pruning.regularizers import Reference, Regularizer
from xlmprune.pruning.regularizers.gradients import at_least_float32, gradient_of, side_by_side
from xlmprune.recipe.component import STRICT


def squared_distance(weight: Tensor, reference: Tensor) -> Tensor:
    """Return ``||reference - weight||_F ** 2``, a scalar, differentiable in ``weight``.

    Pruned weights are zero here and add the constant square of their reference.

    Source: O'Neill et al. 2022 (arXiv:2204.01385), Eq. 6.
    """
    difference = at_least_float32(weight) - at_least_float32(reference)
    return (difference * difference).sum()


def distance(weight: Tensor, reference: Tensor) -> Tensor:
    """Return ``||reference - weight||_F``, a scalar; its gradient is zero where the two are equal."""
    squared = squared_distance(weight, reference)
    return torch.where(squared > 0, torch.where(squared > 0, squared, 1).sqrt(), 0)


@dataclass(config=STRICT)
class Frobenius(Regularizer):
    """Hold the remaining weights to the values of their reference."""

    strength: Annotated[float, Field(ge=0)] = 5e-4
    """Weight of the distance in the loss; 0 turns it off. Search {5e-5, 5e-4, 5e-3, 5e-2} on English dev."""

    reference: Reference = "pretrained"
    """Weights to stay near: the pretrained ones, or those after dense fine-tuning. The latter have no effect in stage 0."""

    squared: bool = True
    """Square the norm of each matrix, as Eq. 6 does; otherwise the pull on every matrix is constant."""

    reduction: Literal["sum", "mean"] = "sum"
    """`sum` over all entries of all matrices (Eq. 6); `mean` divides by the number of entries, or of matrices where the
    norm is not squared."""

    def __call__(self, weights: Weights, reference: Weights, masks: Masks | None = None) -> Tensor:
        """Return the differentiable term; ``masks`` are not needed."""
        measure = squared_distance if self.squared else distance
        terms = [measure(weight, reference[name]) for name, weight in weights.items()]
        return self.strength * self._share(weights) * torch.stack(terms).sum()

    @torch.no_grad()
    def add_gradient(self, weights: Weights, reference: Weights, masks: Masks | None) -> Tensor:
        """Add ``2 (W - P)``, or ``(W - P) / ||P - V||`` if not squared, to every ``.grad``; returns the value."""
        value = torch.zeros((), dtype=torch.float64, device=next(iter(weights.values())).device)
        share = self.strength * self._share(weights)
        if self.squared and kernels.usable(*side_by_side(weights, reference)):
            return self._add_gradient_in_few_launches(weights, reference, share)
        for name, parameter in weights.items():
            difference = at_least_float32(parameter.detach()) - at_least_float32(reference[name])
            rows = torch.linalg.vector_norm(difference, dim=1)
            squared = rows.square().sum(dtype=torch.float64)
            factor = (
                2.0 if self.squared else torch.where(squared > 0, squared.rsqrt(), 0).to(difference.dtype)
            )
            value += squared if self.squared else squared.sqrt()
            with gradient_of(parameter) as gradient:
                gradient.add_(difference.mul_(share * factor))
        return (share * value).to(torch.get_default_dtype())

    def _add_gradient_in_few_launches(self, weights: Weights, reference: Weights, share: float) -> Tensor:
        ours, theirs, gradients = side_by_side(weights, reference)
        differences = torch._foreach_sub(ours, theirs)
        norms = torch.stack(torch._foreach_norm(differences)).double()
        torch._foreach_add_(gradients, differences, alpha=2 * share)
        return (share * norms.square().sum()).to(torch.get_default_dtype())

    def _share(self, weights: Weights) -> float:
        if self.reduction == "sum":
            return 1.0
        return 1 / (sum(weight.numel() for weight in weights.values()) if self.squared else len(weights))
