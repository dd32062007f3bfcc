"""Draw dropout's masks faster on a CPU: `training.fast_dropout`.

PyTorch draws a float for each number of a tensor, which can take a tenth of an update on a CPU and more. Here 16 random bits
decide about each number, so its chance to be dropped is the configured one, rounded to a multiple of 1/65,536.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

DRAWN = 16
"""Random bits for each number."""

WORD = torch.int64
"""PyTorch's generator fills whole words, and four numbers share one."""


def fast_dropout(values: Tensor, chance: float) -> Tensor:
    """Set numbers to zero with a probability of ``chance``, and divide the others by ``1 - chance``; any shape.

    The random bits come from PyTorch's generator of the CPU, so `torch.manual_seed` repeats them.
    """
    count = values.numel()
    words = torch.empty(math.ceil(count * DRAWN / torch.iinfo(WORD).bits), dtype=WORD)
    # The full range: `random_()` alone draws no negative numbers, whose top bit would always be the same.
    bits = words.random_(torch.iinfo(WORD).min, None).view(torch.int16)[:count].view(values.shape)
    steps = min(round(chance * 2**DRAWN), 2**DRAWN - 1)
    kept = (bits >= steps + torch.iinfo(torch.int16).min).to(values.dtype)
    return values * kept.mul_(1 / (1 - steps / 2**DRAWN))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Compute `functional.scaled_dot_product_attention` with `fast_dropout`; [batch, heads, tokens, size].

    With dropout PyTorch has no fused form of it on a CPU either.
    """
    if is_causal:
        raise ValueError("encoders attend in both directions")
    query = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    scores = query @ key.transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return fast_dropout(scores.softmax(-1).to(value.dtype), dropout_p) @ value


class FastDropout(TorchFunctionMode):
    """Inside the ``with``, every dropout on a CPU draws its mask with `fast_dropout`; a GPU's own is fast."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.dropout:
            values, chance, training = _dropout_arguments(*args, **kwargs)
            if training and 0 < chance < 1 and values.device.type == "cpu":
                return fast_dropout(values, chance)
        elif (
            func is functional.scaled_dot_product_attention
            and kwargs.get("dropout_p", 0) > 0
            and args[0].device.type == "cpu"
        ):
            return attention(*args, **kwargs)
        return func(*args, **kwargs)


def _dropout_arguments(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple[Tensor, float, bool]:
    return input, p, training
