"""What a run reads before it trains. Of several processes, the first one reads it, and the others get it from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xlmprune.core.progress import Reporter
from xlmprune.core.run_folder import RunFolder
from xlmprune.data.encoding import Encoded
from xlmprune.data.examples import Kind
from xlmprune.data.lengths import describe_cut
from xlmprune.models.loading import Pretrained
from xlmprune.pruning.budget import Settled, settle_once
from xlmprune.pruning.moments import Batch
from xlmprune.recipe import registry
from xlmprune.recipe.schema import Recipe
from xlmprune.training.datasets import check_length, encode_texts, encode_unlabelled, read_texts_of
from xlmprune.training.method import build_method
from xlmprune.training.moments import choose_moment_text
from xlmprune.training.outcome import Datasets
from xlmprune.training.start import Trimming, open_start


@dataclass(frozen=True)
class Material:
    """The model as the run began, and its texts, encoded."""

    pretrained: Pretrained
    vocabulary: Trimming
    settled: Settled | None
    """The sizes that meet the recipe's budget; None where it has none."""
    data: Datasets
    unlabelled: Encoded | None
    """Text that the student learns the teacher's answers on."""
    moment_text: Sequence[Batch]
    """Batches to measure activations on; none where nothing reads them."""


def cut_texts(data: Datasets) -> list[str]:
    """Warn if many test texts are longer than the model reads; an empty list if few are."""
    shares = {language: float(test.encoded.truncated.mean()) for language, test in data.tests.items()}
    return describe_cut(shares, data.max_length)


def read_material(
    recipe: Recipe,
    folder: RunFolder,
    reporter: Reporter,
    settle: Callable[[Recipe, Any, Kind], Settled | None],
) -> Material:
    """Read model and texts.

    Args:
        folder: where the model as the run began is kept, once it was loaded.
        settle: chooses the sizes that meet the recipe's budget, for a model of this config and kind; None: there is none.

    Raises:
        XlmpruneError: model or data cannot be used.
    """
    task = registry.load("task", recipe.task.name)(recipe.task)
    reporter.say(f"reading {recipe.task.name} in {', '.join(task.languages())}")
    texts = read_texts_of(recipe, task)
    for warning in texts.warnings:
        reporter.say(f"warning: {warning}")
    measured_on = choose_moment_text(recipe, texts, build_method(recipe.pruning, recipe.regularizer))
    pretrained, vocabulary = open_start(recipe, task, folder, reporter)
    length, config, tokenizer = recipe.training.max_length, pretrained.model.config, pretrained.tokenizer
    check_length(recipe.model.name, config, length)
    settled = settle_once(folder.budget, lambda: settle(recipe, config, task.kind))
    if settled is not None and recipe.pruning.structure is not None:
        reporter.say(settled.sentence())
    data = encode_texts(texts, tokenizer, recipe.task.train_language, length)
    for warning in cut_texts(data):
        reporter.say(f"warning: {warning}")
    if measured_on is not None:
        marks = {**data.fingerprints, **measured_on.fingerprints(data.fingerprints)}
        data = replace(data, moments=measured_on.record(), fingerprints=marks)
    return Material(
        pretrained,
        vocabulary,
        settled,
        data,
        None if recipe.distillation is None else encode_unlabelled(texts, tokenizer, length),
        () if measured_on is None else measured_on.batches(tokenizer, length),
    )
