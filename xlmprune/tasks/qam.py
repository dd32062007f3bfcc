"""QAM: does the passage answer the question? 3 languages; accuracy.

Only in the XGLUE release, or from your own files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xlmprune.data import Examples, Kind
from xlmprune.metrics import Accuracy, main_first
from xlmprune.sources import Corpus, Split
from xlmprune.sources.xglue import LICENCE, Layout
from xlmprune.tasks import one_of

if TYPE_CHECKING:
    from xlmprune.recipe import TaskRecipe

LABELS = ("0", "1")

# The baseline's loader reads the English dev file for every language; each is read for itself here.
XGLUE = Layout(folder="QAM", train="xglue.qam.{language}.train", test="xglue.qam.{language}.{split}")


class Qam:
    """Question answer matching."""

    name = "qam"
    kind: Kind = "pair"

    def __init__(self, recipe: TaskRecipe) -> None:
        self._corpus = Corpus(recipe, self.kind, xglue=XGLUE)
        self.labels = tuple(recipe.labels or LABELS)
        self.metrics = main_first((Accuracy(),), recipe.metric)
        self.licence = one_of(recipe, {"xglue": LICENCE})

    def languages(self) -> tuple[str, ...]:
        """The train language, then every other that was asked for."""
        return self._corpus.languages()

    def examples(self, language: str, split: Split) -> Examples:
        """Pairs of question and passage."""
        return self._corpus.examples(language, split, self.labels)

    def unlabelled(self, language: str) -> list[str]:
        """Texts of train and dev that are not in the test set."""
        return self._corpus.unlabelled(language)
