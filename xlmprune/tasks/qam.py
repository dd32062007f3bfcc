"""QAM: does the passage answer the question? 3 languages; accuracy.

Only in the XGLUE release, or from your own files.
"""

from __future__ import annotations

from xlmprune.data.readers.xglue import Layout
from xlmprune.tasks import CorpusTask


class Qam(CorpusTask):
    """Question answer matching."""

    name = "qam"
    kind = "pair"
    own_labels = ("0", "1")
    # The baseline's loader reads the English dev file for every language; here each language has its own.
    xglue = Layout("QAM", "xglue.qam.{language}.train", "xglue.qam.{language}.{split}")
