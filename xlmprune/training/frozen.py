"""Keep weights that do not train in less memory: `training.frozen_weights`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from xlmprune.pruning.masks import Weights

Keeping = Literal["fp32", "bf16", "cpu"]


def kept(tensor: Tensor, keeping: Keeping) -> Tensor:
    """Return a copy that does not train, in the memory and type that ``keeping`` names."""
    tensor = tensor.detach()
    if keeping == "bf16":
        return tensor.to(torch.bfloat16, copy=True)
    if keeping == "cpu" and tensor.device.type != "cpu":
        moved = tensor.cpu()
        return moved.pin_memory() if tensor.is_cuda else moved  # pinned, so that copies to the GPU are fast
    return tensor.clone()


def beside(weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Weights:
    """Return the ``tensors`` of the names of ``weights``, each on its weight's device and in its type; copies only where
    they are elsewhere."""
    return {name: tensors[name].to(weight, non_blocking=True) for name, weight in weights.items()}


def frozen_copy(model: nn.Module, keeping: Keeping) -> nn.Module:
    """Copy the model as it is now, in eval mode and without gradients, its parameters as ``keeping`` says.

    Buffers, such as positions, stay on the model's device and in their type.
    """
    parameters = {
        id(parameter): nn.Parameter(kept(parameter, keeping), requires_grad=False)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, parameters).eval()


def call(model: nn.Module, device: torch.device, **inputs: Any) -> Any:
    """Call a model that does not train on ``device`` and in fp32; parameters that are kept in another way are copied."""
    moved = {
        name: parameter.to(device, torch.float32, non_blocking=True)
        for name, parameter in model.named_parameters()
        if parameter.device != device or parameter.dtype == torch.bfloat16
    }
    return functional_call(model, moved, kwargs=inputs) if moved else model(**inputs)
