"""QADSM: does the advertisement match the query? 3 languages; accuracy.

Only in the XGLUE release, or from your own files. The second text is title and description, joined by a space.
"""

from __future__ import annotations

from xlmprune.data.readers.xglue import TITLE_AND_TEXT, Layout
from xlmprune.tasks import CorpusTask


class Qadsm(CorpusTask):
    """Query advertisement matching."""

    name = "qadsm"
    kind = "pair"
    own_labels = ("Bad", "Good")
    columns = TITLE_AND_TEXT
    xglue = Layout(
        "QADSM", "xglue.qadsm.{language}.train", "xglue.qadsm.{language}.{split}", roles=TITLE_AND_TEXT[4]
    )
