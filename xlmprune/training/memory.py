"""Estimate the memory of a run, part by part, from counts alone, so that a model of any size takes seconds.

Not counted: Python, PyTorch and its kernels (0.5 GB on a CPU; a GPU holds its own context), texts, and what allocators keep.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from xlmprune.models.loading import count_parameters, count_prunable, parameters_by_part, prunable
from xlmprune.pruning.criteria import Criterion
from xlmprune.recipe.schema import Recipe
from xlmprune.training.graphs import MULTIPLE
from xlmprune.training.method import Method

ACTIVATION_COPIES = 20
"""Tensors of [batch, tokens, hidden] that one encoder layer keeps for its backward pass, eight of them in the FFN."""

ATTENTION_COPIES = 3
"""Tensors of [batch, heads, tokens, tokens] that one layer keeps on a CPU: with dropout, attention has no kernel there that
computes them again. A GPU has one."""

PROBE = 64
"""Rows and columns of the matrix on which a criterion's state is measured."""


def estimate_memory(
    recipe: Recipe,
    method: Method,
    model: Any,
    rows: int | None = None,
    chooses_best: bool = True,
    bf16: bool = False,
    on_cpu: bool = True,
    processes: int = 1,
) -> dict[str, int]:
    """Estimate the bytes that one process of training holds at its peak.

    Args:
        model: on any device; only shapes are read.
        rows: rows of the word embeddings that occur in the training text and are trained; None for all.
        chooses_best: whether the weights of the best epoch are kept beside the others.
        bf16: whether products are computed in bf16.
        on_cpu: whether training runs on a CPU.
        processes: how many share the texts of a batch; each holds everything else.

    Returns:
        Bytes by what they hold, and ``total``, which is less than their sum: gradients come while activations go, unless a
        batch is split, layers are computed again or passes are recorded; frozen weights are copied where there are no
        activations; and what an update needs is gone when masks are chosen, unless they change within a stage.
    """
    held = _held(recipe, method, model, rows, on_cpu)
    parts_each = -(-recipe.training.gradient_accumulation // processes)
    texts = -(-recipe.training.batch_size // (parts_each * processes))
    update = _update(recipe, model, rows, chooses_best, bf16, on_cpu, texts)
    copies = _copies(recipe, method, model, on_cpu)
    pruning = _pruning(method, model)
    gradients, activations = update["gradients"], update["activations"]
    overlap = gradients + activations
    if parts_each == 1 and not recipe.training.gradient_checkpointing and not recipe.training.cuda_graphs:
        overlap = max(gradients, activations)
    needed = sum(update.values()) - gradients - activations + max(overlap, gradients + copies)
    peak = needed + pruning if method.continuous is not None else max(needed, pruning)
    parts = {**held, **update, "copies of frozen weights": copies, "choosing masks": pruning}
    return {**{what: size for what, size in parts.items() if size}, "total": sum(held.values()) + peak}


def estimate_disk(
    recipe: Recipe, method: Method, model: Any, rows: int | None = None, chooses_best: bool = True
) -> dict[str, int]:
    """Estimate the bytes of a checkpoint and of the run folder without its bundle: the start, two checkpoints, and one that
    is being written."""
    parameters, matrices = count_parameters(model), count_prunable(model)
    trained = _trained(recipe, model, rows)
    held = _held(recipe, method, model, rows, on_cpu=True)
    kept = sum(held.get(what, 0) for what in ("fine-tuned reference", "teacher", "criterion"))
    checkpoint = 4 * parameters + matrices // 8 + kept + (12 if chooses_best else 8) * trained
    return {"checkpoint": checkpoint, "run folder": 4 * parameters + 3 * checkpoint}


def _held(recipe: Recipe, method: Method, model: Any, rows: int | None, on_cpu: bool) -> dict[str, int]:
    """Return what exists from the second stage on, whatever is done."""
    frozen = {"fp32": 4, "bf16": 2, "cpu": 4 if on_cpu else 0}[recipe.training.frozen_weights]
    parameters, matrices = count_parameters(model), count_prunable(model)
    table = model.get_input_embeddings().weight
    compact = (
        0
        if recipe.training.freeze_embeddings
        else 4 * _rows(model, rows) * table.shape[1] + 8 * table.shape[0]
    )
    finetuned = method.regularizer.strength and method.regularizer.reference == "finetuned"
    return {
        "weights": 4 * parameters,
        "trained rows of the embeddings": compact,
        "reference": frozen * matrices,
        "fine-tuned reference": frozen * matrices if finetuned else 0,
        "masks": matrices,
        "teacher": 0 if recipe.distillation is None else frozen * parameters,
        "criterion": round(state_bytes(method.criterion) * matrices),
    }


def _copies(recipe: Recipe, method: Method, model: Any, on_cpu: bool) -> int:
    """Return what is copied to the device, or to fp32, while it is used."""
    keeping = recipe.training.frozen_weights
    if keeping == "fp32" or (keeping == "cpu" and on_cpu):
        return 0
    compares = bool(method.regularizer.strength) and method.regularizer.adds_gradient
    reference = 4 * count_prunable(model) if compares else 0
    teacher = 4 * count_parameters(model) if recipe.distillation is not None else 0
    return max(reference, teacher)  # at different times


def _update(
    recipe: Recipe, model: Any, rows: int | None, chooses_best: bool, bf16: bool, on_cpu: bool, texts: int
) -> dict[str, int]:
    trained = _trained(recipe, model, rows)
    return {
        "gradients": 4 * trained * _recorded_shapes(recipe),
        "optimizer": 8 * trained,
        "weights of the best epoch": 4 * trained if chooses_best else 0,
        "weights in bf16": 2 * count_prunable(model) if bf16 else 0,
        "activations": (2 if bf16 else 4) * _activations(recipe, model.config, on_cpu, texts),
    }


def _recorded_shapes(recipe: Recipe) -> int:
    """Count the shapes of batches that may be recorded, each with gradients of its own; 1 where none is."""
    if not recipe.training.cuda_graphs:
        return 1
    of_each_kind = -(-recipe.training.max_length // MULTIPLE)
    learns_unlabelled = recipe.distillation is not None and recipe.distillation.unlabelled is not None
    return of_each_kind * (2 if learns_unlabelled else 1)


def _activations(recipe: Recipe, config: Any, on_cpu: bool, texts: int) -> int:
    """Count the numbers that a forward pass keeps for the backward pass, for texts of the greatest length."""
    length = recipe.training.max_length
    layer = ACTIVATION_COPIES * length * config.hidden_size
    if on_cpu:
        layer += ATTENTION_COPIES * config.num_attention_heads * length**2
    if recipe.training.gradient_checkpointing:
        return texts * (config.num_hidden_layers * length * config.hidden_size + layer)
    return texts * config.num_hidden_layers * layer


def _pruning(method: Method, model: Any) -> int:
    """Scores, the line in which they are ranked, and the new masks; and what a criterion or the refit reads for it."""
    matrices = [weight.numel() for weight in prunable(model).values()]
    ranked = sum(matrices) if method.selection.scope == "global" else max(matrices)
    moments = (
        4 * sum(weight.shape[1] ** 2 for weight in prunable(model).values()) if method.moment_uses else 0
    )
    own = round(4 * method.criterion.scoring_floats * sum(matrices))
    return 4 * sum(matrices) + 4 * ranked + sum(matrices) + moments + own


def _rows(model: Any, rows: int | None) -> int:
    table = model.get_input_embeddings().weight
    return table.shape[0] if rows is None else min(rows, table.shape[0])


def _trained(recipe: Recipe, model: Any, rows: int | None) -> int:
    """Parameters that the optimizer updates."""
    parameters, table = count_parameters(model), model.get_input_embeddings().weight
    if recipe.training.freeze_embeddings:
        return parameters - parameters_by_part(model)["embeddings"]
    return parameters - table.numel() + _rows(model, rows) * table.shape[1]


def state_bytes(criterion: Criterion) -> float:
    """Return the bytes that a criterion holds for each weight between updates, measured on one small matrix.

    What it holds already, of a network that it watches, does not count.
    """
    probe = copy.deepcopy(criterion)
    before = _state_size(probe)
    weight = nn.Parameter(torch.ones(PROBE, PROBE))
    weight.grad = torch.ones_like(weight)
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask[0, 0] = False  # some criteria begin when something is pruned
    with torch.random.fork_rng(devices=[]):
        probe.before_forward({"w": weight}, {"w": mask})
        probe.observe({"w": weight}, {"w": mask}, 1e-3)
    return (_state_size(probe) - before) / weight.numel()


def _state_size(criterion: Criterion) -> int:
    return sum(t.numel() * t.element_size() for t in criterion.state().values() if t.ndim)
