"""Terms of the loss that hold the pruned network near its unpruned reference.

`cosine` keeps the direction of every unit and `frobenius` the values of the weights that remain;
`cosine_layer` keeps one direction a matrix; `both` adds the first two; `l2` pulls to zero and is the ordinary
alternative; `none` is nothing.
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from xlmprune.pruning.masks import Masks, Weights

Reference = Literal["pretrained", "finetuned"]


class Regularizer(Protocol):
    """What a regularizer offers. Weights are the effective ones: zero where pruned."""

    strength: float
    reference: Reference

    def __call__(self, weights: Weights, reference: Weights, masks: Masks | None = None) -> Tensor:
        """The term to add to the loss, its sign and strength included: a scalar, differentiable in ``weights``."""

    def add_gradient(self, weights: Weights, reference: Weights, masks: Masks | None) -> Tensor:
        """Add the term's gradient to every ``weights[name].grad`` in place, and return the term's value, detached.

        The same gradient as autograd's through ``mask * weight``, in closed form: no graph, one matrix at a
        time. Pruned weights get none. A ``.grad`` of None is created.
        """


__all__ = ["Reference", "Regularizer"]
