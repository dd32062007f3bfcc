"""Your own classes of texts, or of pairs of texts; accuracy.

Labels are those of the training file, or the recipe's. Three lines of a recipe are enough:

    name: classification
    source: files
    path: data/{language}.{split}.tsv
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from xlmprune.data.examples import Kind
from xlmprune.data.readers import Corpus
from xlmprune.data.readers.labels import in_order
from xlmprune.tasks import CorpusTask
from xlmprune.tasks.metrics import Accuracy, main_first

if TYPE_CHECKING:
    from xlmprune.recipe import TaskRecipe


class Classification(CorpusTask):
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


class PairClassification(Classification):
    """Classify pairs of texts, from your own files."""

    name = "pair_classification"
    kind: Kind = "pair"
