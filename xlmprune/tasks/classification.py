"""Your own classes of texts, or of pairs of texts; accuracy.

Labels are those of the training file, or the recipe's. Three lines of a recipe are enough:

    name: classification
    source: files
    path: data/{language}.{split}.tsv
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from xlmprune.data import Examples, Kind
from xlmprune.metrics import Accuracy, main_first
from xlmprune.sources import Corpus, Split
from xlmprune.sources.labels import in_order

if TYPE_CHECKING:
    from xlmprune.recipe import TaskRecipe


class Classification:
    """Classify texts, from your own files."""

    name = "classification"
    kind: Kind = "text"
    licence = "unknown"

    def __init__(self, recipe: TaskRecipe) -> None:
        self._corpus = Corpus(recipe, self.kind)
        self._given = recipe.labels
        self.metrics = main_first((Accuracy(),), recipe.metric)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The recipe's, or the training file's: by number if all are numbers, else in alphabetical order."""
        return tuple(self._given) if self._given else in_order(self._corpus.label_names())

    def languages(self) -> tuple[str, ...]:
        """The train language, then every other that was asked for."""
        return self._corpus.languages()

    def examples(self, language: str, split: Split) -> Examples:
        """Texts with their labels."""
        return self._corpus.examples(language, split, self.labels)

    def unlabelled(self, language: str) -> list[str]:
        """Texts of train and dev that are not in the test set."""
        return self._corpus.unlabelled(language)


class PairClassification(Classification):
    """Classify pairs of texts, from your own files."""

    name = "pair_classification"
    kind: Kind = "pair"
