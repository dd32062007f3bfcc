"""Importance that is measured at every update and smoothed: means over short windows, then moving averages.

PLATON and PINS share it. Per weight it keeps the mean of the open window, the moving average of closed ones,
and the moving average of how far windows stray from it: the uncertainty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xlmprune.pruning.criteria.adam import named


def confidence(importance: Tensor, uncertainty: Tensor) -> Tensor:
    """Return importance times uncertainty, float64: the product of two small numbers may be below what float32 can hold.

    Source: Zhang et al. 2022 (arXiv:2206.12562), Eq. 9.
    """
    return importance.double().mul_(uncertainty)


class Smoothed:
    """Windows and moving averages of an importance, by name of weight.

    Args:
        window: updates to a window.
        beta1: decay of the importance.
        beta2: decay of the uncertainty; 0 for the open window's own distance.

    Source: Zhang et al. 2022 (arXiv:2206.12562), Eqs. 6 to 9, and the windows of its released code.
    """

    def __init__(self, window: int, beta1: float, beta2: float) -> None:
        self.window, self.beta1, self.beta2 = window, beta1, beta2
        self.updates = 0
        self._open: dict[str, Tensor] = {}
        self._importance: dict[str, Tensor] = {}
        self._uncertainty: dict[str, Tensor] = {}

    def add(self, measured: dict[str, Tensor]) -> None:
        """Take in one update's importance of every weight, float32; the tensors are kept."""
        index = self.updates % self.window
        for name, importance in measured.items():
            if name not in self._open:
                self._open[name] = importance
                self._importance[name] = torch.zeros_like(importance)
                self._uncertainty[name] = torch.zeros_like(importance)
            elif index == 0:
                self._importance[name], self._uncertainty[name] = self._closed(name)
                self._open[name] = importance
            else:
                self._open[name].mul_(index / (index + 1)).add_(importance, alpha=1 / (index + 1))
        self.updates += 1

    def _closed(self, name: str) -> tuple[Tensor, Tensor]:
        """Return importance and uncertainty once the open window counts."""
        importance = torch.lerp(self._open[name], self._importance[name], self.beta1)
        strayed = (self._open[name] - importance).abs_()
        return importance, torch.lerp(strayed, self._uncertainty[name], self.beta2)

    def current(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return importance and uncertainty, the open window included; None before any update.

        With ``beta2`` 0 the uncertainty is how far the open window strays from the importance of the closed ones, as in the
        released code.
        """
        if name not in self._open:
            return None
        if self.beta2 == 0 and self.updates > self.window:
            return self._importance[name], (self._open[name] - self._importance[name]).abs_()
        return self._closed(name)

    def state(self) -> dict[str, Tensor]:
        """Return everything, flat."""
        kept = {"open": self._open, "importance": self._importance, "uncertainty": self._uncertainty}
        flat = {
            f"{kind}|{name}": tensor for kind, tensors in kept.items() for name, tensor in tensors.items()
        }
        return {**flat, "updates": torch.tensor(self.updates)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        self._open, self._importance = named(state, "open"), named(state, "importance")
        self._uncertainty = named(state, "uncertainty")
        self.updates = int(state["updates"])
