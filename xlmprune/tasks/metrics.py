"""Scores in percent, each as a sum of counts per example.

A metric first gives sufficient statistics, one row per example (or per group of ranked documents). Its value is a
function of their sum. So intervals by resampling rows, and tests on paired rows, need no knowledge of the metric.
Numpy only.

The numbers are those of the official script (microsoft/XGLUE, `xglue_evaluate.py`). Its rule for part-of-speech tags
is not an accuracy, so it has a name of its own, `pos_xglue`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from xlmprune.core.errors import DataError, RecipeError
from xlmprune.data.examples import Examples

Logits = list[np.ndarray]
"""Per example [labels]; for token tasks [words that survived truncation, labels]."""

CUT = "O"
"""The prediction for a word cut off by truncation, in metrics over spans; it makes no span."""


class Metric(Protocol):
    """What scores a task."""

    @property
    def name(self) -> str:
        """Its name in reports and recipes, such as ``f1``."""

    def statistics(self, logits: Logits, examples: Examples, labels: tuple[str, ...]) -> np.ndarray:
        """Give sufficient statistics, float64 [examples or groups, k]."""

    def value(self, totals: np.ndarray) -> np.ndarray:
        """Turn summed statistics into a score in percent, [..., k] to [...]; 0 if there is nothing to score."""


@dataclass(frozen=True)
class Accuracy:
    """Share of examples whose highest logit is their label's."""

    name: str = "accuracy"

    def statistics(self, logits: Logits, examples: Examples, labels: tuple[str, ...]) -> np.ndarray:
        """[examples, 2]: correct, 1."""
        gold = np.array(_gold(examples, logits))
        predicted = np.array([int(row.argmax()) for row in logits], dtype=np.int64)
        return np.stack([predicted == gold, np.ones(len(gold))], axis=-1).astype(np.float64).reshape(-1, 2)

    def value(self, totals: np.ndarray) -> np.ndarray:
        """100 · correct / all."""
        return _percent(totals[..., 0], totals[..., 1])


@dataclass(frozen=True)
class TokenAccuracy:
    """Share of words tagged right; a word cut off by truncation is wrong."""

    name: str = "token_accuracy"

    def statistics(self, logits: Logits, examples: Examples, labels: tuple[str, ...]) -> np.ndarray:
        """[sentences, 2]: words tagged right, words."""
        rows = []
        for tags, gold in zip(logits, _gold(examples, logits), strict=True):
            predicted = _argmax(tags, gold)
            rows.append((np.count_nonzero(predicted == np.array(gold[: len(predicted)])), len(gold)))
        return np.array(rows, dtype=np.float64).reshape(-1, 2)

    def value(self, totals: np.ndarray) -> np.ndarray:
        """100 · words tagged right / words."""
        return _percent(totals[..., 0], totals[..., 1])


@dataclass(frozen=True)
class EntityF1:
    """Micro F1 over entities of equal type and extent, BIO tags decoded leniently, as seqeval does."""

    name: str = "f1"

    def statistics(self, logits: Logits, examples: Examples, labels: tuple[str, ...]) -> np.ndarray:
        """[sentences, 3]: entities found, entities predicted, entities of the gold tags."""
        rows = []
        for tags, gold in zip(logits, _gold(examples, logits), strict=True):
            found = entities(_names(_argmax(tags, gold), labels, len(gold)))
            expected = entities([labels[tag] for tag in gold])
            rows.append((len(found & expected), len(found), len(expected)))
        return np.array(rows, dtype=np.float64).reshape(-1, 3)

    def value(self, totals: np.ndarray) -> np.ndarray:
        """200 · found / (predicted + gold)."""
        return _percent(2 * totals[..., 0], totals[..., 1] + totals[..., 2])


@dataclass(frozen=True)
class TagRuns:
    """XGLUE's "accuracy" of part-of-speech tags: the precision of runs of equal tags.

    The official script hands raw tags to an entity scorer. It then sees a maximal run of one tag as one
    chunk, except that every token whose tag begins with S (SCONJ, SYM) is a chunk of its own. Lower than the
    accuracy by half a point to eight; to be compared with published numbers only. Words cut off make no
    predicted chunk.
    """

    name: str = "pos_xglue"

    def statistics(self, logits: Logits, examples: Examples, labels: tuple[str, ...]) -> np.ndarray:
        """[sentences, 2]: predicted chunks that are in the gold tags, predicted chunks."""
        rows = []
        for tags, gold in zip(logits, _gold(examples, logits), strict=True):
            found = tag_runs(_names(_argmax(tags, gold), labels, len(gold)))
            rows.append((len(found & tag_runs([labels[tag] for tag in gold])), len(found)))
        return np.array(rows, dtype=np.float64).reshape(-1, 2)

    def value(self, totals: np.ndarray) -> np.ndarray:
        """100 · right chunks / predicted chunks."""
        return _percent(totals[..., 0], totals[..., 1])


@dataclass(frozen=True)
class Ndcg:
    """nDCG of the documents of every query, without a cut-off; labels are numbers, the gains.

    ``expected=False`` ranks by the gain of the most probable label, as XGLUE's baselines do;
    ``expected=True`` by the expected gain, which breaks most ties. Groups of a single document are left out;
    a group without any relevant document counts 0.
    """

    name: str = "wpr_argmax"
    expected: bool = False

    def statistics(self, logits: Logits, examples: Examples, labels: tuple[str, ...]) -> np.ndarray:
        """Return [groups of two or more, 2]: nDCG in [0, 1], 1.

        Raises:
            DataError: no group has two documents.
        """
        gold = _gold(examples, logits)
        if examples.groups is None:
            raise DataError(f"{examples.origin}: no query to group documents by, which nDCG needs")
        gains = _gains(labels)
        scores = np.array([self._score(row, gains) for row in logits])
        truth = np.array([gains[label] for label in gold])
        rows = [(ndcg(truth[a:b], scores[a:b]), 1.0) for a, b in runs(examples.groups) if b - a >= 2]
        if not rows and len(examples):
            raise DataError(
                f"{examples.origin}: no query has two documents, so nothing is ranked in {examples.language!r}. The "
                "documents of a query must be on neighbouring lines"
            )
        return np.array(rows, dtype=np.float64).reshape(-1, 2)

    def _score(self, logits: np.ndarray, gains: np.ndarray) -> float:
        if not self.expected:
            return float(gains[int(logits.argmax())])
        shares = np.exp(logits.astype(np.float64) - logits.max())
        return float(shares @ gains / shares.sum())

    def value(self, totals: np.ndarray) -> np.ndarray:
        """100 · mean nDCG over groups."""
        return _percent(totals[..., 0], totals[..., 1])


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """List the entities of one sentence as (type, first word, last word).

    Lenient, as in seqeval's default mode: an I- that follows O or another type begins an entity, so IOB1 and IOB2
    give the same. S- and E- of IOBES are understood.
    """
    found = set()
    begin, previous, previous_type = 0, "O", ""
    for word, tag in enumerate([*tags, "O"]):
        prefix, kind = tag[:1], tag[1:].split("-", maxsplit=1)[-1] or "_"
        if previous != "O" and (previous in "ES" or prefix in "BSO" or previous_type != kind):
            found.add((previous_type, begin, word - 1))
        if prefix in "BS" or (prefix != "O" and (previous in "OES" or previous_type != kind)):
            begin = word
        previous, previous_type = prefix, kind
    return found


def tag_runs(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """List the chunks of one sentence as XGLUE's script counts them, (tag, first word, last word); "O" is no chunk."""
    found = set()
    for a, b in runs(tags):
        if tags[a].startswith("S"):
            found |= {(tags[a], word, word) for word in range(a, b)}
        elif tags[a] != CUT:
            found.add((tags[a], a, b - 1))
    return found


def runs(values: Sequence[str]) -> list[tuple[int, int]]:
    """List the maximal runs of equal neighbours as half-open ranges, in order."""
    ends = [end for end in range(1, len(values) + 1) if values[end : end + 1] != values[end - 1 : end]]
    return list(zip([0, *ends], ends, strict=False))


def ndcg(gold: np.ndarray, scores: np.ndarray) -> float:
    """Compute the nDCG in [0, 1] of one ranked list: linear gain, discount 1/log2(rank + 1), no cut-off.

    Documents with equal scores share the mean gain of their ranks, the expected value of a random order among
    them, as in scikit-learn's `ndcg_score` (McSherry and Najork 2008). It is 0 if no document has any gain.
    """
    discounts = 1 / np.log2(np.arange(len(gold)) + 2)
    best = float(np.sort(gold)[::-1] @ discounts)
    if best == 0:
        return 0.0
    _, rank, count = np.unique(-scores, return_inverse=True, return_counts=True)
    mean_gain = np.bincount(rank, weights=gold) / count
    ends = np.cumsum(count)
    summed = np.concatenate([[0.0], np.cumsum(discounts)])
    return float(mean_gain @ (summed[ends] - summed[ends - count])) / best


def _gold(examples: Examples, logits: Logits) -> list:
    if examples.labels is None:
        raise DataError(
            f"{examples.origin}: no labels, so there is nothing to score against. `predict` needs none; to "
            "evaluate, use a release of the data whose test files have labels"
        )
    if len(logits) != len(examples):
        raise ValueError(f"logits of {len(logits)} examples for {len(examples)}")
    return examples.labels


def _argmax(logits: np.ndarray, gold: Sequence[int]) -> np.ndarray:
    if len(logits) > len(gold):
        raise ValueError(f"logits of {len(logits)} words for a sentence of {len(gold)}")
    return logits.argmax(axis=-1) if len(logits) else np.zeros(0, dtype=np.int64)


def _names(tags: np.ndarray, labels: tuple[str, ...], words: int) -> list[str]:
    return [labels[tag] for tag in tags] + [CUT] * (words - len(tags))


def _gains(labels: tuple[str, ...]) -> np.ndarray:
    try:
        gains = np.array([float(label) for label in labels])
    except ValueError as error:
        raise DataError(f"labels {', '.join(labels)}: nDCG needs numbers, the gain of a document") from error
    if (gains < 0).any():
        raise DataError(f"labels {', '.join(labels)}: nDCG needs gains of 0 or more")
    return gains


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return 100 * np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=whole != 0)


def require_scorable(task: Any, tests: Iterable[Examples]) -> None:
    """Score logits of zeros, so that an error in scoring appears now and not after hours of training.

    Raises:
        DataError: a test set has no labels that the task's metrics can use.
    """
    count = len(task.labels)
    for examples in tests:
        shapes = [(count,) if isinstance(text, str) else (len(text), count) for text in examples.first]
        logits = [np.zeros(shape, dtype=np.float32) for shape in shapes]
        for metric in task.metrics:
            metric.statistics(logits, examples, task.labels)


def main_first(metrics: tuple[Metric, ...], name: str | None) -> tuple[Metric, ...]:
    """Put the metric that a recipe names first among a task's metrics.

    Raises:
        RecipeError: the task has no metric of that name.
    """
    if name is None:
        return metrics
    if name not in (known := [metric.name for metric in metrics]):
        raise RecipeError(f"task.metric: {name!r} is not a metric of this task; it has: {', '.join(known)}")
    return tuple(sorted(metrics, key=lambda metric: metric.name != name))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Accuracy(),
        TokenAccuracy(),
        TokenAccuracy("pos_token_accuracy"),
        EntityF1(),
        TagRuns(),
        Ndcg("wpr_argmax"),
        Ndcg("wpr_expected", expected=True),
        Ndcg("ndcg_argmax"),
        Ndcg("ndcg_expected", expected=True),
    )
}
"""Every metric by its name, as in a report's ``metric`` and a bundle's config."""
