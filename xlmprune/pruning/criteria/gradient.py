"""Keep the weights on which the loss depends most, to first order (L2-Gradient-MBP).

Needs data at the pruning moment, and is noisy with few batches. `taylor`, the change of the loss when the
weight is removed, is the variant to prefer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.masks import Scores, Weights
from xlmprune.recipe.component import STRICT


def add_up(stream: Iterable[Weights], measure: Callable[[Tensor], Tensor]) -> Scores:
    """Sum of ``measure(gradient)`` over a stream of gradients, for every weight; float32."""
    totals: Scores = {}
    for gradients in stream:
        for name, gradient in gradients.items():
            if name not in totals:
                totals[name] = torch.zeros_like(gradient, dtype=torch.float32)
            totals[name].add_(measure(gradient.detach().float()))
    return totals


def accumulated(stream: Iterable[Weights]) -> Scores:
    """``|sum_t g_t|`` for every weight.

    Source: O'Neill et al. 2022 (arXiv:2204.01385), section 4, "accumulated gradient"; how many batches is not
    said.
    """
    return {name: total.abs_() for name, total in add_up(stream, lambda gradient: gradient).items()}


def absolute(stream: Iterable[Weights]) -> Scores:
    """``sum_t |g_t|`` for every weight: batches that disagree do not cancel."""
    return add_up(stream, torch.abs)


def taylor(weights: Weights, stream: Iterable[Weights]) -> Scores:
    """``|w * sum_t g_t|`` for every weight, the first-order change of the loss without it.

    Source: Molchanov et al. 2019 (arXiv:1906.10771), Eq. 8, before squaring.
    """
    totals = add_up(stream, lambda gradient: gradient)
    return {name: total.mul_(weights[name].detach()).abs_() for name, total in totals.items()}


@dataclass(config=STRICT)
class Gradient(Criterion):
    """Score every weight by the gradient of the cross-entropy, dropout off and regularizer left out."""

    batches: Annotated[int, Field(ge=1)] = 1
    """Batches of training data to accumulate over. The paper says "a batch"; 32 give steadier scores."""

    mode: Literal["sum", "abs_mean", "taylor"] = "sum"
    """`sum`: |sum of gradients|; `abs_mean`: mean of |gradient|; `taylor`: |weight times sum of gradients|."""

    def scores(self, context: PruningContext) -> Scores:
        """One pass over ``batches`` batches; one accumulator per weight."""
        stream = context.gradients(self.batches)
        if self.mode == "taylor":
            return taylor(context.weights, stream)
        if self.mode == "abs_mean":
            return {name: total.div_(self.batches) for name, total in absolute(stream).items()}
        return accumulated(stream)
