"""Plan a run: stages, densities, updates, languages, memory. Reads data and configuration, and trains nothing."""

from __future__ import annotations

from typing import Any

import torch

from xlmprune.core.device import resolve_device, resolve_precision
from xlmprune.models import vocabulary
from xlmprune.models.loading import HEADS, count_parameters, load_config, parameters_by_part, prunable
from xlmprune.recipe import Recipe, TrainingRecipe, VocabularyRecipe, registry
from xlmprune.training.datasets import check_length, read_texts
from xlmprune.training.method import build_method
from xlmprune.training.optimizer import learning_rate, updates_in_stage

ACTIVATION_COPIES = 18
"""Tensors of [batch, tokens, hidden] that one encoder layer keeps for its backward pass, measured on XLM-R base."""


def plan(recipe: Recipe, device: str = "auto") -> dict[str, Any]:
    """Return the resolved plan of a run.

    Returns:
        ``stages`` [{stage, encoder_density, updates}], ``languages``, ``train_examples``, ``parameters``,
        ``prunable``, ``memory`` (bytes by what they hold, an estimate), ``device``, ``precision``.
    """
    where = resolve_device(device)
    task = registry.load("task", recipe.task.name)(recipe.task)
    texts = read_texts(task, recipe.task, recipe.training.keep, recipe.distillation)
    count = len(texts.train)
    if isinstance(recipe.model.vocabulary, VocabularyRecipe):
        vocabulary.require_texts(vocabulary.texts_for(task, recipe.model.vocabulary.files))
    config = load_config(recipe.model, task.labels)
    check_length(recipe.model.name, config, recipe.training.max_length)
    with torch.device("meta"):
        model = HEADS[task.kind](config)
    batches = -(-count // recipe.training.batch_size)
    method = build_method(recipe.pruning, recipe.regularizer)
    stages = [
        _stage_plan(recipe.training, batches, stage, density)
        for stage, density in enumerate(method.densities)
    ]
    return {
        "name": recipe.name,
        "model": recipe.model.name,
        "parameters": count_parameters(model),
        "parameters_by_part": parameters_by_part(model),
        "prunable": sum(weight.numel() for weight in prunable(model).values()),
        "languages": list(texts.tests),
        "train_language": recipe.task.train_language,
        "train_examples": count,
        "labels": list(task.labels),
        "unlabelled": {language: len(part) for language, part in texts.unlabelled.items()},
        "stages": stages,
        "updates": sum(stage["updates"] for stage in stages),
        "criterion": recipe.pruning.criterion.name,
        "regularizer": recipe.regularizer.name,
        "device": str(where),
        "precision": str(resolve_precision(recipe.training.precision, where)).removeprefix("torch."),
        "memory": estimate_memory(recipe, model),
    }


def _stage_plan(
    settings: TrainingRecipe, batches_per_epoch: int, stage: int, density: float
) -> dict[str, Any]:
    updates = updates_in_stage(settings, batches_per_epoch, stage)
    rates = (learning_rate(settings, stage, update, updates) for update in range(updates))
    return {"stage": stage, "encoder_density": density, "updates": updates, "peak_learning_rate": max(rates)}


def estimate_memory(recipe: Recipe, model: torch.nn.Module) -> dict[str, int]:
    """Estimate the bytes that training holds at its peak, from counts, before any vocabulary trimming."""
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
    """Render the plan as a table for the terminal."""
    from rich.console import Group
    from rich.table import Table

    table = Table(
        "stage",
        "encoder density",
        "updates",
        "peak learning rate",
        title=f"{plan['name']}: {plan['regularizer']} on {plan['model']}",
    )
    for column in table.columns:
        column.justify = "right"
    for stage in plan["stages"]:
        table.add_row(
            str(stage["stage"]),
            f"{stage['encoder_density']:.2%}",
            f"{stage['updates']:,}",
            f"{stage['peak_learning_rate']:g}",
        )
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
