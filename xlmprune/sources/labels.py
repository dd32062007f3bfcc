"""Labels as they are written, and as numbers: looked up by name, put in a stable order, tags made uniform."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from xlmprune.data import Examples
from xlmprune.errors import DataError
from xlmprune.sources.rows import Rows, Split


def to_examples(
    rows: Rows, language: str, split: Split, labels: Sequence[str], synonyms: Mapping[str, str] | None = None
) -> Examples:
    """Look up every label by its name.

    Raises:
        DataError: a label that is not among ``labels``, with file and line; or a training set without any.
    """
    if rows.labels is None and split != "test":
        raise DataError(f"{rows.origin}: no labels; the {split} set needs them, in the last column")
    ids = {label: number for number, label in enumerate(labels)}
    ids |= {other: ids[label] for other, label in (synonyms or {}).items() if label in ids}

    def number(name: str, row: int, word: int = 0) -> int:
        if name not in ids:
            raise DataError(
                f"{rows.place(row, word)}: label {name!r} is not one of {', '.join(labels)}. If it is "
                f"right, list "
                "all labels in the recipe's `task.labels`; the training file must have examples of it"
            )
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
    return Examples(
        language, split, rows.first, rows.second, numbers, rows.groups, origin=rows.origin, notes=rows.notes
    )


def in_order(names: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Every name once, in an order that does not depend on that of the rows: numbers by value, then the alphabet."""
    found = {name for row in names for name in row}
    return tuple(sorted(found, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name)))


def is_bio(tags: Iterable[str]) -> bool:
    """Whether tags are O, B-… and I-…, with at least one of the latter two."""
    entities = [tag for tag in tags if tag != "O"]
    return bool(entities) and all(tag[:2] in ("B-", "I-") and len(tag) > 2 for tag in entities)


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
