"""Where data comes from: the hub, the official XGLUE folder, or a user's own files.

A source knows files and columns, and gives rows with the labels as they are written. Labels are looked up by name here,
never by number, because sources number labels differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xlmprune.core.errors import DataError
from xlmprune.data.examples import Examples, Kind
from xlmprune.data.leaks import TestTexts
from xlmprune.data.readers.labels import (
    check_classes,
    label_names,
    marks_among,
    named_by_number,
    no_labels,
    to_examples,
    without_marks,
)
from xlmprune.data.readers.rows import Rows, Source, Split

if TYPE_CHECKING:
    from xlmprune.data.readers.hub import HubSet
    from xlmprune.data.readers.xglue import Layout
    from xlmprune.recipe.schema import TaskRecipe

__all__ = ["Corpus", "Rows", "Source", "Split"]


class Corpus:
    """A task's data in every language, from the source that its recipe names.

    Tasks ask it for examples. It chooses languages and looks up labels.
    """

    def __init__(
        self,
        recipe: TaskRecipe,
        kind: Kind,
        *,
        columns: Mapping[int, tuple[str, ...]] | None = None,
        grouped: bool = False,
        synonyms: Mapping[str, str] | None = None,
        numbered: bool = True,
        xglue: Layout | None = None,
        hub: HubSet | None = None,
    ) -> None:
        """
        Args:
            recipe: names the source.
            kind: the kind of an example.
            columns: for tables without a header, the roles of their columns by the number of columns; by default
                the texts, then the label.
            grouped: ranking; rows belong to queries.
            synonyms: other spellings of labels, to the task's own.
            numbered: labels that are numbers mean positions in the recipe's `labels`.
            xglue: the task's files in the official folder; None if it is not a task of XGLUE.
            hub: the task's data on the hub; None if it has none.

        Raises:
            DataError: that source does not have the task.
        """
        self.train_language = recipe.train_language
        self._asked = recipe.languages
        self._path = recipe.path
        self._synonyms = synonyms or {}
        self._names = recipe.labels if numbered else None
        self._translated = recipe.source == "hub" and hub is not None and hub.translated_train
        if recipe.source == "files":
            from xlmprune.data.readers.files import Files

            self.source: Source = Files(recipe, kind, columns, grouped)
        elif recipe.source == "xglue":
            self.source = _xglue(recipe, xglue, grouped)
        else:
            self.source = _hub(recipe, hub, xglue)

    def languages(self) -> tuple[str, ...]:
        """List the train language, then the others asked for: as in the recipe, or for ``all`` sorted.

        Raises:
            DataError: a language asked for, or the train language, has no test set.
        """
        available = self.source.languages()
        asked = sorted(available) if self._asked == "all" else self._asked
        wanted = list(dict.fromkeys([self.train_language, *asked]))
        for language in wanted:
            if not self.source.has(language, "test"):
                raise self._no_test_set(language, available)
        return tuple(wanted)

    def _no_test_set(self, language: str, available: Sequence[str]) -> DataError:
        if not available:
            return DataError(
                f"no test file of any language at {self._path!r} (relative to {Path.cwd().name or '/'}/, with "
                "{split} filled in as the test split). Check task.path, or give it with --set task.path=…"
            )
        why = ""
        if language == self.train_language:
            why = (
                ", the train language, whose score is reported next to all others (`evaluate --languages` measures "
                "other languages alone)"
            )
        known = ", ".join(sorted(available))
        return DataError(f"no test set for language {language!r}{why}. Languages with a test set: {known}")

    def examples(self, language: str, split: Split, labels: Sequence[str]) -> Examples:
        """Read one split of one language, labels as indexes into ``labels``."""
        return to_examples(self._rows(language, split), language, split, labels, self._synonyms)

    def _rows(self, language: str, split: Split) -> Rows:
        rows = self.source.rows(language, split)
        return named_by_number(rows, self._names) if self._names else rows

    def label_names(self) -> list[list[str]]:
        """For each training example the name of its label, or of its words' tags, after synonyms.

        Raises:
            DataError: the training file has no labels, only one, or nearly one for every row.
        """
        rows = self.source.rows(self.train_language, "train")
        rows = without_marks(rows, marks_among({name for names in label_names(rows) for name in names}))
        if rows.labels is None:
            raise no_labels(rows, "train")
        check_classes(rows)
        return [[self._synonyms.get(name, name) for name in entry] for entry in label_names(rows)]

    def first_location(self, label: str) -> str:
        """File and line at which the training file first has a label, as it is written there."""
        rows = self.source.rows(self.train_language, "train")
        for row, names in enumerate(label_names(rows)):
            if label in names:
                return rows.location(row, names.index(label))
        return rows.origin

    def unlabelled(self, language: str, translations: bool = False) -> list[str]:
        """List the distinct texts of a language's train and dev sets that are not in its test set, in order.

        The list is empty for a language that only has a test set. The words of a sentence are joined with spaces, the
        two texts of a pair with a tab.

        Args:
            translations: read a training set of machine translations too, which is labelled text in another guise.
        """
        texts: dict[str, None] = {}
        foreign = self._translated and language != self.train_language and not translations
        splits: tuple[Split, ...] = ("dev",) if foreign else ("train", "dev")
        for split in splits:
            if self.source.has(language, split):
                texts |= dict.fromkeys(_texts(self.source.rows(language, split)))
        if not texts or not self.source.has(language, "test"):
            return list(texts)
        rows = self.source.rows(language, "test")
        tested = TestTexts([Examples(language, "test", rows.first, rows.second)])
        return [text for text in texts if not tested.has(text)]


def _texts(rows: Rows) -> list[str]:
    texts = [text if isinstance(text, str) else " ".join(text) for text in rows.first]
    if rows.second is None:
        return texts
    return [f"{_one_line(a)}\t{_one_line(b)}" for a, b in zip(texts, rows.second, strict=True)]


def _one_line(text: str) -> str:
    return text.replace("\t", " ")


def _xglue(recipe: TaskRecipe, layout: Layout | None, grouped: bool) -> Source:
    from xlmprune.data.readers.xglue import Xglue

    if layout is None:
        raise DataError(
            f"task {recipe.name!r} is not a task of XGLUE; set `task.source: files` and `task.path`"
        )
    return Xglue(recipe, layout, grouped)


def _hub(recipe: TaskRecipe, hub: HubSet | None, xglue: Layout | None) -> Source:
    from xlmprune.data.readers.hub import Hub
    from xlmprune.data.readers.xglue import HOW_TO_GET

    if hub is not None:
        return Hub(replace(hub, revision=recipe.revision or hub.revision))
    if xglue is not None:
        raise DataError(
            f"task {recipe.name!r} has no copy on the hub that loads without a script. {HOW_TO_GET}"
        )
    raise DataError(f"task {recipe.name!r} reads your own files; set `task.source: files` and `task.path`")
