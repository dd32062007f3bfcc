"""Adam for what a criterion learns beside the weights; its state comes and goes as plain tensors by name."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Adam:
    """Adam with a constant learning rate, over tensors by name.

    Source: Kingma and Ba 2015 (arXiv:1412.6980), Algorithm 1.
    """

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.updates = 0
        self._first: dict[str, Tensor] = {}
        self._second: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Forget every moment."""
        self.updates, self._first, self._second = 0, {}, {}

    def step(self, name: str, value: Tensor, slope: Tensor) -> None:
        """Move ``value`` against ``slope``, in place; `updates` counts the update under way, from 1."""
        first = self._first.setdefault(name, torch.zeros_like(value))
        second = self._second.setdefault(name, torch.zeros_like(value))
        first.lerp_(slope, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(slope, slope, value=1 - BETAS[1])
        rate = self.learning_rate / (1 - BETAS[0] ** self.updates)
        scale = second.sqrt().div_(math.sqrt(1 - BETAS[1] ** self.updates)).add_(EPSILON)
        value.addcdiv_(first, scale, value=-rate)

    def state(self) -> dict[str, Tensor]:
        """Return the moments, flat."""
        flat = {f"first|{name}": tensor for name, tensor in self._first.items()}
        flat |= {f"second|{name}": tensor for name, tensor in self._second.items()}
        return {**flat, "updates": torch.tensor(self.updates)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`; other entries are ignored."""
        self._first = named(state, "first")
        self._second = named(state, "second")
        self.updates = int(state["updates"])


def named(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return the entries ``kind|name`` of a flat state, by name."""
    return {
        entry.partition("|")[2]: tensor for entry, tensor in state.items() if entry.startswith(f"{kind}|")
    }
