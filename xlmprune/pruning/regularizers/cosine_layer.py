"""Hold every matrix, as one long vector, to the direction of its unpruned reference.

One cosine a matrix instead of one a unit: long units count for more, short ones may turn freely. The paper
found no significant difference to `cosine`, which is its default and ours.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.masks import Masks, Weights
from xlmprune.pruning.regularizers import Reference, Regularizer
from xlmprune.pruning.regularizers.cosine import EPSILON
from xlmprune.pruning.regularizers.gradients import at_least_float32, gradient_of, masked_copy
from xlmprune.recipe.component import STRICT


def layer_cosine(weight: Tensor, reference: Tensor) -> Tensor:
    """Cosine between a matrix and its reference: a scalar in [-1, 1], differentiable in ``weight``; 0 if either is zero.

    Source: O'Neill et al. 2022 (arXiv:2204.01385), section 3, the vectorised form of Eq. 2.
    """
    weight, reference = at_least_float32(weight), at_least_float32(reference)
    length_squared = (weight * weight).sum()
    reference_length = torch.linalg.vector_norm(reference)
    directed = (length_squared > EPSILON**2) & (reference_length > EPSILON)
    lengths = torch.where(directed, length_squared, 1).sqrt() * torch.where(directed, reference_length, 1)
    return torch.where(directed, (weight * reference).sum() / lengths, 0)


@dataclass(config=STRICT)
class CosineLayer(Regularizer):
    """Hold each pruned matrix to the direction of its unpruned reference."""

    strength: Annotated[float, Field(ge=0)] = 100.0
    """Weight of the alignment in the loss; 0 turns it off."""

    reference: Reference = "pretrained"
    """Weights to align to: the pretrained ones, or those after dense fine-tuning. The latter have no effect in stage 0."""

    abs: bool = True
    """Count a matrix and its negative as equally aligned."""

    mask_reference: bool = False
    """Prune the reference like the weights."""

    reduction: Literal["mean", "sum"] = "mean"
    """`mean` or `sum` over matrices."""

    def __call__(self, weights: Weights, reference: Weights, masks: Masks | None = None) -> Tensor:
        """Return the differentiable term; ``masks`` serve ``mask_reference`` only; default: where weights are not zero."""
        terms = []
        for name, weight in weights.items():
            against = reference[name]
            if self.mask_reference:
                against = against * (weight.detach() != 0 if masks is None else masks[name])
            cosine = layer_cosine(weight, against)
            terms.append(cosine.abs() if self.abs else cosine)
        return -self.strength * self._share(weights) * torch.stack(terms).sum()

    @torch.no_grad()
    def add_gradient(self, weights: Weights, reference: Weights, masks: Masks | None) -> Tensor:
        """Add the closed-form gradient, ``sign(d) * (R / ab - c V / b^2)``, to every ``.grad``; returns the value."""
        value = torch.zeros((), dtype=torch.float64, device=next(iter(weights.values())).device)
        share = -self.strength * self._share(weights)
        for name, parameter in weights.items():
            weight, whole = at_least_float32(parameter.detach()), at_least_float32(reference[name])
            # Row by row in the tensor's own precision, then in float64: a plain float32 sum runs over 2.4 M
            # products.
            if self.mask_reference:  # pruned weights that may return get gradients too
                whole = masked_copy(whole, masks, name)
            product = (weight * whole).sum(dim=1).sum(dtype=torch.float64)
            length, reference_length = _length(weight), _length(whole)
            directed = (length > EPSILON) & (reference_length > EPSILON)
            length, reference_length = (
                torch.where(directed, length, 1),
                torch.where(directed, reference_length, 1),
            )
            cosine = torch.where(directed, product / (length * reference_length), 0)
            sign = cosine.sign() if self.abs else directed.to(cosine.dtype)
            value += share * sign * cosine
            of_reference = share * torch.where(directed, sign, 0) / (length * reference_length)
            of_weight = -share * sign * cosine / length.square()
            with gradient_of(parameter) as gradient:
                gradient.addcmul_(whole, of_reference.to(whole.dtype)).addcmul_(
                    weight, of_weight.to(whole.dtype)
                )
        return value.to(torch.get_default_dtype())

    def _share(self, weights: Weights) -> float:
        return 1.0 if self.reduction == "sum" else 1 / len(weights)


def _length(matrix: Tensor) -> Tensor:
    return torch.linalg.vector_norm(torch.linalg.vector_norm(matrix, dim=1), dtype=torch.float64)
