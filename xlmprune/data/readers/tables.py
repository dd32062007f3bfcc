"""Tables of texts and labels as they are written: TSV, CSV and JSON lines.

Python's own `csv` and `json` read them, and not pandas or pyarrow: messages name the line in which a row begins, a row
that is too long or too short is an error, and a quotation mark in a TSV is a character.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

from xlmprune.core.errors import DataError
from xlmprune.data.readers.lines import count_columns, count_of, read_json_lines, read_lines, read_text


@dataclass(frozen=True)
class Table:
    """Cells as they are written; every row is as wide as the first."""

    path: str
    cells: list[list[Any]]
    lines: list[int]
    names: tuple[str, ...] | None = None
    """Column names, if the format itself has them (JSON lines)."""
    notes: tuple[str, ...] = ()
    hint: str = ""
    """What may be wrong with the file as a whole, to end a message with."""

    @property
    def start(self) -> str:
        """File and line of the first row."""
        return f"{self.path}:{self.lines[0]}"

    def keep(self, rows: Sequence[bool]) -> Table:
        """The rows marked true."""
        return replace(self, cells=list(compress(self.cells, rows)), lines=list(compress(self.lines, rows)))

    def without_header(self) -> Table:
        """The rows below the first.

        Raises:
            DataError: there are none.
        """
        if len(self.cells) == 1:
            raise DataError(f"{self.path}: a header and no examples")
        return replace(self, cells=self.cells[1:], lines=self.lines[1:])


MISSING = object()
"""The cell of a key that a JSON object lacks and others have."""


def read_table(path: Path, file_format: str = "tsv") -> Table:
    """Read a TSV (no quoting: a quotation mark is a character) or a CSV (quoted as RFC 4180 has it).

    Raises:
        DataError: rows of unequal width, besides what `read_text` raises.
    """
    hint, notes = "", []
    if file_format == "csv":
        cells, lines, hint = _read_csv(path)
    else:
        text = read_lines(path)
        lines = [number for number, line in enumerate(text, 1) if line]
        cells = [line.split("\t") for line in text if line]
        if skipped := lines[-1] - len(lines):
            notes = [f"{path}: {count_of(skipped, 'empty line')} skipped"]
    for row, line in zip(cells, lines, strict=True):
        if len(row) != len(cells[0]):
            what = "commas" if file_format == "csv" else "tabs"
            raise DataError(
                f"{path}:{line}: {count_columns(len(row))} found, {len(cells[0])} expected as in line {lines[0]}. "
                f"Columns are separated by {what}; is there one inside a text, or a line broken in two?{hint}"
            )
    if hint and len(lines) > 1 and _alike([row[0] for row in cells]):
        raise DataError(f"{path}:{lines[0]}: no comma found{hint}")
    return Table(str(path), cells, lines, notes=tuple(notes), hint=hint)


def _read_csv(path: Path) -> tuple[list[list[str]], list[int], str]:
    """Rows, the line in which each begins, and a hint if the first line seems to have other separators."""
    text = read_text(path)
    head = text.split("\n", 1)[0]
    others = [
        name for mark, name in ((";", "semicolons"), ("\t", "tabs")) if mark in head and "," not in head
    ]
    hint = f". Line 1 has {others[0]}: save the file with commas, or as TSV" if others else ""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    cells, lines, start = [], [], 1
    # By default 131,072 characters; an article may be longer. The limit is the module's, so it is put back.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        for row in reader:
            if row:
                cells.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{start}: not valid CSV ({error}){hint}") from error
    finally:
        csv.field_size_limit(limit)
    return cells, lines, hint


def _alike(lines: Sequence[str]) -> bool:
    """Whether semicolons, or tabs, divide all lines into the same number of parts."""
    return any(len({line.count(mark) for line in lines}) == 1 for mark in ";\t" if mark in lines[0])


def read_json_table(path: Path) -> Table:
    """Read JSON lines as a table of all their keys, values as they are, `MISSING` if an object lacks a key.

    Raises:
        DataError: a line is no JSON object.
    """
    records, lines = read_json_lines(path)
    names = tuple(dict.fromkeys(name for record in records for name in record))
    return Table(
        str(path), [[record.get(name, MISSING) for name in names] for record in records], lines, names
    )


def without_empty_rows(table: Table) -> Table:
    """Leave out rows whose every cell is blank, as spreadsheets write them, and count them in the notes.

    Raises:
        DataError: there is no other row.
    """
    filled = [any(str(cell).strip() for cell in row) for row in table.cells]
    empty = len(filled) - sum(filled)
    if not empty:
        return table
    if not any(filled):
        raise DataError(f"{table.path}: nothing but empty rows")
    return replace(
        table.keep(filled), notes=(*table.notes, f"{table.path}: {count_of(empty, 'empty row')} skipped")
    )
