"""WPR: how well does the page fit the query, 0 (bad) to 4 (perfect)? 7 languages; nDCG without a cut-off.

Only in the XGLUE release, or from your own files. The second text is title and snippet, joined by a space. Consecutive
rows with the same query are ranked together. The main metric ranks by the most probable rating, as the published
baselines do; `wpr_expected` by the expected one, which breaks ties and is what one would serve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xlmprune.data.examples import Kind
from xlmprune.data.readers import Corpus
from xlmprune.data.readers.xglue import LICENCE, Layout
from xlmprune.tasks import CorpusTask, one_of
from xlmprune.tasks.metrics import Ndcg, main_first

if TYPE_CHECKING:
    from xlmprune.recipe import TaskRecipe

LABELS = ("0", "1", "2", "3", "4")
COLUMNS = {4: ("first", "second", "second", "label"), 3: ("first", "second", "label"), 2: ("first", "second")}

XGLUE = Layout(
    folder="WPR",
    train="xglue.wpr.{language}.train",
    test="xglue.wpr.{language}.{split}",
    second=(1, 2),
    labelled=4,
)


class Wpr(CorpusTask):
    """Web page ranking."""

    name = "wpr"
    kind: Kind = "pair"

    def __init__(self, recipe: TaskRecipe) -> None:
        self._corpus = Corpus(recipe, self.kind, columns=COLUMNS, grouped=True, xglue=XGLUE)
        self.labels = tuple(recipe.labels or LABELS)
        self.metrics = main_first((Ndcg("wpr_argmax"), Ndcg("wpr_expected", expected=True)), recipe.metric)
        self.licence = one_of(recipe, {"xglue": LICENCE})
