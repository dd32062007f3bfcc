"""`cosine` and `frobenius` together; not in the paper.

Choose it when direction should be held firmly and values loosely; it has two strengths to search.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.masks import Masks, Weights
from xlmprune.pruning.regularizers import Reference, Regularizer
from xlmprune.pruning.regularizers.cosine import Cosine
from xlmprune.pruning.regularizers.frobenius import Frobenius
from xlmprune.recipe.component import STRICT


@dataclass(config=STRICT)
class Both(Regularizer):
    """Hold units to their direction and remaining weights to their values."""

    strength: Annotated[float, Field(ge=0)] = 1.0
    """Multiplies both terms; 0 turns them off."""

    cosine: Annotated[float, Field(ge=0)] = 100.0
    """Strength of the cosine term."""

    frobenius: Annotated[float, Field(ge=0)] = 5e-4
    """Strength of the Frobenius term."""

    reference: Reference = "pretrained"
    """Weights that both terms align to."""

    def __post_init__(self) -> None:
        self._terms = (
            Cosine(strength=self.strength * self.cosine, reference=self.reference),
            Frobenius(strength=self.strength * self.frobenius, reference=self.reference),
        )

    def __call__(self, weights: Weights, reference: Weights, masks: Masks | None = None) -> Tensor:
        """Return the sum of both terms, differentiable."""
        first, second = self._terms
        return first(weights, reference, masks) + second(weights, reference, masks)

    def add_gradient(self, weights: Weights, reference: Weights, masks: Masks | None) -> Tensor:
        """Add both gradients to every ``.grad``; returns the sum of the values."""
        first, second = self._terms
        return first.add_gradient(weights, reference, masks) + second.add_gradient(weights, reference, masks)
