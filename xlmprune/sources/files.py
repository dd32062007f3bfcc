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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmprune.data import Kind
from xlmprune.errors import DataError
from xlmprune.sources.rows import Rows, Split

if TYPE_CHECKING:
    from xlmprune.recipe import TaskRecipe

DEFAULT_COLUMNS: dict[str, dict[int, tuple[str, ...]]] = {
    "text": {2: ("first", "label"), 1: ("first",)},
    "pair": {3: ("first", "second", "label"), 2: ("first", "second")},
}
"""Roles of the columns of a table without a header, by how many columns it has."""

KNOWN_NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "first": (
        ("text",),
        ("sentence",),
        ("premise",),
        ("sentence1",),
        ("question",),
        ("query",),
        ("news_title",),
        ("title",),
        ("utterance",),
        ("first",),
    ),
    "second": (
        ("hypothesis",),
        ("hypo",),
        ("sentence2",),
        ("passage",),
        ("ad_title", "ad_description"),
        ("web_page_title", "web_page_snippet"),
        ("title", "description"),
        ("title", "snippet"),
        ("news_body",),
        ("body",),
        ("answer",),
        ("document",),
        ("second",),
    ),
    "label": (
        ("label",),
        ("gold_label",),
        ("relevance_label",),
        ("relavance_label",),  # so spelt in a published copy of XGLUE
        ("news_category",),
        ("category",),
        ("rating",),
        ("intent",),
        ("class",),
    ),
    "group": (("group",), ("query_id",), ("qid",)),
    "words": (("words",), ("tokens",)),
    "tags": (("tags",), ("labels",), ("ner_tags",), ("pos_tags",), ("upos",), ("ner",), ("pos",)),
}
"""Names of columns we know, by role; the first alternative that is there counts, joined if several."""


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
        if "{split}" not in recipe.path:
            raise DataError(
                f"task.path {recipe.path}: without {{split}} train and test would be the same file"
            )
        self._pattern = recipe.path
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
            return read_tokens(path)
        if file_format == "tokens":
            raise DataError(f"{path}: a token file has no texts to classify; for tags, use task `tagging`")
        table = read_json_table(path) if file_format == "jsonl" else read_table(path, file_format)
        return select_columns(table, self._kind, self._columns, self._header, self._by_count, self._grouped)

    def _file(self, language: str, split: Split) -> Path | None:
        if "{language}" not in self._pattern and language != self._train_language:
            return None
        plain = Path(fill(self._pattern, language, self._splits[split]))
        for path in (plain, plain.with_name(plain.name + ".gz")):
            if path.is_file():
                return path
        return None


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


def read_table(path: Path, file_format: str = "tsv") -> Table:
    """Read a TSV (no quoting: a quotation mark is a character) or a CSV (quoted as RFC 4180 has it).

    Raises:
        DataError: rows of unequal width, besides what `read_text` raises.
    """
    if file_format == "csv":
        cells, lines = _read_csv(path)
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
                f"Columns are separated by {what}; is there one inside a text, or a line broken in two?"
            )
    notes = (f"{path}: {_count(skipped, 'empty line')} skipped",) if skipped else ()
    return Table(str(path), cells, lines, notes=notes)


def _read_csv(path: Path) -> tuple[list[list[str]], list[int]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    cells, lines, start = [], [], 1
    try:
        for row in reader:
            if row:
                cells.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV ({error})") from error
    return cells, lines


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
        records.append(record)
        lines.append(number)
    return records, lines


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
    grouped: bool = False,
) -> Rows:
    """Find the columns of a table that make up examples.

    Args:
        table: as read; with its header still in it, if it has one.
        kind: ``text`` or ``pair``.
        wanted: column name or position (from 0) by role, for what the recipe says.
        header: whether the first row has names; None to tell from that row.
        by_count: for a table without names, roles of the columns by how many there are.
        grouped: rows belong to queries, which are their group column, or else the first text.

    Raises:
        DataError: no such column, no header where one is needed, or a width that is not known.
    """
    names, cells, lines = table.names, table.cells, table.lines
    if names is None and _has_header(cells[0], wanted, header, f"{table.path}:{lines[0]}"):
        names, cells, lines = tuple(name.strip() for name in cells[0]), cells[1:], lines[1:]
        if not cells:
            raise DataError(f"{table.path}: a header and no examples")
    if names is not None:
        chosen = _columns_by_name(names, kind, wanted, table.path)
    else:
        chosen = _columns_by_position(len(cells[0]), kind, wanted, by_count, f"{table.path}:{lines[0]}")

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
    labels = [label.strip() for label in labels] if labels is not None else None
    return Rows(table.path, first, second, labels, groups, lines, notes=tuple(notes))


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
    cells = [cell.strip().lower() for cell in row]
    known = {name for names in KNOWN_NAMES.values() for alternative in names for name in alternative}
    has_text = any(set(alternative) <= set(cells) for alternative in KNOWN_NAMES["first"])
    has_label = any(set(alternative) <= set(cells) for alternative in KNOWN_NAMES["label"])
    return has_text and (has_label or set(cells) <= known | {"id"})


def _columns_by_name(
    names: tuple[str, ...], kind: Kind, wanted: Mapping[str, str | int], path: str
) -> dict[str, tuple[int, ...]]:
    lowered = [name.lower() for name in names]
    chosen: dict[str, tuple[int, ...]] = {}
    for role in ("first", "second", "label", "group"):
        asked = wanted.get(role)
        if isinstance(asked, int):
            if asked < len(names):
                chosen[role] = (asked,)
        elif asked is not None:
            if asked in names:
                chosen[role] = (names.index(asked),)
        else:
            for alternative in KNOWN_NAMES[role]:
                if set(alternative) <= set(lowered):
                    chosen[role] = tuple(lowered.index(name) for name in alternative)
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


def read_tokens(path: Path) -> Rows:
    """Read a token file: ``token<TAB>tag`` or ``token tag`` a line, an empty line after every sentence.

    A file with a tab in its first line separates by tabs, and tokens may hold spaces; otherwise the last
    space separates. A file without tags gives rows without labels. ``-DOCSTART-`` lines are left out; the
    last sentence needs no empty line after it.

    Raises:
        DataError: more than two columns, or a tag missing where others have one.
    """
    content = [
        (number, "" if line.startswith("-DOCSTART-") else line)
        for number, line in enumerate(read_lines(path), 1)
    ]
    filled = [(number, line) for number, line in content if line.strip()]
    if not filled:
        raise DataError(f"{path}: no sentence")
    separator = "\t" if "\t" in filled[0][1] else " "
    widths = [line.count(separator) + 1 for _, line in filled]
    for (number, _), width in zip(filled, widths, strict=True):
        if width > 2 and (separator == "\t" or min(widths) > 2):
            raise DataError(
                f"{path}:{number}: {_columns(width)} found, 2 expected (token, tag). Of CoNLL-U, keep FORM and "
                "UPOS of the rows with whole numbers as ids"
            )
    tagged = separator in filled[0][1]
    words: list[list[str]] = []
    tags: list[list[str]] = []
    starts: list[int] = []
    inside = False
    for number, line in content:
        if not line.strip():
            inside = False
            continue
        if not inside:
            words.append([])
            tags.append([])
            starts.append(number)
            inside = True
        word, found, tag = line.rpartition(separator)
        if bool(found) != tagged or (tagged and not tag.strip()):
            what = "no tag" if tagged else "a tag"
            raise DataError(f"{path}:{number}: {what} found, unlike in line {filled[0][0]}: {line[:60]!r}")
        words[-1].append(word if tagged else line)
        tags[-1].append(tag.strip())
    return Rows(
        str(path),
        first=words,
        second=None,
        labels=tags if tagged else None,
        groups=None,
        lines=starts,
        one_line_per_word=True,
        notes=_empty_words(words, path),
    )


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
