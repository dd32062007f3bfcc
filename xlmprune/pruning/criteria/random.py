"""Keep weights at random: the baseline that every other criterion must beat.

Scope `layer` draws the same share of every matrix; `global` (Global-Random) draws over all at once, which for
matrices of half a million weights is the same within a tenth of a percent.
"""

from __future__ import annotations

import torch
from pydantic.dataclasses import dataclass

from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.masks import Scores
from xlmprune.recipe.component import STRICT


@dataclass(config=STRICT)
class Random(Criterion):
    """Score every weight by an independent uniform draw."""

    def scores(self, context: PruningContext) -> Scores:
        """Draws from [0, 1), on the CPU so that every device prunes alike; repeatable from ``context.seed``."""
        generator = torch.Generator().manual_seed(context.seed)
        return {
            name: torch.rand(weight.shape, generator=generator).to(weight.device)
            for name, weight in context.weights.items()
        }
