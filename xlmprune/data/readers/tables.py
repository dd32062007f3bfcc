"""Tables of texts and labels as they are written: TSV, CSV and JSON lines.

Python's own `csv` and `json` read them, and not pandas or pyarrow: messages name the line in which a row begins, a row
that is too long or too short is an error, and repairs are counted.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

from xlmprune.core.errors import DataError
from xlmprune.core.formatting import count_of
from xlmprune.data.readers.headers import opens_with_names
from xlmprune.data.readers.lines import count_columns, read_json_lines, read_text, split_lines


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
    delimiter: str | None = None
    """The character between columns if quotation marks enclose fields, which may then hold line breaks."""

    @property
    def start(self) -> str:
        """File and line of the first row."""
        return f"{self.path}:{self.lines[0]}"

    def keep(self, rows: Sequence[bool]) -> Table:
        """Return the rows marked true."""
        return replace(self, cells=list(compress(self.cells, rows)), lines=list(compress(self.lines, rows)))

    def without_header(self) -> Table:
        """Return the rows below the first.

        Raises:
            DataError: there are none.
        """
        if len(self.cells) == 1:
            raise DataError(f"{self.path}: a header and no examples")
        return replace(self, cells=self.cells[1:], lines=self.lines[1:])


MARKS = {";": "semicolons", "\t": "tabs", "|": "vertical bars", ",": "commas"}
"""Characters that usually separate columns, by what a message calls them."""

MISSING = object()
"""The cell of a key that a JSON object lacks and others have."""


def read_table(
    path: Path, file_format: str = "tsv", delimiter: str | None = None, quoting: bool | None = None
) -> Table:
    """Read a TSV or a CSV.

    In a TSV a quotation mark is a character, unless marks enclose every field of the file. In a CSV they enclose fields
    as in RFC 4180.

    Args:
        delimiter: the character between columns; None for a tab in a TSV and a comma in a CSV. A CSV may name it in a
            first line such as ``sep=;``, and semicolons are taken if known column names stand between them.
        quoting: whether quotation marks enclose fields; None as said above.

    Raises:
        DataError: rows of unequal width, besides what `read_text` raises.
    """
    text, first, notes, hint = read_text(path), 1, [], ""
    mark = delimiter or ("," if file_format == "csv" else "\t")
    if file_format == "csv" and delimiter is None:
        head, _, rest = text.partition("\n")
        if named := re.fullmatch(r'"?sep=(.)"?\r?', head):
            text, first, mark = rest, 2, named[1]
        elif ";" in head and opens_with_names(head.strip("\r").replace('"', "").split(";")):
            mark = ";"
            notes.append(f"{path}: columns are separated by semicolons")
        elif "," not in head:
            hint = _hint_at_mark(head)
    elif delimiter is None and "\t" not in text:
        hint = _hint_at_mark(text.partition("\n")[0])
    if not text.strip():
        raise DataError(f"{path}: empty file")
    quoted = file_format == "csv" if quoting is None else quoting
    if quoting is None and not quoted and _all_quoted(text, mark):
        quoted = True
        notes.append(f"{path}: quotation marks around every field removed (`task.quoting: false` keeps them)")
    cells, lines = _quoted_rows(path, text, mark, first, hint) if quoted else _plain_rows(text, mark)
    if not quoted:
        notes += _notes_of_plain_rows(path, cells, lines)
    if not quoted and all(map(_is_quoted, cells[0])):
        hint = ". If quotation marks enclose fields, set `task.quoting: true`"
    what = MARKS.get(mark, repr(mark))
    for row, line in zip(cells, lines, strict=True):
        if len(row) != len(cells[0]):
            raise DataError(
                f"{path}:{line}: {count_columns(len(row))} found, {len(cells[0])} expected as in line {lines[0]}. "
                f"Columns are separated by {what}; one may be inside a text, or a line is broken in two{hint}"
            )
    if hint and quoted and mark == "," and len(lines) > 1 and _alike([row[0] for row in cells]):
        raise DataError(f"{path}:{lines[0]}: no comma found{hint}")
    return Table(str(path), cells, lines, notes=tuple(notes), hint=hint, delimiter=mark if quoted else None)


def _hint_at_mark(line: str) -> str:
    """Return a sentence that names a usual separator in the first line; empty where it has none."""
    found = [name for mark, name in MARKS.items() if mark in line]
    return f". Line 1 has {found[0]}: if they separate columns, set `task.delimiter`" if found else ""


def _plain_rows(text: str, mark: str) -> tuple[list[list[str]], list[int]]:
    numbered = [(number, line) for number, line in enumerate(split_lines(text), 1) if line]
    return [line.split(mark) for _, line in numbered], [number for number, _ in numbered]


def _notes_of_plain_rows(path: Path, cells: Sequence[Sequence[str]], lines: Sequence[int]) -> list[str]:
    notes = []
    if skipped := lines[-1] - len(lines):
        notes.append(f"{path}: {count_of(skipped, 'empty line')} skipped")
    if seem := sum(_is_quoted(cell) and '""' in cell[1:-1] for row in cells for cell in row):
        notes.append(
            f"{path}: {count_of(seem, 'field')} with quotation marks around and doubled ones inside, read as they are; if "
            "they enclose fields, set `task.quoting: true`"
        )
    return notes


def _all_quoted(text: str, mark: str) -> bool:
    """Whether every field of every line is enclosed in quotation marks, in two columns at least."""
    if not all(map(_is_quoted, text.partition("\n")[0].rstrip("\r").split(mark))):
        return False
    cells, _ = _plain_rows(text, mark)
    return len(cells[0]) > 1 and all(_is_quoted(cell) for row in cells for cell in row)


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")


def _quoted_rows(
    path: Path, text: str, mark: str, first: int, hint: str
) -> tuple[list[list[str]], list[int]]:
    """Rows, and the line in which each begins; ``first`` is the line in which the text begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    cells, lines, start = [], [], first
    # By default 131,072 characters; an article may be longer. The limit is the module's, so it is put back.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        for row in reader:
            if row:
                cells.append(row)
                lines.append(start)
            start = reader.line_num + first
    except csv.Error as error:
        raise DataError(f"{path}:{start}: not valid CSV ({error}){hint}") from error
    finally:
        csv.field_size_limit(limit)
    return cells, lines


def _alike(lines: Sequence[str]) -> bool:
    """Whether one of the usual separators divides all lines into the same number of parts."""
    return any(len({line.count(mark) for line in lines}) == 1 for mark in MARKS if mark in lines[0])


def read_json_table(path: Path, asked: Iterable[str | int] = ()) -> Table:
    """Read JSON lines, or an array of objects, as a table of all their keys, values as they are.

    Args:
        asked: names from the recipe. A name with dots that is no key itself reaches into nested objects.

    Raises:
        DataError: a line is no JSON object.
    """
    records, lines = read_json_lines(path)
    keys = dict.fromkeys(name for record in records for name in record)
    nested = [name for name in asked if isinstance(name, str) and "." in name and name not in keys]
    names = (
        *keys,
        *(name for name in nested if any(_reach(record, name) is not MISSING for record in records)),
    )
    cells = [
        [_reach(record, name) if name in nested else record.get(name, MISSING) for name in names]
        for record in records
    ]
    return Table(str(path), cells, lines, tuple(name.strip() for name in names))


def _reach(record: Any, name: str) -> Any:
    for key in name.split("."):
        record = record.get(key, MISSING) if isinstance(record, dict) else MISSING
    return record


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
