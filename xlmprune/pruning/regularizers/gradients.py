"""How a closed-form gradient reaches a weight's ``.grad``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from xlmprune.pruning.masks import Masks, Weights


@contextmanager
def gradient_of(weight: Tensor) -> Iterator[Tensor]:
    """Give ``weight.grad`` to add to in place, in float32 or wider; zeros where it was None."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    wide = at_least_float32(weight.grad)
    yield wide
    if wide is not weight.grad:
        weight.grad.copy_(wide)


def side_by_side(weights: Weights, reference: Weights) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return weights, their references and their gradients, in the same order; a ``.grad`` of None becomes zeros."""
    for weight in weights.values():
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    gradients = [weight.grad for weight in weights.values() if weight.grad is not None]
    return [*weights.values()], [reference[name] for name in weights], gradients


def add_to_gradient(weight: Tensor, gradient: Tensor) -> None:
    """Add ``gradient`` to ``weight.grad``, in the weight's own type; the sum is as autograd would have left it."""
    if weight.grad is None:
        weight.grad = gradient.to(weight.dtype, copy=True)
    else:
        weight.grad.add_(gradient.to(weight.grad.dtype))


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or wider; sums over thousands of bfloat16 products lose what they measure."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def masked_copy(tensor: Tensor, masks: Masks | None, name: str) -> Tensor:
    """Return ``mask * tensor`` in memory of its own, or a plain copy where there are no masks."""
    if masks is None:
        return tensor.clone()
    return tensor * masks[name].view(torch.uint8)  # twice as fast on a CPU as with booleans
