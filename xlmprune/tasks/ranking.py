"""Your own documents to rank for queries, rated with numbers (0 is worthless); nDCG without a cut-off.

Consecutive rows with the same query (or with the same value in the column `group`) are ranked together. The main
metric ranks by the expected rating, `ndcg_argmax` by the most probable one.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from xlmprune.data.examples import Kind
from xlmprune.data.readers import Corpus
from xlmprune.data.readers.labels import in_order
from xlmprune.tasks import CorpusTask
from xlmprune.tasks.metrics import Ndcg, main_first

if TYPE_CHECKING:
    from xlmprune.recipe import TaskRecipe


class Ranking(CorpusTask):
    """Rank documents for queries, from your own files."""

    name = "ranking"
    kind: Kind = "pair"
    licence = "unknown"

    def __init__(self, recipe: TaskRecipe) -> None:
        self._corpus = Corpus(recipe, self.kind, grouped=True)
        self._given = recipe.labels
        metrics = (Ndcg("ndcg_expected", expected=True), Ndcg("ndcg_argmax"))
        self.metrics = main_first(metrics, recipe.metric)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The recipe's, or the training file's ratings in ascending order."""
        return tuple(self._given) if self._given else in_order(self._corpus.label_names())
