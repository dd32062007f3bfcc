"""Compute encoder layers again in the backward pass, and keep no activations: `training.gradient_checkpointing`.

Source: Chen et al. 2016 (arXiv:1604.06174). Dropout draws the same random numbers the second time, so results are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from xlmprune.models import architecture


@contextmanager
def recomputed_layers(
    model: nn.Module, inside: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Iterator[None]:
    """Let the layers of a model keep nothing but their inputs for a backward pass inside the ``with``.

    Args:
        inside: gives the context that they are computed again in; the backward pass leaves that of the caller.
    """
    modules = [layer.module for layer in architecture.of(model).layers(model)]

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), inside()

    try:
        for module in modules:
            module.forward = partial(checkpoint, module.forward, use_reentrant=False, context_fn=contexts)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)
