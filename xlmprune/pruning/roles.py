"""Where a model keeps the parts of a layer: the one place that knows module names, for everything that cuts or refits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xlmprune.errors import ModelError


@dataclass(frozen=True)
class Layer:
    """One transformer layer by the roles of its parts; LayerNorm follows each residual sum."""

    name: str
    """Module path, such as `roberta.encoder.layer.0`."""
    module: Any
    attention: Any
    """Called with hidden states and mask, gives what enters `attention_out`, first of a tuple."""
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_out: nn.Linear
    attention_norm: nn.LayerNorm
    expand: Any
    """`ffn_in` and its activation: gives what enters `ffn_out`."""
    ffn_in: nn.Linear
    ffn_out: nn.Linear
    ffn_norm: nn.LayerNorm

    @property
    def heads(self) -> int:
        """Attention heads it has now."""
        return int(self.attention.num_attention_heads)

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return int(self.attention.attention_head_size)

    @property
    def neurons(self) -> int:
        """FFN neurons it has now."""
        return self.ffn_in.out_features

    def weight_names(self) -> dict[str, str]:
        """Role to parameter name of each of the six weights."""
        paths = {id(module): path for path, module in self.module.named_modules()}
        roles = ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")
        return {role: f"{self.name}.{paths[id(getattr(self, role))]}.weight" for role in roles}


def layers_of(model: nn.Module) -> list[Layer]:
    """The layers of an XLM-R (or BERT-like) model in order.

    Raises:
        ModelError: its layers are not built like XLM-R's.
    """
    path, stack = _stack(model)
    try:
        return [_layer(f"{path}.{number}", module) for number, module in enumerate(stack)]
    except AttributeError as error:
        raise ModelError(
            f"the layers under {path} are not built like XLM-R's, so that nothing in them can be cut: {error}"
        ) from error


def replace_layers(model: nn.Module, modules: Sequence[nn.Module]) -> None:
    """Let the model consist of these layer modules, in this order."""
    path, _ = _stack(model)
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.ModuleList(modules))
    model.config.num_hidden_layers = len(modules)  # type: ignore[union-attr]


def _stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    for path, module in model.named_modules():
        if path.endswith("encoder.layer") and isinstance(module, nn.ModuleList):
            return path, module
    raise ModelError("the model has no encoder.layer; expected one built like XLM-R")


def _layer(name: str, module: Any) -> Layer:
    attention = module.attention
    return Layer(
        name=name,
        module=module,
        attention=attention.self,
        query=attention.self.query,
        key=attention.self.key,
        value=attention.self.value,
        attention_out=attention.output.dense,
        attention_norm=attention.output.LayerNorm,
        expand=module.intermediate,
        ffn_in=module.intermediate.dense,
        ffn_out=module.output.dense,
        ffn_norm=module.output.LayerNorm,
    )


class _Caught(Exception):
    """Raised to leave a forward pass before its first layer."""


@torch.no_grad()
def enter(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the first layer is given: hidden states [batch, tokens, hidden], and the mask as attention takes it."""
    caught: list[Any] = []

    def catch(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = named.get("attention_mask", given[1] if len(given) > 1 else None)
        caught.append((given[0] if given else named["hidden_states"], mask))
        raise _Caught

    hook = layers_of(model)[0].module.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(input_ids=input_ids, attention_mask=attention_mask)
    except _Caught:
        pass
    finally:
        hook.remove()
    return caught[0]
