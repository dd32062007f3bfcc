"""NC: which of ten categories is this news article? Title and body, 5 languages; accuracy.

Only in the XGLUE release, or from your own files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xlmprune.data.examples import Kind
from xlmprune.data.readers import Corpus
from xlmprune.data.readers.xglue import LICENCE, Layout
from xlmprune.tasks import CorpusTask, one_of
from xlmprune.tasks.metrics import Accuracy, main_first

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


class Nc(CorpusTask):
    """News classification."""

    name = "nc"
    kind: Kind = "pair"

    def __init__(self, recipe: TaskRecipe) -> None:
        self._corpus = Corpus(recipe, self.kind, xglue=XGLUE)
        self.labels = tuple(recipe.labels or LABELS)
        self.metrics = main_first((Accuracy(),), recipe.metric)
        self.licence = one_of(recipe, {"xglue": LICENCE})
