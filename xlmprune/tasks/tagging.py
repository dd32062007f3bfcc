"""Your own tags, one per word: entities in BIO (entity F1), or plain tags (token accuracy).

Labels are those of the training file, or the recipe's. Where they are BIO, tags are rewritten to IOB2 and every type
has both its tags.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from xlmprune.core.errors import DataError
from xlmprune.data.examples import Examples, Kind
from xlmprune.data.readers import Corpus, Split
from xlmprune.data.readers.labels import is_bio, strays_from_bio, to_iob2
from xlmprune.tasks import CorpusTask
from xlmprune.tasks.metrics import EntityF1, Metric, TokenAccuracy, main_first

if TYPE_CHECKING:
    from xlmprune.recipe import TaskRecipe


class Tagging(CorpusTask):
    """Tag every word of a sentence, from your own files."""

    name = "tagging"
    kind: Kind = "tokens"
    licence = "unknown"

    def __init__(self, recipe: TaskRecipe) -> None:
        self._corpus = Corpus(recipe, self.kind)
        self._given = recipe.labels
        self._metric = recipe.metric

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The recipe's, or the training file's: O and the tags of each type for BIO, else in alphabetical order.

        Raises:
            DataError: tags are BIO but for one or two.
        """
        if self._given:
            return tuple(self._given)
        found = {tag for tags in self._corpus.label_names() for tag in tags}
        if strays := strays_from_bio(found):
            places = " and ".join(f"{tag!r} ({self._corpus.first_place(tag)})" for tag in strays)
            raise DataError(
                f"the tags are BIO but for {places}. If they are meant, list all tags in the recipe's `task.labels`; "
                "each word's tag then counts by itself, and there is no entity F1"
            )
        if not is_bio(found):
            return tuple(sorted(found))
        types = sorted({tag[2:] for tag in found if tag != "O"})
        return ("O", *(f"{prefix}-{name}" for name in types for prefix in "BI"))

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Entity F1 and token accuracy for BIO, else token accuracy."""
        metrics: tuple[Metric, ...] = (TokenAccuracy(),)
        return main_first((EntityF1(), *metrics) if is_bio(self.labels) else metrics, self._metric)

    def examples(self, language: str, split: Split) -> Examples:
        """Words with their tags, BIO ones as IOB2."""
        return to_iob2(self._corpus.examples(language, split, self.labels), self.labels)
