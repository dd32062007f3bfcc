"""Labels: looked up by name, put in a stable order, and BIO tags in one scheme."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from xlmprune.core.errors import DataError
from xlmprune.data.examples import Examples
from xlmprune.data.readers.rows import Rows, Split

MANY = 20
"""With fewer rows, most may well have a label of their own."""


def to_examples(
    rows: Rows, language: str, split: Split, labels: Sequence[str], synonyms: Mapping[str, str] | None = None
) -> Examples:
    """Look up every label by its name.

    Raises:
        DataError: a label is empty or not among ``labels``, with file and line; a training or dev set has no labels;
            or a training set has only one.
    """
    if rows.labels is None and split != "test":
        raise no_labels(rows, split)
    ids = {label: number for number, label in enumerate(labels)}
    ids |= {other: ids[label] for other, label in (synonyms or {}).items() if label in ids}

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
    return Examples(
        language,
        split,
        rows.first,
        rows.second,
        None if rows.labels is None else numbers,
        rows.groups,
        origin=rows.origin,
        notes=rows.notes,
    )


def no_labels(rows: Rows, split: Split) -> DataError:
    """The error for a file without labels that needs some."""
    found = f": {rows.no_labels}" if rows.no_labels else ""
    return DataError(f"{rows.origin}: no labels; the {split} set needs them{found}")


def _unknown(rows: Rows, row: int, word: int, name: str, labels: Sequence[str]) -> DataError:
    location = rows.location(row, word)
    if not name:
        return DataError(f"{location}: the label is empty; give this row one, or remove the row")
    header = ""
    if rows.header_unknown and row == word == 0:
        header = " If this line has column names, set `task.header: true`."
    return DataError(
        f"{location}: label {short(name)!r} is not one of {listed(labels)}.{header} If it is right, list all labels in "
        "the recipe's `task.labels`; the training file must have examples of it"
    )


def listed(names: Sequence[str], most: int = 20) -> str:
    """Join names for a message; of many names, the first ones and the count."""
    first = ", ".join(map(short, names[:most]))
    return first if len(names) <= most else f"{first}, … ({len(names):,} in all)"


def short(name: str, most: int = 40) -> str:
    """Cut a name for a message if it is a whole text."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def check_several(rows: Rows) -> None:
    """Raise DataError if all labels of a training set are the same."""
    found = {name for entry in label_names(rows) for name in entry}
    if len(found) == 1:
        raise DataError(
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
    if counts.total() > MANY and 2 * len(counts) > counts.total():
        examples = ", ".join(repr(short(name)) for name in list(counts)[:3])
        words = rows.word_lines is not None
        roles = "{words: …, tags: …}" if words else "{first: …, label: …}"
        raise DataError(
            f"{rows.origin}: {len(counts):,} different labels in {counts.total():,} {'words' if words else 'rows'} "
            f"({examples}, …), so they are hardly classes. Are they in another column? Say so in the recipe: "
            f"`task.columns: {roles}`; or list them in `task.labels`"
        )


def label_names(rows: Rows) -> list[list[str]]:
    """For each row its label, or the tags of its words."""
    return [[entry] if isinstance(entry, str) else entry for entry in rows.labels or []]


def in_order(names: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """List every name once, in an order that does not depend on the rows: numbers by value, then the others sorted."""
    found = {name for row in names for name in row}
    return tuple(sorted(found, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name)))


def is_bio(tags: Iterable[str]) -> bool:
    """Whether all tags are O, B-… or I-…, and not all are O."""
    entities = [tag for tag in tags if tag != "O"]
    return bool(entities) and all(tag[:2] in ("B-", "I-") and len(tag) > 2 for tag in entities)


def strays_from_bio(tags: Iterable[str]) -> list[str]:
    """The one or two tags of a set that are not BIO, if all others are; none if more are not, or too few others are."""
    found = set(tags)
    strays = sorted(tag for tag in found if tag != "O" and not is_bio([tag]))
    entities = len(found - {"O"}) - len(strays)
    return strays if len(strays) <= min(2, entities) else []


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
        previous, tags = "O", []
        for number in sentence:  # type: ignore[union-attr]
            tag = labels[number]
            if tag[:2] == "I-" and previous[2:] != tag[2:] and f"B-{tag[2:]}" in ids:
                tag = f"B-{tag[2:]}"
                changed += 1
            tags.append(ids[tag])
            previous = tag
        repaired.append(tags)
    if not changed:
        return examples
    note = f"{examples.origin}: {changed:,} entities began with I- (as in IOB1) and now begin with B- (IOB2)"
    return replace(examples, labels=repaired, notes=(*examples.notes, note))
