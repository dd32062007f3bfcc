"""Is one method better than another on the same examples? A randomization test, and Holm's correction for many.

The test speaks for the examples, given these trained models: would the difference survive another test set? It
says nothing of another seed; for that there is the spread over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xlmprune.tasks.metrics import Metric

ROUNDS = 10_000

Statistics = Mapping[str, np.ndarray]
"""By language, [examples, k]: what a metric sums up."""


@dataclass(frozen=True)
class Test:
    """Two models on the same examples."""

    difference: float
    """Mean over languages and seeds of the metric, second minus first, in points."""
    p_value: float
    """Two-sided; at least 1 / (rounds + 1)."""

    __test__ = False  # not a pytest class


def randomization_test(
    first: Sequence[Statistics],
    second: Sequence[Statistics],
    metric: Metric,
    rounds: int = ROUNDS,
) -> Test:
    """Exchange the two models' answers example by example, at random, and see how often they differ as much.

    Examples at the same index of every language are exchanged together, and so are an example's answers under all
    seeds. Test sets are often translations of one another, and counting them as independent would make small
    differences look certain.

    Args:
        first, second: one entry for each seed, equal seeds at equal indices; all with the same languages and, for each
            language, the same examples.
        metric: what turns summed statistics into a score, such as accuracy or F1.
        rounds: random exchanges.

    Raises:
        ValueError: the two were measured on different examples.

    Source: Noreen 1989; for F1 and other scores that are no means of examples, Yeh 2000 (arXiv:cs/0008005).
    """
    a, b = _stack(first), _stack(second)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"the two were measured on different examples: {a.shape} and {b.shape}")
    totals_a, totals_b = a.sum(axis=0), b.sum(axis=0)
    observed = _difference(totals_a, totals_b, metric)
    gap = (b - a).reshape(len(a), -1)
    gap = gap[gap.any(axis=1)]
    random = np.random.default_rng(0)
    as_large = 0
    for start in range(0, rounds, 500):
        size = (min(500, rounds - start), len(gap))
        moved = (random.integers(0, 2, size, dtype=np.int8).astype(np.float64) @ gap).reshape(
            -1, *totals_a.shape
        )
        drawn = _difference(totals_a + moved, totals_b - moved, metric)
        # Sums of the same counts in another order may differ in their last digits.
        as_large += int((np.abs(drawn) >= abs(observed) - 1e-9).sum())
    return Test(float(observed), (as_large + 1) / (rounds + 1))


def _difference(first: np.ndarray, second: np.ndarray, metric: Metric) -> np.ndarray:
    """[…, seeds, languages, k] each to […]."""
    return (metric.value(second) - metric.value(first)).mean(axis=(-2, -1))


def _stack(runs: Sequence[Statistics]) -> np.ndarray:
    """[examples, seeds, languages, k]; a language with fewer examples than the longest has zeros at its end."""
    languages = list(runs[0]) if runs else []
    if any(set(run) != set(languages) for run in runs):
        raise ValueError("the runs were measured in different languages")
    longest = max((len(run[language]) for run in runs for language in languages), default=0)
    width = runs[0][languages[0]].shape[1] if languages else 0
    stacked = np.zeros((longest, len(runs), len(languages), width))
    for index, run in enumerate(runs):
        for column, language in enumerate(languages):
            stacked[: len(run[language]), index, column] = run[language]
    return stacked


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values for many tests: believing all that stay below 0.05, one is wrong anywhere in at most 5 % of such tables.

    Source: Holm 1979.
    """
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected.tolist()
