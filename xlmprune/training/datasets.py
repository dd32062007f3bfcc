"""The texts that a run reads: all of them before a model is loaded, so that bad data is reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Tokenizer

from xlmprune.core.errors import DataError
from xlmprune.data.checks import uneven_text, warnings_about, without_test
from xlmprune.data.encoding import Encoded, encode, join_encoded
from xlmprune.data.examples import Examples
from xlmprune.data.unlabelled import has_text, no_text, unlabelled_examples, unmeasured_languages
from xlmprune.evaluation import score_file
from xlmprune.evaluation.scores import TestSet
from xlmprune.models import architecture
from xlmprune.recipe.schema import CALIBRATION, DistillationRecipe, ExportRecipe, Recipe, TaskRecipe
from xlmprune.tasks.metrics import require_scorable
from xlmprune.training.outcome import Datasets

UNLABELLED = "unlabelled"
"""Start of the name of an unlabelled text's fingerprint."""


@dataclass(frozen=True)
class Texts:
    """A task's examples, read and not yet encoded."""

    task: Any
    train: Examples
    dev: Examples | None
    """Examples that the best epoch is chosen on; None with `training.keep: last`, which chooses nothing."""
    tests: Mapping[str, Examples]
    unlabelled: Mapping[str, Examples]
    """Texts of each language that the student learns the teacher's answers on."""
    warnings: tuple[str, ...] = ()
    """What is suspicious about the data, in sentences."""


def read_texts(
    task: Any,
    settings: TaskRecipe,
    keep: Literal["best", "last"],
    distillation: DistillationRecipe | None,
    vocabulary: Sequence[str] = (),
    export: ExportRecipe | None = None,
) -> Texts:
    """Read every text of a run.

    Args:
        vocabulary: names of the files that pieces are counted in; they are not read here.
        export: names text that is read after the training, so it must be there before.

    Raises:
        DataError: examples are missing, or cannot be trained on or scored.
    """
    train = _read_train(task, settings)
    dev = None if keep == "last" else _read_dev(task, settings)
    tests = {
        language: task.examples(language, "test").sample_of_set(settings.max_test_examples)
        for language in task.languages()
    }
    require_scorable(task, [*tests.values(), *([] if dev is None else [dev])])
    unlabelled: Mapping[str, Examples] = {}
    if distillation is not None and distillation.unlabelled is not None:
        unlabelled = unlabelled_examples(
            task, distillation.unlabelled, tests, dev, distillation.languages, distillation.max_texts
        )
    unmeasured = sorted({*unmeasured_languages(task, vocabulary), *unlabelled} - set(tests))
    warnings = [
        *warnings_about(train, dev, tests, task.labels),
        uneven_text(unlabelled),
        without_test(unmeasured),
        "" if export is None else _check_calibration(task, export),
    ]
    return Texts(task, train, dev, tests, unlabelled, tuple(warning for warning in warnings if warning))


def read_texts_of(recipe: Recipe, task: Any) -> Texts:
    """Read every text of a run as `read_texts` does, with the settings of its recipe."""
    return read_texts(
        task,
        recipe.task,
        recipe.training.keep,
        recipe.distillation,
        recipe.model.vocabulary_patterns,
        recipe.export,
    )


def _check_calibration(task: Any, export: ExportRecipe) -> str:
    """Return a warning where a task has no text of its own, as a recipe that is based on another one may ask for.

    Raises:
        DataError: there is no text that the recipe names and the export needs.
    """
    pattern = export.calibration
    if pattern is None or has_text(task, pattern):
        return ""
    needed = export.floor.limits and export.floor.on == "unlabelled"
    if pattern != "task" or needed:
        raise no_text(CALIBRATION, task.languages(), pattern)
    return (
        "export.calibration: the task has no unlabelled text of its own, so INT8 is calibrated on training text alone. Give "
        "files with {language} in the name for better INT8 in the other languages"
    )


def encode_texts(texts: Texts, tokenizer: Tokenizer, train_language: str, max_length: int) -> Datasets:
    """Encode every text but the unlabelled ones.

    Args:
        max_length: tokens of an example, special ones included.
    """

    def test_set(examples: Examples) -> TestSet:
        return TestSet(examples, encode(tokenizer, examples, max_length))

    return Datasets(
        task=texts.task,
        train_language=train_language,
        max_length=max_length,
        train=encode(tokenizer, texts.train, max_length),
        train_origin=texts.train.origin,
        train_notes=(*texts.train.notes, *texts.warnings),
        dev=None if texts.dev is None else test_set(texts.dev),
        tests={language: test_set(examples) for language, examples in texts.tests.items()},
        unlabelled={language: len(part) for language, part in texts.unlabelled.items()},
        fingerprints=_fingerprints(texts),
    )


def encode_unlabelled(texts: Texts, tokenizer: Tokenizer, max_length: int) -> Encoded | None:
    """Encode the unlabelled texts of all languages as one set; None where there are none."""
    parts = [encode(tokenizer, part, max_length) for part in texts.unlabelled.values()]
    return join_encoded(parts) if parts else None


def _read_train(task: Any, settings: TaskRecipe) -> Examples:
    examples, cap = task.examples(settings.train_language, "train"), settings.max_train_examples
    examples = examples if cap is None else examples.sample(cap)
    if len(examples) == 0:
        raise DataError(
            f"{examples.origin or settings.name}: no training examples in {settings.train_language!r}"
        )
    if examples.labels is None:
        raise DataError(f"{examples.origin}: the training examples have no labels")
    return examples


def _read_dev(task: Any, settings: TaskRecipe) -> Examples:
    try:
        examples: Examples = task.examples(settings.train_language, "dev")
    except DataError as error:
        raise DataError(
            f"{error}\nThe best epoch of a stage is chosen on dev examples in {settings.train_language!r}; without them "
            "set training.keep: last"
        ) from error
    return examples.sample_of_set(settings.max_test_examples)


def check_length(model: str, config: Any, max_length: int) -> None:
    """Raise DataError if the model has fewer positions than `training.max_length`."""
    positions = architecture.of(config).positions(config)
    if max_length > positions:
        raise DataError(f"training.max_length is {max_length}; {model} has {positions} positions")


def _fingerprints(texts: Texts) -> dict[str, str]:
    sets = {"train": texts.train, **({} if texts.dev is None else {"dev": texts.dev})}
    sets |= {f"test {language}": examples for language, examples in texts.tests.items()}
    sets |= {f"{UNLABELLED} {language}": part for language, part in texts.unlabelled.items()}
    return {name: score_file.fingerprint(examples) for name, examples in sets.items()}
