"""AdamW with its groups, the learning rate's curve, the length of a stage, and clipping."""

from __future__ import annotations

from torch import nn, optim

from xlmprune.models.loading import part_of, prunable
from xlmprune.recipe import TrainingRecipe


def new_optimizer(model: nn.Module, settings: TrainingRecipe) -> optim.AdamW:
    """Return AdamW over the trainable parameters; only encoder and head matrices decay."""
    decayed = set(prunable(model))
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix_of_head = part_of(name) == "head" and parameter.ndim == 2
            groups[name in decayed or matrix_of_head].append(parameter)
    return optim.AdamW(
        [
            {"params": groups[True], "weight_decay": settings.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )


def freeze_embeddings(model: nn.Module) -> None:
    """Take the embeddings out of training."""
    for name, parameter in model.named_parameters():
        if part_of(name) == "embeddings":
            parameter.requires_grad_(False)


def updates_in_stage(settings: TrainingRecipe, batches_per_epoch: int, stage: int) -> int:
    """Return the number of updates in a stage, from its epochs and its cap."""
    epochs = settings.epochs_per_stage
    if stage == 0 and settings.dense_epochs is not None:
        epochs = settings.dense_epochs
    updates = max(1, round(epochs * batches_per_epoch))
    return min(updates, settings.max_updates_per_stage or updates)


LONGEST_WARM_UP = 0.1
"""Share of a stage that the learning rate's warm-up takes at most, so that a short stage reaches the learning rate."""


def learning_rate(settings: TrainingRecipe, stage: int, update: int, total: int) -> float:
    """Return the learning rate of an update: it rises during warm-up, then falls to zero or stays, in every stage.

    Args:
        update: from 0, within the stage.
        total: updates in the stage.
    """
    peak = settings.learning_rate
    if stage == 0 and settings.dense_learning_rate is not None:
        peak = settings.dense_learning_rate
    warm_up = min(settings.warmup_updates, int(LONGEST_WARM_UP * total))
    if update < warm_up:
        return peak * (update + 1) / warm_up
    if settings.lr_schedule == "constant":
        return peak
    return peak * (total - update) / max(1, total - warm_up)


def clip(model: nn.Module, limit: float | None) -> float:
    """Scale all gradients down to a norm of ``limit``; return the norm before."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    return float(nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit))
