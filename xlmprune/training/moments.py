"""The text on which activations are measured, for criteria and for the refit that read their second moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from xlmprune.core.device import derive_seed
from xlmprune.core.errors import DataError
from xlmprune.core.languages import language_name
from xlmprune.data.encoding import encode
from xlmprune.data.examples import Examples
from xlmprune.data.unlabelled import unlabelled_examples
from xlmprune.evaluation import score_file
from xlmprune.pruning.moments import Batch, draw_evenly, text_batches
from xlmprune.recipe.schema import VOCABULARY_FILES, Recipe, ReconstructRecipe
from xlmprune.training.datasets import UNLABELLED, Texts
from xlmprune.training.method import Method

TRAINING_TEXT = "training text"


@dataclass(frozen=True)
class MomentText:
    """Unlabelled text, drawn evenly over the languages that have some."""

    source: str
    """The recipe's key, or `TRAINING_TEXT`."""
    uses: tuple[str, ...]
    """Keys of the recipe."""
    parts: Mapping[str, Examples]
    without: tuple[str, ...]
    """Languages that are measured and have no text."""

    def record(self) -> dict[str, Any]:
        """Return what report and events say."""
        return {
            "source": self.source,
            "uses": list(self.uses),
            "texts": {language: len(part) for language, part in self.parts.items()},
            "without": list(self.without),
        }

    def fingerprints(self, known: Mapping[str, str]) -> dict[str, str]:
        """Return fingerprints of the text; none for text that is among the ``known`` data already."""
        if self.source != VOCABULARY_FILES:
            return {}
        marks = {
            f"{UNLABELLED} moments {code}": score_file.fingerprint(part) for code, part in self.parts.items()
        }
        return {name: mark for name, mark in marks.items() if name not in known}

    def batches(self, tokenizer: Tokenizer, max_length: int) -> list[Batch]:
        """Encode the text and pad it in batches."""
        encoded = {language: encode(tokenizer, part, max_length) for language, part in self.parts.items()}
        return list(text_batches(encoded, sum(map(len, encoded.values()))))


def choose_moment_text(recipe: Recipe, texts: Texts, method: Method) -> MomentText | None:
    """Choose the teacher's text, else that of the vocabulary's files, else training text; None where nothing reads it.

    Raises:
        DataError: the vocabulary's files have no text that is not measured.
    """
    uses = method.moment_uses
    if not uses:
        return None
    source, parts = _source(recipe, texts)
    if method.structure is not None and method.structure.languages is not None:
        parts = _of_languages(parts, method.structure.languages, source)
    count = (method.reconstruct or ReconstructRecipe()).texts
    seed = derive_seed(recipe.seed, "moments")
    rows = draw_evenly({language: len(part) for language, part in parts.items()}, count, seed)
    drawn = {language: parts[language].take(mine) for language, mine in rows.items() if mine}
    return MomentText(
        source, uses, drawn, tuple(language for language in texts.tests if language not in drawn)
    )


def _of_languages(
    parts: Mapping[str, Examples], languages: Sequence[str], source: str
) -> Mapping[str, Examples]:
    missing = [language for language in languages if not len(parts.get(language, ()))]
    if missing:
        raise DataError(
            f"pruning.structure.languages: there is no text in {', '.join(map(language_name, missing))}; {source} has text "
            f"in {', '.join(language for language, part in parts.items() if len(part))}"
        )
    return {language: parts[language] for language in languages}


def _source(recipe: Recipe, texts: Texts) -> tuple[str, Mapping[str, Examples]]:
    if texts.unlabelled:
        return "distillation.unlabelled", texts.unlabelled
    patterns = recipe.model.vocabulary_patterns
    if not patterns:
        return TRAINING_TEXT, {recipe.task.train_language: texts.train}
    found = unlabelled_examples(texts.task, patterns[0], texts.tests, texts.dev, key=VOCABULARY_FILES)
    return VOCABULARY_FILES, found


def describe(record: Mapping[str, Any]) -> list[str]:
    """Say on which text activations were measured, and which languages have none."""
    texts = record["texts"]
    languages = ", ".join(language_name(code) for code in texts)
    said = [
        f"{' and '.join(record['uses'])} measure activations on {sum(texts.values()):,} texts without their labels, from "
        f"{record['source']} ({languages})"
    ]
    if record["without"]:
        missing = ", ".join(language_name(code) for code in record["without"])
        said.append(f"there is no such text in {missing}, so no activations are measured for them")
    return said
