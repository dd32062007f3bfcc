"""Guess which columns of a table hold the text and the label, from what they hold."""

from __future__ import annotations

from collections.abc import Sequence

from xlmprune.data.readers.headers import counts_columns, opens_with_names
from xlmprune.data.readers.tables import Table

LEAST_ROWS = 10
"""With fewer rows nothing is guessed."""

MOST_LABELS, LONGEST_LABEL = 100, 60
"""Different labels in a column, at most, and characters of one."""


def column_names(table: Table) -> list[str]:
    """Return the names in the table's header, or its first row."""
    return [str(name).strip() for name in (table.cells[0] if table.names is None else table.names)]


def guess_columns(table: Table, header: bool | None = None) -> dict[str, str | int] | None:
    """Return the columns of text and label as `task.columns` has them; None where not exactly one column can be each.

    Nothing is guessed where the readers know the names, or where two columns have no names: those are a text and its label.
    A text column has words, and most rows differ. A label column has few values, and each occurs several times. Columns are
    given by name where the first row looks like names, otherwise by position.

    Args:
        header: `task.header`.
    """
    unnamed = table.names is None
    below = table.cells[1:] if unnamed and header is not False else table.cells
    names = column_names(table)
    known = header is not False and opens_with_names(names)
    if len(below) < LEAST_ROWS or len(names) < 2 or known:
        return None
    columns = [[str(row[index]).strip() for row in below] for index in range(len(below[0]))]
    texts = [index for index, cells in enumerate(columns) if _is_text(cells)]
    labels = [index for index, cells in enumerate(columns) if _is_label(cells)]
    if len(texts) != 1 or len(labels) != 1:
        return None
    (text,), (label,) = texts, labels
    is_example = header is False or (header is None and names[label] in columns[label])
    unclear = len(set(names)) < len(names) or not names[text] or not names[label]
    by_place = is_example or unclear or counts_columns(table.cells[0])
    if unnamed and len(names) == 2 and (by_place or " " in names[text]):
        return None
    if unnamed and by_place:
        return {"first": text, "label": label}
    return {"first": names[text], "label": names[label]}


def _is_text(cells: Sequence[str]) -> bool:
    words = sum(" " in cell or not cell.isascii() for cell in cells)
    return 2 * words > len(cells) and 2 * len(set(cells)) > len(cells)


def _is_label(cells: Sequence[str]) -> bool:
    values = set(cells)
    return 2 <= len(values) <= min(MOST_LABELS, len(cells) // 2) and max(map(len, values)) <= LONGEST_LABEL
