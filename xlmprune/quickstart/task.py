"""Quickstart: which of fourteen commands does this sentence give to a house? Accuracy; 20 zero-shot languages.

The sentences come with a Python package, see `quickstart.intents`: nothing to download, no account. For a first run
and for tests; what people say to their house is a narrow part of any language.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from xlmprune.core.errors import DataError
from xlmprune.data.examples import Examples, Kind
from xlmprune.data.readers import Split
from xlmprune.quickstart import intents
from xlmprune.tasks.metrics import Accuracy, main_first

if TYPE_CHECKING:
    from xlmprune.recipe.schema import TaskRecipe

LABELS = tuple(intents.COMMANDS)

ZERO_SHOT = {"test": 8, "unlabelled": 40}
TRAINED = {"test": 20, "dev": 10, "train": 100, "unlabelled": 40}
"""Sentences for each command, where the language has that many."""
LEAST = {"zero-shot": ZERO_SHOT["test"], "trained": 60}
"""A language with fewer sentences for any command is refused: its score would rest on the other commands."""


class Quickstart:
    """Voice commands."""

    name = "quickstart"
    kind: Kind = "text"
    labels = LABELS
    licence = intents.LICENCE

    def __init__(self, recipe: TaskRecipe) -> None:
        self.train_language = recipe.train_language
        self._asked = recipe.languages
        self.metrics = main_first((Accuracy(),), recipe.metric)

    @property
    def measures_all(self) -> bool:
        """Whether the recipe asks for every language, and not for some of them by name."""
        return self._asked == "all"

    def languages(self) -> tuple[str, ...]:
        """Return the train language, then the others: as listed, or for ``all`` the 20 of `intents.LANGUAGES`.

        Raises:
            DataError: a language is not in the package, or has too few sentences of some command.
        """
        asked = ("en", *intents.LANGUAGES) if self._asked == "all" else self._asked
        wanted = tuple(dict.fromkeys([self.train_language, *asked]))
        for language in wanted:
            self._parts(language)
        return wanted

    def examples(self, language: str, split: Split) -> Examples:
        """Sentences with their commands; commands take turns, so the first n are a balanced choice.

        Raises:
            DataError: no such language; or train and dev of a language that is only tested.
        """
        parts = self._parts(language)
        if split not in parts:
            raise DataError(
                f"task quickstart has no {split} set in {language!r}: this language is only tested. "
                f"The task trains in {self.train_language!r} (task.train_language)"
            )
        texts, labels = _take_turns(parts[split])
        return Examples(language, split, texts, labels=labels, origin=intents.version())

    def unlabelled(self, language: str, translations: bool = False) -> list[str]:
        """Sentences that are not in the language's test set: 560 where it has that many; train and dev included.

        In an order that says nothing of their commands, those without any label elsewhere first.
        """
        parts = self._parts(language)
        texts: list[str] = []
        for part in ("unlabelled", "train", "dev"):
            drawn = [text for of_label in parts.get(part, ()) for text in of_label]
            random.Random(f"{intents.SEED}/{language}/{part}").shuffle(drawn)
            texts += drawn
        return texts

    def _parts(self, language: str) -> Mapping[str, Sequence[tuple[str, ...]]]:
        return _divide(language) if language == self.train_language else _hold_out(language)


@lru_cache
def _hold_out(language: str) -> Mapping[str, Sequence[tuple[str, ...]]]:
    """Test and unlabelled sentences of a zero-shot language, each part by label; varied wordings are tested."""
    drawn = _enough(language, sum(ZERO_SHOT.values()), "zero-shot").by_label
    count = ZERO_SHOT["test"]
    return {
        "test": [drawn[label][:count] for label in LABELS],
        "unlabelled": [drawn[label][count:] for label in LABELS],
    }


@lru_cache
def _divide(language: str) -> Mapping[str, Sequence[tuple[str, ...]]]:
    """All parts of the train language, each by label; test gets at most a fifth, dev a tenth."""
    drawn = _enough(language, sum(TRAINED.values()), "trained").by_label
    parts: dict[str, list[tuple[str, ...]]] = {part: [] for part in TRAINED}
    for label in LABELS:
        sentences = list(drawn[label])
        random.Random(f"{intents.SEED}/{language}/{label}/split").shuffle(sentences)
        limits = TRAINED | {"test": len(sentences) // 5, "dev": len(sentences) // 10}
        start = 0
        for part, count in TRAINED.items():
            end = start + min(count, limits[part])
            parts[part].append(tuple(sentences[start:end]))
            start = end
    return parts


def _enough(language: str, count: int, role: str) -> intents.Sentences:
    """Draw what a language has.

    Raises:
        DataError: too little; says what is missing and which languages have enough.
    """
    sentences = intents.draw(language, count)
    few = [label for label in LABELS if len(sentences.by_label[label]) < LEAST[role]]
    if not few:
        return sentences
    hint = "English has enough" if role == "trained" else f"Among those with enough: {', '.join(_testable())}"
    raise DataError(
        f"{intents.version()} has fewer than {LEAST[role]} sentences in {language!r} for {len(few)} of the "
        f"{len(LABELS)} commands ({', '.join(few)}). {hint}"
    )


def _testable() -> list[str]:
    """Languages of the package that can surely be zero-shot; takes seconds, for messages only."""
    least = LEAST["zero-shot"]
    drawn = {language: intents.draw(language, 2 * least).by_label for language in intents.languages()}
    return [language for language, by_label in drawn.items() if min(map(len, by_label.values())) >= least]


def _take_turns(by_label: Sequence[tuple[str, ...]]) -> tuple[list[str], list[int]]:
    """One sentence of every label, then a second of each, and so on."""
    texts, labels = [], []
    for turn in range(max(map(len, by_label))):
        for label, sentences in enumerate(by_label):
            if turn < len(sentences):
                texts.append(sentences[turn])
                labels.append(label)
    return texts, labels
