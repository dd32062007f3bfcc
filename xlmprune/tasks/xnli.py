"""XNLI: does the hypothesis follow from the premise? 15 languages, English MultiNLI to train on; accuracy.

Conneau et al. 2018. The task to start with: from the hub without a form to fill in, and sensitive to what pruning
does to distant languages.
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

LABELS = ("entailment", "neutral", "contradiction")
LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")

XGLUE = Layout(
    folder="XNLI",
    train="multinli.train.{language}.tsv",
    test="{language}.{split}",
    headers={"train": True},
    combined="xnli.{split}.tsv",
)
HUB = HubSet("facebook/xnli", LANGUAGES, first="premise", second="hypothesis", label="label")

# The released training file has both.
SYNONYMS = {"contradictory": "contradiction"}


class Xnli(CorpusTask):
    """Natural language inference."""

    name = "xnli"
    kind: Kind = "pair"

    def __init__(self, recipe: TaskRecipe) -> None:
        self._corpus = Corpus(recipe, self.kind, synonyms=SYNONYMS, xglue=XGLUE, hub=HUB)
        self.labels = tuple(recipe.labels or LABELS)
        self.metrics = main_first((Accuracy(),), recipe.metric)
        self.licence = one_of(recipe, {"hub": "CC BY-NC 4.0", "xglue": LICENCE})
