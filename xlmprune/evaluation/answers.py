"""Which label a model gives to each test example: confusion matrices, and the errors that pruning introduced.

A score says how many answers are right; these functions say which ones are wrong, and how. Numpy only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlmprune.data.examples import SAMPLE_SEED, Examples
from xlmprune.evaluation.scores import TestSet
from xlmprune.tasks.metrics import Logits

CUT_OFF = "(cut off)"
"""The answer to a word that truncation removed."""

LONGEST_TEXT = 300
"""Characters of a text that a sample shows."""

Confusion = dict[str, dict[str, int]]
"""Counts by gold label and answer; pairs that never occur are left out."""


@dataclass(frozen=True)
class Items:
    """What is labelled in a test set: each text, or each word that survived truncation."""

    gold: np.ndarray
    """int64 [items]: indexes of labels."""
    rows: np.ndarray
    """int64 [items]: the example that an item belongs to."""
    words: np.ndarray | None
    """int64 [items]: the number of the word in its sentence; None where texts are labelled."""
    cut: np.ndarray
    """int64: gold labels of the words that truncation removed."""


def items_of(test: TestSet) -> Items | None:
    """List the labelled items of a test set; None without labels, and for ranking, where a label alone says little."""
    examples, read = test.examples, test.encoded.words
    if examples.labels is None or examples.groups is not None:
        return None
    if read is None:
        gold = np.array(examples.labels, dtype=np.int64)
        return Items(gold, np.arange(len(gold)), None, np.zeros(0, dtype=np.int64))
    counts = np.array([len(positions) for positions in read], dtype=np.int64)
    tagged: list[Any] = examples.labels
    kept = [tags[:count] for tags, count in zip(tagged, counts, strict=True)]
    cut = [tags[count:] for tags, count in zip(tagged, counts, strict=True)]
    words = [np.arange(count) for count in counts]
    return Items(_joined(kept), np.repeat(np.arange(len(counts)), counts), _joined(words), _joined(cut))


def _joined(parts: Sequence[Any]) -> np.ndarray:
    return np.concatenate(
        [np.zeros(0, dtype=np.int64), *(np.asarray(part, dtype=np.int64) for part in parts)]
    )


def answers_of(logits: Logits, labels: int) -> np.ndarray:
    """Return the most probable label of each item, in the smallest unsigned type that holds ``labels`` labels."""
    small = np.min_scalar_type(max(labels - 1, 0))
    parts = [np.atleast_1d(row.argmax(axis=-1)) for row in logits if row.size]
    return np.concatenate([np.zeros(0, dtype=small), *parts]).astype(small)


def confusion(items: Items, answers: np.ndarray, labels: Sequence[str]) -> Confusion:
    """Count the answers by gold label, gold labels in the order of the task."""
    counts = Counter(zip(items.gold.tolist(), answers.tolist(), strict=True))
    lost = Counter(items.cut.tolist())
    found: Confusion = {}
    for gold, name in enumerate(labels):
        row = {
            labels[answer]: counts[gold, answer] for answer in range(len(labels)) if (gold, answer) in counts
        }
        if gold in lost:
            row[CUT_OFF] = lost[gold]
        if row:
            found[name] = row
    return found


def introduced(items: Items, dense: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    """Return the indexes of the items that the dense model answers right and the pruned model wrong."""
    return np.flatnonzero((dense == items.gold) & (pruned != items.gold))


def sample_errors(
    examples: Examples, items: Items, dense: np.ndarray, pruned: np.ndarray, labels: Sequence[str], count: int
) -> list[dict[str, str]]:
    """Choose at most ``count`` errors that pruning introduced, by a fixed seed, of different examples.

    Returns:
        ``text``, for pairs ``second``, for tagging ``word``, and the labels ``gold``, ``dense`` and ``pruned``.
    """
    found = introduced(items, dense, pruned)
    shuffled = np.random.default_rng(SAMPLE_SEED).permutation(found)
    _, first = np.unique(items.rows[shuffled], return_index=True)
    chosen = np.sort(shuffled[np.sort(first)[:count]])
    return [
        {
            **_texts(examples, items, int(item)),
            "gold": labels[items.gold[item]],
            "dense": labels[dense[item]],
            "pruned": labels[pruned[item]],
        }
        for item in chosen
    ]


def _texts(examples: Examples, items: Items, item: int) -> dict[str, str]:
    first = examples.first[items.rows[item]]
    if items.words is not None:
        return {"text": _shortened(" ".join(first)), "word": str(first[items.words[item]])}
    texts = {"text": _shortened(str(first))}
    if examples.second is not None:
        texts["second"] = _shortened(examples.second[items.rows[item]])
    return texts


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1].rstrip() + "…"
