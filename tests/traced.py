"""Trace each structure of a model once in a test run, since tracing takes seconds and its result depends on no weight.

Tests that need a graph get the graph of the first model of this structure, with their model's weights in it. Tests of the
exporter itself ask for the fixture `traced_anew`. `test_exporters_onnx.py` compares both byte for byte. They differ where a
model has small tensors that are equal, of which the exporter keeps one.

Workers of one run (pytest-xdist) share their graphs in a folder of that run: what one has traced no other traces.
"""

from __future__ import annotations

import copy
import hashlib
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from filelock import FileLock
from onnx import numpy_helper

EXPORT = torch.onnx.export
"""PyTorch's own."""

Template = tuple[onnx.ModelProto, dict[str, tuple[str, bool]]]
"""A graph, and for each initializer that holds a parameter its name and whether it is transposed."""

NAMES = ("_name_or_path", "id2label", "label2id")
"""What a model's configuration holds that no graph depends on."""

shared: Path | None = None
"""The folder of this run's graphs; None where one process runs all tests."""

_templates: dict[str, Template | None] = {}


def export(model: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
    """Export as `torch.onnx.export` does; trace only where no model of this structure was traced before."""
    key = _structure(model, options)
    if key not in _templates:
        _templates[key] = (
            _template(model, arguments, options)
            if shared is None
            else _of_any_worker(key, model, arguments, options)
        )
    template = _templates[key]
    if template is None:
        return EXPORT(model, *arguments, **options)
    return SimpleNamespace(model_proto=_filled(template, model))


def _of_any_worker(
    key: str, model: torch.nn.Module, arguments: Any, options: dict[str, Any]
) -> Template | None:
    """Read the template that a worker has written, or write it; the others wait meanwhile."""
    assert shared is not None
    shared.mkdir(exist_ok=True)
    file = shared / hashlib.sha256(key.encode()).hexdigest()
    with FileLock(file.with_suffix(".lock")):
        if file.exists():
            graph, found = pickle.loads(file.read_bytes())
            return graph and (onnx.ModelProto.FromString(graph), found)
        template = _template(model, arguments, options)
        graph, found = template or (None, {})
        file.write_bytes(pickle.dumps((graph and graph.SerializeToString(), found)))
    return template


def _structure(model: torch.nn.Module, options: dict[str, Any]) -> str:
    """Describe everything but the weights: classes, settings, shapes and the exporter's options."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in NAMES}
    plain = int | float | str | None
    modules = [
        (name, type(module), {key: value for key, value in vars(module).items() if isinstance(value, plain)})
        for name, module in model.named_modules()
    ]
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return repr((config, model.config._attn_implementation, modules, shapes, options))


def _template(model: torch.nn.Module, arguments: Any, options: dict[str, Any]) -> Template | None:
    """Trace a copy whose values are all different; None where a weight is not in the graph as a whole."""
    copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.uniform_(-1, 1, generator=generator)
    graph = EXPORT(copied, *arguments, **options).model_proto
    named = {}
    for name, parameter in copied.named_parameters():
        value = parameter.detach().numpy()
        named[_content(value)] = (name, False)
        if value.ndim == 2:
            named[_content(value.T)] = (name, True)
    buffers = {_content(buffer.numpy()) for buffer in copied.buffers()}
    found = {}
    for tensor in graph.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if _content(value) in named:
            found[tensor.name] = named[_content(value)]
        elif value.dtype == np.float32 and value.size > 1 and _content(value) not in buffers:
            return None
    return graph, found


def _content(value: np.ndarray) -> tuple[Any, ...]:
    return value.shape, value.tobytes()


def _filled(template: Template, model: torch.nn.Module) -> onnx.ModelProto:
    graph, found = template
    filled = onnx.ModelProto()
    filled.CopyFrom(graph)
    parameters = dict(model.named_parameters())
    for tensor in filled.graph.initializer:
        if tensor.name in found:
            name, transposed = found[tensor.name]
            value = parameters[name].detach().numpy()
            tensor.raw_data = (value.T if transposed else value).tobytes()
    return filled
