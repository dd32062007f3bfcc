"""Keep the weights of largest absolute value (magnitude pruning; with AlignReg, the paper's own method).

The sound default: it needs no data, and every other criterion is measured against it. Scope `layer` keeps the same
share of every matrix, `global` (L2-Global-MBP) ranks all matrices together.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.masks import Scores
from xlmprune.recipe.component import STRICT


def magnitude(weight: Tensor) -> Tensor:
    """``|w|``, shaped like ``weight``.

    Source: O'Neill et al. 2022 (arXiv:2204.01385), Algorithm 1. Its line 6 ranks w and not |w|, which would
    delete the most negative weights first; the text and the name say magnitude.
    """
    return weight.abs()


@dataclass(config=STRICT)
class Magnitude(Criterion):
    """Score every weight by its absolute value."""

    def scores(self, context: PruningContext) -> Scores:
        """``|w|`` of every weight."""
        return {name: magnitude(weight) for name, weight in context.weights.items()}
