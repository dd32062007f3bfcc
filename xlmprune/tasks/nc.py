"""NC: which of ten categories is this news article? Title and body, 5 languages; accuracy.

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

LABELS = (
    "foodanddrink",
    "sports",
    "news",
    "entertainment",
    "health",
    "video",
    "finance",
    "travel",
    "lifestyle",
    "autos",
)

# Data_Format.txt speaks of a query before the title; the files have none.
XGLUE = Layout(folder="NC", train="xglue.nc.{language}.train", test="xglue.nc.{language}.{split}")


class Nc:
    """News classification."""

    name = "nc"
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
        """Pairs of title and body."""
        return self._corpus.examples(language, split, self.labels)

    def unlabelled(self, language: str) -> list[str]:
        """Texts of train and dev that are not in the test set."""
        return self._corpus.unlabelled(language)
