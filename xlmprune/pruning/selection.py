"""Choose what remains: the one place where a criterion's ranking becomes the next masks."""

from __future__ import annotations

from dataclasses import dataclass

from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.masks import Masks, Scope, attainable, select


@dataclass(frozen=True)
class Selection:
    """What is removed as a unit, and where units compete: single weights, in a pattern or freely."""

    scope: Scope
    pattern: str

    def density(self, wanted: float) -> float:
        """Return the density that masks really have where a schedule asks for ``wanted``."""
        return attainable(wanted, self.pattern)

    def masks(self, criterion: Criterion, context: PruningContext) -> Masks:
        """Return the next masks, within ``context.masks``."""
        ranking = criterion.ranking(context)
        least = criterion.least_of_matrix
        return select(ranking, context.density, context.masks, self.scope, self.pattern, least)
