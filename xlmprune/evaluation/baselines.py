"""Scores that need no model: always the most frequent label, and guessing. A model that learned something beats both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import cast

import numpy as np

from xlmprune.data.examples import Examples
from xlmprune.evaluation.intervals import interval
from xlmprune.tasks.metrics import Accuracy, Logits, Metric, TokenAccuracy

GUESSES = 10
"""Random answers to every example, averaged, for metrics whose chance level has no formula."""


@dataclass(frozen=True)
class Baselines:
    """Scores of one set of examples without a model, in percent."""

    majority: float
    """Of answering always with the set's most frequent label."""
    chance: float
    """Of guessing, each label with the same probability."""
    label: str
    """The most frequent label."""

    @property
    def best(self) -> float:
        """The higher of the two."""
        return max(self.majority, self.chance)


def baselines(examples: Examples, metric: Metric, labels: tuple[str, ...]) -> Baselines | None:
    """Return the baselines of ``examples``, or None if they have no labels."""
    if examples.labels is None or not len(examples):
        return None
    counts = np.bincount(np.fromiter(_flat(examples), dtype=np.int64), minlength=len(labels))
    most = int(counts.argmax())
    constant = np.eye(len(labels))[most]
    majority = _value(
        metric, [np.broadcast_to(constant, shape) for shape in _shapes(examples, labels)], examples, labels
    )
    return Baselines(majority, _chance(examples, metric, labels), labels[most])


def learned_nothing(statistics: np.ndarray, metric: Metric, baseline: Baselines) -> bool:
    """Return whether a score is not clearly above its baselines: the lower end of its 95 % interval is not.

    Args:
        statistics: [examples, k], what the metric sums up.
    """
    low, _ = interval(statistics, metric)
    return (float(metric.value(statistics.sum(axis=0))) if low is None else low) <= baseline.best


def describe(score: float, baseline: Baselines, where: str) -> str:
    """Say that a score is not above its baselines, and what to try; ``where`` names the examples."""
    return (
        f"the model has not learned the task before pruning: it scores {score:.1f} on {where}, where always answering "
        f"{baseline.label!r} scores {baseline.majority:.1f} and guessing {baseline.chance:.1f}. Scores "
        "after pruning then mean nothing. If the loss stayed where it began, start again with a lower "
        "training.dense_learning_rate, more training.dense_warmup_updates or another seed; otherwise with a higher rate "
        "or more epochs. Or check the labels"
    )


def _flat(examples: Examples) -> Iterable[int]:
    if examples.kind == "tokens":
        return chain.from_iterable(cast(list[list[int]], examples.labels))
    return cast(list[int], examples.labels)


def _shapes(examples: Examples, labels: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Shapes of the logits of every example: [labels], or [words, labels]."""
    if examples.kind == "tokens":
        return [(len(words), len(labels)) for words in examples.first]
    return [(len(labels),)] * len(examples)


def _chance(examples: Examples, metric: Metric, labels: tuple[str, ...]) -> float:
    if isinstance(metric, Accuracy | TokenAccuracy):
        return 100 / len(labels)
    random, shapes = np.random.default_rng(0), _shapes(examples, labels)
    guesses = ([random.random(shape) for shape in shapes] for _ in range(GUESSES))
    return float(np.mean([_value(metric, guess, examples, labels) for guess in guesses]))


def _value(metric: Metric, logits: Logits, examples: Examples, labels: tuple[str, ...]) -> float:
    return float(metric.value(metric.statistics(logits, examples, labels).sum(axis=0)))
