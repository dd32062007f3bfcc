"""Hold every unit to the direction of its unpruned reference (Cosine-MBP).

Choose it, with magnitude pruning, when languages that were never trained on must survive; it leaves the
length of a unit free, so the task can still scale it. Prefer `frobenius` when the fine-tuned weights should
stay near the pretrained ones in value too.
"""

from __future__ import annotations

import weakref
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning import kernels
from xlmprune.pruning.masks import Masks, Weights
from xlmprune.pruning.regularizers import Reference, Regularizer
from xlmprune.pruning.regularizers.gradients import (
    at_least_float32,
    gradient_of,
    masked_copy,
    side_by_side,
)
from xlmprune.recipe.component import STRICT

EPSILON = 1e-8
"""A unit shorter than this has no direction: it adds nothing and gets no gradient (1 / length would send 1e8 back)."""


def unit_cosines(weight: Tensor, reference: Tensor) -> Tensor:
    """Cosine between each unit and its reference, in [-1, 1]; 0 where either has no length.

    Args:
        weight: [out, in], pruned entries zero. A unit is one row.
        reference: [out, in], frozen.

    Returns:
        [out], differentiable in ``weight``; a unit pruned away entirely gets gradient zero.
    """
    weight, reference = at_least_float32(weight), at_least_float32(reference)
    lengths_squared = (weight * weight).sum(dim=1)
    reference_lengths = torch.linalg.vector_norm(reference, dim=1)
    directed = (lengths_squared > EPSILON**2) & (reference_lengths > EPSILON)
    products = (weight * reference).sum(dim=1)
    # Inside the root too: the slope of a root at zero is infinite, and infinity times zero is not a number.
    lengths = torch.where(directed, lengths_squared, 1).sqrt() * torch.where(directed, reference_lengths, 1)
    return torch.where(directed, products / lengths, 0)


def alignment(weight: Tensor, reference: Tensor) -> Tensor:
    """Mean over units of the absolute cosine to the reference: rho of a layer, a scalar in [0, 1].

    Source: O'Neill et al. 2022 (arXiv:2204.01385), Eq. 2; the mean runs over all rows, pruned ones count as 0.
    """
    return unit_cosines(weight, reference).abs().mean()


def alignment_gradient(
    weight: Tensor, reference: Tensor, reference_lengths: Tensor, absolute: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Values and gradient of the (absolute) cosine of every unit, not yet masked.

    With d = <R, V>, a = ||R||, b = ||V||, c = d / ab of a row, the gradient of ``|c|`` in the row is
    ``sign(d) * (R / ab - c V / b^2)``. This is Eq. 2 differentiated; Eq. 5 of the paper, meant to be the
    same, swaps R and V, divides by N - 1 and sums over foreign units.

    Args:
        weight: [out, in], zero where pruned.
        reference: [out, in].
        reference_lengths: [out], the lengths of the reference's rows.

    Returns:
        values [out], and the factors [out, 1] of R and of V: the gradient is ``first * R + second * V``.
    """
    products = (weight * reference).sum(dim=1)
    lengths = torch.linalg.vector_norm(weight, dim=1)
    directed = (lengths > EPSILON) & (reference_lengths > EPSILON)
    lengths, reference_lengths = (
        torch.where(directed, lengths, 1),
        torch.where(directed, reference_lengths, 1),
    )
    cosines = torch.where(directed, products / (lengths * reference_lengths), 0)
    sign = cosines.sign() if absolute else directed.to(cosines.dtype)
    of_reference = torch.where(directed, sign / (lengths * reference_lengths), 0)
    of_weight = -sign * cosines / (lengths * lengths)
    return cosines.abs() if absolute else cosines, of_reference.unsqueeze(1), of_weight.unsqueeze(1)


class RowLengths:
    """Lengths of the rows of frozen tensors, computed once each.

    A length is kept with a weak reference to its tensor and the tensor's version, so a reference that was
    replaced, or written to in place, is measured anew; memory addresses and names alone would go stale.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[weakref.ref[Tensor], int, Tensor]] = {}

    def of(self, name: str, tensor: Tensor) -> Tensor:
        """[out], the length of every row of ``tensor``."""
        known = self._known.get(name)
        if known is not None and known[0]() is tensor and known[1] == tensor._version:
            return known[2]
        lengths = torch.linalg.vector_norm(at_least_float32(tensor), dim=1)
        self._known[name] = (weakref.ref(tensor), tensor._version, lengths)
        return lengths


@dataclass(config=STRICT)
class Cosine(Regularizer):
    """Hold each pruned unit to the direction of its unpruned reference."""

    strength: Annotated[float, Field(ge=0)] = 100.0
    """Weight of the alignment in the loss; 0 turns it off. The paper does not give it; search {1, 10, 100, 1000} on
    English dev. At 5e-4, the paper's value for Frobenius, the term has no effect, because Eqs. 2 and 3
    average."""

    reference: Reference = "pretrained"
    """Weights to align to: the pretrained ones, or those after dense fine-tuning. The latter have no effect in stage 0."""

    abs: bool = True
    """Count a unit and its negative as equally aligned, as Eq. 2 does."""

    mask_reference: bool = False
    """Prune the reference like the weights: the same direction for each unit, but more weight on heavily pruned ones."""

    reduction: Literal["mean", "sum"] = "mean"
    """`mean` over the units of a matrix and over matrices (Eqs. 2 and 3); `sum` over all units. For the same effect, `sum`
    needs a strength smaller by the number of units (82,944 for XLM-R base), if all matrices have equally many units."""

    def __post_init__(self) -> None:
        self._lengths = RowLengths()

    def __call__(self, weights: Weights, reference: Weights, masks: Masks | None = None) -> Tensor:
        """Return the differentiable term; ``masks`` serve ``mask_reference`` only; default: where weights are not zero."""
        terms = []
        for name, weight in weights.items():
            against = reference[name]
            if self.mask_reference:
                against = against * (weight.detach() != 0 if masks is None else masks[name])
            cosines = unit_cosines(weight, against)
            terms.append(self._share(weights, weight) * (cosines.abs() if self.abs else cosines).sum())
        return -self.strength * torch.stack(terms).sum()

    @torch.no_grad()
    def add_gradient(self, weights: Weights, reference: Weights, masks: Masks | None) -> Tensor:
        """Add the closed-form gradient to every ``.grad``; returns the term's value.

        One matrix at a time, no graph, and no copy of a matrix but that of the products; on a GPU all of them in one
        launch.
        """
        if not self.mask_reference and kernels.usable(*side_by_side(weights, reference)):
            return self._add_gradient_in_one_launch(weights, reference)
        value = torch.zeros((), dtype=torch.float64, device=next(iter(weights.values())).device)
        for name, parameter in weights.items():
            weight, whole = at_least_float32(parameter.detach()), at_least_float32(reference[name])
            share = -self.strength * self._share(weights, weight)
            if self.mask_reference:  # pruned weights that may return get gradients too
                whole = masked_copy(whole, masks, name)
                lengths = torch.linalg.vector_norm(whole, dim=1)
            else:
                lengths = self._lengths.of(name, reference[name])
            values, of_reference, of_weight = alignment_gradient(weight, whole, lengths, self.abs)
            value += share * values.sum(dtype=torch.float64)
            with gradient_of(parameter) as gradient:
                gradient.addcmul_(whole, share * of_reference).addcmul_(weight, share * of_weight)
        return value.to(torch.get_default_dtype())

    def _add_gradient_in_one_launch(self, weights: Weights, reference: Weights) -> Tensor:
        lengths = torch.cat([self._lengths.of(name, reference[name]) for name in weights])
        shares = [-self.strength * self._share(weights, weight) for weight in weights.values()]
        value = kernels.align(*side_by_side(weights, reference), lengths, shares, self.abs)
        return value.to(torch.get_default_dtype())

    def _share(self, weights: Weights, weight: Tensor) -> float:
        return 1.0 if self.reduction == "sum" else 1 / (len(weights) * len(weight))
