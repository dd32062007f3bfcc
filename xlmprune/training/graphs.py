"""Record an update's forward and backward pass as CUDA graphs, one for each shape of a batch: `training.cuda_graphs`.

A GPU computes the small operations of an encoder faster than a processor can launch them. A graph launches all of them at
once. Batches are padded to a multiple of `MULTIPLE` tokens, so that there are few shapes. Graphs that compute
the same share memory, except for their gradients. Dropout's random numbers are those of the same batches without graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xlmprune.core import processes
from xlmprune.core.device import OUT_OF_MEMORY
from xlmprune.core.errors import MachineError, first_line

MULTIPLE = 8
"""Tokens of a batch are a multiple of this."""

Batch = dict[str, np.ndarray]


def require_possible(device: torch.device) -> None:
    """Raise MachineError if the device is no GPU, or several processes make this run."""
    if device.type != "cuda":
        raise MachineError("training.cuda_graphs needs a GPU, and this run uses the CPU. Leave the key out")
    if processes.launched() > 1:
        raise MachineError("training.cuda_graphs works in one process only. Leave the key out")


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    loss: Tensor
    gradients: dict[nn.Parameter, Tensor]
    """Of the parameters that learn, in the graph's memory."""


class BatchGraphs:
    """Graphs that add the gradients of a batch, recorded when a shape comes for the first time.

    Args:
        device: a GPU, unless no batch comes: a finished run is exported on any machine.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._recorded: dict[Hashable, _Recorded] = {}
        self._places: list[int] = []
        self._pools: dict[Hashable, Any] = {}

    def add(
        self,
        kind: Hashable,
        models: Iterable[nn.Module],
        batch: Batch,
        backward: Callable[[dict[str, Tensor]], Tensor],
    ) -> Tensor:
        """Add the gradients of a batch to those that the models' parameters have, and return the loss.

        Args:
            kind: tells what ``backward`` computes from what others compute in the same update.
            models: all that ``backward`` reads. Graphs are recorded anew when they have other parameters.
            backward: adds the gradients of a batch on the device, and returns its loss. It must not wait for the device.

        Raises:
            MachineError: the pass cannot be recorded, the device is no GPU, or several processes make this run.
        """
        require_possible(self.device)
        parameters = list(chain.from_iterable(model.parameters() for model in models))
        self._forget_others(parameters)
        key = (kind, *((name, array.shape, array.dtype) for name, array in sorted(batch.items())))
        if key not in self._recorded:
            self._recorded[key] = self._record(kind, parameters, batch, backward)
        recorded = self._recorded[key]
        for name, array in batch.items():
            recorded.inputs[name].copy_(torch.from_numpy(array), non_blocking=True)
        recorded.graph.replay()
        added = {p: p.grad for p in recorded.gradients if p.grad is not None}
        if added:  # a graph writes its gradients, and those of another are there already
            torch._foreach_add_([*added.values()], [recorded.gradients[p] for p in added])
        _set_gradients({**recorded.gradients, **added})
        return recorded.loss.clone()

    def _forget_others(self, parameters: list[nn.Parameter]) -> None:
        """Drop all graphs if a parameter is at another place in memory now."""
        places = [parameter.data_ptr() for parameter in parameters]
        if places != self._places:
            self._recorded.clear()
            self._places = places

    def _record(
        self,
        kind: Hashable,
        parameters: list[nn.Parameter],
        batch: Batch,
        backward: Callable[[dict[str, Tensor]], Tensor],
    ) -> _Recorded:
        inputs = {name: torch.from_numpy(array).to(self.device) for name, array in batch.items()}
        before = {parameter: parameter.grad for parameter in parameters}
        random = torch.cuda.get_rng_state(self.device)
        try:
            # Once without recording: libraries allocate, and layers are compiled.
            _set_gradients(dict.fromkeys(parameters))
            aside = torch.cuda.Stream(self.device)
            aside.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(aside):
                backward(inputs)
            torch.cuda.current_stream(self.device).wait_stream(aside)
            _set_gradients(dict.fromkeys(parameters))
            torch.cuda.set_rng_state(random, self.device)
            graph = torch.cuda.CUDAGraph()
            # Graphs of one kind share memory: they never run in the same update, where one would overwrite the gradients of
            # another.
            pool = self._pools.setdefault(kind, torch.cuda.graph_pool_handle())
            with torch.cuda.graph(graph, pool=pool):
                loss = backward(inputs)
            gradients = {p: p.grad for p in parameters if p.grad is not None}
        except RuntimeError as error:
            if any(mark in str(error) for mark in OUT_OF_MEMORY):
                raise
            raise MachineError(
                f"training.cuda_graphs: an update of this model cannot be recorded ({first_line(error).rstrip('.: ')}). "
                "Train without graphs: --set training.cuda_graphs=false --allow-change. The last checkpoint is kept"
            ) from error
        finally:
            _set_gradients(before)
            torch.cuda.set_rng_state(random, self.device)
        return _Recorded(graph, inputs, loss, gradients)


def _set_gradients(gradients: Mapping[nn.Parameter, Tensor | None]) -> None:
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
