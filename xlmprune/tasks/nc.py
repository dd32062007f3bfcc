"""NC: which of ten categories is this news article? Title and body, 5 languages; accuracy.

Only in the XGLUE release, or from your own files.
"""

from __future__ import annotations

from xlmprune.data.readers.xglue import Layout
from xlmprune.tasks import CorpusTask


class Nc(CorpusTask):
    """News classification."""

    name = "nc"
    kind = "pair"
    own_labels = tuple(
        "foodanddrink sports news entertainment health video finance travel lifestyle autos".split()
    )
    # Data_Format.txt speaks of a query before the title; the files have none.
    xglue = Layout("NC", "xglue.nc.{language}.train", "xglue.nc.{language}.{split}")
