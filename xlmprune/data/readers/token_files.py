"""Token files: one word and its tag a line, an empty line after each sentence; or a sentence a line of JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xlmprune.core.errors import DataError
from xlmprune.data.readers.headers import (
    KNOWN_NAMES,
    TAG_NAMES,
    WORD_NAMES,
    names_asked,
    refuse_doubtful_token,
)
from xlmprune.data.readers.lines import count_columns, count_of, read_json_lines, read_lines
from xlmprune.data.readers.rows import Rows

Lines = list[tuple[int, str]]
"""Lines with their numbers, from 1."""

CONLLU = 10
"""Columns of CoNLL-U, whose ranges (1-2) and empty nodes (1.1) are no words."""


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
    named = bool(names_asked(columns, header) or header)
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
        notes += (f"{path}: {count_of(left, 'range')} of multiword tokens and empty nodes left out",)
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
        no_labels="" if tagged else f"{count_columns(len(_split(filled[0][1])))} found, and no tags in them",
        header_unsaid=unsaid,
    )


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
    return kept, ((f"{path}: {count_of(left, 'comment')} (# …) left out",) if left else ())


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
            "`task.columns: {words: …, tags: …}`"
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
                f"{path}:{number}: {count_columns(width)} found, 2 expected (token, tag). Say which they are in the recipe, "
                "from 0: `task.columns: {words: 1, tags: 3}` for CoNLL-U, `task.columns: {words: 0, tags: 3}` for CoNLL-2003"
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
                f"{path}:{first}: {count_columns(width)} found, so none at position {position} (from 0) for {role!r}"
            )
    read: dict[int, tuple[str, str | None]] = {}
    left = 0
    for number, line in filled:
        cells = _split(line)
        if len(cells) != width:
            raise DataError(
                f"{path}:{number}: {count_columns(len(cells))} found, {width} expected as in line {first}: {line[:60]!r}"
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


def read_json_tokens(path: Path, columns: Mapping[str, str | int] | None = None) -> Rows:
    """Read JSON lines with a list of words and perhaps one of tags; empty sentences are left out, counted.

    Raises:
        DataError: lists missing, of unequal length, or not of text.
    """
    records, lines = read_json_lines(path)
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
            raise DataError(
                f"{path}:{line}: {count_of(len(sentence), 'word')} and {count_of(len(named), 'tag')}"
            )
        if sentence:
            words.append(sentence)
            tags.append(named)
            starts.append(line)
    if not words:
        raise DataError(f"{path}: no sentence")
    notes = _empty_words(words, path)
    if len(words) < len(records):
        notes += (f"{path}: {count_of(len(records) - len(words), 'empty sentence')} left out",)
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
        f"{place}: no list of words; keys found: {', '.join(record)}. Name it: `task.columns: {{words: …}}`"
    )


def _json_list(record: dict[str, Any], key: str | None, place: str) -> list[str]:
    value = record.get(key or "")
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise DataError(f"{place}: {key!r} is {json.dumps(value)[:40]}, expected a list of texts")
    return value


def _empty_words(words: Sequence[Sequence[str]], path: Path) -> tuple[str, ...]:
    empty = sum(not word.strip() for sentence in words for word in sentence)
    return (f"{path}: {count_of(empty, 'empty word')} kept",) if empty else ()
