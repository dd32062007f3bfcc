"""Tables of texts and labels: TSV, CSV and JSON lines, and which column is which."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

from xlmprune.core.errors import DataError
from xlmprune.data.examples import Kind
from xlmprune.data.readers.headers import KNOWN_NAMES, names_asked, opens_with_names, refuse_doubtful_row
from xlmprune.data.readers.lines import count_columns, count_of, read_json_lines, read_lines, read_text
from xlmprune.data.readers.rows import Rows

DEFAULT_COLUMNS: dict[str, dict[int, tuple[str, ...]]] = {
    "text": {2: ("first", "label"), 1: ("first",)},
    "pair": {3: ("first", "second", "label"), 2: ("first", "second")},
}
"""Roles of the columns of a table without a header, by how many columns it has."""


@dataclass(frozen=True)
class Table:
    """Cells as they are written; every row is as wide as the first."""

    path: str
    cells: list[list[Any]]
    lines: list[int]
    names: tuple[str, ...] | None = None
    """Column names where the format itself has them (JSON lines)."""
    notes: tuple[str, ...] = ()
    hint: str = ""
    """What may be wrong with the file as a whole, to end a message with."""


def read_table(path: Path, file_format: str = "tsv") -> Table:
    """Read a TSV (no quoting: a quotation mark is a character) or a CSV (quoted as RFC 4180 has it).

    Raises:
        DataError: rows of unequal width, besides what `read_text` raises.
    """
    hint = ""
    if file_format == "csv":
        cells, lines, hint = _read_csv(path)
        what = "commas"
    else:
        text = read_lines(path)
        lines = [number for number, line in enumerate(text, 1) if line]
        cells = [line.split("\t") for line in text if line]
        what = "tabs"
    skipped = lines[-1] - len(lines) if file_format == "tsv" and lines else 0
    for row, line in zip(cells, lines, strict=True):
        if len(row) != len(cells[0]):
            raise DataError(
                f"{path}:{line}: {count_columns(len(row))} found, {len(cells[0])} expected as in line {lines[0]}. "
                f"Columns are separated by {what}; is there one inside a text, or a line broken in two?{hint}"
            )
    if hint and len(lines) > 1 and _alike([row[0] for row in cells]):
        raise DataError(f"{path}:{lines[0]}: no comma found{hint}")
    notes = (f"{path}: {count_of(skipped, 'empty line')} skipped",) if skipped else ()
    return Table(str(path), cells, lines, notes=notes, hint=hint)


def _read_csv(path: Path) -> tuple[list[list[str]], list[int], str]:
    """Rows, the line each begins in, and a hint where the first line seems to have other separators."""
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
    """Read JSON lines as a table whose columns are the first object's keys, values as they are.

    Raises:
        DataError: a line that is no JSON object, or lacks one of the keys.
    """
    records, lines = read_json_lines(path)
    names = tuple(records[0])
    cells = []
    for record, line in zip(records, lines, strict=True):
        missing = [name for name in names if name not in record]
        if missing:
            raise DataError(
                f"{path}:{line}: no {missing[0]!r}, which line {lines[0]} has; found {', '.join(record)}"
            )
        cells.append([record[name] for name in names])
    return Table(str(path), cells, lines, names)


def select_columns(
    table: Table,
    kind: Kind,
    wanted: Mapping[str, str | int],
    header: bool | None,
    by_count: Mapping[int, tuple[str, ...]],
    *,
    grouped: bool = False,
    train: bool = False,
) -> Rows:
    """Find the columns of a table that make up examples.

    Args:
        table: as read; with its header still in it, if it has one.
        kind: ``text`` or ``pair``.
        wanted: column name or position (from 0) by role, for what the recipe says.
        header: whether the first row has names; None to tell from that row.
        by_count: for a table without names, roles of the columns by how many there are.
        grouped: rows belong to queries, which are their group column, or else the first text.
        train: this is the training file; its labels are all there are.

    Raises:
        DataError: no such column, no header where one is needed, a first row of which it is not clear whether it is a
            header, or a width that is not known.
    """
    names, cells, lines = table.names, table.cells, table.lines
    if names is None and _has_header(cells[0], wanted, header, f"{table.path}:{lines[0]}"):
        names, cells, lines = tuple(name.strip() for name in cells[0]), cells[1:], lines[1:]
        if not cells:
            raise DataError(f"{table.path}: a header and no examples")
    if names is not None:
        chosen = _columns_by_name(names, kind, wanted, table.path)
    else:
        place = f"{table.path}:{lines[0]}"
        chosen = _columns_by_position(len(cells[0]), kind, wanted, by_count, place)
        if header is None:
            (label,) = chosen.get("label", (None,))
            refuse_doubtful_row(cells, label, train, place)

    def column(role: str) -> list[str] | None:
        places = chosen.get(role)
        if places is None:
            return None
        return [
            " ".join(_text(row[place], role, f"{table.path}:{line}") for place in places)
            for row, line in zip(cells, lines, strict=True)
        ]

    first, second, labels = column("first"), column("second"), column("label")
    assert first is not None
    groups = (column("group") or first) if grouped else None
    notes = list(table.notes)
    empty = sum(not text.strip() for text in first) + sum(not text.strip() for text in second or [])
    if empty:
        notes.append(f"{table.path}: {count_of(empty, 'empty text')} kept")
    used = {place for places in chosen.values() for place in places}
    unused = [name for place, name in enumerate(names or ()) if place not in used and name.lower() != "id"]
    if unused:
        notes.append(f"{table.path}: columns not used: {', '.join(unused)}")
    missing = "" if labels is not None else _why_no_labels(table, names, wanted)
    if missing and not train and isinstance(wanted.get("label"), str):
        notes.append(f"{table.path}: no labels; {missing}")
    labels = [label.strip() for label in labels] if labels is not None else None
    return Rows(
        table.path,
        first,
        second,
        labels,
        groups,
        lines,
        notes=tuple(notes),
        no_labels=missing,
        header_unsaid=names is None and header is None,
    )


def _why_no_labels(table: Table, names: Sequence[str] | None, wanted: Mapping[str, str | int]) -> str:
    """What to say where labels are needed, and there are none."""
    asked = wanted.get("label")
    found = f"columns found: {', '.join(names)}" if names else f"{count_columns(len(table.cells[0]))} found"
    say = "Say which has them in the recipe: `task.columns: {label: …}`"
    if isinstance(asked, str):
        why = f"no column is called {asked!r} (task.columns); {found}"
    elif asked is not None:
        why = f"none at position {asked} (task.columns, from 0); {found}"
    elif names or wanted:
        why = f"{found}. {say}"
    else:
        why = f"{found}, and the label comes last"
    return why + table.hint


def without_empty_rows(table: Table) -> Table:
    """Leave out rows whose every cell is blank, as spreadsheets write them, and count them in the notes.

    Raises:
        DataError: no other row is there.
    """
    filled = [any(str(cell).strip() for cell in row) for row in table.cells]
    empty = len(filled) - sum(filled)
    if not empty:
        return table
    if not any(filled):
        raise DataError(f"{table.path}: nothing but empty rows")
    return replace(
        table,
        cells=list(compress(table.cells, filled)),
        lines=list(compress(table.lines, filled)),
        notes=(*table.notes, f"{table.path}: {count_of(empty, 'empty row')} skipped"),
    )


def _text(value: Any, role: str, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{place}: {role} is {json.dumps(value)[:40]}, expected text or a whole number")
    return str(value)


def _has_header(row: Sequence[str], wanted: Mapping[str, str | int], header: bool | None, place: str) -> bool:
    named = names_asked(wanted, header)
    if named or header:
        cells = [cell.strip() for cell in row]
        missing = [name for name in named if name not in cells]
        # The label may be absent from a test file, and is asked for later where it is needed.
        missing = [name for name in missing if name != wanted.get("label")]
        if missing:
            raise DataError(
                f"{place}: no column is called {missing[0]!r}; the first line has {', '.join(cells)}"
            )
        return True
    if header is False:
        return False
    return opens_with_names(row)


def _columns_by_name(
    names: tuple[str, ...], kind: Kind, wanted: Mapping[str, str | int], path: str
) -> dict[str, tuple[int, ...]]:
    lowered = [name.lower() for name in names]
    chosen: dict[str, tuple[int, ...]] = {}
    for role, asked in wanted.items():
        if isinstance(asked, int):
            if asked < len(names):
                chosen[role] = (asked,)
        elif asked in names:
            chosen[role] = (names.index(asked),)
    for role in ("first", "second", "label", "group"):
        if role in wanted:
            continue
        # A query may be the first text and the group; otherwise one column has one part.
        taken = {place for other in ("first", "second", "label") for place in chosen.get(other, ())}
        for alternative in KNOWN_NAMES[role]:
            if set(alternative) <= set(lowered):
                places = [lowered.index(name) for name in alternative]
                if free := tuple(place for place in places if role == "group" or place not in taken):
                    chosen[role] = free
                    break
    needed = ("first", "second") if kind == "pair" else ("first",)
    for role in needed:
        if role not in chosen:
            raise DataError(
                f"{path}: no column for the {role} text; columns found: {', '.join(names)}. "
                f"Say which in the recipe: `task.columns: {{{role}: …, label: …}}`"
            )
    if kind == "text":
        chosen.pop("second", None)
    return chosen


def _columns_by_position(
    count: int,
    kind: Kind,
    wanted: Mapping[str, str | int],
    by_count: Mapping[int, tuple[str, ...]],
    place: str,
) -> dict[str, tuple[int, ...]]:
    if not wanted:
        if count not in by_count:
            known = " or ".join(f"{number} ({', '.join(roles)})" for number, roles in by_count.items())
            raise DataError(
                f"{place}: {count_columns(count)} found, {known} expected. Say which is which in the recipe, as in "
                "`task.columns: {first: 1, label: 2}` (positions from 0, or names where the file has a header)"
            )
        roles = by_count[count]
        return {
            role: tuple(i for i, other in enumerate(roles) if other == role) for role in dict.fromkeys(roles)
        }
    chosen: dict[str, tuple[int, ...]] = {role: (int(position),) for role, position in wanted.items()}
    if chosen.get("label") == (count,):  # the label was the last column, and this file comes without it
        del chosen["label"]
    for role, (position, *_) in chosen.items():
        if not 0 <= position < count:
            raise DataError(
                f"{place}: {count_columns(count)} found, so none at position {position} (from 0) for {role!r}"
            )
    for role in ("first", "second") if kind == "pair" else ("first",):
        if role not in chosen:
            raise DataError(
                f"task.columns needs {role!r} for a task of kind {kind}; given: {', '.join(wanted)}"
            )
    return chosen


def check_roles(columns: Mapping[str, str | int], kind: Kind) -> None:
    """Raise DataError for a role in `task.columns` that a task of this kind has not."""
    roles = ("words", "tags") if kind == "tokens" else ("first", "second", "label", "group")
    for role in columns:
        if role not in roles:
            raise DataError(
                f"task.columns: {role!r} is no part of an example here; known: {', '.join(roles)}"
            )
