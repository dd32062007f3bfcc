"""Labels: looked up by name, put in a stable order, and BIO tags in one scheme."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from xlmprune.core.errors import DataError
from xlmprune.core.formatting import count_of, shorten
from xlmprune.data.examples import Examples
from xlmprune.data.readers.rows import Rows, Split
from xlmprune.data.readers.tags import is_bio, respell, style_of

MANY = 20
"""With fewer rows, most may well have a label of their own."""

MOST_LISTED = 20
"""Names in a message."""

NO_LABEL = ("-", "-1")
"""Written in place of a label by SNLI (annotators disagree) and by GLUE (the label is secret)."""


class LabelError(DataError):
    """Says that a label cannot be used; the column of the labels is known."""


def to_examples(
    rows: Rows,
    language: str,
    split: Split,
    labels: Sequence[str],
    synonyms: Mapping[str, str] | None = None,
) -> Examples:
    """Look up every label by its name.

    Rows whose label is a mark for "no label" are left out and counted. Tags of entities may be written in any scheme.

    Raises:
        DataError: a label is empty or not among ``labels``, with file and line; a training or dev set has no labels;
            or a training set has only one.
    """
    ids = {label: number for number, label in enumerate(labels)}
    ids |= {other: ids[label] for other, label in (synonyms or {}).items() if label in ids}
    rows = _respelled(without_marks(rows, [mark for mark in NO_LABEL if mark not in ids]), ids)
    if rows.labels is None and split != "test":
        raise no_labels(rows, split)

    def number(name: str, row: int, word: int = 0) -> int:
        if name not in ids:
            raise _unknown(rows, row, word, name, labels)
        return ids[name]

    if split == "train":
        check_several(rows)
    numbers: list[Any] = [
        number(entry, row)
        if isinstance(entry, str)
        else [number(tag, row, word) for word, tag in enumerate(entry)]
        for row, entry in enumerate(rows.labels or [])
    ]
    notes = (*_twins(rows.origin, labels), *_numbers(rows, labels)) if split == "train" else ()
    return Examples(
        language,
        split,
        rows.first,
        rows.second,
        None if rows.labels is None else numbers,
        rows.groups,
        origin=rows.origin,
        notes=(*rows.notes, *notes),
    )


def without_marks(rows: Rows, marks: Collection[str]) -> Rows:
    """Leave out rows whose label is one of these marks, and count them. If all are, the rows have no labels."""
    unlabelled = [entry in marks for entry in rows.labels or [] if isinstance(entry, str)]
    if not any(unlabelled):
        return rows
    if all(unlabelled):
        return replace(rows, labels=None, no_labels=f"every label is {rows.labels[0]!r}")  # type: ignore[index]
    named = " or ".join(repr(mark) for mark in marks if mark in (rows.labels or []))
    note = f"{rows.origin}: {count_of(sum(unlabelled), 'row')} without a label ({named}) left out"
    return replace(rows.keep([not mark for mark in unlabelled]), notes=(*rows.notes, note))


def marks_among(found: Collection[str]) -> list[str]:
    """Those marks among a training file's labels that are no classes of their own.

    `-` is one beside `+`, and `-1` beside other numbers below zero or with only 0 and 1, as ratings are.
    """
    others = set(found) - set(NO_LABEL)
    marks = []
    if "-" in found and "+" not in others:
        marks.append("-")
    rating = others <= {"0", "1"} or any(name.startswith("-") for name in others)
    if "-1" in found and not rating:
        marks.append("-1")
    return marks if others else []


def named_by_number(rows: Rows, names: Sequence[str]) -> Rows:
    """Replace labels that are all numbers by the names at those positions, from 0, if the names are no numbers."""
    entries = label_names(rows)
    found = {name for entry in entries for name in entry} - set(NO_LABEL)
    positions = {str(number): name for number, name in enumerate(names)}
    if not found or not found <= set(positions) or set(names) & set(positions):
        return rows
    labels: list[Any] = [
        positions.get(entry, entry) if isinstance(entry, str) else [positions.get(tag, tag) for tag in entry]
        for entry in rows.labels or []
    ]
    told = ", ".join(f"{number} = {name}" for number, name in list(positions.items())[:10])
    note = f"{rows.origin}: labels are numbers, read as positions in task.labels ({told})"
    return replace(rows, labels=labels, notes=(*rows.notes, note))


def _respelled(rows: Rows, ids: Mapping[str, int]) -> Rows:
    """Rewrite the tags of entities that are spelt in another way than the labels, and count them."""
    if rows.labels is None or not is_bio(ids):
        return rows
    unknown = {tag for tags in label_names(rows) for tag in tags if tag not in ids}
    written = {tag: name for tag in sorted(unknown) if (name := respell(tag, ids)) is not None}
    if not written:
        return rows
    labels: list[Any] = [[written.get(tag, tag) for tag in tags] for tags in label_names(rows)]
    count = sum(tag in written for tags in label_names(rows) for tag in tags)
    tag, name = next(iter(written.items()))
    note = f"{rows.origin}: {count_of(count, 'tag')} rewritten to BIO, such as {tag} to {name}"
    return replace(rows, labels=labels, notes=(*rows.notes, note))


def _numbers(rows: Rows, labels: Sequence[str]) -> tuple[str, ...]:
    """Say that tags are numbers, which as such cannot mark entities."""
    if rows.labels and not isinstance(rows.labels[0], str) and all(label.isdecimal() for label in labels):
        return (f"{rows.origin}: tags are numbers; if they mean positions, list their names in task.labels",)
    return ()


def _twins(origin: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Warn of labels that look alike, with their names."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(_bare(label), []).append(label)
    twins = [" and ".join(map(ascii_if_needed, names)) for names in groups.values() if len(names) > 1]
    if not twins:
        return ()
    return (
        f"{origin}: labels that differ only in case, spaces, Unicode form or number format are separate classes: "
        f"{'; '.join(twins)}",
    )


def ascii_if_needed(name: str) -> str:
    """Quote a name; if it has letters that cannot be told apart by sight, with their codes."""
    plain = unicodedata.normalize("NFC", name) == name and not any(
        unicodedata.category(c) == "Cf" for c in name
    )
    return repr(name) if plain else ascii(name)


def _bare(label: str) -> str:
    """Return what is left of a label without case, spaces, marks that have no width, and Unicode or number format."""
    text = unicodedata.normalize("NFKC", label).casefold()
    text = " ".join("".join(c for c in text if unicodedata.category(c) != "Cf").split())
    try:
        return repr(float(text)) if text.isascii() and math.isfinite(float(text)) else text
    except ValueError:
        return text


def no_labels(rows: Rows, split: Split) -> DataError:
    """Return the error for a file without labels that needs some."""
    found = f": {rows.no_labels}" if rows.no_labels else ""
    return DataError(f"{rows.origin}: no labels; the {split} set needs them{found}")


def _unknown(rows: Rows, row: int, word: int, name: str, labels: Sequence[str]) -> DataError:
    location = rows.location(row, word)
    if not name:
        return LabelError(f"{location}: the label is empty; give this row one, or remove the row")
    header = ""
    if rows.header_unknown and row == word == 0:
        header = " If this line has column names, set `task.header: true`."
    alike = [label for label in labels if _bare(label) == _bare(name)]
    if alike:
        return DataError(
            f"{location}: label {ascii_if_needed(name)} is not {ascii_if_needed(alike[0])}, from which it differs only in "
            "case, spaces, Unicode form or number format. Write both in the same way"
        )
    return DataError(
        f"{location}: label {shorten(name)!r} is not one of {listed(labels)}.{header} If it is right, list all labels in "
        "the recipe's `task.labels`; the training file must have examples of it"
    )


def listed(names: Sequence[str]) -> str:
    """Join names for a message; of many names, the first ones and the count."""
    first = ", ".join(map(shorten, names[:MOST_LISTED]))
    return first if len(names) <= MOST_LISTED else f"{first}, … ({len(names):,} in all)"


def check_several(rows: Rows) -> None:
    """Raise DataError if all labels of a training set are the same."""
    found = {name for entry in label_names(rows) for name in entry}
    if len(found) == 1:
        raise LabelError(
            f"{rows.origin}: the only label is {found.pop()!r}; a training set needs at least two"
        )


def check_classes(rows: Rows) -> None:
    """Refuse labels of a training file that can hardly be classes.

    Raises:
        DataError: one is empty, with file and line; all are the same; or most rows have their own label.
    """
    names = label_names(rows)
    for row, entry in enumerate(names):
        if "" in entry:
            raise _unknown(rows, row, entry.index(""), "", ())
    check_several(rows)
    counts = Counter(name for entry in names for name in entry)
    _check_kind(rows, counts)
    first = Counter(text for text in rows.first if isinstance(text, str))
    swapped = len(counts) == len(names) >= 4 and 0 < 2 * len(first) <= len(names)
    many = counts.total() > MANY and 2 * len(counts) > counts.total()
    if swapped or (many and not style_of(counts)):
        examples = ", ".join(repr(shorten(name)) for name in list(counts)[:3])
        words = rows.word_lines is not None
        roles = (
            "{words: …, tags: …}" if words else "{first: 1, label: 0}" if swapped else "{first: …, label: …}"
        )
        raise DataError(
            f"{rows.origin}: {len(counts):,} different labels in {counts.total():,} {'words' if words else 'rows'} "
            f"({examples}, …), so they are probably not classes. Are they in another column? Say so in the recipe: "
            f"`task.columns: {roles}`; or list them in `task.labels`"
        )


def _check_kind(rows: Rows, counts: Counter[str]) -> None:
    """Refuse labels of tasks that are not supported: regression and several labels for one text."""
    listed_labels = "If these are classes, list them in `task.labels`"
    if broken := [name for name in counts if "\n" in name or "\r" in name]:
        raise LabelError(
            f"{rows.origin}: label {shorten(broken[0])!r} has a line break; write it in one line"
        )
    if all(_is_number(name) for name in counts) and any(not float(name).is_integer() for name in counts):
        raise DataError(
            f"{rows.origin}: labels are numbers with fractions ({', '.join(list(counts)[:3])}, …). Regression is not "
            f"supported. {listed_labels}"
        )
    for name in counts:
        parts = [part.strip() for part in re.split("[,;|]", name)]
        if rows.word_lines is None and len(parts) > 1 and all(part in counts for part in parts):
            raise LabelError(
                f"{rows.origin}: label {shorten(name)!r} is made of other labels. Several labels for one text are not "
                f"supported. {listed_labels}"
            )


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def label_names(rows: Rows) -> list[list[str]]:
    """For each row its label, or the tags of its words."""
    return [[entry] if isinstance(entry, str) else entry for entry in rows.labels or []]


def in_order(names: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """List every name once, in an order that does not depend on the rows: numbers by value, then the others sorted."""
    found = {name for row in names for name in row}
    return tuple(sorted(found, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name)))


def to_iob2(examples: Examples, labels: Sequence[str]) -> Examples:
    """Let every entity begin with B-, and count the changes in the notes.

    IOB1 begins with I- unless an entity of the same type ends just before, and a file may begin inside an entity.
    The words of every entity stay the same. Tags that are not BIO stay untouched.
    """
    if examples.labels is None or not is_bio(labels):
        return examples
    ids = {label: number for number, label in enumerate(labels)}
    changed = 0
    repaired: list[list[int]] = []
    for sentence in examples.labels:
        previous, tags = None, []
        for number in sentence:  # type: ignore[union-attr]
            tag = labels[number]
            if tag[0] == "I" and previous != tag[1:] and f"B{tag[1:]}" in ids:
                tag = f"B{tag[1:]}"
                changed += 1
            tags.append(ids[tag])
            previous = None if tag == "O" else tag[1:]
        repaired.append(tags)
    if not changed:
        return examples
    note = f"{examples.origin}: {changed:,} entities began with I- (as in IOB1) and now begin with B- (IOB2)"
    return replace(examples, labels=repaired, notes=(*examples.notes, note))
