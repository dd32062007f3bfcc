"""Terms of the loss that hold the pruned network near its unpruned reference.

`cosine` keeps the direction of every unit and `frobenius` the values of the weights that remain;
`cosine_layer` keeps one direction a matrix; `both` adds the first two; `l2` pulls to zero and is the ordinary
alternative; `none` is nothing.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from xlmprune.pruning.hooks import refuse_unknown_hooks
from xlmprune.pruning.masks import Masks, Weights

Reference = Literal["pretrained", "finetuned"]


class Regularizer:
    """Base of every regularizer, which declares `strength` and `reference`. Weights are zero where pruned.

    A public method with another name than those below is an error when the subclass is defined.
    """

    strength: float
    """Weight of the term in the loss; 0 turns the regularizer off."""
    reference: Reference
    """What the weights are compared with."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_unknown_hooks(cls, ("add_gradient",), ("decay", "adds_gradient"))
        declared = vars(cls).get("__annotations__", {})
        if missing := [name for name in ("strength", "reference") if name not in declared]:
            raise TypeError(f"{cls.__name__} must declare {' and '.join(missing)}")

    @property
    def decay(self) -> float:
        """AdamW's decay of the prunable matrices while the regularizer acts, beside `training.weight_decay`."""
        return 0.0

    @property
    def adds_gradient(self) -> bool:
        """Whether the term has a gradient, so that what moves the weights is not the gradient of the task alone."""
        return True

    def __call__(self, weights: Weights, reference: Weights, masks: Masks | None = None) -> Tensor:
        """Return the term to add to the loss, its sign and strength included: a scalar, differentiable in ``weights``."""
        raise NotImplementedError

    def add_gradient(self, weights: Weights, reference: Weights, masks: Masks | None) -> Tensor:
        """Add the term's gradient to every ``weights[name].grad`` in place, and return the term's value, detached.

        The gradient is that of autograd through ``mask * weight`` on the weights that remain, in closed form: no graph,
        one matrix at a time. The caller masks the sum of all gradients once, so pruned weights may get any. A ``.grad``
        of None is created.
        """
        raise NotImplementedError


__all__ = ["Reference", "Regularizer"]
