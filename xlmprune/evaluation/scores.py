"""Scores per language, with the counts behind them.

Everything here works on numpy logits, whoever computed them: PyTorch while training, ONNX Runtime for a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlmprune.core import processes
from xlmprune.data.encoding import Encoded, batches_by_length, encode, join_encoded, pad
from xlmprune.data.examples import Examples
from xlmprune.tasks.metrics import Logits, Metric

Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`input_ids`, `attention_mask` [batch, tokens] to logits [batch, labels] or [batch, tokens, labels]."""


@dataclass(frozen=True)
class TestSet:
    """The examples of one language and their token ids."""

    examples: Examples
    encoded: Encoded

    __test__ = False  # not a pytest class

    def sample(self, count: int | None) -> TestSet:
        """Take ``count`` examples (whole groups for ranking), the same at every call, or all of them."""
        if count is None or count >= len(self.examples):
            return self
        rows = self.examples.sample_rows(count)
        return TestSet(self.examples.take(rows), self.encoded.take(rows))


@dataclass(frozen=True)
class Score:
    """The score of one language."""

    value: float
    """Main metric, percent."""
    others: dict[str, float]
    """The task's further metrics, percent."""
    statistics: np.ndarray
    """[examples, k]: the main metric is computed from their sum."""

    @property
    def n(self) -> int:
        """Number of examples (of groups, for ranking)."""
        return len(self.statistics)


Scores = dict[str, Score]


def load_test_sets(
    task: Any, tokenizer: Any, max_length: int, cap: int | None, languages: Sequence[str] | None = None
) -> dict[str, TestSet]:
    """Encode the test set of every language of the task, the train language first; or only of ``languages``."""
    sets = {}
    for language in task.languages() if languages is None else languages:
        examples = task.examples(language, "test")
        if cap is not None:
            examples = examples.sample(cap)
        sets[language] = TestSet(examples, encode(tokenizer, examples, max_length))
    return sets


def collect(forward: Forward, encoded: Encoded, batch_size: int) -> Logits:
    """Compute the logits of every example, in the order of the examples; several processes share the batches.

    Returns:
        one array per example: [labels], or for token tasks [words that survived truncation, labels].
    """
    logits: Logits = [np.empty(0, dtype=np.float32)] * len(encoded)
    batches = batches_by_length(encoded, batch_size)

    def compute(rows: np.ndarray) -> Logits:
        batch = pad(encoded, rows)
        output = forward(batch["input_ids"], batch["attention_mask"])
        if encoded.words is None:
            return list(output)
        return [output[index, encoded.words[row]] for index, row in enumerate(rows)]

    for rows, found in zip(batches, processes.spread(batches, compute), strict=True):
        for row, own in zip(rows, found, strict=True):
            logits[row] = own
    return logits


def score(logits: Logits, examples: Examples, metrics: tuple[Metric, ...], labels: tuple[str, ...]) -> Score:
    """Score one language; the first metric is the main one."""
    statistics = metrics[0].statistics(logits, examples, labels)
    others = {
        metric.name: float(metric.value(metric.statistics(logits, examples, labels).sum(axis=0)))
        for metric in metrics[1:]
    }
    return Score(float(metrics[0].value(statistics.sum(axis=0))), others, statistics)


TOGETHER = 4096
"""Examples of several languages that share batches, at most, unless one language has more."""


def counted(forward: Forward, advance: Callable[[int], None]) -> Forward:
    """Tell ``advance`` how many texts each call of ``forward`` has computed, of all processes together."""

    def compute(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        logits = forward(input_ids, attention_mask)
        advance(len(input_ids) * processes.count())
        return logits

    return compute


def evaluate(
    forward: Forward,
    sets: Mapping[str, TestSet],
    task: Any,
    batch_size: int,
    apart: bool = False,
    split: Callable[[str, Logits], Logits] = lambda language, outputs: outputs,
) -> Iterator[tuple[str, Score, Logits]]:
    """Yield (language, score, logits) of every test set, one after the other.

    Args:
        apart: let no two languages share a batch. Small test sets are padded more, and a form whose answers depend on the
            batch (INT8) answers as it does when one language is measured alone.
        split: takes a language and what ``forward`` gave for its examples, and returns the logits in it.
    """
    for languages in _shared(sets, 1 if apart else TOGETHER):
        joined = join_encoded([sets[language].encoded for language in languages])
        logits = collect(forward, joined, batch_size)
        for language in languages:
            test = sets[language]
            outputs, logits = logits[: len(test.encoded)], logits[len(test.encoded) :]
            own = split(language, outputs)
            yield language, score(own, test.examples, task.metrics, task.labels), own


def _shared(sets: Mapping[str, TestSet], most: int) -> Iterator[list[str]]:
    """Yield languages, in their order, that are measured together."""
    group: list[str] = []
    for language in sets:
        if group and sum(len(sets[one].encoded) for one in [*group, language]) > most:
            yield group
            group = []
        group.append(language)
    if group:
        yield group


def texts_in(sets: Mapping[str, TestSet]) -> int:
    """Return the number of examples of all languages."""
    return sum(len(test.encoded) for test in sets.values())


def zero_shot_mean(values: Mapping[str, float], train_language: str) -> float | None:
    """Average over the languages that were not trained on; None if there is none."""
    return mean(value for language, value in values.items() if language != train_language)


def mean(values: Iterable[float]) -> float | None:
    """Average; None for no values."""
    listed = list(values)
    return float(np.mean(listed)) if listed else None
