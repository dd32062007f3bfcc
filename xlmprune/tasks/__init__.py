"""The tasks, one per file: which examples, which labels, which metric. The table of names is `registry.TASKS`.

A task is a class built from the recipe's `task` section. To add one, write a file like `pawsx.py` and give it a line in
the table. Recipe validation, the lists in the documentation and the tests of all tasks follow from that line.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from xlmprune.data.examples import Examples, Kind
from xlmprune.data.readers import Corpus, Split
from xlmprune.data.readers.labels import in_order
from xlmprune.tasks.metrics import Accuracy, Metric, main_first

if TYPE_CHECKING:
    from xlmprune.data.readers.hub import HubSet
    from xlmprune.data.readers.xglue import Layout
    from xlmprune.recipe.schema import TaskRecipe


class Task(Protocol):
    """What the pipeline asks of a task."""

    @property
    def name(self) -> str:
        """The name that recipes use."""

    @property
    def kind(self) -> Kind:
        """``text``, ``pair`` or ``tokens``."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the model's outputs."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Metrics; the first is the main one."""

    @property
    def licence(self) -> str:
        """Licence of the data, for the model card; ``unknown`` if it is not known."""

    @property
    def measures_all(self) -> bool:
        """Whether the recipe asks for every language that has a test set, and not for some of them by name."""

    def languages(self) -> tuple[str, ...]:
        """List the train language, then every other language asked for that has a test set."""

    def examples(self, language: str, split: Split) -> Examples:
        """Read one split of one language, all of it."""

    def unlabelled(self, language: str, translations: bool = False) -> list[str]:
        """Give texts that are not in the test set; an empty list if there are none.

        Args:
            translations: include machine translations of the training set, if the task has some.
        """


class CorpusTask:
    """A task that reads its data from a `Corpus`. A subclass says only what differs."""

    name: str
    kind: Kind
    own_labels: tuple[str, ...] | None = None
    """Label names; None to take those of the training file. A recipe may list others."""
    own_metrics: tuple[Metric, ...] = (Accuracy(),)
    columns: Mapping[int, tuple[str, ...]] | None = None
    """Roles of the columns of a table without a header, by the number of columns, if they differ from the usual."""
    grouped = False
    """Whether rows belong to queries, as in ranking."""
    synonyms: Mapping[str, str] | None = None
    """Other spellings of labels."""
    xglue: Layout | None = None
    hub: HubSet | None = None

    def __init__(self, recipe: TaskRecipe) -> None:
        self._recipe = recipe
        self._corpus = Corpus(
            recipe,
            self.kind,
            columns=self.columns,
            grouped=self.grouped,
            synonyms=self.synonyms,
            numbered=self.own_labels is None,
            xglue=self.xglue,
            hub=self.hub,
        )
        main_first(self.own_metrics, recipe.metric)  # a wrong name is an error now, before any file is read

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The recipe's labels, or the task's own, or those of the training file in a stable order."""
        return tuple(self._recipe.labels or self.own_labels or in_order(self._corpus.label_names()))

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The task's metrics, with the one that the recipe names first."""
        return main_first(self.own_metrics, self._recipe.metric)

    @property
    def licence(self) -> str:
        """Licence of the source that the recipe names. It is unknown for a user's own files."""
        return self._corpus.source.licence

    @property
    def measures_all(self) -> bool:
        """Whether the recipe asks for every language that has a test set, and not for some of them by name."""
        return self._recipe.languages == "all"

    def languages(self) -> tuple[str, ...]:
        """List the train language, then every other language asked for."""
        return self._corpus.languages()

    def examples(self, language: str, split: Split) -> Examples:
        """Read one split of one language and look labels up by name."""
        return self._corpus.examples(language, split, self.labels)

    def unlabelled(self, language: str, translations: bool = False) -> list[str]:
        """Give texts of train and dev that are not in the test set."""
        return self._corpus.unlabelled(language, translations)
