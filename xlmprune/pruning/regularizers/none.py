"""No regularizer: the task's loss alone."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.masks import Masks, Weights
from xlmprune.pruning.regularizers import Reference, Regularizer
from xlmprune.recipe.component import STRICT


@dataclass(config=STRICT)
class NoRegularizer(Regularizer):
    """Adds nothing to the loss."""

    strength: Annotated[float, Field(ge=0, le=0)] = 0.0
    """Always 0."""

    reference: Reference = "pretrained"
    """Not used; present in every regularizer."""

    def __call__(self, weights: Weights, reference: Weights, masks: Masks | None = None) -> Tensor:
        """Zero."""
        return torch.zeros((), device=next(iter(weights.values())).device)

    def add_gradient(self, weights: Weights, reference: Weights, masks: Masks | None) -> Tensor:
        """Leaves every gradient as it is; returns zero."""
        return self(weights, reference)
