"""Your own documents to rank for queries, rated with numbers (0 is worthless); nDCG without a cut-off.

Consecutive rows with the same query (or with the same value in the column `group`) are ranked together. The main
metric ranks by the expected rating, `ndcg_argmax` by the most probable one.
"""

from __future__ import annotations

from xlmprune.tasks import CorpusTask
from xlmprune.tasks.metrics import Ndcg


class Ranking(CorpusTask):
    """Rank documents for queries, from your own files."""

    name = "ranking"
    kind = "pair"
    grouped = True
    own_metrics = (Ndcg("ndcg_expected", expected=True), Ndcg("ndcg_argmax"))
