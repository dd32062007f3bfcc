"""Which texts are those of a test set, so that no unlabelled text is one of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

from xlmprune.data.examples import Examples, normalize

SHINGLE = 4
"""Letters in a piece by which similar sentences are looked up."""

RAREST = 12
"""A sentence is compared with those that have the most of its rarest pieces, so many of them."""

COMPARED = 8
"""Sentences it is compared with, at most: where several have equally many of the pieces, the first in alphabetical order."""

SHARED = 0.4
"""They are compared only if they share this share of the pieces."""

SIMILAR = ((20, 0.8), (12, 0.9))
"""From how many letters on, two sentences are the same from which share of equal letters on. A short sentence may differ
in one word from many others, and one with fewer letters must be equal."""


class TestTexts:
    """The texts of test and dev sets, those that a sample of a set leaves out too.

    Texts are equal if their letters, marks and digits are, however they are spaced, cased or punctuated. A sentence of a
    token task is also found if it is only similar: treebanks split words in two and change their letters, as French `du`
    to `de le`, and Hebrew, Czech and Finnish words.
    """

    __test__ = False  # not a pytest class

    def __init__(self, sets: Iterable[Examples]) -> None:
        self._exact: set[str] = set()
        self._sentences: list[str] = []
        self._by_shingle: dict[str, list[int]] = defaultdict(list)
        for examples in _whole(sets):
            texts = set(map(normalize, texts_of(examples)))
            if examples.kind == "tokens":
                for text in sorted(texts - self._exact):
                    for shingle in _shingles(text):
                        self._by_shingle[shingle].append(len(self._sentences))
                    self._sentences.append(text)
            self._exact |= texts

    def has(self, line: str) -> bool:
        """Tell whether a text, or either text of a pair with a tab between, is one of them."""
        return any(self._has(normalize(text)) for text in line.split("\t"))

    def _has(self, text: str) -> bool:
        if text in self._exact:
            return True
        if not self._sentences or len(text) < SIMILAR[-1][0]:
            return False
        shingles = _shingles(text)
        # In the same order in every process; a set's is not.
        found = [self._by_shingle[shingle] for shingle in sorted(shingles) if shingle in self._by_shingle]
        if not found or len(found) < SHARED * len(shingles):
            return False
        # Rare pieces tell sentences apart; all of them would take a minute for 50,000 lines.
        rarest = sorted(found, key=len)[:RAREST]
        counts = Counter(index for sentences in rarest for index in sentences)
        most = max(counts.values())
        nearest = sorted(index for index, count in counts.items() if count == most)[:COMPARED]
        return any(_similar(text, shingles, self._sentences[index]) for index in nearest)


def _similar(text: str, shingles: set[str], other: str) -> bool:
    """Tell whether two sentences are the same but for a few letters."""
    if len(shingles & _shingles(other)) < SHARED * len(shingles):
        return False
    needed = next(share for letters, share in SIMILAR if len(text) >= letters)
    return SequenceMatcher(None, text, other, autojunk=False).ratio() >= needed


def _whole(sets: Iterable[Examples]) -> Iterator[Examples]:
    for examples in sets:
        yield examples
        if examples.rest is not None:
            yield examples.rest


def texts_of(examples: Examples) -> Iterator[str]:
    """Give every text, both of a pair; the words of a sentence are joined with spaces."""
    for column in (examples.first, examples.second or ()):
        for text in column:
            yield text if isinstance(text, str) else " ".join(text)


def _shingles(text: str) -> set[str]:
    return {text[start : start + SHINGLE] for start in range(len(text) - SHINGLE + 1)}
