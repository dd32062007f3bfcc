"""Texts and their labels: one split of one language."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["text", "pair", "tokens"]


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

    def head(self, count: int) -> Examples:
        """Take the first ``count`` examples; for ranking the whole groups among them, at least the first group."""
        if count >= len(self):
            return self
        if self.groups is not None and count > 0:
            starts = [row for row in range(1, len(self)) if self.groups[row] != self.groups[row - 1]]
            ends = [*starts, len(self)]
            count = max((end for end in ends if end <= count), default=ends[0])

        def cut(column: list[Any] | None) -> list[Any] | None:
            return None if column is None else column[:count]

        return replace(
            self,
            first=self.first[:count],
            second=cut(self.second),
            labels=cut(self.labels),
            groups=cut(self.groups),
        )


def fold(text: str) -> str:
    """Reduce a text to its letters, marks and digits in one case, to compare it; a text without any stays whole.

    Two copies of a sentence are often spaced or punctuated differently, for instance if one was split into words.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LMN") or text.strip()
