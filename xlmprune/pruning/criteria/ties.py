"""One ranking out of two: an importance score, and the magnitude where scores are equal.

For the choice of single weights alone: sums of such ranks mean nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def break_ties(scores: Tensor, weight: Tensor) -> Tensor:
    """Scores that rank by ``scores`` and, where those are equal, by ``|weight|``.

    Criteria that learn begin with all scores equal; then the first stage prunes by magnitude rather than by
    position.

    Args:
        scores: finite, any shape; compared as float32.
        weight: same shape; compared as float32, to 12 binary digits of the mantissa.

    Returns:
        float64, same shape: whole numbers below 2 ** 52 in size, exact, with no meaning beyond their order.
    """
    # The bits of a float are ordered like its value, once those of negative numbers are turned around; + 0.0
    # makes -0.0 +0.0.
    bits = (scores.float() + 0.0).contiguous().view(torch.int32)
    ranks = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).double()
    magnitudes = weight.detach().float().abs().contiguous().view(torch.int32) >> 11
    return ranks.mul_(2.0**20).add_(magnitudes)
