"""`model.onnx`: the model as a graph of standard operators, dynamic in batch and length.

Inputs `input_ids` and `attention_mask`, int64 [batch, sequence]; output `logits`, float [batch, labels], or [batch,
sequence, labels] for token tasks. Matrices carry the name of their parameter, with `.T` where the graph holds them as
[in, out], as in `<parameter>.T`. That is how `packing`, `quantization` and
`inspection` find them.

A `ModelProto` in memory may be larger than the 2 GB that protobuf can write; `save_onnx` then puts the weights into
`<file>.data` beside it, and `load_onnx` reads them back.
"""

from __future__ import annotations

import ast
import copy
import logging
import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from xlmprune._version import __version__
from xlmprune.core.errors import BundleError
from xlmprune.core.files import replacing
from xlmprune.export import manifest
from xlmprune.export.runtime import PACKED
from xlmprune.models import architecture

if TYPE_CHECKING:
    from torch import nn

TRANSPOSED = ".T"
ROTARY_OPSET = 23
"""From this version on, rotating by positions is one operator."""
EXTERNAL_ABOVE = 2_000_000_000
"""Bytes of weights from which they go into a file of their own; protobuf stops at 2³¹."""


# --- export ----------------------------------------------------------------------------------------------------------


def export_onnx(model: nn.Module, path: Path | None = None, opset: int = 20) -> onnx.ModelProto:
    """Trace the model, clean the graph, and write it to ``path`` if one is given.

    Args:
        model: an encoder with a sequence or token classification head, in fp32 and eval mode; copied from another device.
        opset: 18 to 25; from 23 on attention is one standard node a layer, which servers before 2025 cannot read.

    Returns:
        The graph with its weights.

    Raises:
        ValueError: the model is in training mode, or not fp32.
    """
    import torch

    if model.training:
        raise ValueError("the model is in training mode; call .eval() before exporting")
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise ValueError("the model is not fp32; call .float() before exporting")
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        model = copy.deepcopy(model).cpu()
    # Two rows, one of them padded: a batch of one, or a mask of ones, would be taken for a constant of the graph.
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    pad = model.config.pad_token_id  # type: ignore[union-attr]
    ids = torch.tensor([[0, 3, 3, 3, 3, 2], [0, 3, 2, pad, pad, pad]])
    axes = {0: "batch", 1: "sequence"}
    with _quiet(), torch.no_grad(), _own_positions(model, opset):
        program = torch.onnx.export(
            model,
            (),
            kwargs={"input_ids": ids, "attention_mask": mask},
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamo=True,
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    del program
    _name_matrices(proto)
    _clean(proto)
    proto.graph.name = model.config.model_type  # type: ignore[union-attr, assignment]
    proto.ir_version = lowest_ir_version(proto)
    del proto.metadata_props[:]
    if path is not None:
        save_onnx(proto, path)
    return proto


@contextmanager
def _own_positions(model: nn.Module, opset: int) -> Iterator[None]:
    """Give each text of a batch a row of positions of its own, where they rotate and this is one operator of the opset.

    The exporter hands that operator a single row for all texts, which only a batch of one fits.
    """
    import torch

    def positions(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        batch, length = kwargs["input_ids"].shape
        return args, {**kwargs, "position_ids": torch.arange(length).expand(batch, -1)}

    if opset < ROTARY_OPSET or not architecture.of(model).rotary:
        yield
        return
    hook = model.register_forward_pre_hook(positions, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on torchvision and on its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_matrices(proto: onnx.ModelProto) -> None:
    """Give the transposed matrices, which the exporter numbers, the names of their parameters."""
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    names: dict[str, str] = {}
    for node in proto.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in initializers or node.input[1] in names:
            continue
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes")
        if scopes and node.input[1].startswith("val_"):
            module = ast.literal_eval(scopes)[-2]
            names[node.input[1]] = f"{module}.weight{TRANSPOSED}"
    for old, new in names.items():
        initializers[old].name = new
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]


def _clean(proto: onnx.ModelProto) -> None:
    """Leave out what only concerns the export: stack traces with paths of this machine, and shapes of weights.

    The shapes (`value_info`) contradict any later change of a weight's layout.
    """
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
        value.doc_string = ""
    del proto.graph.value_info[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""
    proto.producer_name, proto.producer_version = "xlmprune", __version__


def lowest_ir_version(proto: onnx.ModelProto) -> int:
    """Return the lowest version of the file format that the operators of a graph need.

    The exporter writes a higher one, which older runtimes refuse to open though they have every operator.
    """
    return onnx.helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True)


# --- files -----------------------------------------------------------------------------------------------------------


def save_onnx(proto: onnx.ModelProto, path: Path, external_above: int = EXTERNAL_ABOVE) -> list[Path]:
    """Write ``proto``, with its weights in `<path>.data` when they are larger than ``external_above`` bytes.

    Returns:
        The files written. ``proto`` is left as it is.
    """
    data = path.with_name(path.name + ".data")
    if weight_bytes(proto) <= external_above:
        with replacing(path) as partial:
            partial.write_bytes(proto.SerializeToString(deterministic=True))
        data.unlink(missing_ok=True)
        return [path]
    slim = with_graph(proto, initializer=())
    with replacing(data) as partial, partial.open("wb") as file:
        for tensor in proto.graph.initializer:
            if not tensor.HasField("raw_data") or tensor_bytes(tensor) < 1024:
                slim.graph.initializer.add().CopyFrom(tensor)
                continue
            file.write(b"\0" * (-file.tell() % 4096))  # page-aligned, so that a runtime can map it
            where = {"location": data.name, "offset": str(file.tell()), "length": str(tensor_bytes(tensor))}
            file.write(tensor.raw_data)
            outside = slim.graph.initializer.add(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims
            )
            outside.data_location = onnx.TensorProto.EXTERNAL
            for key, value in where.items():
                outside.external_data.add(key=key, value=value)
    with replacing(path) as partial:
        partial.write_bytes(slim.SerializeToString(deterministic=True))
    return [path, data]


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read a graph with all its weights.

    Raises:
        BundleError: missing or damaged.
    """
    manifest.require_file(path)
    try:
        proto = onnx.load(path, load_external_data=False)
        for outside in {path.parent / name for name in _locations(proto)}:
            if not outside.is_file():
                raise BundleError(f"{outside} is missing, which holds the weights of {path.name}")
        onnx.load_external_data_for_model(proto, str(path.parent))
        _require_utf8(proto)
        for tensor in proto.graph.initializer:
            _require_values(tensor)
        return proto
    except FileNotFoundError:
        raise BundleError(f"{path} is missing") from None
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise BundleError(f"{path} is not an ONNX file, or is damaged ({error})") from error


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of the standard operators a graph asks for."""
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _require_utf8(message: Message) -> None:
    """Raise ValueError if a string in a message is not UTF-8; protobuf gives such a string as bytes."""
    for field, value in message.ListFields():
        several = (value,) if isinstance(value, (str, bytes, Message)) else value
        if field.type == FieldDescriptor.TYPE_STRING:
            for text in several:
                if not isinstance(text, str):
                    raise ValueError(f"{field.name} is not UTF-8: {text!r}")
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in several:
                _require_utf8(part)


def _require_values(tensor: onnx.TensorProto) -> None:
    """Raise ValueError if a tensor does not hold as many values as its type and shape say."""
    try:
        onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"tensor {tensor.name!r} does not hold what its type and shape say: {error}"
        ) from error


def _locations(proto: onnx.ModelProto) -> set[str]:
    return {
        entry.value for t in proto.graph.initializer for entry in t.external_data if entry.key == "location"
    }


def parameter_of(name: str) -> str | None:
    """Return the parameter an initializer belongs to: what stands before `.T`, `/int8`, `/scale` and the like."""
    return architecture.parameter_at_start(name.removeprefix(PACKED))


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's values when written raw."""
    return -(-math.prod(tensor.dims) * _bits(tensor.data_type) // 8)


def _bits(data_type: int) -> int:
    if data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return 4
    return 8 * int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def weight_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of all weights when written raw."""
    return sum(tensor_bytes(tensor) for tensor in proto.graph.initializer)


# --- changes ---------------------------------------------------------------------------------------------------------


class Additions:
    """Nodes, initializers and shapes that a change adds to a graph, in order; what is added twice is shared."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        """Begins the name of every node and initializer."""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.value_info: list[onnx.ValueInfoProto] = []
        self._outputs: set[str] = set()

    def constant(self, name: str, values: Any) -> str:
        """Add an initializer, if there is none of that name, and return its full name."""
        name = self.prefix + name
        if name not in self.initializers:
            self.initializers[name] = onnx.numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name

    def node(self, operator: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        """Add a node that is named after its first output, if nothing gives that yet, and return this output."""
        first = outputs[0]
        if first not in self._outputs:
            self._outputs.add(first)
            name = self.prefix + first.removeprefix(self.prefix)
            self.nodes.append(onnx.helper.make_node(operator, inputs, outputs, name=name, **attributes))
        return first


def with_graph(proto: onnx.ModelProto, **replaced: Iterable[Any]) -> onnx.ModelProto:
    """Copy a model, with other entries in some repeated fields of its graph (``node``, ``initializer``, ``value_info``).

    Nothing is serialized on the way, which protobuf refuses above 2 GB, and what is replaced is not copied first.
    """
    copied = onnx.ModelProto()
    _copy_fields(proto, copied, ("graph",))
    copied.graph.SetInParent()
    _copy_fields(proto.graph, copied.graph, replaced)
    for name, entries in replaced.items():
        getattr(copied.graph, name).extend(entries)
    return copied


def _copy_fields(source: Any, target: Any, without: Collection[str]) -> None:
    for field, value in source.ListFields():
        if field.name in without:
            continue
        if isinstance(value, str | bytes | int | float):
            setattr(target, field.name, value)
        elif isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        else:
            getattr(target, field.name).extend(value)
