"""QAM: does the passage answer the question? 3 languages; accuracy.

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

LABELS = ("0", "1")

# The baseline's loader reads the English dev file for every language; each is read for itself here.
XGLUE = Layout(folder="QAM", train="xglue.qam.{language}.train", test="xglue.qam.{language}.{split}")


class Qam(CorpusTask):
    """Question answer matching."""

    name = "qam"
    kind: Kind = "pair"

    def __init__(self, recipe: TaskRecipe) -> None:
        self._corpus = Corpus(recipe, self.kind, xglue=XGLUE)
        self.labels = tuple(recipe.labels or LABELS)
        self.metrics = main_first((Accuracy(),), recipe.metric)
        self.licence = one_of(recipe, {"xglue": LICENCE})
