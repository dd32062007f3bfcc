"""Your own tags, one per word: entities in BIO, BIOES or BILOU (entity F1), or plain tags (token accuracy).

Labels are those of the training file, or the recipe's. Tags of entities are rewritten to IOB2, and every type gets both
its tags.
"""

from __future__ import annotations

from functools import cached_property

from xlmprune.core.errors import DataError
from xlmprune.data.examples import Examples
from xlmprune.data.readers import Split
from xlmprune.data.readers.labels import listed, to_iob2
from xlmprune.data.readers.tags import bio_labels, is_bio, is_mixed, strays, style_of, to_bio
from xlmprune.tasks import CorpusTask
from xlmprune.tasks.metrics import EntityF1, Metric, TokenAccuracy, main_first


class Tagging(CorpusTask):
    """Tag every word of a sentence, from your own files."""

    name = "tagging"
    kind = "tokens"
    own_metrics = (EntityF1(), TokenAccuracy())

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The recipe's labels, or the training file's: O and the tags of each type for BIO, else sorted.

        Raises:
            DataError: all tags are BIO except one or two.
        """
        if given := self._recipe.labels:
            style = style_of(given)
            return tuple(dict.fromkeys(to_bio(tag, style) for tag in given) if style else given)
        found = {tag for tags in self._corpus.label_names() for tag in tags}
        if style := style_of(found):
            return bio_labels(found, style)
        if is_mixed(found):
            raise DataError(
                f"the tags mix several ways to mark entities: {listed(sorted(found))}. Write them in one scheme (BIO, "
                "BIOES or BILOU). If they are plain tags, list them in the recipe's `task.labels`"
            )
        if others := strays(found):
            locations = " and ".join(f"{tag!r} ({self._corpus.first_location(tag)})" for tag in others)
            raise DataError(
                f"all tags are BIO except {locations}. If this is intended, list all tags in the recipe's `task.labels`; "
                "each word's tag then counts by itself, and there is no entity F1"
            )
        return tuple(sorted(found))

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Entity F1 and token accuracy for BIO, else token accuracy."""
        return main_first(
            self.own_metrics if is_bio(self.labels) else self.own_metrics[1:], self._recipe.metric
        )

    def examples(self, language: str, split: Split) -> Examples:
        """Read words with their tags, BIO tags as IOB2."""
        return to_iob2(super().examples(language, split), self.labels)
