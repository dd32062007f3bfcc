"""NER: persons, places, organizations (and miscellaneous) in BIO tags; entity F1.

XGLUE has CoNLL in 4 languages. The hub's substitute is WikiANN, labelled automatically, in many languages and without
MISC, so its scores cannot be compared. XGLUE's English and German are IOB1, Spanish and Dutch IOB2. All tags are
rewritten to IOB2, which changes no entity, and the changes are counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xlmprune.core.errors import RecipeError
from xlmprune.data.examples import Examples
from xlmprune.data.readers import Split
from xlmprune.data.readers.hub import HubSet
from xlmprune.data.readers.labels import to_iob2
from xlmprune.data.readers.tags import is_bio
from xlmprune.data.readers.xglue import Layout
from xlmprune.tasks import CorpusTask
from xlmprune.tasks.metrics import EntityF1

if TYPE_CHECKING:
    from xlmprune.recipe.schema import TaskRecipe


class Ner(CorpusTask):
    """Named entity recognition."""

    name = "ner"
    kind = "tokens"
    own_labels: tuple[str, ...] = (
        "O",
        "B-PER",
        "I-PER",
        "B-ORG",
        "I-ORG",
        "B-LOC",
        "I-LOC",
        "B-MISC",
        "I-MISC",
    )
    own_metrics = (EntityF1(),)
    xglue = Layout("NER", "{language}.train", "{language}.{split}", roles=("words", "tags"))
    hub = HubSet(
        "unimelb-nlp/wikiann", ("de", "en", "es", "nl"), first="tokens", label="ner_tags", closed=False
    )

    def __init__(self, recipe: TaskRecipe) -> None:
        if recipe.source == "hub":
            self.own_labels = self.own_labels[:7]  # WikiANN has no MISC
        super().__init__(recipe)
        if not is_bio(self.labels):
            raise RecipeError(
                f"task.labels: {', '.join(self.labels)} are not BIO tags (O, B-PER, I-PER …), and task ner scores "
                "entities of BIO tags; for plain tags use task.name: tagging"
            )

    def examples(self, language: str, split: Split) -> Examples:
        """Read words with IOB2 tags."""
        return to_iob2(super().examples(language, split), self.labels)
