"""NER: persons, places, organizations (and miscellaneous) in BIO tags; entity F1.

XGLUE has CoNLL in 4 languages; the hub's substitute is WikiANN, labelled automatically, in many languages and without
MISC, so its scores are not to be compared. XGLUE's English and German are IOB1, Spanish and Dutch IOB2: all is
rewritten to IOB2, which changes no entity, and counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xlmprune.core.errors import RecipeError
from xlmprune.data.examples import Examples, Kind
from xlmprune.data.readers import Corpus, Split
from xlmprune.data.readers.hub import HubSet
from xlmprune.data.readers.labels import is_bio, to_iob2
from xlmprune.data.readers.xglue import LICENCE, Layout
from xlmprune.tasks import CorpusTask, one_of
from xlmprune.tasks.metrics import EntityF1, main_first

if TYPE_CHECKING:
    from xlmprune.recipe import TaskRecipe

LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")

XGLUE = Layout(folder="NER", train="{language}.train", test="{language}.{split}", tokens=True)
HUB = HubSet("unimelb-nlp/wikiann", ("de", "en", "es", "nl"), first="tokens", label="ner_tags", closed=False)


class Ner(CorpusTask):
    """Named entity recognition."""

    name = "ner"
    kind: Kind = "tokens"

    def __init__(self, recipe: TaskRecipe) -> None:
        self._corpus = Corpus(recipe, self.kind, xglue=XGLUE, hub=HUB)
        self.labels = tuple(recipe.labels or (LABELS[:7] if recipe.source == "hub" else LABELS))
        if not is_bio(self.labels):
            raise RecipeError(
                f"task.labels: {', '.join(self.labels)} are not BIO tags (O, B-PER, I-PER …), whose entities task ner "
                "scores; for plain tags use task.name: tagging"
            )
        self.metrics = main_first((EntityF1(),), recipe.metric)
        self.licence = one_of(recipe, {"xglue": LICENCE})

    def examples(self, language: str, split: Split) -> Examples:
        """Words with IOB2 tags."""
        return to_iob2(self._corpus.examples(language, split, self.labels), self.labels)
