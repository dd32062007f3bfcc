"""POS: the universal part of speech of every word; token accuracy, and also XGLUE's own score.

XGLUE's 18 languages are treebanks of Universal Dependencies 2.5. Its English train set is larger than the treebank of
dev and test. The hub has the same treebanks in a later release, so its scores differ a little. What XGLUE calls
accuracy is a precision of runs of equal tags (`pos_xglue`), 0.5 to 8 points lower than the accuracy.
"""

from __future__ import annotations

from dataclasses import replace

from xlmprune.data.examples import Examples
from xlmprune.data.readers import Split
from xlmprune.data.readers.hub import HubSet
from xlmprune.data.readers.xglue import Layout
from xlmprune.tasks import CorpusTask
from xlmprune.tasks.metrics import TagRuns, TokenAccuracy

TREEBANKS = {
    name[:2]: name
    for name in (
        "ar_padt bg_btb de_gsd el_gdt en_ewt es_gsd fr_gsd hi_hdtb it_isdt nl_alpino pl_pdb pt_gsd ru_gsd th_pud tr_imst "
        "ur_udtb vi_vtb zh_gsd"
    ).split()
}
"""XGLUE's treebank of every language."""


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


class Pos(CorpusTask):
    """Part-of-speech tagging."""

    name = "pos"
    kind = "tokens"
    own_labels = tuple(
        "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split()
    )
    own_metrics = (TokenAccuracy("pos_token_accuracy"), TagRuns())
    xglue = Layout("POS", "{language}.train", "{language}.{split}", roles=("words", "tags"))
    hub = HubSet(
        "commul/universal_dependencies",
        tuple(TREEBANKS),
        first="tokens",
        label="upos",
        configs=TREEBANKS,
        test_only=("th",),
        revision="2.17",
        repair=keep_words,
        licence="Universal Dependencies, a licence per treebank, several for non-commercial use only",
    )

    def examples(self, language: str, split: Split) -> Examples:
        """Read words with their tags. A note says if the test set is the dev set, as XGLUE's Thai one is."""
        examples = super().examples(language, split)
        if split == "test" and self._recipe.source != "hub" and self._corpus.source.has(language, "dev"):
            dev = self._corpus.source.rows(language, "dev")
            if dev.first == examples.first:
                note = (
                    f"{examples.origin}: the test set and the dev set of {language!r} are the same sentences"
                )
                return replace(examples, notes=(*examples.notes, note))
        return examples
