"""AdamW with its groups, the learning rate's curve, the length of a stage, and clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn, optim

from xlmprune.models import architecture, loading
from xlmprune.pruning import kernels
from xlmprune.pruning.masks import Masks, Weights
from xlmprune.recipe.schema import TrainingRecipe


def new_optimizer(model: nn.Module, settings: TrainingRecipe) -> optim.AdamW:
    """Return AdamW over the trainable parameters; only encoder and head matrices decay.

    The prunable matrices are the first group, so that a regularizer may set their decay.
    """
    decayed, prunable = architecture.of(model).decayed(model), loading.prunable(model)
    groups: dict[int, list[nn.Parameter]] = {0: [], 1: [], 2: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[0 if name in prunable else 1 if name in decayed else 2].append(parameter)
    return optim.AdamW(
        [
            {"params": groups[0], "weight_decay": settings.weight_decay},
            {"params": groups[1], "weight_decay": settings.weight_decay},
            {"params": groups[2], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )


def freeze_embeddings(model: nn.Module) -> None:
    """Take the embeddings out of training."""
    architecture.of(model).embeddings(model).requires_grad_(False)


def updates_in_stage(settings: TrainingRecipe, batches_per_epoch: int, stage: int, last: int) -> int:
    """Return the number of updates in a stage, from its epochs and its cap; ``last`` is the last stage's number."""
    wanted = settings.dense_epochs if stage == 0 else settings.last_epochs if stage == last else None
    epochs = settings.epochs_per_stage if wanted is None else wanted
    updates = max(1, round(epochs * batches_per_epoch)) if epochs else 0
    return min(updates, settings.max_updates_per_stage or updates)


LONGEST_WARM_UP = 0.1
"""Share of a stage that the learning rate's warm-up takes at most, so that a short stage reaches the learning rate."""


def warmup_updates(settings: TrainingRecipe, stage: int) -> int:
    """Return the updates of warm-up that the recipe asks for in a stage."""
    dense = settings.dense_warmup_updates
    return dense if stage == 0 and dense is not None else settings.warmup_updates


def learning_rate(settings: TrainingRecipe, stage: int, update: int, total: int) -> float:
    """Return the learning rate of an update: it rises during warm-up, then falls to zero or stays, in every stage.

    Args:
        update: from 0, within the stage.
        total: updates in the stage.
    """
    peak = settings.learning_rate
    if stage == 0 and settings.dense_learning_rate is not None:
        peak = settings.dense_learning_rate
    warm_up = min(warmup_updates(settings, stage), int(LONGEST_WARM_UP * total))
    if update < warm_up:
        return peak * (update + 1) / warm_up
    if settings.lr_schedule == "constant":
        return peak
    return peak * (total - update) / max(1, total - warm_up)


@torch.no_grad()
def mask_gradients(weights: Weights, masks: Masks | None) -> dict[str, Tensor]:
    """Set the gradients of pruned weights to zero, and return the norm of each matrix's gradient."""
    found = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    if masks is not None:
        gradients, kept = [*found.values()], [masks[name] for name in found]
        if kernels.usable(gradients, kept):
            kernels.mask(gradients, kept)
        else:
            for gradient, one in zip(gradients, kept, strict=True):
                gradient.mul_(one.view(torch.uint8))  # twice as fast on a CPU as with booleans
    return dict(zip(found, torch._foreach_norm([*found.values()]), strict=True)) if found else {}


@torch.no_grad()
def gradient_norm(model: nn.Module, known: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return the norm of all gradients together, on their device.

    Args:
        known: norms of gradients that were measured already, by parameter name.
    """
    known = {} if known is None else known
    found = {name: p for name, p in model.named_parameters() if p.grad is not None}
    measured = iter(_norms([parameter for name, parameter in found.items() if name not in known]))
    norms = [known[name] if name in known else next(measured) for name in found]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else next(model.parameters()).new_zeros(())


@torch.no_grad()
def clip(
    model: nn.Module, limit: float | None, norm: Tensor, optimizer: optim.Optimizer, now: bool = False
) -> None:
    """Scale all gradients down to a norm of ``limit``. Nothing is read from a GPU, so nothing waits for it.

    Args:
        norm: of all gradients together, a float64 scalar.
        optimizer: scales the gradients itself, while it reads them for its next step.
        now: scale them at once instead, because somebody looks at them before the step.
    """
    optimizer.grad_scale = None  # type: ignore[attr-defined]  # not that of the update before
    if limit is None:
        return
    factor = (limit / (norm + 1e-6)).clamp_max(1.0)
    if norm.device.type == "cpu" and float(factor) == 1:
        return  # a CPU waits for nothing, and need not divide by one
    if now:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
    else:
        optimizer.grad_scale = (1 / factor).float()  # type: ignore[attr-defined]


@torch.no_grad()
def step_if_finite(optimizer: optim.Optimizer, numbers: Tensor) -> None:
    """Let the optimizer's next step change nothing if one of the ``numbers`` is not finite; they stay on the device."""
    optimizer.found_inf = (~numbers.isfinite().all()).float()  # type: ignore[attr-defined]


def _norms(parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
    """Return the norm of each gradient."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients and gradients[0].device.type == "cuda":  # in a few launches instead of hundreds
        return torch._foreach_norm(gradients)
    return [_norm(gradient) for gradient in gradients]


def _norm(gradient: Tensor) -> Tensor:
    """Return a norm that does not depend on how many rows of a large table have no gradient."""
    wide = torch.float64 if gradient.ndim == 2 and gradient.device.type == "cpu" else None
    return torch.linalg.vector_norm(gradient, dtype=wide).to(gradient.dtype)
