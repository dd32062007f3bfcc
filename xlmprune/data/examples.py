"""Texts and their labels: one split of one language."""

from __future__ import annotations

import bisect
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

Kind = Literal["text", "pair", "tokens"]

SAMPLE_SEED = 0
"""Not the recipe's seed: runs with different seeds are measured on the same examples."""


@dataclass(frozen=True)
class Examples:
    """One split of one language, in the order of its file."""

    language: str
    split: str
    first: list[str] | list[list[str]]
    """The texts; or, for token tasks, the words of every sentence."""
    second: list[str] | None = None
    """The other text of every pair."""
    labels: list[int] | list[list[int]] | None = None
    """Indexes into the task's labels, for token tasks one per word; None if the file has no labels."""
    groups: list[str] | None = None
    """Ranking: the query of every row. Consecutive rows with the same value are ranked together."""
    origin: str = ""
    """The file, or the id on the hub, from which they were read."""
    notes: tuple[str, ...] = ()
    """Repairs and warnings with their counts, in sentences for the report."""
    rest: Examples | None = field(default=None, compare=False, repr=False)
    """Texts of a test or dev set that a sample of it leaves out: not measured, and no unlabelled text either."""

    def __post_init__(self) -> None:
        for name in ("second", "labels", "groups"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.first):
                raise ValueError(f"{name} has {len(column)} entries for {len(self.first)} examples")

    def __len__(self) -> int:
        return len(self.first)

    @property
    def kind(self) -> Kind:
        """``pair`` with second texts, ``tokens`` where the first are lists of words, else ``text``."""
        if self.second is not None:
            return "pair"
        return "tokens" if self.first and not isinstance(self.first[0], str) else "text"

    def sample(self, count: int) -> Examples:
        """Take ``count`` examples in their order; see `sample_rows`."""
        return self if count >= len(self) else self.take(self.sample_rows(count))

    def take(self, rows: Sequence[int]) -> Examples:
        """Take the given rows."""
        columns = ("first", "second", "labels")
        given = {name: column for name in columns if (column := getattr(self, name)) is not None}
        taken: dict[str, Any] = {name: [column[row] for row in rows] for name, column in given.items()}
        if self.groups is not None:
            taken["groups"] = _taken_groups(self.groups, rows)
        return replace(self, **taken)

    def sample_of_set(self, count: int | None) -> Examples:
        """Sample a test or dev set, or take all of it; texts that the sample leaves out are its ``rest``."""
        if count is None or count >= len(self):
            return self
        chosen = self.sample_rows(count)
        others = sorted(set(range(len(self))).difference(chosen))
        rest = replace(self, labels=None, groups=None, notes=()).take(others)
        return replace(self.take(chosen), rest=rest)

    def sample_rows(self, count: int) -> list[int]:
        """Choose ``count`` rows at random, by a fixed seed, every label in its proportion.

        Files of equal length and labels, such as translations of one file, give the same rows. For ranking whole groups
        are chosen, at most ``count`` rows in all but at least one group; for tagging, sentences.
        """
        if count >= len(self):
            return list(range(len(self)))
        if self.groups is not None:
            return _sample_groups(self.groups, count)
        by_label: dict[Any, list[int]] = {}
        for row, label in enumerate(self.labels or [0] * len(self)):
            by_label.setdefault(label if isinstance(label, int) else 0, []).append(row)
        # A row's number does not depend on how many rows come after it.
        keys = np.random.default_rng(SAMPLE_SEED).random(len(self))
        quotas = _quotas({label: len(rows) for label, rows in by_label.items()}, count)
        return sorted(
            row
            for label, rows in by_label.items()
            for row in sorted(rows, key=keys.__getitem__)[: quotas[label]]
        )


def _quotas(sizes: Mapping[int, int], count: int) -> dict[int, int]:
    """Share out ``count`` in proportion to the sizes, at least one for each size if there are enough."""
    total, least = sum(sizes.values()), int(count >= len(sizes))
    quotas = {label: max(count * size // total, least) for label, size in sizes.items()}
    while gap := count - sum(quotas.values()):
        step = 1 if gap > 0 else -1
        free = [label for label in sizes if quotas[label] + step >= least]
        label = max(free, key=lambda label: (step * (count * sizes[label] / total - quotas[label]), -label))
        quotas[label] += step
    return quotas


def _starts(groups: Sequence[str]) -> list[int]:
    """Return the first row of every group."""
    return [row for row in range(len(groups)) if row == 0 or groups[row] != groups[row - 1]]


def _taken_groups(groups: Sequence[str], rows: Sequence[int]) -> list[str]:
    """Return the groups of some rows; two with one value that meet because a group between them is left out stay two."""
    starts = _starts(groups)
    numbers = [bisect.bisect_right(starts, row) for row in rows]
    taken = [groups[row] for row in rows]
    for index, (before, own) in enumerate(pairwise(numbers), start=1):
        if before == own:
            taken[index] = taken[index - 1]
        elif groups[rows[index - 1]] == groups[rows[index]]:
            taken[index] = f"{taken[index]} ({own})"
    return taken


def _sample_groups(groups: Sequence[str], count: int) -> list[int]:
    starts = _starts(groups)
    extents = list(zip(starts, [*starts[1:], len(groups)], strict=True))
    keys = np.random.default_rng(SAMPLE_SEED).random(len(extents))
    rows: list[int] = []
    for index in np.argsort(keys, kind="stable"):
        start, end = extents[index]
        if not rows or len(rows) + end - start <= count:
            rows += range(start, end)
    return sorted(rows)


_ASCII_SIGNS = {code: None for code in range(128) if chr(code) not in string.ascii_letters + string.digits}


def normalize(text: str) -> str:
    """Reduce a text to its letters, marks and digits in one case, to compare it; a text without any stays whole.

    Two copies of a sentence are often spaced or punctuated differently, for instance if one was split into words.
    """
    if text.isascii():  # the same, several times as fast
        return text.lower().translate(_ASCII_SIGNS) or text.strip()
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in plain if unicodedata.category(c)[0] in "LMN") or text.strip()
