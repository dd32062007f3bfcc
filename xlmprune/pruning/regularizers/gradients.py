"""How a closed-form gradient reaches a weight's ``.grad``."""

from __future__ import annotations

import torch
from torch import Tensor

from xlmprune.pruning.masks import Masks


def add_to_gradient(weight: Tensor, gradient: Tensor) -> None:
    """Add ``gradient`` to ``weight.grad``, in the weight's own type; the sum is as autograd would have left it."""
    if weight.grad is None:
        weight.grad = gradient.to(weight.dtype, copy=True)
    else:
        weight.grad.add_(gradient.to(weight.grad.dtype))


def at_least_float32(tensor: Tensor) -> Tensor:
    """Sums over thousands of bfloat16 products lose what they are meant to measure."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def masked_copy(tensor: Tensor, masks: Masks | None, name: str) -> Tensor:
    """``mask * tensor`` in memory of its own, or a plain copy where there are no masks."""
    if masks is None:
        return tensor.clone()
    # Widening the mask first is four times as fast as torch.where on a CPU.
    return masks[name].to(tensor.dtype).mul_(tensor)
