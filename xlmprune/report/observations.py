"""The report's keys `answers`, `errors` and `classes`, which compare the dense model with the pruned one text by text.

A run that an older version began did not keep the dense model's answers; these keys are then missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xlmprune.evaluation import answers
from xlmprune.evaluation.separability import Separability, sampled

if TYPE_CHECKING:
    from xlmprune.training.outcome import Datasets, Outcome

DECIMALS = 3
"""Of the points in report.json; they are drawn, not computed with."""


def assemble(outcome: Outcome, data: Datasets, shown: int, drawn: Sequence[str]) -> dict[str, Any]:
    """Return those of the three keys that the run has data for.

    Args:
        shown: sample errors of each language, at most.
        drawn: languages of which `classes` has the points.
    """
    found = {
        "answers": _confusions(outcome, data),
        "errors": _errors(outcome, data, shown),
        "classes": _classes(outcome, data, drawn),
    }
    return {key: value for key, value in found.items() if value}


def _confusions(outcome: Outcome, data: Datasets) -> dict[str, dict[str, answers.Confusion]]:
    """{language: {dense, pruned: {gold label: {answer: count}}}}."""
    labels = data.task.labels
    return {
        language: {
            "dense": answers.confusion(items, dense, labels),
            "pruned": answers.confusion(items, pruned, labels),
        }
        for language, items, dense, pruned in _answered(outcome, data)
    }


def _errors(outcome: Outcome, data: Datasets, shown: int) -> dict[str, dict[str, Any]]:
    """{language: {introduced: count, shown: [{text, gold, dense, pruned}]}}, languages without such errors left out."""
    labels = data.task.labels
    found = {}
    for language, items, dense, pruned in _answered(outcome, data):
        if count := len(answers.introduced(items, dense, pruned)):
            examples = data.tests[language].examples
            sample = answers.sample_errors(examples, items, dense, pruned, labels, shown)
            found[language] = {"introduced": count, "of": len(items.gold), "shown": sample}
    return found


def _answered(outcome: Outcome, data: Datasets) -> list[tuple[str, answers.Items, np.ndarray, np.ndarray]]:
    """Return (language, items, dense answers, pruned answers) of every language that has all of them."""
    dense, pruned = outcome.dense_observed.answers, outcome.observed.answers
    return [
        (language, items, dense[language], pruned[language])
        for language, test in data.tests.items()
        if language in dense and language in pruned and (items := answers.items_of(test)) is not None
    ]


def _classes(outcome: Outcome, data: Datasets, drawn: Sequence[str]) -> dict[str, Any]:
    """{shares: {language: {dense, pruned}}, explained: {dense, pruned}, points: {language: {labels, dense, pruned}}}."""
    models = {"dense": outcome.dense_observed.classes, "pruned": outcome.observed.classes}
    known = {name: classes for name, classes in models.items() if classes is not None}
    if len(known) < len(models):
        return {}
    sample = sampled(data.tests)
    shares = {
        language: {name: classes.shares[language] for name, classes in known.items()} for language in sample
    }
    points = {
        language: {
            "labels": [data.task.labels[label] for label in sample[language].examples.labels or ()],
            **{name: _rounded(classes, language) for name, classes in known.items()},
        }
        for language in drawn
        if language in sample
    }
    explained = {name: list(classes.explained) for name, classes in known.items()}
    return {"shares": shares, "explained": explained, "points": points}


def _rounded(classes: Separability, language: str) -> list[list[float]]:
    return [[round(float(value), DECIMALS) for value in point] for point in classes.points[language]]
