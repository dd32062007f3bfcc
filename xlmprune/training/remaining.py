"""Estimate how much of a run is still to come, compared with the updates that it makes now.

An update with a teacher, or of a model that has lost layers, takes another time than one before pruning. So everything is
counted in tokens that pass forward through the whole encoder once. What an update adds for a regularizer, refitting and
export is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from xlmprune.data.encoding import Encoded
from xlmprune.data.examples import Kind
from xlmprune.models.loading import head_class
from xlmprune.recipe.schema import Recipe
from xlmprune.training.method import Method
from xlmprune.training.shrinking import planned_densities

FORWARD, UPDATE = 1.0, 3.0
"""A pass forward, and one forward and back: the gradients of inputs and of weights take as long as a pass forward each."""

LEARNERS = 2.0
"""Where several sizes are trained as one, an update trains the largest, the smallest and one between."""


@dataclass(frozen=True)
class Remaining:
    """What a run does, in tokens that pass forward through the whole encoder."""

    counts: Sequence[int]
    """Number of updates, by stage."""
    updates: Sequence[float]
    """Of one update, by stage."""
    scores: Sequence[float]
    """Of the scores after a stage, by stage."""

    def after(self, stage: int) -> float:
        """Return how many updates of a stage take as long as all that follows it."""
        later = range(stage + 1, len(self.counts))
        rest = sum(self.counts[number] * self.updates[number] for number in later) + sum(self.scores[stage:])
        return rest / self.updates[stage]


def remaining(
    recipe: Recipe,
    shares: Sequence[float],
    counts: Sequence[int],
    train: Encoded,
    unlabelled: Encoded | None,
    tests: Sequence[Encoded],
) -> Remaining:
    """Count what a run does.

    Args:
        shares: of the encoder that layers, heads and neurons leave, by stage; the last one holds for all later stages.
        counts: number of updates, by stage.
        unlabelled: text that the model learns a teacher's answers on.
    """
    last = len(counts) - 1
    share = [shares[min(stage, len(shares) - 1)] for stage in range(last + 1)]
    structure, evaluation = recipe.pruning.structure, recipe.evaluation
    learners = 1.0 if structure is None or structure.smallest is None else LEARNERS
    teacher = 0.0 if recipe.distillation is None else FORWARD
    batch = recipe.training.batch_size * _mean_length(train)
    both = batch if unlabelled is None else batch + recipe.training.batch_size * _mean_length(unlabelled)
    updates = [UPDATE * batch, *(both * (UPDATE * learners * left + teacher) for left in share[1:])]
    whole = [len(test) * _mean_length(test) for test in tests]
    cap = evaluation.max_stage_examples
    sampled = [
        tokens * min(1.0, (cap or len(test)) / max(1, len(test)))
        for tokens, test in zip(whole, tests, strict=True)
    ]
    scores = [
        sum(sampled) * share[stage] if stage % evaluation.stage_interval == 0 else 0.0
        for stage in range(last + 1)
    ]
    scores[0] = sum(whole)
    scores[last] = sum(whole) * share[last] * (1 + len(recipe.export.onnx))
    return Remaining(counts, updates, scores)


def _mean_length(texts: Encoded) -> float:
    return float(np.mean([len(ids) for ids in texts.input_ids])) if len(texts) else 0.0


def shares_left(config: Any, kind: Kind, method: Method) -> list[float]:
    """Return the share of the encoder that layers, heads and neurons leave, by stage, until none are removed any more."""
    if method.structure is None:
        return [1.0]
    with torch.device("meta"):
        model = head_class(config, kind)(deepcopy(config))
    return [1.0, *planned_densities(model, method.structure)]
