"""WPR: how well does the page fit the query, 0 (bad) to 4 (perfect)? 7 languages; nDCG without a cut-off.

Only in the XGLUE release, or from your own files. The second text is title and snippet, joined by a space. Consecutive
rows with the same query are ranked together. The main metric ranks by the most probable rating, as the published
baselines do. `wpr_expected` ranks by the expected rating, which breaks ties and is what one would serve.
"""

from __future__ import annotations

from xlmprune.data.readers.xglue import TITLE_AND_TEXT, Layout
from xlmprune.tasks import CorpusTask
from xlmprune.tasks.metrics import Ndcg


class Wpr(CorpusTask):
    """Web page ranking."""

    name = "wpr"
    kind = "pair"
    own_labels = ("0", "1", "2", "3", "4")
    own_metrics = (Ndcg("wpr_argmax"), Ndcg("wpr_expected", expected=True))
    columns = TITLE_AND_TEXT
    grouped = True
    xglue = Layout(
        "WPR", "xglue.wpr.{language}.train", "xglue.wpr.{language}.{split}", roles=TITLE_AND_TEXT[4]
    )
