"""Read numbers from a GPU without waiting for the work that was launched after them."""

from __future__ import annotations

import torch
from torch import Tensor


class Reading:
    """Numbers on their way from the device. To read them waits for the work before them, and not for that after them.

    Args:
        numbers: float64 [n].
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers, self._copied = numbers, None
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[float]:
        """Return the numbers, when they have arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        found: list[float] = self._numbers.tolist()
        return found
