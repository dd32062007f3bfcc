"""Rows as a source gives them: texts, and labels by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Literal, Protocol

Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Rows:
    """One split of one language as it is written, labels by name."""

    origin: str
    """File, or id on the hub."""
    first: list[str] | list[list[str]]
    second: list[str] | None
    labels: list[str] | list[list[str]] | None
    groups: list[str] | None
    lines: list[int]
    """The line of every row in its file, of its first word for a sentence; for the hub, the row's number."""
    word_lines: list[list[int]] | None = None
    """The line of every word of every sentence, if each word has a line of its own."""
    notes: tuple[str, ...] = ()
    no_labels: str = ""
    """Without labels: what was found instead, for a message."""
    header_unknown: bool = False
    """Line 1 is read as an example, and the recipe does not say that it is one."""
    languages: list[str] | None = None
    """The language of every row, if a column says it."""

    def location(self, row: int, word: int = 0) -> str:
        """``file:line``, as editors and compilers write it."""
        return f"{self.origin}:{self.word_lines[row][word] if self.word_lines else self.lines[row]}"

    def keep(self, rows: Sequence[bool]) -> Rows:
        """Return the rows marked true."""
        columns = ("first", "second", "labels", "groups", "lines", "word_lines", "languages")
        given = {name: column for name in columns if (column := getattr(self, name)) is not None}
        kept: dict[str, Any] = {name: list(compress(column, rows)) for name, column in given.items()}
        return replace(self, **kept)

    def of_language(self, language: str) -> Rows:
        """Return the rows that say they are of this language."""
        return self.keep([own == language for own in self.languages or ()])


class Source(Protocol):
    """What gives rows."""

    licence: str
    """Licence of the data; ``unknown`` if it is not known."""

    def languages(self) -> tuple[str, ...]:
        """List every language that has a test set."""

    def has(self, language: str, split: Split) -> bool:
        """Tell whether there are rows to read, without reading them."""

    def rows(self, language: str, split: Split) -> Rows:
        """Read one split of one language.

        Raises:
            DataError: there is none, or it cannot be understood; names file and line.
        """
