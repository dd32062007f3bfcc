"""XNLI: does the hypothesis follow from the premise? 15 languages, English MultiNLI to train on; accuracy.

Conneau et al. 2018. The task to start with: it loads from the hub without a form to fill in, and it is sensitive to
what pruning does to distant languages.
"""

from __future__ import annotations

from xlmprune.data.readers.hub import HubSet
from xlmprune.data.readers.xglue import Layout
from xlmprune.tasks import CorpusTask


class Xnli(CorpusTask):
    """Natural language inference."""

    name = "xnli"
    kind = "pair"
    own_labels = ("entailment", "neutral", "contradiction")
    synonyms = {"contradictory": "contradiction"}  # the released training file has both  # noqa: RUF012
    xglue = Layout(
        "XNLI",
        "multinli.train.{language}.tsv",
        "{language}.{split}",
        headers=("train",),
        combined="xnli.{split}.tsv",
    )
    hub = HubSet(
        "facebook/xnli",
        ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"),
        first="premise",
        second="hypothesis",
        label="label",
        translated_train=True,
        licence="CC BY-NC 4.0",
    )
