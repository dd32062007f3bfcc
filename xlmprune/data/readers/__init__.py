"""Where data comes from: the hub, the official XGLUE folder, or a user's own files.

A source knows files and columns and gives rows with the labels as they are written there. What a label means
is the task's: it is looked up by name here, never by its number, because sources number labels differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xlmprune.core.errors import DataError
from xlmprune.data.examples import Examples, Kind, fold
from xlmprune.data.readers.labels import check_classes, no_labels, to_examples
from xlmprune.data.readers.rows import Rows, Source, Split

if TYPE_CHECKING:
    from xlmprune.data.readers.hub import HubSet
    from xlmprune.data.readers.xglue import Layout
    from xlmprune.recipe import TaskRecipe

__all__ = ["Corpus", "Rows", "Source", "Split"]


class Corpus:
    """A task's data in every language, from the source its recipe names.

    Tasks hold one of these and ask it for examples; it is where languages are chosen and labels looked up.
    """

    def __init__(
        self,
        recipe: TaskRecipe,
        kind: Kind,
        *,
        columns: Mapping[int, tuple[str, ...]] | None = None,
        grouped: bool = False,
        synonyms: Mapping[str, str] | None = None,
        xglue: Layout | None = None,
        hub: HubSet | None = None,
    ) -> None:
        """
        Args:
            recipe: names the source.
            kind: what an example is.
            columns: for tables without a header, the roles of their columns by how many there are; otherwise
            the
                texts, then the label.
            grouped: ranking; rows belong to queries.
            synonyms: other spellings of labels, to the task's own.
            xglue: where the task lies in the official folder; None where it is no task of XGLUE.
            hub: the task's data on the hub; None where it has none.

        Raises:
            DataError: the task cannot be had from that source.
        """
        self.train_language = recipe.train_language
        self._asked = recipe.languages
        self._path = recipe.path
        self._synonyms = synonyms or {}
        self.source = _open(recipe, kind, columns, grouped, xglue, hub)

    def languages(self) -> tuple[str, ...]:
        """The train language, then the others asked for: as listed, or for ``all`` in alphabetical order.

        Raises:
            DataError: a language asked for, or the train language, has no test set.
        """
        available = self.source.languages()
        asked = sorted(available) if self._asked == "all" else self._asked
        wanted = list(dict.fromkeys([self.train_language, *asked]))
        for language in wanted:
            if not self.source.has(language, "test"):
                why = ""
                if language == self.train_language:
                    why = (
                        ", the train language, whose score stands beside all others (`evaluate --languages` takes "
                        "others alone)"
                    )
                if not available:
                    raise DataError(
                        f"no test file of any language at {self._path!r} (seen from {Path.cwd().name or '/'}/, with "
                        "{split} filled in as the test split). Check task.path, or give it with --set task.path=…"
                    )
                raise DataError(
                    f"no test set for language {language!r}{why}. Languages that have one: {', '.join(sorted(available))}"
                )
        return tuple(wanted)

    def examples(self, language: str, split: Split, labels: Sequence[str]) -> Examples:
        """One split of one language, labels as indexes into ``labels``."""
        return to_examples(self.source.rows(language, split), language, split, labels, self._synonyms)

    def label_names(self) -> list[list[str]]:
        """Per training example its label's name, or the names of its words' tags, after synonyms.

        Raises:
            DataError: the training file has no labels, one only, or nearly one for every row.
        """
        rows = self.source.rows(self.train_language, "train")
        if rows.labels is None:
            raise no_labels(rows, "train")
        check_classes(rows)
        names = [[entry] if isinstance(entry, str) else entry for entry in rows.labels]
        return [[self._synonyms.get(name, name) for name in entry] for entry in names]

    def first_location(self, label: str) -> str:
        """File and line where the training file first has a label, as it is written there."""
        rows = self.source.rows(self.train_language, "train")
        for row, entry in enumerate(rows.labels or []):
            names = [entry] if isinstance(entry, str) else entry
            if label in names:
                return rows.location(row, names.index(label))
        return rows.origin

    def unlabelled(self, language: str) -> list[str]:
        """Distinct texts of a language's train and dev sets that are not in its test set, in order.

        Empty where a language has a test set only. The words of a sentence are joined with spaces, the two texts of a
        pair with a tab.
        """
        texts: dict[str, None] = {}
        for split in ("train", "dev"):
            if self.source.has(language, split):
                texts |= dict.fromkeys(_texts(self.source.rows(language, split)))
        if texts and self.source.has(language, "test"):
            tested = {fold(text) for text in _texts(self.source.rows(language, "test"))}
            return [text for text in texts if fold(text) not in tested]
        return list(texts)


def _texts(rows: Rows) -> list[str]:
    texts = [text if isinstance(text, str) else " ".join(text) for text in rows.first]
    if rows.second is None:
        return texts
    return [f"{_one_line(a)}\t{_one_line(b)}" for a, b in zip(texts, rows.second, strict=True)]


def _one_line(text: str) -> str:
    return text.replace("\t", " ")


def _open(
    recipe: TaskRecipe,
    kind: Kind,
    columns: Mapping[int, tuple[str, ...]] | None,
    grouped: bool,
    xglue: Layout | None,
    hub: HubSet | None,
) -> Source:
    if recipe.source == "files":
        from xlmprune.data.readers.files import Files

        return Files(recipe, kind, columns, grouped)
    if recipe.source == "xglue":
        from xlmprune.data.readers.xglue import Xglue

        if xglue is None:
            raise DataError(
                f"task {recipe.name!r} is no task of XGLUE; set `task.source: files` and `task.path`"
            )
        return Xglue(recipe, xglue, grouped)
    from xlmprune.data.readers.hub import Hub

    if hub is None:
        if xglue is not None:
            from xlmprune.data.readers.xglue import HOW_TO_GET

            raise DataError(
                f"task {recipe.name!r} has no copy on the hub that loads without a script. {HOW_TO_GET}"
            )
        raise DataError(
            f"task {recipe.name!r} reads your own files; set `task.source: files` and `task.path`"
        )
    return Hub(hub)
