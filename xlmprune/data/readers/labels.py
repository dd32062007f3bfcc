"""Labels as they are written, and as numbers: looked up by name, put in a stable order, tags made uniform."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from xlmprune.core.errors import DataError
from xlmprune.data.examples import Examples
from xlmprune.data.readers.rows import Rows, Split


def to_examples(
    rows: Rows, language: str, split: Split, labels: Sequence[str], synonyms: Mapping[str, str] | None = None
) -> Examples:
    """Look up every label by its name.

    Raises:
        DataError: a label that is empty or not among ``labels``, with file and line; a training or dev set without
            any; or a training set with one only.
    """
    if rows.labels is None and split != "test":
        raise no_labels(rows, split)
    ids = {label: number for number, label in enumerate(labels)}
    ids |= {other: ids[label] for other, label in (synonyms or {}).items() if label in ids}

    def number(name: str, row: int, word: int = 0) -> int:
        if name not in ids:
            raise _unknown(rows, row, word, name, labels)
        return ids[name]

    numbers: list[int] | list[list[int]] | None = None
    if rows.labels is not None:
        tagged = bool(rows.labels) and not isinstance(rows.labels[0], str)
        numbers = (
            [
                [number(tag, row, word) for word, tag in enumerate(tags)]
                for row, tags in enumerate(rows.labels)
            ]
            if tagged
            else [number(str(name), row) for row, name in enumerate(rows.labels)]
        )
    if split == "train":
        check_several(rows)
    return Examples(
        language, split, rows.first, rows.second, numbers, rows.groups, origin=rows.origin, notes=rows.notes
    )


def no_labels(rows: Rows, split: Split) -> DataError:
    """What to say where labels are needed and there are none."""
    found = f": {rows.no_labels}" if rows.no_labels else ""
    return DataError(f"{rows.origin}: no labels; the {split} set needs them{found}")


def _unknown(rows: Rows, row: int, word: int, name: str, labels: Sequence[str]) -> DataError:
    place = rows.location(row, word)
    if not name:
        return DataError(f"{place}: the label is empty; give this row one, or take the row out")
    header = ""
    if rows.header_unknown and row == word == 0:
        header = " If this line has column names, set `task.header: true`."
    return DataError(
        f"{place}: label {short(name)!r} is not one of {listed(labels)}.{header} If it is right, list all labels in the "
        "recipe's `task.labels`; the training file must have examples of it"
    )


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names for a message; of many the first, and how many there are."""
    first = ", ".join(map(short, names[:most]))
    return first if len(names) <= most else f"{first}, … ({len(names):,} in all)"


def short(name: str, most: int = 40) -> str:
    """A name for a message, cut where it is a whole text."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def check_several(rows: Rows) -> None:
    """Refuse a training set in which there is nothing to tell apart.

    Raises:
        DataError: all its labels are the same.
    """
    found = {name for entry in _names(rows) for name in entry}
    if len(found) == 1:
        raise DataError(
            f"{rows.origin}: the only label is {found.pop()!r}; a training set needs at least two"
        )


def check_classes(rows: Rows) -> None:
    """Refuse labels of a training file that can hardly be classes.

    Raises:
        DataError: one is empty, with file and line; all are the same; or most rows have one of their own.
    """
    names = _names(rows)
    for row, entry in enumerate(names):
        if "" in entry:
            raise _unknown(rows, row, entry.index(""), "", ())
    check_several(rows)
    counts = Counter(name for entry in names for name in entry)
    if counts.total() > MANY and 2 * len(counts) > counts.total():
        examples = ", ".join(repr(short(name)) for name in list(counts)[:3])
        what, where = (
            ("words", "{words: …, tags: …}") if rows.word_lines else ("rows", "{first: …, label: …}")
        )
        raise DataError(
            f"{rows.origin}: {len(counts):,} different labels in {counts.total():,} {what} ({examples}, …), so they "
            f"are hardly classes. Are they in another column? Say so in the recipe: `task.columns: {where}`; or list them "
            "in `task.labels`"
        )


def _names(rows: Rows) -> list[list[str]]:
    return [[entry] if isinstance(entry, str) else entry for entry in rows.labels or []]


MANY = 20
"""Of fewer rows, most may well have a label of their own."""


def in_order(names: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Every name once, in an order that does not depend on that of the rows: numbers by value, then the alphabet."""
    found = {name for row in names for name in row}
    return tuple(sorted(found, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name)))


def is_bio(tags: Iterable[str]) -> bool:
    """Whether tags are O, B-… and I-…, with at least one of the latter two."""
    entities = [tag for tag in tags if tag != "O"]
    return bool(entities) and all(tag[:2] in ("B-", "I-") and len(tag) > 2 for tag in entities)


def strays_from_bio(tags: Iterable[str]) -> list[str]:
    """The one or two tags that keep a set of tags from being BIO; none where more do, or too few others are."""
    found = set(tags)
    strays = sorted(tag for tag in found if tag != "O" and not is_bio([tag]))
    entities = len(found - {"O"}) - len(strays)
    return strays if len(strays) <= min(2, entities) else []


def to_iob2(examples: Examples, labels: Sequence[str]) -> Examples:
    """Let every entity open with B-, and count what was changed in the notes.

    IOB1 opens with I- unless an entity of the same type goes just before; and a file may begin inside an entity.
    Which words make up which entity stays as it was. Tags that are not BIO stay untouched.
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
    note = f"{examples.origin}: {changed:,} entities opened with I- (as in IOB1) and now open with B- (IOB2)"
    return replace(examples, labels=repaired, notes=(*examples.notes, note))
