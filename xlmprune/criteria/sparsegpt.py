"""Keep the weights whose removal the others of their row cannot make up for on unlabelled text (SparseGPT).

By layer, from second moments of activations alone. Unlike `wanda` it knows that of two inputs alike one is enough;
it is meant to be followed by the refit that it presumes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xlmprune.pruning.reconstruction import inverse_diagonal


def sparsegpt(weight: Tensor, moment: Tensor, ridge: float = 0.01) -> Tensor:
    """``|w_ij| / sqrt([H^-1]_jj)``: the root of what the output loses without the weight, the others of its row refitted.

    Args:
        weight: [out, in].
        moment: [in, in], second moment of the inputs; H is it plus the ridge.
        ridge: relative to the mean square of an input; above 0.

    Returns:
        [out, in], not negative.

    Source: Frantar and Alistarh 2023 (arXiv:2301.00774), Eq. 3.
    """
    return weight.detach().abs() / inverse_diagonal(moment, ridge).sqrt().to(weight.dtype)


def scores(weights: dict[str, Tensor], moments: dict[str, Tensor], ridge: float = 0.01) -> dict[str, Tensor]:
    """`sparsegpt` of every weight; inputs that several weights read are inverted once."""
    diagonals: dict[int, Tensor] = {}
    found = {}
    with torch.no_grad():
        for name, weight in weights.items():
            moment = moments[name]
            if id(moment) not in diagonals:
                diagonals[id(moment)] = inverse_diagonal(moment, ridge).sqrt().to(weight.dtype)
            found[name] = weight.detach().abs() / diagonals[id(moment)]
    return found
