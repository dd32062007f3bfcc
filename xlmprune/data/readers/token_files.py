"""Token files: one word and its tag a line, an empty line after each sentence; or a sentence a line of JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import compress, groupby
from pathlib import Path
from typing import Any

from xlmprune.core.errors import DataError
from xlmprune.core.formatting import count_of
from xlmprune.data.readers.columns import check_positions
from xlmprune.data.readers.headers import (
    KNOWN_NAMES,
    TAG_NAMES,
    WORD_NAMES,
    names_asked,
    refuse_doubtful_token,
)
from xlmprune.data.readers.lines import count_columns, read_lines
from xlmprune.data.readers.rows import Rows
from xlmprune.data.readers.tables import MISSING, read_json_table

Lines = list[tuple[int, str]]
"""Lines with their numbers, from 1."""

LONGEST = 512
"""A file of one sentence with more words than this has lost its empty lines."""

TWO: Mapping[str, str | int] = {"words": 0, "tags": 1}
"""Positions in a file of two columns."""

CONLLU = 10
"""The number of columns of CoNLL-U, in which ranges (1-2) and empty nodes (1.1) are no words."""


def read_tokens(
    path: Path, columns: Mapping[str, str | int] | None = None, header: bool | None = None
) -> Rows:
    """Read a token file: ``token<TAB>tag`` or ``token tag`` a line, an empty line after every sentence.

    If the first line has a tab, tabs separate, and tokens may hold spaces; otherwise the last space separates. A file
    without tags gives rows without labels. ``-DOCSTART-`` lines and comments as in CoNLL-U are left out. The last
    sentence needs no empty line after it.

    Args:
        path: the file.
        columns: position (from 0) or name of ``words`` and ``tags``, if they are not the first and the second of two
            columns. Any spaces separate columns then, in a file without tabs.
        header: whether the first line has names; None: it has them if ``columns`` names some.

    Raises:
        DataError: there are more columns than expected, a tag is missing, or the first line may or may not have
            names.
    """
    numbered = enumerate(read_lines(path), 1)
    content = [(number, "" if line.startswith("-DOCSTART-") else line) for number, line in numbered]
    content, notes = _without_comments(content, path)
    filled = [entry for entry in content if entry[1].strip()]
    columns = dict(columns or {})
    named = bool(names_asked(columns, header) or header)
    if filled and named:
        columns = _columns_by_name(_split(filled[0][1]), columns, f"{path}:{filled[0][0]}")
        filled = filled[1:]
    if not filled:
        raise DataError(f"{path}: no sentence")
    read, left = _words_and_tags(filled, columns, path)
    tagged = any(tag is not None for _, tag in read.values())
    unknown = header is None and not named
    if unknown:
        (first, (word, tag)), *others = read.items()
        refuse_doubtful_token(word, tag or "", [str(tag) for _, (_, tag) in others], f"{path}:{first}")
    if left:
        notes += (f"{path}: {count_of(left, 'range')} of multiword tokens and empty nodes left out",)
    sentences = [
        lines
        for _, entries in groupby(content, key=lambda entry: bool(entry[1].strip()))
        if (lines := [number for number, _ in entries if number in read])
    ]
    if len(sentences) == 1 and len(sentences[0]) > LONGEST:
        raise DataError(
            f"{path}: {len(sentences[0]):,} words and no empty line, so all would be one sentence. Put an empty line after "
            "every sentence"
        )
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
        no_labels="" if tagged else f"{count_columns(len(_split(filled[0][1])))} found, and no tags in them",
        header_unknown=unknown,
    )


def _without_comments(content: Lines, path: Path) -> tuple[Lines, tuple[str, ...]]:
    """Leave out CoNLL-U's comments, such as ``# text = …`` and ``# id 7``; ``# O`` is a number sign with its tag."""
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
    return kept, ((f"{path}: {count_of(left, 'comment')} (# …) left out",) if left else ())


def _split(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else line.split()


def _columns_by_name(
    names: list[str], columns: Mapping[str, str | int], location: str
) -> dict[str, str | int]:
    """Positions of words and tags, by the names in a header; none if they are the first two of two."""
    names = [name.strip() for name in names]
    chosen: dict[str, str | int] = {}
    for role, known in (("words", WORD_NAMES), ("tags", TAG_NAMES)):
        asked = columns.get(role)
        found = [
            index for index, name in enumerate(names) if (name == asked if asked else name.lower() in known)
        ]
        if isinstance(asked, int):
            chosen[role] = asked
        elif len(found) == 1 or (found and asked):
            chosen[role] = found[0]
        elif asked is not None and not (role == "tags" and len(names) == 1):
            # As in tables, a test file may come without the tags; then only the words are left.
            raise DataError(
                f"{location}: no column is called {asked!r}; the first line has {', '.join(names)}"
            )
    if len(names) == 2 and len(chosen) == 1:
        ((role, position),) = chosen.items()
        chosen["tags" if role == "words" else "words"] = 1 - int(position)
    if len(names) > 2 and len(chosen) < 2:
        raise DataError(
            f"{location}: columns found: {', '.join(names)}. Say which are which in the recipe: "
            "`task.columns: {words: …, tags: …}`"
        )
    return chosen if len(names) > 1 else {}


def _words_and_tags(
    filled: Lines, columns: Mapping[str, str | int], path: Path
) -> tuple[dict[int, tuple[str, str | None]], int]:
    """Word and tag by line, and the count of lines left out that are no words. A file without tags gives None for each."""
    separator = "\t" if "\t" in filled[0][1] else " "
    widths = [line.count(separator) + 1 for _, line in filled]
    two = min(widths) <= 2 and (separator == " " or max(widths) <= 2) and columns in ({}, TWO)
    if not columns and not two:
        number, width = next((n, w) for (n, _), w in zip(filled, widths, strict=True) if w > 2)
        raise DataError(
            f"{path}:{number}: {count_columns(width)} found, 2 expected (token, tag). Say which they are in the recipe, "
            "from 0: `task.columns: {words: 1, tags: 3}` for CoNLL-U, `task.columns: {words: 0, tags: 3}` for CoNLL-2003"
        )
    # In two columns, words may hold spaces.
    rows = [(line.rsplit(separator, 1) if two else _split(line)) for _, line in filled]
    words, tags = _positions(TWO if two else columns, len(rows[0]), f"{path}:{filled[0][0]}")
    read: dict[int, tuple[str, str | None]] = {}
    for (number, line), cells in zip(filled, rows, strict=True):
        tag = cells[tags].strip() if tags < len(cells) else None
        if tag == "" or len(cells) != len(rows[0]):
            found = count_columns(len(cells)) if tag else "no tag"
            raise DataError(
                f"{path}:{number}: {found} found, {len(rows[0])} expected as in line {filled[0][0]}: "
                f"{line[:60]!r}"
            )
        if len(cells) != CONLLU or not re.fullmatch(r"[0-9]+[-.][0-9]+", cells[0]):
            read[number] = (cells[words], tag)
    if not read:
        raise DataError(f"{path}: no sentence")
    return read, len(filled) - len(read)


def _positions(columns: Mapping[str, str | int], width: int, location: str) -> tuple[int, int]:
    for role in ("words", "tags"):
        if role not in columns:
            raise DataError(f"task.columns needs {role!r} for token files; given: {', '.join(columns)}")
    words, tags = int(columns["words"]), int(columns["tags"])
    # If the tags were the last column, a file may come without them.
    check_positions({"words": (words,)} | ({"tags": (tags,)} if tags != width else {}), width, location)
    return words, tags


def read_json_tokens(path: Path, columns: Mapping[str, str | int] | None = None) -> Rows:
    """Read JSON lines with a list of words and perhaps one of tags; empty sentences are left out, counted.

    Raises:
        DataError: lists missing, of unequal length, or not of text.
    """
    table = read_json_table(path, (columns or {}).values())
    names = table.names or ()
    keys = {role: _json_key(names, role, columns or {}, table.start) for role in ("words", "tags")}
    read = {
        role: [
            _texts(row[names.index(key)], key, f"{path}:{line}")
            for row, line in zip(table.cells, table.lines)
        ]
        for role, key in keys.items()
        if key is not None
    }
    words, tags = read["words"], read.get("tags")
    for sentence, own, line in zip(words, tags or (), table.lines):
        if len(own) != len(sentence):
            raise DataError(
                f"{path}:{line}: {count_of(len(sentence), 'word')} and {count_of(len(own), 'tag')}"
            )
    filled = [bool(sentence) for sentence in words]
    if not any(filled):
        raise DataError(f"{path}: no sentence")
    left = len(filled) - sum(filled)
    notes = (f"{path}: {count_of(left, 'empty sentence')} left out",) if left else ()
    words, lines = list(compress(words, filled)), list(compress(table.lines, filled))
    tags = tags and list(compress(tags, filled))
    return Rows(str(path), words, None, tags, None, lines, notes=(*_empty_words(words, path), *notes))


def _json_key(names: Sequence[str], role: str, columns: Mapping[str, str | int], location: str) -> str | None:
    asked = columns.get(role)
    if isinstance(asked, int):
        raise DataError(
            f"{location}: task.columns gives position {asked} for {role!r}, but JSON lines have names: "
            f"{', '.join(names)}"
        )
    for name in [asked] if asked else [name for (name,) in KNOWN_NAMES[role]]:
        if name in names:
            return name
    if role == "tags" and not asked:
        return None
    raise DataError(
        f"{location}: no list of {role}; keys found: {', '.join(names)}. Name it: `task.columns: {{{role}: …}}`"
    )


def _texts(value: Any, key: str, location: str) -> list[str]:
    numbers = isinstance(value, list) and value and all(type(entry) is int for entry in value)
    if numbers and key.lower() not in WORD_NAMES:
        return [str(entry) for entry in value]
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        found = "missing" if value is MISSING else json.dumps(value)[:40]
        raise DataError(f"{location}: {key!r} is {found}, expected a list of texts")
    return value


def _empty_words(words: Sequence[Sequence[str]], path: Path) -> tuple[str, ...]:
    empty = sum(not word.strip() for sentence in words for word in sentence)
    return (f"{path}: {count_of(empty, 'empty word')} kept",) if empty else ()
