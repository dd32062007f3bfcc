"""PAWS-X: are the two sentences paraphrases? Word order decides; accuracy.

Yang et al. 2019. XGLUE has 4 languages, which is what `languages: all` means on the hub too; ja, ko and zh can be
asked for there by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xlmprune.data.examples import Kind
from xlmprune.data.readers import Corpus
from xlmprune.data.readers.hub import HubSet
from xlmprune.data.readers.xglue import LICENCE, Layout
from xlmprune.tasks import CorpusTask, one_of
from xlmprune.tasks.metrics import Accuracy, main_first

if TYPE_CHECKING:
    from xlmprune.recipe import TaskRecipe

LABELS = ("0", "1")

XGLUE = Layout(
    folder="PAWSX",
    train="{language}/train.tsv",
    test="{language}/{split}_2k.tsv",
    first=(1,),
    second=(2,),
    labelled=4,
    headers={"train": True, "test": True},
)
HUB = HubSet(
    "google-research-datasets/paws-x",
    ("de", "en", "es", "fr"),
    first="sentence1",
    second="sentence2",
    label="label",
    others=("ja", "ko", "zh"),
)


class Pawsx(CorpusTask):
    """Paraphrase identification."""

    name = "pawsx"
    kind: Kind = "pair"

    def __init__(self, recipe: TaskRecipe) -> None:
        self._corpus = Corpus(recipe, self.kind, xglue=XGLUE, hub=HUB)
        self.labels = tuple(recipe.labels or LABELS)
        self.metrics = main_first((Accuracy(),), recipe.metric)
        self.licence = one_of(recipe, {"hub": "free use, acknowledging Google LLC", "xglue": LICENCE})
