"""POS: the universal part of speech of every word; token accuracy, and XGLUE's own number beside it.

XGLUE's 18 languages are treebanks of Universal Dependencies 2.5, its English train set larger than the treebank of
dev and test. On the hub the same treebanks come in a later release, so its scores differ a little. What XGLUE calls
accuracy is a precision of runs of equal tags (`pos_xglue`), 0.5 to 8 points lower than the accuracy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xlmprune.data.examples import Examples, Kind
from xlmprune.data.readers import Corpus, Split
from xlmprune.data.readers.hub import HubSet
from xlmprune.data.readers.xglue import LICENCE, Layout
from xlmprune.tasks import CorpusTask, one_of
from xlmprune.tasks.metrics import TagRuns, TokenAccuracy, main_first

if TYPE_CHECKING:
    from xlmprune.recipe import TaskRecipe

LABELS = (
    "ADJ",
    "ADP",
    "ADV",
    "AUX",
    "CCONJ",
    "DET",
    "INTJ",
    "NOUN",
    "NUM",
    "PART",
    "PRON",
    "PROPN",
    "PUNCT",
    "SCONJ",
    "SYM",
    "VERB",
    "X",
)

TREEBANKS = {
    "ar": "ar_padt",
    "bg": "bg_btb",
    "de": "de_gsd",
    "el": "el_gdt",
    "en": "en_ewt",
    "es": "es_gsd",
    "fr": "fr_gsd",
    "hi": "hi_hdtb",
    "it": "it_isdt",
    "nl": "nl_alpino",
    "pl": "pl_pdb",
    "pt": "pt_gsd",
    "ru": "ru_gsd",
    "th": "th_pud",
    "tr": "tr_imst",
    "ur": "ur_udtb",
    "vi": "vi_vtb",
    "zh": "zh_gsd",
}
"""XGLUE's treebank of every language."""

XGLUE = Layout(folder="POS", train="{language}.train", test="{language}.{split}", tokens=True)


def keep_words(
    words: list[list[str]], tags: list[list[str]]
) -> tuple[list[list[str]], list[list[str]], tuple[str, ...]]:
    """Leave out what is no syntactic word (tag ``_``), and spaces inside words, as XGLUE's files do.

    Copies of the treebanks differ in whether the ranges of multiword tokens and empty nodes stand among the words.
    """
    kept = [[tag != "_" for tag in sentence] for sentence in tags]
    left = sum(not keep for sentence in kept for keep in sentence)
    spaced = sum(" " in word for sentence in words for word in sentence)
    notes = []
    if left:
        notes.append(f"{left:,} ranges of multiword tokens and empty nodes left out")
    if spaced:
        notes.append(f"spaces taken out of {spaced:,} words")
    return (
        [[w.replace(" ", "") for w, keep in zip(*pair, strict=True) if keep] for pair in zip(words, kept)],
        [[t for t, keep in zip(*pair, strict=True) if keep] for pair in zip(tags, kept)],
        tuple(notes),
    )


HUB = HubSet(
    "commul/universal_dependencies",
    tuple(TREEBANKS),
    first="tokens",
    label="upos",
    configs=TREEBANKS,
    test_only=("th",),
    revision="2.17",
    repair=keep_words,
)


class Pos(CorpusTask):
    """Part-of-speech tagging."""

    name = "pos"
    kind: Kind = "tokens"

    def __init__(self, recipe: TaskRecipe) -> None:
        self._corpus = Corpus(recipe, self.kind, xglue=XGLUE, hub=HUB)
        self._local = recipe.source != "hub"
        self.labels = tuple(recipe.labels or LABELS)
        self.metrics = main_first((TokenAccuracy("pos_token_accuracy"), TagRuns()), recipe.metric)
        by_source = {
            "hub": "Universal Dependencies, a licence per treebank, several for non-commercial use only"
        }
        self.licence = one_of(recipe, by_source | {"xglue": LICENCE})

    def examples(self, language: str, split: Split) -> Examples:
        """Words with their tags. A test set equal to the dev set, as XGLUE's Thai one is, is told in the notes."""
        examples = self._corpus.examples(language, split, self.labels)
        if split == "test" and self._local and self._corpus.source.has(language, "dev"):
            dev = self._corpus.source.rows(language, "dev")
            if dev.first == examples.first:
                note = (
                    f"{examples.origin}: the test set and the dev set of {language!r} are the same sentences"
                )
                return replace(examples, notes=(*examples.notes, note))
        return examples
