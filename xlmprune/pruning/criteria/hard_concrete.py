"""The hard concrete distribution: gates in [0, 1] that are exactly 0 or 1 with positive probability, yet differentiable.

Source: Louizos, Welling and Kingma 2018 (arXiv:1712.01312), with its constants.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA = 2 / 3
GAMMA = -0.1
ZETA = 1.1
SHIFT = -BETA * math.log(-GAMMA / ZETA)
"""1.5986: P(z > 0) = sigmoid(alpha + SHIFT), P(z = 1) = sigmoid(alpha - SHIFT)."""

EDGE = 1e-6
"""Uniform draws keep this distance from 0 and 1, where their logit is infinite."""


def sample(alpha: Tensor) -> Tensor:
    """Draw the concrete variable ``s`` in [0, 1] for every gate, from torch's own generator; see `gate`. Eq. 10."""
    noise = torch.empty_like(alpha).uniform_(EDGE, 1 - EDGE).logit_()
    return noise.add_(alpha).div_(BETA).sigmoid_()


def gate(s: Tensor) -> Tensor:
    """``z``: ``s`` stretched to [GAMMA, ZETA] and cut to [0, 1]. Eqs. 11 and 12."""
    return (s * (ZETA - GAMMA) + GAMMA).clamp_(0, 1)


def gate_slope(s: Tensor) -> Tensor:
    """``dz / dalpha``: zero where the gate is cut."""
    stretched = s * (ZETA - GAMMA) + GAMMA
    slope = (s * (1 - s)).mul_((ZETA - GAMMA) / BETA)
    return slope.mul_((stretched > 0) & (stretched < 1))


def evaluation_gate(alpha: Tensor) -> Tensor:
    """Return the gate without noise: exactly 0 below -2.398 and 1 above 2.398. Eq. 13."""
    return (torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA).clamp_(0, 1)


def probability_open(alpha: Tensor) -> Tensor:
    """``P(z > 0)``. Eq. 12 of the paper's section 3.2, the expected L0 norm of one gate."""
    return torch.sigmoid(alpha + SHIFT)


def probability_open_slope(alpha: Tensor) -> Tensor:
    """Its derivative by ``alpha``."""
    open_ = probability_open(alpha)
    return open_ * (1 - open_)
