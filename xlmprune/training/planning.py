"""What a recipe would do: stages, densities, updates, languages, memory. Reads data and configuration, trains nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from xlmprune import recipe as recipes
from xlmprune.core.device import resolve_device, resolve_precision
from xlmprune.core.formatting import number, percent
from xlmprune.core.tables import rich_table, tabulate
from xlmprune.data.examples import Examples
from xlmprune.evaluation import scores as evaluation
from xlmprune.models import vocabulary
from xlmprune.models.loading import HEADS, count_parameters, load_config, parameters_by_part, prunable
from xlmprune.pipeline import check_length, read_dev, read_unlabelled
from xlmprune.pruning.masks import attainable
from xlmprune.recipe import Recipe, VocabularyRecipe, registry
from xlmprune.training.loop import updates_in_stage

ACTIVATION_COPIES = 18
"""Tensors of [batch, tokens, hidden] that one encoder layer keeps for its backward pass, measured on XLM-R base."""


def plan(recipe: Recipe, device: str = "auto") -> dict[str, Any]:
    """The resolved plan of a run.

    Returns:
        ``stages`` [{stage, encoder_density, updates}], ``languages``, ``train_examples``, ``parameters``,
        ``prunable``, ``memory`` (bytes by what they hold, an estimate), ``device``, ``precision``.
    """
    place = resolve_device(device)
    task = registry.load("task", recipe.task.name)(recipe.task)
    languages = task.languages()
    train = task.examples(recipe.task.train_language, "train")
    count = min(len(train), recipe.task.max_train_examples or len(train))
    dev = read_dev(task, recipe)
    tests = {
        language: _head(task.examples(language, "test"), recipe.task.max_test_examples)
        for language in languages
    }
    evaluation.require_scorable(task, [*tests.values(), *([] if dev is None else [dev])])
    unlabelled = read_unlabelled(recipe, task, tests, dev)
    if isinstance(recipe.model.vocabulary, VocabularyRecipe):
        vocabulary.require_texts(vocabulary.texts_for(task, recipe.model.vocabulary.files))
    config = load_config(recipe.model, task.labels)
    check_length(recipe, config)
    with torch.device("meta"):
        model = HEADS[task.kind](config)
    batches = -(-count // recipe.training.batch_size)
    falling = recipes.build(recipe, "schedule").densities()
    densities = (1.0, *(attainable(density, recipe.pruning.pattern) for density in falling))
    stages = [
        {"stage": k, "encoder_density": density, "updates": updates_in_stage(recipe, batches, k)}
        for k, density in enumerate(densities)
    ]
    return {
        "name": recipe.name,
        "model": recipe.model.name,
        "parameters": count_parameters(model),
        "parameters_by_part": parameters_by_part(model),
        "prunable": sum(weight.numel() for weight in prunable(model).values()),
        "languages": list(languages),
        "train_language": recipe.task.train_language,
        "train_examples": count,
        "labels": list(task.labels),
        "unlabelled": {language: len(part) for language, part in unlabelled.items()},
        "stages": stages,
        "updates": sum(stage["updates"] for stage in stages),
        "criterion": recipe.pruning.criterion.name,
        "regularizer": recipe.regularizer.name,
        "device": str(place),
        "precision": str(resolve_precision(recipe.training.precision, place)).removeprefix("torch."),
        "memory": estimate_memory(recipe, model),
    }


def _head(examples: Examples, cap: int | None) -> Examples:
    return examples if cap is None else examples.head(cap)


def estimate_memory(recipe: Recipe, model: torch.nn.Module) -> dict[str, int]:
    """Bytes that training holds at its peak, before any vocabulary trimming; an estimate from counts."""
    parameters = count_parameters(model)
    matrices = sum(weight.numel() for weight in prunable(model).values())
    trained = parameters - (
        parameters_by_part(model)["embeddings"] if recipe.training.freeze_embeddings else 0
    )
    config: Any = model.config
    rows = recipe.training.batch_size // recipe.training.gradient_accumulation
    tokens = rows * recipe.training.max_length
    activations = 4 * tokens * config.hidden_size * config.num_hidden_layers * ACTIVATION_COPIES
    held = {
        "weights": 4 * parameters,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "reference": 4 * matrices,
        "masks": matrices,
        "activations": activations,
    }
    return {**held, "total": sum(held.values())}


def render(plan: dict[str, Any]) -> Any:
    """The plan as a table for the terminal."""
    from rich.console import Group

    columns: dict[str, Callable[[Any], str]] = {
        "stage": lambda stage: number(stage["stage"]),
        "encoder density": lambda stage: percent(stage["encoder_density"], 2),
        "updates": lambda stage: number(stage["updates"]),
    }
    title = f"{plan['name']}: {plan['regularizer']} on {plan['model']}"
    table = rich_table(tabulate(title, columns, plan["stages"]))
    memory = ", ".join(f"{what} {size / 1e9:.2f}" for what, size in plan["memory"].items() if what != "total")
    others = [language for language in plan["languages"] if language != plan["train_language"]]
    return Group(
        table,
        f"{plan['train_examples']:,} {plan['train_language']} training examples, labels: {', '.join(plan['labels'])}",
        f"{len(others)} zero-shot languages: {', '.join(others)}",
        *([_texts_line(plan["unlabelled"])] if plan["unlabelled"] else []),
        f"{plan['parameters']:,} parameters, {plan['prunable']:,} of them prunable "
        f"({plan['prunable'] / plan['parameters']:.1%}; embeddings hold "
        f"{plan['parameters_by_part']['embeddings'] / plan['parameters']:.1%} and are not pruned)",
        f"{plan['updates']:,} updates in all, {plan['precision']} on {plan['device']}",
        f"memory, estimated, before any vocabulary trimming: {plan['memory']['total'] / 1e9:.1f} GB ({memory})",
    )


def _texts_line(unlabelled: dict[str, int]) -> str:
    listed = ", ".join(f"{language} {count:,}" for language, count in unlabelled.items())
    return f"unlabelled texts to learn a teacher's answers on: {listed}"
