"""Keep the weights that carry the most signal on unlabelled text (Wanda): magnitude times the size of the input.

By layer, and from second moments of activations alone: no gradients, no labels. For one-shot pruning and for masks that are
refitted afterwards; gradients (`pins`) know better what a task needs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def wanda(weight: Tensor, moment: Tensor) -> Tensor:
    """``|w_ij| sqrt(A_jj)``: what entry j of the inputs, of root mean square ``sqrt(A_jj)``, adds to output i.

    Args:
        weight: [out, in].
        moment: [in, in], second moment of the inputs.

    Returns:
        [out, in], not negative.

    Source: Sun et al. 2023 (arXiv:2306.11695), Eq. 1.
    """
    size = moment.diagonal().clamp_min(0).sqrt()
    return weight.detach().abs() * size.to(weight.dtype)


def scores(weights: dict[str, Tensor], moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """`wanda` of every weight."""
    with torch.no_grad():
        return {name: wanda(weight, moments[name]) for name, weight in weights.items()}
