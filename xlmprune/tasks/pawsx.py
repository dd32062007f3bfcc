"""PAWS-X: are the two sentences paraphrases? Word order decides; accuracy.

Yang et al. 2019. XGLUE has 4 languages, and `languages: all` means the same 4 on the hub. There, ja, ko and zh can be
asked for by name.
"""

from __future__ import annotations

from xlmprune.data.readers.hub import HubSet
from xlmprune.data.readers.xglue import Layout
from xlmprune.tasks import CorpusTask


class Pawsx(CorpusTask):
    """Paraphrase identification."""

    name = "pawsx"
    kind = "pair"
    own_labels = ("0", "1")
    xglue = Layout(
        "PAWSX",
        "{language}/train.tsv",
        "{language}/{split}_2k.tsv",
        roles=("id", "first", "second", "label"),
        headers=("train", "test"),
    )
    hub = HubSet(
        "google-research-datasets/paws-x",
        ("de", "en", "es", "fr"),
        first="sentence1",
        second="sentence2",
        label="label",
        others=("ja", "ko", "zh"),
        translated_train=True,
        licence="free use, acknowledging Google LLC",
    )
