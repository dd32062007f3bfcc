"""Find options that make a long run shorter: fewer updates, and fewer test texts where scores take most of the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xlmprune.recipe.schema import Recipe, TrainingRecipe
from xlmprune.training.optimizer import updates_in_stage
from xlmprune.training.timing import Duration, texts_measured

LONG, SHORT = 20 * 60.0, 15 * 60.0
"""Seconds of training and scores from which on a run is long, and those of the shorter run, if that still learns."""

LEAST_LEARNING = 1e-3
"""Sum of the learning rates of stage 0 below which a model seldom learns anything. AdamW moves a weight by at most about the
learning rate in each update."""

LEAST_TEXTS = 100
"""Test texts of a language below which its score says little."""

MOST_TEXTS = 0.7
"""Share of the test texts above which leaving some out saves too little."""

LEAST_EPOCHS = 0.1
"""Below this share of the data a limit on updates is easier to read than epochs."""

EPOCHS = ("dense_epochs", "epochs_per_stage", "last_epochs")


@dataclass(frozen=True)
class Shorter:
    """Options of a shorter run."""

    options: list[str]
    """``key=value`` each, as `--set` takes them."""
    seconds: float
    """Of its training and scores."""

    def facts(self) -> dict[str, Any]:
        """Return the numbers for the plan."""
        return asdict(self)


def learned_at_most(training: TrainingRecipe, updates: int) -> float:
    """Return the sum of the learning rates of ``updates`` in stage 0."""
    rate = training.dense_learning_rate or training.learning_rate
    return rate * updates / (2 if training.lr_schedule == "linear" else 1)


def shortened(
    recipe: Recipe, duration: Duration, updates: Sequence[int], batches_per_epoch: int, tests: Sequence[int]
) -> Shorter | None:
    """Find options that make a long run short.

    Args:
        duration: of the run as it is.
        updates: number of updates, by stage.
        tests: number of test texts, by language.

    Returns:
        None where the run is not long, or nothing makes it much shorter.
    """
    whole = duration.training + duration.measuring
    if whole <= LONG:
        return None
    options, scores = _fewer_texts(recipe, duration.measuring, len(updates), tests)
    training = _less_training(recipe.training, duration, updates, SHORT - scores)
    last = len(updates) - 1
    settings = recipe.training.model_copy(update=training)
    counts = [updates_in_stage(settings, batches_per_epoch, stage, last) for stage in range(len(updates))]
    seconds = scores + sum(each * count for each, count in zip(duration.updates, counts, strict=True))
    options += [f"training.{key}={value:g}" for key, value in training.items()]
    return Shorter(options, seconds) if seconds < 0.8 * whole else None


def _fewer_texts(
    recipe: Recipe, seconds: float, stages: int, tests: Sequence[int]
) -> tuple[list[str], float]:
    """Return options with which scores take at most half of a short run, and the seconds that they take then."""
    cap = max(LEAST_TEXTS, int(max(tests) * SHORT / 2 / seconds)) if seconds else 0
    if seconds <= SHORT / 2 or cap > MOST_TEXTS * max(tests):
        return [], seconds
    before, after = (
        texts_measured(recipe, sizes, stages) for sizes in (tests, [min(size, cap) for size in tests])
    )
    return [f"task.max_test_examples={cap}"], seconds * after / before


def _less_training(
    training: TrainingRecipe, duration: Duration, updates: Sequence[int], seconds: float
) -> dict[str, float]:
    """Return keys of `training` with which it takes so many seconds, or more where it would learn nothing then."""
    share = seconds / duration.training if duration.training else 1.0
    learned = learned_at_most(training, updates[0])
    share = max(share, LEAST_LEARNING / learned if learned else 1.0)
    if share >= 1:
        return {}
    epochs = {key: float(f"{share * getattr(training, key):.2g}") for key in EPOCHS if getattr(training, key)}
    if training.max_updates_per_stage is None and min(epochs.values()) >= LEAST_EPOCHS:
        return epochs
    return {"max_updates_per_stage": max(1, round(share * max(updates)))}
