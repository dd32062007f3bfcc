"""Keep the weights that are large and agree with the pretrained ones (the paper's Eq. 6 read as a choice of masks).

At the paper's 5e-4 it orders almost as magnitude does; larger strengths prune first what fine-tuning turned
around.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.masks import Scores
from xlmprune.recipe.component import STRICT


def agreement(weight: Tensor, reference: Tensor, strength: float) -> Tensor:
    """``(1 - strength) w^2 + 2 strength p w``: keeping the highest minimises ``||W - M W||^2 + strength ||P - M W||^2``.

    Args:
        weight: [out, in].
        reference: [out, in], pretrained.

    Returns:
        [out, in]; negative where the weight turned against its reference.

    Source: O'Neill et al. 2022 (arXiv:2204.01385), Eq. 6, which separates by entry for masks of a fixed size.
    """
    return (1 - strength) * weight.square() + 2 * strength * reference * weight


@dataclass(config=STRICT)
class Eq6(Criterion):
    """Score every weight by its square and its agreement with the pretrained weight."""

    strength: Annotated[float, Field(ge=0, le=1)] = 5e-4
    """0 ranks by magnitude, 1 ranks only by agreement with the pretrained weights."""

    def scores(self, context: PruningContext) -> Scores:
        """Return the scores, against the pretrained weights always."""
        return {
            name: agreement(weight, context.reference[name].to(weight), self.strength)
            for name, weight in context.weights.items()
        }
