"""A user's own files: tables (TSV, CSV, JSON lines) and token files, each perhaps gzipped.

Nothing is guessed silently. What is repaired is counted and told in the notes; anything else is an error that
names file and line.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmprune.data import Kind
from xlmprune.errors import DataError
from xlmprune.sources.headers import (
    KNOWN_NAMES,
    TAG_NAMES,
    WORD_NAMES,
    opens_with_names,
    refuse_doubtful_row,
    refuse_doubtful_token,
)
from xlmprune.sources.rows import Rows, Split

if TYPE_CHECKING:
    from xlmprune.recipe import TaskRecipe

DEFAULT_COLUMNS: dict[str, dict[int, tuple[str, ...]]] = {
    "text": {2: ("first", "label"), 1: ("first",)},
    "pair": {3: ("first", "second", "label"), 2: ("first", "second")},
}
"""Roles of the columns of a table without a header, by how many columns it has."""


class Files:
    """Files found by a pattern such as ``data/{language}.{split}.tsv``."""

    def __init__(
        self,
        recipe: TaskRecipe,
        kind: Kind,
        columns: Mapping[int, tuple[str, ...]] | None = None,
        grouped: bool = False,
    ) -> None:
        """
        Raises:
            DataError: no path, or a pattern with other names in braces.
        """
        if not recipe.path:
            raise DataError("source `files` needs `task.path`, such as data/{language}.{split}.tsv")
        unknown = sorted(set(re.findall(r"\{(\w*)\}", recipe.path)) - {"language", "split"})
        if unknown:
            raise DataError(
                f"task.path {recipe.path}: {{{unknown[0]}}} is unknown; "
                "{language} and {split} are filled in"
            )
        self._pattern = expand(recipe.path)
        self._splits = {"train": recipe.train_split, "dev": recipe.dev_split, "test": recipe.test_split}
        self._train_language = recipe.train_language
        self._kind = kind
        self._grouped = grouped
        self._columns = recipe.columns or {}
        self._header = recipe.header
        self._format = recipe.format
        self._by_count = columns or DEFAULT_COLUMNS.get(kind, {})
        _check_roles(self._columns, kind)

    def languages(self) -> tuple[str, ...]:
        """Languages for which the pattern finds a test file, alphabetically."""
        if "{language}" not in self._pattern:
            return (self._train_language,) if self.has(self._train_language, "test") else ()
        return find_languages(self._pattern, self._splits["test"])

    def has(self, language: str, split: Split) -> bool:
        """Whether there is such a file."""
        return self._file(language, split) is not None

    def rows(self, language: str, split: Split) -> Rows:
        """Read the file of one split and language."""
        if split != "test" and "{split}" not in self._pattern:
            raise DataError(
                f"task.path {self._pattern}: without {{split}} train and test would be the same file"
            )
        path = self._file(language, split)
        if path is None:
            name = fill(self._pattern, language, self._splits[split])
            others = ""
            if "{language}" in self._pattern:
                found = find_languages(self._pattern, self._splits[split])
                others = f"; languages with a {split} file: {', '.join(found) or 'none'}"
            raise DataError(
                f"no file {name} (nor {name}.gz) for language {language!r}, split {split!r}{others}"
            )
        file_format = self._format or _format_of(path, self._kind)
        if self._kind == "tokens":
            if file_format == "jsonl":
                return read_json_tokens(path, self._columns)
            if file_format == "csv":
                raise DataError(
                    f"{path}: words and tags are read from token files or JSON lines, not from CSV"
                )
            return read_tokens(path, self._columns, self._header)
        if file_format == "tokens":
            raise DataError(f"{path}: a token file has no texts to classify; for tags, use task `tagging`")
        table = read_json_table(path) if file_format == "jsonl" else read_table(path, file_format)
        return select_columns(
            without_empty_rows(table),
            self._kind,
            self._columns,
            self._header,
            self._by_count,
            grouped=self._grouped,
            train=split == "train",
        )

    def _file(self, language: str, split: Split) -> Path | None:
        if split != "test" and "{split}" not in self._pattern:
            return None  # only measured, as `evaluate` does
        if "{language}" not in self._pattern and language != self._train_language:
            return None
        plain = Path(fill(self._pattern, language, self._splits[split]))
        for path in (plain, plain.with_name(plain.name + ".gz")):
            if path.is_file():
                return path
        return None


def expand(path: str) -> str:
    """The path with a leading ``~`` replaced by the home folder, as shells do.

    Raises:
        DataError: no such home.
    """
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise DataError(f"task.path {path}: no such home folder ({error})") from None


def fill(pattern: str, language: str, split: str) -> str:
    """The pattern with its braces filled in."""
    return pattern.replace("{language}", language).replace("{split}", split)


def find_languages(pattern: str, split: str) -> tuple[str, ...]:
    """Codes for which a file of that split exists, plain or gzipped, alphabetically."""
    head, *rest = pattern.replace("{split}", split).split("{language}")
    wildcard = "*".join(glob.escape(part) for part in (head, *rest))
    code = "(?P<language>[A-Za-z0-9_-]+)"
    exact = re.escape(head) + "".join(
        (code if number == 0 else "(?P=language)") + re.escape(part) for number, part in enumerate(rest)
    )
    found = set()
    for name in [*glob.glob(wildcard), *glob.glob(wildcard + ".gz")]:  # noqa: PTH207 (absolute too)
        match = re.fullmatch(exact + r"(?:\.gz)?", name)
        if match and Path(name).is_file():
            found.add(match["language"])
    return tuple(sorted(found))


def read_text(path: Path) -> str:
    """A file's text: gunzipped if it begins as gzip does, without a byte order mark.

    Raises:
        DataError: unreadable, empty, damaged gzip, binary, or not UTF-8 (with the line).
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); copy or download it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: UTF-16 text; save it as UTF-8")
    if b"\0" in raw:
        line = raw.count(b"\n", 0, raw.index(b"\0")) + 1
        raise DataError(f"{path}:{line}: binary data, expected text in UTF-8 (plain or gzipped)")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x}); convert it, for instance with iconv"
        ) from error
    if not text.strip():
        raise DataError(f"{path}: empty file")
    return text


def read_lines(path: Path) -> list[str]:
    """Lines without their ends. Only LF and CRLF end one: U+2028, U+0085 and such occur inside texts."""
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


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
                f"{path}:{line}: {_columns(len(row))} found, {len(cells[0])} expected as in line {lines[0]}. "
                f"Columns are separated by {what}; is there one inside a text, or a line broken in two?{hint}"
            )
    if hint and len(lines) > 1 and _alike([row[0] for row in cells]):
        raise DataError(f"{path}:{lines[0]}: no comma found{hint}")
    notes = (f"{path}: {_count(skipped, 'empty line')} skipped",) if skipped else ()
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


def _json_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    records, lines = [], []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON ({error.msg}); expected one object a line") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: {type(record).__name__} found, expected a JSON object")
        if "\\u" in line:
            _refuse_halves(record, f"{path}:{number}")
        records.append(record)
        lines.append(number)
    return records, lines


def _refuse_halves(record: dict[str, Any], place: str) -> None:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(
            f"{place}: {half} is one half of a character (a lone surrogate), such as is left where a text was cut; "
            "remove it, or write the texts again from their source"
        ) from None


def read_json_table(path: Path) -> Table:
    """Read JSON lines as a table whose columns are the first object's keys, values as they are.

    Raises:
        DataError: a line that is no JSON object, or lacks one of the keys.
    """
    records, lines = _json_lines(path)
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
        notes.append(f"{table.path}: {_count(empty, 'empty text')} kept")
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
    found = f"columns found: {', '.join(names)}" if names else f"{_columns(len(table.cells[0]))} found"
    say = "Say which has them in the recipe: `columns: {label: …}`"
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
        notes=(*table.notes, f"{table.path}: {_count(empty, 'empty row')} skipped"),
    )


def _text(value: Any, role: str, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{place}: {role} is {json.dumps(value)[:40]}, expected text or a whole number")
    return str(value)


def _has_header(row: Sequence[str], wanted: Mapping[str, str | int], header: bool | None, place: str) -> bool:
    named = [name for name in wanted.values() if isinstance(name, str)]
    if named and header is False:
        raise DataError(
            f"task.columns names {named[0]!r}, but `header: false` says there are no names; give positions"
        )
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
                f"Say which in the recipe: `columns: {{{role}: …, label: …}}`"
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
                f"{place}: {_columns(count)} found, {known} expected. Say which is which in the recipe, as in "
                "`columns: {first: 1, label: 2}` (positions from 0, or names where the file has a header)"
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
                f"{place}: {_columns(count)} found, so none at position {position} (from 0) for {role!r}"
            )
    for role in ("first", "second") if kind == "pair" else ("first",):
        if role not in chosen:
            raise DataError(
                f"task.columns needs {role!r} for a task of kind {kind}; given: {', '.join(wanted)}"
            )
    return chosen


def _check_roles(columns: Mapping[str, str | int], kind: Kind) -> None:
    roles = ("words", "tags") if kind == "tokens" else ("first", "second", "label", "group")
    for role in columns:
        if role not in roles:
            raise DataError(
                f"task.columns: {role!r} is no part of an example here; known: {', '.join(roles)}"
            )


def read_tokens(
    path: Path, columns: Mapping[str, str | int] | None = None, header: bool | None = None
) -> Rows:
    """Read a token file: ``token<TAB>tag`` or ``token tag`` a line, an empty line after every sentence.

    A file with a tab in its first line separates by tabs, and tokens may hold spaces; otherwise the last
    space separates. A file without tags gives rows without labels. ``-DOCSTART-`` lines are left out, and comments as
    CoNLL-U has them; the last sentence needs no empty line after it.

    Args:
        path: the file.
        columns: position (from 0) or name of ``words`` and ``tags``, where they are not the first and the second of
            two. Any spaces separate columns then, in a file without tabs.
        header: whether the first line has names; None: if ``columns`` has some.

    Raises:
        DataError: more columns than expected, a tag missing where others have one, or a first line of which it is not
            clear whether it has names.
    """
    content, notes = _without_comments(
        [
            (number, "" if line.startswith("-DOCSTART-") else line)
            for number, line in enumerate(read_lines(path), 1)
        ],
        path,
    )
    filled = [(number, line) for number, line in content if line.strip()]
    columns = dict(columns or {})
    named = _names_first(columns, header)
    if filled and named:
        columns = _token_columns(_split(filled[0][1]), columns, f"{path}:{filled[0][0]}")
        content = [entry for entry in content if entry != filled[0]]
        filled = filled[1:]
    if not filled:
        raise DataError(f"{path}: no sentence")
    read, left = _words_and_tags(filled, columns, path)
    tagged = any(tag is not None for _, tag in read.values())
    unsaid = header is None and not named
    if unsaid:
        (first, (word, tag)), *others = read.items()
        refuse_doubtful_token(word, tag or "", [str(tag) for _, (_, tag) in others], f"{path}:{first}")
    if left:
        notes += (f"{path}: {_count(left, 'range')} of multiword tokens and empty nodes left out",)
    sentences: list[list[int]] = [[]]
    for number, line in content:
        if number in read:
            sentences[-1].append(number)
        elif not line.strip() and sentences[-1]:
            sentences.append([])
    sentences = [sentence for sentence in sentences if sentence]
    words = [[read[number][0] for number in sentence] for sentence in sentences]
    tags = [[read[number][1] or "" for number in sentence] for sentence in sentences]
    return Rows(
        str(path),
        first=words,
        second=None,
        labels=tags if tagged else None,
        groups=None,
        lines=[sentence[0] for sentence in sentences],
        word_lines=sentences,
        notes=(*notes, *_empty_words(words, path)),
        no_labels="" if tagged else f"{_columns(len(_split(filled[0][1])))} found, and no tags in them",
        header_unsaid=unsaid,
    )


Lines = list[tuple[int, str]]
"""Lines with their numbers, from 1."""


def _without_comments(content: Lines, path: Path) -> tuple[Lines, tuple[str, ...]]:
    """Leave out CoNLL-U's comments. ``# O`` is a number sign with its tag, ``# text = …`` and ``# id 7`` are none."""
    others = [line for _, line in content if line.strip() and not line.startswith("# ")]
    tabs = any("\t" in line for line in others)
    spaces = any(" " in line.strip() for line in others)
    tags = {line.rpartition(" ")[2] for line in others} if spaces else set()

    def is_comment(line: str) -> bool:
        if not line.startswith("# ") or not others:
            return False
        if tabs:
            return "\t" not in line
        parts = line.split()
        if len(parts) == 2:
            return parts[1] in ("newdoc", "newpar")
        return len(parts) > 2 and (parts[2] == "=" or not spaces or parts[-1] not in tags)

    kept = [entry for entry in content if not is_comment(entry[1])]
    left = len(content) - len(kept)
    return kept, ((f"{path}: {_count(left, 'comment')} (# …) left out",) if left else ())


def _names_first(columns: Mapping[str, str | int], header: bool | None) -> bool:
    named = [name for name in columns.values() if isinstance(name, str)]
    if named and header is False:
        raise DataError(
            f"task.columns names {named[0]!r}, but `header: false` says there are no names; give positions"
        )
    return bool(named or header)


def _split(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else line.split()


def _token_columns(names: list[str], columns: Mapping[str, str | int], place: str) -> dict[str, str | int]:
    """Positions of words and tags, by the names in a header; none where they are the first two of two."""
    names = [name.strip() for name in names]
    chosen: dict[str, str | int] = {}
    for role, known in (("words", WORD_NAMES), ("tags", TAG_NAMES)):
        asked = columns.get(role)
        if isinstance(asked, int):
            chosen[role] = asked
        elif asked is not None and asked in names:
            chosen[role] = names.index(asked)
        elif asked is not None and not (role == "tags" and len(names) == 1):
            # As in tables, a test file may come without the tags; then only the words are left.
            raise DataError(f"{place}: no column is called {asked!r}; the first line has {', '.join(names)}")
        elif asked is None:
            found = [position for position, name in enumerate(names) if name.lower() in known]
            if len(found) == 1:
                chosen[role] = found[0]
    if len(names) == 2 and len(chosen) == 1:
        ((role, position),) = chosen.items()
        chosen["tags" if role == "words" else "words"] = 1 - int(position)
    if len(names) > 2 and len(chosen) < 2:
        raise DataError(
            f"{place}: columns found: {', '.join(names)}. Say which are which in the recipe: "
            "`columns: {words: …, tags: …}`"
        )
    return chosen if len(names) > 1 else {}


def _words_and_tags(
    filled: Lines, columns: Mapping[str, str | int], path: Path
) -> tuple[dict[int, tuple[str, str | None]], int]:
    """Word and tag by line, None for every tag of a file without; and how many lines that are no words were left out."""
    separator = "\t" if "\t" in filled[0][1] else " "
    widths = [line.count(separator) + 1 for _, line in filled]
    usual = columns == {"words": 0, "tags": 1} and min(widths) <= 2 and (separator == " " or max(widths) <= 2)
    if columns and not usual:
        return _chosen_columns(filled, columns, path)
    for (number, _), width in zip(filled, widths, strict=True):
        if width > 2 and (separator == "\t" or min(widths) > 2):
            raise DataError(
                f"{path}:{number}: {_columns(width)} found, 2 expected (token, tag). Say which they are in the recipe, "
                "from 0: `columns: {words: 1, tags: 3}` for CoNLL-U, `columns: {words: 0, tags: 3}` for CoNLL-2003"
            )
    tagged = separator in filled[0][1]
    read: dict[int, tuple[str, str | None]] = {}
    for number, line in filled:
        word, found, tag = line.rpartition(separator)
        if bool(found) != tagged or (tagged and not tag.strip()):
            what = "no tag" if tagged else "a tag"
            raise DataError(f"{path}:{number}: {what} found, unlike in line {filled[0][0]}: {line[:60]!r}")
        read[number] = (word, tag.strip()) if tagged else (line, None)
    return read, 0


def _chosen_columns(
    filled: Lines, columns: Mapping[str, str | int], path: Path
) -> tuple[dict[int, tuple[str, str | None]], int]:
    first, width = filled[0][0], len(_split(filled[0][1]))
    for role in ("words", "tags"):
        if role not in columns:
            raise DataError(f"task.columns needs {role!r} for token files; given: {', '.join(columns)}")
    words, tags = int(columns["words"]), int(columns["tags"])
    for role, position in (("words", words), ("tags", tags)):
        # The tags were the last column, and this file comes without them.
        if not (0 <= position < width or (role == "tags" and position == width)):
            raise DataError(
                f"{path}:{first}: {_columns(width)} found, so none at position {position} (from 0) for {role!r}"
            )
    read: dict[int, tuple[str, str | None]] = {}
    left = 0
    for number, line in filled:
        cells = _split(line)
        if len(cells) != width:
            raise DataError(
                f"{path}:{number}: {_columns(len(cells))} found, {width} expected as in line {first}: {line[:60]!r}"
            )
        if width == CONLLU and re.fullmatch(r"[0-9]+[-.][0-9]+", cells[0]):
            left += 1
            continue
        tag = cells[tags].strip() if tags < width else None
        if tag == "":
            raise DataError(f"{path}:{number}: no tag found: {line[:60]!r}")
        read[number] = (cells[words], tag)
    if not read:
        raise DataError(f"{path}: no sentence")
    return read, left


CONLLU = 10
"""Columns of CoNLL-U, whose ranges (1-2) and empty nodes (1.1) are no words."""


def read_json_tokens(path: Path, columns: Mapping[str, str | int] | None = None) -> Rows:
    """Read JSON lines with a list of words and perhaps one of tags; empty sentences are left out, counted.

    Raises:
        DataError: lists missing, of unequal length, or not of text.
    """
    records, lines = _json_lines(path)
    words: list[list[str]] = []
    tags: list[list[str]] = []
    starts: list[int] = []
    key = {
        role: _json_key(records[0], role, columns or {}, f"{path}:{lines[0]}") for role in ("words", "tags")
    }
    for record, line in zip(records, lines, strict=True):
        sentence = _json_list(record, key["words"], f"{path}:{line}")
        named = _json_list(record, key["tags"], f"{path}:{line}") if key["tags"] else []
        if key["tags"] and len(named) != len(sentence):
            raise DataError(f"{path}:{line}: {_count(len(sentence), 'word')} and {_count(len(named), 'tag')}")
        if sentence:
            words.append(sentence)
            tags.append(named)
            starts.append(line)
    if not words:
        raise DataError(f"{path}: no sentence")
    notes = _empty_words(words, path)
    if len(words) < len(records):
        notes += (f"{path}: {_count(len(records) - len(words), 'empty sentence')} left out",)
    return Rows(str(path), words, None, tags if key["tags"] else None, None, starts, notes=notes)


def _json_key(record: dict[str, Any], role: str, columns: Mapping[str, str | int], place: str) -> str | None:
    if role in columns:
        if isinstance(columns[role], int):
            raise DataError(
                f"{place}: task.columns gives position {columns[role]} for {role!r}, but JSON lines have names: "
                f"{', '.join(record)}"
            )
        return str(columns[role])
    for (name,) in KNOWN_NAMES[role]:
        if name in record:
            return name
    if role == "tags":
        return None
    raise DataError(
        f"{place}: no list of words; keys found: {', '.join(record)}. Name it: `columns: {{words: …}}`"
    )


def _json_list(record: dict[str, Any], key: str | None, place: str) -> list[str]:
    value = record.get(key or "")
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise DataError(f"{place}: {key!r} is {json.dumps(value)[:40]}, expected a list of texts")
    return value


def _empty_words(words: Sequence[Sequence[str]], path: Path) -> tuple[str, ...]:
    empty = sum(not word.strip() for sentence in words for word in sentence)
    return (f"{path}: {_count(empty, 'empty word')} kept",) if empty else ()


def _format_of(path: Path, kind: Kind) -> str:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        return "jsonl"
    if suffix == ".csv":
        return "csv"
    return "tokens" if kind == "tokens" else "tsv"


def _columns(count: int) -> str:
    return _count(count, "column")


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
