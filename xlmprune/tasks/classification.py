"""Your own classes of texts, or of pairs of texts; accuracy.

Labels are those of the training file, or the recipe's. Three lines of a recipe are enough:

    name: classification
    source: files
    path: data/{language}.{split}.tsv
"""

from __future__ import annotations

from xlmprune.tasks import CorpusTask


class Classification(CorpusTask):
    """Classify texts, from your own files."""

    name = "classification"
    kind = "text"


class PairClassification(CorpusTask):
    """Classify pairs of texts, from your own files."""

    name = "pair_classification"
    kind = "pair"
