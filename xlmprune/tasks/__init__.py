"""The tasks, one per file: which examples, which labels, which metric. The table of names is `registry.TASKS`.

A task is a class built from a recipe's `task` part. To add one, write a file like `pawsx.py` and give it a line in
the table; recipe validation, the lists in the documentation and the tests all tasks must pass follow from that line.
"""

from __future__ import annotations

from typing import Any, Protocol

from xlmprune.data.examples import Examples, Kind
from xlmprune.data.readers import Corpus, Split
from xlmprune.tasks.metrics import Metric


class Task(Protocol):
    """What the pipeline asks of a task."""

    @property
    def name(self) -> str:
        """As in recipes."""

    @property
    def kind(self) -> Kind:
        """``text``, ``pair`` or ``tokens``."""

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the model's outputs."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The first is the main one."""

    @property
    def licence(self) -> str:
        """Of the data, for the model card; ``unknown`` where it is."""

    def languages(self) -> tuple[str, ...]:
        """The train language, then every other with a test set that was asked for."""

    def examples(self, language: str, split: Split) -> Examples:
        """One split of one language, uncapped."""

    def unlabelled(self, language: str) -> list[str]:
        """Texts that are not in the test set; empty where there are none."""


class _Reads(Protocol):
    """What `CorpusTask` needs of its heirs."""

    _corpus: Corpus

    @property
    def labels(self) -> tuple[str, ...]: ...


class CorpusTask:
    """What tasks share that read their data from a `Corpus`; each gives it its own layout, labels and metrics."""

    _corpus: Corpus

    def languages(self) -> tuple[str, ...]:
        """The train language, then every other that was asked for."""
        return self._corpus.languages()

    def examples(self: _Reads, language: str, split: Split) -> Examples:
        """One split of one language, labels looked up by name."""
        return self._corpus.examples(language, split, self.labels)

    def unlabelled(self, language: str) -> list[str]:
        """Texts of train and dev that are not in the test set."""
        return self._corpus.unlabelled(language)


def one_of(recipe: Any, by_source: dict[str, str]) -> str:
    """The licence of the source a recipe names; a user's own files have one we cannot know."""
    return by_source.get(recipe.source, "unknown")
