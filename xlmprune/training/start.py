"""The model that a run starts from: loaded and trimmed once, then kept in the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from xlmprune.core.files import write_atomically
from xlmprune.core.languages import language_name
from xlmprune.core.progress import Reporter
from xlmprune.core.run_folder import RunFolder, start_damage
from xlmprune.data.unlabelled import vocabulary_texts
from xlmprune.models import vocabulary
from xlmprune.models.loading import Pretrained, fit_to_tokenizer, load_pretrained, read_start, save_start
from xlmprune.recipe.schema import Recipe

VOCABULARY_FILE = "vocabulary.json"

Trimming = Mapping[str, Any] | None
"""What vocabulary trimming removed; None where the vocabulary was kept."""


def open_start(
    recipe: Recipe, task: Any, folder: RunFolder, reporter: Reporter
) -> tuple[Pretrained, Trimming]:
    """Return the model as the run began, and what trimming removed; load and keep it the first time.

    A damaged one is loaded again from where it came.

    Raises:
        ModelError: it is damaged, and loading it again gives another model.
    """
    expected = folder.expected_start()
    if folder.start.is_dir():
        damage = start_damage(folder.path, expected)
        if damage is None:
            trimming = json.loads((folder.start / VOCABULARY_FILE).read_text(encoding="utf-8"))
            return read_start(folder.start, task.kind), trimming
        reporter.warn(f"{folder.start} is damaged ({damage}); loading the model again")
        folder.repairs.append({"what": folder.start.name, "cause": damage})
    reporter.say(f"loading {recipe.model.name}")
    pretrained, trimming = load_start(recipe, task)
    for note in pretrained.notes:
        reporter.detail(note)
    for language, loss in () if trimming is None else vocabulary.thin_languages(trimming):
        reporter.warn(
            f"model.vocabulary: {language_name(language)} has little text: held-out text {loss}. Give more text of this "
            "language"
        )

    def write(target: Path) -> None:
        save_start(pretrained, target, recipe.training.max_length)
        write_atomically(target / VOCABULARY_FILE, json.dumps(trimming, ensure_ascii=False))

    folder.save_start(write, expected)
    return pretrained, trimming


def load_start(recipe: Recipe, task: Any) -> tuple[Pretrained, Trimming]:
    """Load the pretrained model with its head, and trim its vocabulary where the recipe says so."""
    wanted = recipe.model.trimmed
    if wanted is None:
        return load_pretrained(recipe.model, task.kind, task.labels, recipe.seed), None
    # Before the model, so that missing text is reported at once.
    texts = vocabulary_texts(task, wanted.files, wanted.keep_languages_of)
    vocabulary.require_texts(texts)
    pretrained = load_pretrained(recipe.model, task.kind, task.labels, recipe.seed)
    tokenizer, trimming = vocabulary.trim(
        pretrained.model, pretrained.tokenizer, texts, min_count=wanted.min_count, max_size=wanted.max_size
    )
    fit_to_tokenizer(pretrained.model, tokenizer)
    return replace(pretrained, tokenizer=tokenizer), trimming
