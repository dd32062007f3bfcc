"""Which column of a table holds which part of an example."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from xlmprune.core.errors import DataError
from xlmprune.core.formatting import count_of
from xlmprune.data.examples import Kind
from xlmprune.data.readers.headers import (
    KNOWN_NAMES,
    counts_columns,
    is_count_of_columns,
    names_asked,
    opens_with_names,
    refuse_doubtful_row,
)
from xlmprune.data.readers.labels import listed
from xlmprune.data.readers.lines import count_columns
from xlmprune.data.readers.rows import Rows
from xlmprune.data.readers.tables import MISSING, Table

TEXTS: dict[Kind, tuple[str, ...]] = {"text": ("first",), "pair": ("first", "second"), "tokens": ("words",)}
"""The roles that an example of each kind must have."""

LANGUAGE_NAMES = frozenset("language lang locale".split())

OTHER_ROLES: dict[Kind, tuple[str, ...]] = {
    "text": ("second", "label", "group", "language"),
    "pair": ("label", "group", "language"),
    "tokens": ("tags",),
}

Chosen = dict[str, tuple[int, ...]]
"""Indexes of columns by role; the texts of several columns are joined with spaces."""


def usual_columns(kind: Kind) -> dict[int, tuple[str, ...]]:
    """Roles of the columns of a table without a header, by the number of columns: the texts, then the label."""
    texts = TEXTS[kind]
    return {len(texts) + 1: (*texts, "label"), len(texts): texts}


def check_roles(columns: Mapping[str, str | int], kind: Kind) -> None:
    """Raise DataError for a role in `task.columns` that a task of this kind does not have."""
    roles = (*TEXTS[kind], *OTHER_ROLES[kind])
    for role in columns:
        if role not in roles:
            raise DataError(
                f"task.columns: {role!r} is not a part of an example here; known: {', '.join(roles)}"
            )


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
        table: the table as it was read, with its header if it has one.
        kind: ``text`` or ``pair``.
        wanted: column name or position (from 0) by role, from the recipe.
        header: whether the first row has names; None to tell from that row.
        by_count: for a table without names, roles of the columns by the number of columns.
        grouped: rows belong to queries, which are in the group column, or else in the first text.
        train: this is the training file, which alone says which labels there are.

    Raises:
        DataError: a column is missing, a header is missing, a first row may or may not be a header, or the number of
            columns is not known.
    """
    names = table.names
    counted = _below_a_count(table, kind, wanted, header, by_count)
    if counted is not None:
        note = f"{table.start}: left out, because it only counts the columns, as pandas does (`task.header: false` reads it)"
        table = replace(table.without_header(), notes=(*table.notes, note))
    elif names is None and _has_header(table, wanted, header):
        names = tuple(name.strip() for name in table.cells[0])
        table = table.without_header()
    if names is not None:
        chosen = _columns_by_name(names, kind, wanted, table.path)
    else:
        chosen = counted or _columns_by_position(table, kind, wanted, by_count)
        if header is None and counted is None:
            (label,) = chosen.get("label", (None,))
            refuse_doubtful_row(table.cells, label, train, table.start)
    columns = {role: _column(table, names, role, indexes) for role, indexes in chosen.items()}
    labels = columns.get("label")
    _refuse_mixed_languages(table, names, wanted)
    if table.delimiter is not None and labels is not None:
        _refuse_swallowed_rows(table, chosen["label"][0], set(labels))
    missing = _why_no_labels(table, names, wanted) if labels is None else ""
    notes = [*table.notes, *_empty_texts(table.path, columns), *_unused(table.path, names, chosen)]
    if missing and not train and isinstance(wanted.get("label"), str):
        notes.append(f"{table.path}: no labels; {missing}")
    return Rows(
        table.path,
        columns["first"],
        columns.get("second"),
        labels and [label.strip() for label in labels],
        (columns.get("group") or columns["first"]) if grouped else None,
        table.lines,
        notes=tuple(notes),
        no_labels=missing,
        header_unknown=names is None and header is None and counted is None,
        languages=columns.get("language"),
    )


def _below_a_count(
    table: Table,
    kind: Kind,
    wanted: Mapping[str, str | int],
    header: bool | None,
    by_count: Mapping[int, tuple[str, ...]],
) -> Chosen | None:
    """Choose the columns of a table whose first row only counts them; None where that row is something else."""
    if table.names is not None or names_asked(wanted, header) or header is False:
        return None
    if not counts_columns(table.cells[0]):
        return None
    # Where pandas writes the numbers of the rows too, they stand first, below an empty cell.
    rows_are_numbered = not wanted and not table.cells[0][0].strip()
    chosen = _columns_by_position(table, kind, wanted, by_count, skipped=int(rows_are_numbered))
    (label,) = chosen.get("label", (None,))
    texts = [index for role in TEXTS[kind] for index in chosen[role]]
    is_count = header or is_count_of_columns(table.cells, texts, label, table.start)
    return chosen if is_count else None


def _has_header(table: Table, wanted: Mapping[str, str | int], header: bool | None) -> bool:
    named = names_asked(wanted, header)
    if not named:
        return opens_with_names(table.cells[0]) if header is None else header
    cells = [cell.strip() for cell in table.cells[0]]
    # The label may be absent from a test file. It is asked for later if it is needed.
    if missing := [name for name in named if name not in cells and name != wanted.get("label")]:
        raise DataError(
            f"{table.start}: no column is called {missing[0]!r}; the first line has {listed(cells)}"
        )
    return True


def _columns_by_name(names: Sequence[str], kind: Kind, wanted: Mapping[str, str | int], path: str) -> Chosen:
    lowered = [name.lower() for name in names]
    chosen: Chosen = {}
    for role, asked in wanted.items():
        if isinstance(asked, int) and asked < len(names):
            chosen[role] = (asked,)
        elif asked in names:
            chosen[role] = (names.index(str(asked)),)
        elif role == "language":
            raise DataError(f"{path}: no column is called {asked!r}; columns found: {', '.join(names)}")
    for role in ("first", "second", "label", "group"):
        if role in wanted:
            continue
        # A query may be the first text and the group; otherwise a column has one role.
        taken = {index for other in ("first", "second", "label") for index in chosen.get(other, ())}
        for alternative in KNOWN_NAMES[role]:
            if set(alternative) <= set(lowered):
                indexes = [lowered.index(name) for name in alternative]
                if free := tuple(index for index in indexes if role == "group" or index not in taken):
                    chosen[role] = free
                    break
    for role in TEXTS[kind]:
        if role not in chosen:
            raise DataError(
                f"{path}: no column for the {role} text; columns found: {', '.join(names)}. "
                f"Say which in the recipe: `task.columns: {{{role}: …, label: …}}`"
            )
    if kind == "text":
        chosen.pop("second", None)
    by_name = {role: indexes for role, indexes in chosen.items() if not isinstance(wanted.get(role), int)}
    for index in {index for indexes in by_name.values() for index in indexes}:
        if lowered.count(lowered[index]) > 1:
            raise DataError(
                f"{path}: several columns are called {names[index]!r}. Give them different names, or set `task.columns` to "
                "positions from 0"
            )
    return chosen


def _columns_by_position(
    table: Table,
    kind: Kind,
    wanted: Mapping[str, str | int],
    by_count: Mapping[int, tuple[str, ...]],
    skipped: int = 0,
) -> Chosen:
    """Choose columns by position; without `task.columns`, by their number, the first ``skipped`` left out."""
    count = len(table.cells[0]) - skipped
    if not wanted:
        if count not in by_count:
            known = " or ".join(f"{number} ({', '.join(roles)})" for number, roles in by_count.items())
            advice = table.hint or (
                ". Say which is which in the recipe, as in `task.columns: {first: 1, label: 2}` (positions from 0, or names "
                "if the file has a header)"
            )
            raise DataError(f"{table.start}: {count_columns(count)} found, {known} expected{advice}")
        chosen = columns_of_roles(by_count[count])
        return {role: tuple(index + skipped for index in indexes) for role, indexes in chosen.items()}
    chosen = {role: (int(position),) for role, position in wanted.items()}
    if chosen.get("label") == (count,):  # the label was the last column, and this file comes without it
        del chosen["label"]
    check_positions(chosen, count, table.start)
    for role in TEXTS[kind]:
        if role not in chosen:
            raise DataError(
                f"task.columns needs {role!r} for a task of kind {kind}; given: {', '.join(wanted)}"
            )
    return chosen


def columns_of_roles(roles: Sequence[str]) -> Chosen:
    """Indexes by role, from the role of every column."""
    return {role: tuple(i for i, other in enumerate(roles) if other == role) for role in dict.fromkeys(roles)}


def check_positions(chosen: Mapping[str, tuple[int, ...]], count: int, location: str) -> None:
    """Raise DataError for a position that a row of ``count`` columns does not have."""
    for role, indexes in chosen.items():
        for index in indexes:
            if not 0 <= index < count:
                raise DataError(
                    f"{location}: {count_columns(count)} found, so none at position {index} (from 0) for {role!r}"
                )


def _refuse_mixed_languages(
    table: Table, names: Sequence[str] | None, wanted: Mapping[str, str | int]
) -> None:
    """Refuse a file that has a column for the language, with several in it, if the recipe does not mention it."""
    for index, name in enumerate(names or ()):
        if name.lower() in LANGUAGE_NAMES and "language" not in wanted and name not in wanted.values():
            found = list(dict.fromkeys(str(row[index]).strip() for row in table.cells))
            if len(found) > 1:
                raise DataError(
                    f"{table.path}: column {name!r} has several languages ({', '.join(found[:5])}"
                    f"{', …' if len(found) > 5 else ''}). To read those of one language, set `task.columns: {{language: "
                    f"{name}}}`; to ignore it, give the column another name"
                )


def _refuse_swallowed_rows(table: Table, label: int, labels: Collection[str]) -> None:
    """Refuse a field over several lines of which one is itself a row with a known label."""
    for row, start in zip(table.cells, table.lines, strict=True):
        for cell in row:
            for offset, line in enumerate(cell.split("\n") if "\n" in cell else ()):
                parts = line.strip("\r").split(table.delimiter)
                if len(parts) == len(row) and parts[label].strip('"') in labels:
                    raise DataError(
                        f"{table.path}:{start}: a quotation mark opens a field that holds whole rows, as line "
                        f"{start + offset} ({line[:40]!r}). Close it or double it; if marks do not enclose fields, set "
                        "`task.quoting: false`"
                    )


def _column(table: Table, names: Sequence[str] | None, role: str, indexes: Sequence[int]) -> list[str]:
    def text(row: Sequence[Any], index: int, line: int) -> str:
        value = row[index]
        if value is MISSING and names is not None:
            raise DataError(f"{table.path}:{line}: no {names[index]!r}, which other lines have")
        if role == "label":
            value = _one_label(value, f"{table.path}:{line}")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise DataError(
                f"{table.path}:{line}: {role} is {json.dumps(value)[:40]}, expected text or a whole number"
            )
        return str(value)

    return [
        " ".join(text(row, index, line) for index in indexes)
        for row, line in zip(table.cells, table.lines, strict=True)
    ]


def _one_label(value: Any, location: str) -> Any:
    """Return the label in a list of one, and a whole number without its fraction of zero."""
    if isinstance(value, list):
        if len(value) != 1:
            raise DataError(
                f"{location}: label is a list of {len(value)}, expected one label. Several labels for one text are not "
                "supported"
            )
        return value[0]
    if isinstance(value, float):
        if not value.is_integer():
            raise DataError(
                f"{location}: label is {value}, expected text or a whole number. Regression is not supported"
            )
        return int(value)
    return value


def _empty_texts(path: str, columns: Mapping[str, Sequence[str]]) -> list[str]:
    empty = sum(not text.strip() for role in ("first", "second") for text in columns.get(role, ()))
    return [f"{path}: {count_of(empty, 'empty text')} kept"] if empty else []


def _unused(path: str, names: Sequence[str] | None, chosen: Chosen) -> list[str]:
    used = {index for indexes in chosen.values() for index in indexes}
    unused = [name for index, name in enumerate(names or ()) if index not in used and name.lower() != "id"]
    return [f"{path}: columns not used: {', '.join(unused)}"] if unused else []


def _why_no_labels(table: Table, names: Sequence[str] | None, wanted: Mapping[str, str | int]) -> str:
    """Return what to say if labels are needed and there are none."""
    asked = wanted.get("label")
    found = f"columns found: {', '.join(names)}" if names else f"{count_columns(len(table.cells[0]))} found"
    if isinstance(asked, str):
        why = f"no column is called {asked!r} (task.columns); {found}"
    elif asked is not None:
        why = f"none at position {asked} (task.columns, from 0); {found}"
    elif names or wanted:
        why = f"{found}. Say which has them in the recipe: `task.columns: {{label: …}}`"
    else:
        why = f"{found}, and the label comes last"
    return why + table.hint
