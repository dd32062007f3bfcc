"""QADSM: does the advertisement match the query? 3 languages; accuracy.

Only in the XGLUE release, or from your own files. The second text is title and description, joined by a space.
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

LABELS = ("Bad", "Good")
COLUMNS = {4: ("first", "second", "second", "label"), 3: ("first", "second", "label"), 2: ("first", "second")}

XGLUE = Layout(
    folder="QADSM",
    train="xglue.qadsm.{language}.train",
    test="xglue.qadsm.{language}.{split}",
    second=(1, 2),
    labelled=4,
)


class Qadsm(CorpusTask):
    """Query advertisement matching."""

    name = "qadsm"
    kind: Kind = "pair"

    def __init__(self, recipe: TaskRecipe) -> None:
        self._corpus = Corpus(recipe, self.kind, columns=COLUMNS, xglue=XGLUE)
        self.labels = tuple(recipe.labels or LABELS)
        self.metrics = main_first((Accuracy(),), recipe.metric)
        self.licence = one_of(recipe, {"xglue": LICENCE})
