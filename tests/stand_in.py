"""A stand-in for a GPU: the device `meta`, whose tensors have shapes and no values.

Inside `StandIn` an operation on tensors of two devices is an error, as it is on a GPU. What a program reads from the device
is a number that the test gives. Every read is counted: on a GPU it waits until all kernels before it have run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten
MOVES = (ATEN._to_copy.default, ATEN.copy_.default)


class StandIn(TorchDispatchMode):
    """Answer reads of values, count them, and refuse to mix devices.

    Args:
        value: what every entry on the device is.
    """

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.value, self.reads = value, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if function is ATEN._local_scalar_dense.default and given[0].is_meta:
            self.reads += 1
            return given[0].new_full((), self.value, device="cpu").item()
        if function is ATEN._to_copy.default and given[0].is_meta and str(kwargs.get("device")) == "cpu":
            self.reads += 1
            return torch.full(given[0].shape, self.value, dtype=kwargs.get("dtype") or given[0].dtype)
        if function not in MOVES and len({tensor.device for tensor in given if tensor.ndim}) > 1:
            raise RuntimeError(
                f"{function} mixes devices: {[(t.device.type, tuple(t.shape)) for t in given]}"
            )
        return function(*args, **kwargs)
