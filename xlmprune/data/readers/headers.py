"""Whether the first line of a file holds column names.

Known names decide. A first line that only looks like names is refused: read as an example it would add a class that
nobody meant, and skipped it might be an example lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from xlmprune.core.errors import DataError
from xlmprune.core.formatting import shorten

KNOWN_NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    role: tuple(tuple(alternative.split("+")) for alternative in names.split())
    for role, names in {
        "first": "text sentence premise sentence1 question query news_title title utterance first",
        "second": "hypothesis hypo sentence2 passage ad_title+ad_description web_page_title+web_page_snippet "
        "title+description title+snippet news_body body answer document second",
        # One published copy of XGLUE spells "relavance_label".
        "label": "label gold_label relevance_label relavance_label news_category category rating intent class",
        "group": "group query_id qid",
        "words": "words tokens",
        "tags": "tags labels ner_tags pos_tags upos ner pos",
    }.items()
}
"""Names of columns we know, by role. The first alternative that is there counts; joined by "+", its texts are joined."""

OTHER_NAMES = frozenset(
    "id idx index guid uid lang language content review comment comment_text tweet message post headline text_a text_b "
    "text1 text2 question1 question2 sentiment polarity emotion topic target labels score stars toxic".split()
)
"""Other common names of columns, which do not say enough about their content."""

WORD_NAMES = frozenset("word words token tokens form".split())
TAG_NAMES = frozenset(
    "tag tags label labels ner ner_tag ner_tags iob bio entity pos pos_tag pos_tags upos upostag xpos".split()
)

FEW = 5
"""With fewer rows below the first, a label that occurs once says nothing."""


def opens_with_names(cells: Sequence[str]) -> bool:
    """Whether a first row is surely a header: it has a known name for a text, and one for the label or for all others."""
    lowered = {cell.strip().lower() for cell in cells}
    known = {name for names in KNOWN_NAMES.values() for alternative in names for name in alternative}
    has_text = any(set(alternative) <= lowered for alternative in KNOWN_NAMES["first"])
    has_label = any(set(alternative) <= lowered for alternative in KNOWN_NAMES["label"])
    return has_text and (has_label or lowered <= known | {"id"})


def counts_columns(row: Sequence[Any]) -> bool:
    """Whether a row counts the columns from 0: pandas writes this header where it has no names.

    A column of row numbers may stand before them; its cell in the header is empty. Such a row may also be an example.
    """
    cells = [str(cell).strip() for cell in row]
    counted = cells[1:] if cells[0] == "" else cells
    return len(counted) > 1 and counted == [str(number) for number in range(len(counted))]


def is_count_of_columns(
    rows: Sequence[Sequence[str]], texts: Collection[int], label: int | None, location: str
) -> bool:
    """Whether a first row that counts the columns is a header, and not an example.

    It is a header if the other rows are numbered, or if its cells are no label, or no text, as other rows have them. It
    is an example of a table that has nothing but numbers.

    Args:
        rows: all rows; `counts_columns` is true of the first.
        texts: the columns of texts.
        label: the label's column, if there is one.
        location: file and line of the first row.

    Raises:
        DataError: it may be either.
    """
    first, *others = rows
    if others and not first[0].strip() and all(_is_number(row[0]) for row in others):
        return True
    if all(_is_number(cell) for row in others for cell in row):
        return False
    if label is None:
        if any(_is_number(row[column]) for row in others for column in texts):
            raise _doubt(
                location, first, "it counts the columns from 0, but texts of other lines are numbers too"
            )
        return True
    name, labels = first[label].strip(), [row[label].strip() for row in others]
    if name in labels or (all(map(_is_number, labels)) and not _are_shared(labels)):
        raise _doubt(location, first, f"it counts the columns from 0, but {name!r} may be a label")
    return True


def names_asked(columns: Mapping[str, str | int], header: bool | None) -> list[str]:
    """List the names in `task.columns`. A file needs a header for them.

    Raises:
        DataError: there are some, and `task.header` says there is none.
    """
    named = [name for name in columns.values() if isinstance(name, str)]
    if named and header is False:
        raise DataError(
            f"task.columns names {named[0]!r}, but `header: false` says there are no names; give positions"
        )
    return named


def refuse_doubtful_row(
    cells: Sequence[Sequence[str]], label: int | None, train: bool, location: str
) -> None:
    """Refuse a table whose first row, about to be read as an example, looks like column names.

    Args:
        cells: all rows.
        label: the label's column, if there is one.
        train: labels come from this file, so any name there would become a class. In other files, a label that
            training never had is refused later, when it is looked up.
        location: file and line of the first row.

    Raises:
        DataError: a cell is a common name and stands in no other row; or its label occurs nowhere else, while
            others share theirs or are numbers.
    """
    row = [str(cell).strip() for cell in cells[0]]
    roles = ("first", "second", "label", "group")  # not those of tags: `pos` is a sentiment too
    names = OTHER_NAMES | {name for role in roles for known in KNOWN_NAMES[role] for name in known}
    for column, name in enumerate(row):
        if column == label and not train:
            continue
        if name.lower() in names and all(str(other[column]).strip() != name for other in cells[1:]):
            raise _doubt(location, row, f"{name!r} is what a column is called")
    if train and label is not None and _is_odd([str(other[label]).strip() for other in cells]):
        raise _doubt(location, row, f"the label {row[label]!r} occurs nowhere else")


def refuse_doubtful_token(word: str, tag: str, others: Sequence[str], location: str) -> None:
    """Refuse a token file whose first line looks like column names.

    Args:
        word: of the first line.
        tag: of the first line; empty in a file without tags.
        others: the tags of all other lines.
        location: file and line of the first line.

    Raises:
        DataError: the tag is a common name and stands in no other line; or the word is one, and there are no tags.
    """
    named = tag.lower() in TAG_NAMES and tag not in others if tag else word.strip() in WORD_NAMES
    if named:
        raise _doubt(location, [word, tag] if tag else [word], f"{tag or word!r} is what a column is called")


def _is_odd(labels: Sequence[str]) -> bool:
    """Whether the first label stands apart: beneath it are numbers only, or labels most of which are shared."""
    first, *others = labels
    if first in others or not first or _is_number(first):
        return False
    if len(others) >= 2 and all(map(_is_number, others)):
        return True
    return _are_shared(others)


def _are_shared(labels: Sequence[str]) -> bool:
    """Whether most labels occur more than once, so that another one stands apart."""
    shared = sum(count for count in Counter(labels).values() if count > 1)
    return len(labels) >= FEW and 2 * shared >= len(labels)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _doubt(location: str, row: Sequence[str], why: str) -> DataError:
    cells = ", ".join(map(shorten, row))
    return DataError(
        f"{location}: looks like column names ({cells}): {why}. If so, set `task.header: true`, and `task.columns` to say "
        "which is which; if it is an example, set `task.header: false`"
    )
