"""Rows as a source gives them: texts, and labels by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

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
    """The line of every word of every sentence, where each has one of its own."""
    notes: tuple[str, ...] = ()
    no_labels: str = ""
    """Without labels: what was found instead, for a message."""
    header_unsaid: bool = False
    """Line 1 is read as an example, and the recipe does not say that it is one."""

    def place(self, row: int, word: int = 0) -> str:
        """``file:line``, as editors and compilers write it."""
        return f"{self.origin}:{self.word_lines[row][word] if self.word_lines else self.lines[row]}"


class Source(Protocol):
    """What gives rows."""

    def languages(self) -> tuple[str, ...]:
        """Every language that has a test set."""

    def has(self, language: str, split: Split) -> bool:
        """Whether there are rows to read, told without reading them."""

    def rows(self, language: str, split: Split) -> Rows:
        """Read one split of one language.

        Raises:
            DataError: there is none, or it cannot be understood; names file and line.
        """
