"""Scores per language, with the counts behind them.

Everything here works on numpy logits, whoever computed them: PyTorch while training, ONNX Runtime for a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lgamma, log, sqrt
from typing import Any

import numpy as np

from xlmprune.data.examples import Encoded, Examples, batches_by_length, encode, pad
from xlmprune.tasks.metrics import Logits, Metric

Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`input_ids`, `attention_mask` [batch, tokens] to logits [batch, labels] or [batch, tokens, labels]."""

RESAMPLES = 2000

NORMAL_95 = 1.959964
"""Standard deviations to each side that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class TestSet:
    """The examples of one language and their token ids."""

    examples: Examples
    encoded: Encoded

    __test__ = False  # not a pytest class

    def head(self, count: int | None) -> TestSet:
        """The first ``count`` examples (whole groups for ranking), or all of them."""
        if count is None or count >= len(self.examples):
            return self
        fewer = self.examples.head(count)
        return TestSet(fewer, self.encoded.rows(len(fewer)))


@dataclass(frozen=True)
class Score:
    """How one language did."""

    value: float
    """Main metric, percent."""
    others: dict[str, float]
    """The task's further metrics, percent."""
    statistics: np.ndarray
    """[examples, k]: what the main metric sums up."""

    @property
    def n(self) -> int:
        """Number of examples (of groups, for ranking)."""
        return len(self.statistics)


Scores = dict[str, Score]


def load_test_sets(
    task: Any, tokenizer: Any, max_length: int, cap: int | None, languages: Sequence[str] | None = None
) -> dict[str, TestSet]:
    """Encode the test set of every language of the task, the train language first; or of ``languages`` alone."""
    sets = {}
    for language in task.languages() if languages is None else languages:
        examples = task.examples(language, "test")
        if cap is not None:
            examples = examples.head(cap)
        sets[language] = TestSet(examples, encode(tokenizer, examples, max_length))
    return sets


def collect(forward: Forward, encoded: Encoded, batch_size: int) -> Logits:
    """Logits of every example, in the examples' order.

    Returns:
        one array per example: [labels], or for token tasks [words that survived truncation, labels].
    """
    logits: Logits = [np.empty(0, dtype=np.float32)] * len(encoded)
    for rows in batches_by_length(encoded, batch_size):
        batch = pad(encoded, rows)
        output = forward(batch["input_ids"], batch["attention_mask"])
        for place, row in enumerate(rows):
            logits[row] = output[place] if encoded.words is None else output[place, encoded.words[row]]
    return logits


def score(logits: Logits, examples: Examples, metrics: tuple[Metric, ...], labels: tuple[str, ...]) -> Score:
    """Sum up one language's logits; the first metric is the main one."""
    statistics = metrics[0].statistics(logits, examples, labels)
    others = {
        metric.name: float(metric.value(metric.statistics(logits, examples, labels).sum(axis=0)))
        for metric in metrics[1:]
    }
    return Score(float(metrics[0].value(statistics.sum(axis=0))), others, statistics)


def evaluate(
    forward: Forward, sets: Mapping[str, TestSet], task: Any, batch_size: int
) -> Iterator[tuple[str, Score, Logits]]:
    """(language, score, logits) of every test set, one after the other."""
    for language, test in sets.items():
        logits = collect(forward, test.encoded, batch_size)
        yield language, score(logits, test.examples, task.metrics, task.labels), logits


def require_scorable(task: Any, tests: Iterable[Examples]) -> None:
    """Score answers of zeros, so that what cannot be scored is told now and not after hours of training.

    Raises:
        DataError: a test set has no labels, or none that the task's metrics can use.
        RecipeError: the task has no such metric.
    """
    count = len(task.labels)
    for examples in tests:
        shapes = [(count,) if isinstance(text, str) else (len(text), count) for text in examples.first]
        score([np.zeros(shape, dtype=np.float32) for shape in shapes], examples, task.metrics, task.labels)


def interval(
    statistics: np.ndarray, metric: Metric, seed: int = 0
) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of the metric.

    Wilson's (1927) where every example is right or wrong; else by resampling examples (percentile bootstrap, 2,000
    resamples). None, None without examples, and where all resamples score the same: with few examples that says nothing
    of how certain the score is.
    """
    count = len(statistics)
    if count == 0:
        return None, None
    if _right_or_wrong(statistics):
        return _wilson(float(statistics[:, 0].sum()), count)
    random = np.random.default_rng(seed)
    values = []
    for start in range(0, RESAMPLES, 100):
        weights = random.multinomial(count, np.full(count, 1 / count), size=min(100, RESAMPLES - start))
        values.append(metric.value(weights @ statistics))
    low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
    return (float(low), float(high)) if low < high else (None, None)


def _right_or_wrong(statistics: np.ndarray) -> bool:
    """Whether each row is (0 or 1, 1): the metric is then the share of examples that are right."""
    return (
        statistics.shape[1] == 2
        and bool((statistics[:, 1] == 1).all())
        and bool(np.isin(statistics[:, 0], (0, 1)).all())
    )


def _wilson(right: float, count: int) -> tuple[float, float]:
    share, spread = right / count, NORMAL_95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = NORMAL_95 * sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    # At the edges one end is the score itself, but for rounding.
    return 100 * max(0.0, min(share, centre - half)), 100 * min(1.0, max(share, centre + half))


def paired(before: np.ndarray, after: np.ndarray, metric: Metric) -> dict[str, float | int]:
    """Exact McNemar test of two models on the same examples.

    An example is gained where the metric on it alone is higher after, lost where it is lower. For accuracy these
    are the discordant pairs; for other metrics it is the sign test.

    Args:
        before, after: [examples, k] statistics of the same examples, in the same order.

    Returns:
        ``p_value`` (two-sided, binomial with p = 1/2), ``gained``, ``lost``.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"the two models were measured on different examples: {before.shape} and {after.shape}"
        )
    difference = _each(after, metric) - _each(before, metric)
    gained, lost = int((difference > 1e-9).sum()), int((difference < -1e-9).sum())
    return {"p_value": _sign_test(gained, lost), "gained": gained, "lost": lost}


def _each(statistics: np.ndarray, metric: Metric) -> np.ndarray:
    """The metric on every example alone. Where there was nothing to find and nothing was found, that is right: 100."""
    return np.where(statistics.any(axis=1), metric.value(statistics), 100.0)


def _sign_test(gained: int, lost: int) -> float:
    total, extreme = gained + lost, min(gained, lost)
    if total == 0:
        return 1.0
    logs = [
        lgamma(total + 1) - lgamma(k + 1) - lgamma(total - k + 1) - total * log(2) for k in range(extreme + 1)
    ]
    return float(min(1.0, 2 * np.exp(logs).sum()))


def zero_shot_mean(values: Mapping[str, float], train_language: str) -> float | None:
    """Mean over the languages that were not trained on; None when there is none."""
    return mean(value for language, value in values.items() if language != train_language)


def mean(values: Iterable[float]) -> float | None:
    """Arithmetic mean, None of nothing."""
    listed = list(values)
    return float(np.mean(listed)) if listed else None


@dataclass
class Agreement:
    """How far one form's logits are from another's, over real padded batches."""

    largest: float = 0.0
    """Largest absolute difference."""
    low: float = np.inf
    high: float = -np.inf
    same: int = 0
    n: int = 0

    def add(self, expected: Logits, found: Logits) -> None:
        """Take in the logits of one language from both."""
        if not expected:
            return
        wanted = np.concatenate([np.atleast_2d(row) for row in expected])
        got = np.concatenate([np.atleast_2d(row) for row in found])
        if not np.isfinite(got).all():
            self.largest = float("inf")
        else:
            self.largest = max(self.largest, float(np.abs(wanted - got).max()))
        self.low, self.high = min(self.low, float(wanted.min())), max(self.high, float(wanted.max()))
        self.same += int((wanted.argmax(1) == got.argmax(1)).sum())
        self.n += len(wanted)

    @property
    def relative(self) -> float:
        """Largest difference as a share of the logits' range."""
        return self.largest / max(self.high - self.low, 1e-12)

    @property
    def agreement(self) -> float:
        """Share of predictions (words, for token tasks) with the same label."""
        return self.same / self.n if self.n else float("nan")

    def as_dict(self) -> dict[str, float | int]:
        """For the report."""
        return {
            "max_abs_diff": self.largest,
            "relative_diff": self.relative,
            "agreement": self.agreement,
            "n": self.n,
        }
