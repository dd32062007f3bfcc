"""Segment ids (`token_type_ids`) made inside the model, so that its inputs are those of every family.

BERT adds another embedding to the second text of a pair. Which text a token belongs to follows from the token ids:
what stands behind the first separator is the second text. Derived there, the ids are right in training, in evaluation
and in an exported graph, and are those that the model's own tokenizer gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def segment_ids(input_ids: Tensor, attention_mask: Tensor, separator: int) -> Tensor:
    """Return 1 where a token stands behind the first separator, 0 elsewhere and on padding; int64 [batch, tokens]."""
    separators = (input_ids == separator).long()
    behind = separators.cumsum(dim=1) - separators
    return (behind > 0).long() * attention_mask


@dataclass(frozen=True)
class DerivedSegments:
    """Gives `token_type_ids` to a model that is called without them; a forward pre-hook."""

    separator: int

    def __call__(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if kwargs.get("token_type_ids") is None:
            mask = kwargs["attention_mask"].to(torch.int64)
            kwargs = {**kwargs, "token_type_ids": segment_ids(kwargs["input_ids"], mask, self.separator)}
        return args, kwargs


def derive_segments(model: nn.Module, separator: int) -> None:
    """Let ``model`` derive its segment ids from now on, with this separator."""
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, DerivedSegments):
            model._forward_pre_hooks.pop(key)
            model._forward_pre_hooks_with_kwargs.pop(key, None)
    model.register_forward_pre_hook(DerivedSegments(separator), with_kwargs=True)
