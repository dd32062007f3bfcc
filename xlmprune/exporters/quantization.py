"""INT8 forms that keep their languages: which matrices are quantised, how, and what stays in fp32, by measurement."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from xlmprune.errors import BundleError
from xlmprune.exporters.packing import opset_of

Embeddings = Literal["int8", "int4", "fp32"]

HEAD = "classifier."
"""Begins the names of the head's matrices, which stay fp32: they are small, and the logits are their output."""

LARGEST = 127
LARGEST_PAIR = 128
BLOCK = 32


def quantize(
    proto: onnx.ModelProto,
    per_channel: bool = True,
    embeddings: Embeddings = "int8",
    keep_fp32: Collection[str] = (),
    smoothing: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    smoothing = smoothing or {}
    graph = _Rewriting(proto)
    for node in proto.graph.node:
        name = node.input[1] if len(node.input) > 1 else ""
        if is_matrix(proto, node, graph.weights) and name not in keep_fp32:
            graph.matmul(node, per_channel, smoothing.get(name))
        elif embeddings != "fp32" and _is_table(node, graph.weights) and node.input[0] not in keep_fp32:
            graph.gather(node, embeddings)
        else:
            graph.nodes.append(node)
    return graph.finish()


def is_matrix(proto: onnx.ModelProto, node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    if node.op_type != "MatMul" or node.input[1] not in weights:
        return False
    return len(weights[node.input[1]].dims) == 2 and not node.input[1].startswith(HEAD)


def _is_table(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Gather" or node.input[0] not in weights:
        return False
    dims = weights[node.input[0]].dims
    return len(dims) == 2 and math.prod(dims) >= 4096


class _Rewriting:
    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.weights = {t.name: t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT}
        self.nodes: list[onnx.NodeProto] = []
        self.added: dict[str, onnx.TensorProto] = {}
        self.made: set[str] = set()

    def constant(self, name: str, values: Any) -> str:
        if name not in self.added:
            self.added[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def node(self, op: str, inputs: list[str], outputs: str | list[str], **attributes: Any) -> str:
        outputs = [outputs] if isinstance(outputs, str) else outputs
        if outputs[0] not in self.made:
            self.made.add(outputs[0])
            self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def matmul(self, node, per_channel, factors):
        x, name = node.input
        weight = numpy_helper.to_array(self.weights[name])
        key = x
        if factors is not None:
            key = f"{x}/smooth"
            x = self.node("Mul", [x, self.constant(f"{name}/smooth", (1 / factors).astype(np.float32))], f"{name}/x")
            key = x
            weight = weight * factors[:, None]
        q, scale = quantize_matrix(weight, per_channel)
        xq, xs, xz = f"{key}/quantized", f"{key}/scale", f"{key}/zero"
        self.node("DynamicQuantizeLinear", [x], [xq, xs, xz])
        i = self.node("MatMulInteger", [xq, self.constant(f"{name}/int8", q), xz], f"{name}/int32")
        f = self.node("Cast", [i], f"{name}/float", to=TensorProto.FLOAT)
        s = self.node("Mul", [xs, self.constant(f"{name}/scale", scale)], f"{name}/scales")
        self.node("Mul", [f, s], node.output[0])

    def gather(self, node, kind):
        name, ids = node.input
        out = node.output[0]
        table = numpy_helper.to_array(self.weights[name])
        if kind == "int8":
            scale = np.abs(table).max(1, keepdims=True) / 127
            scale[scale == 0] = 1
            q = np.rint(table / scale).astype(np.int8)
            rows = self.node("Gather", [self.constant(f"{name}/int8", q), ids], f"{out}/rows")
            rows = self.node("Cast", [rows], f"{out}/float", to=TensorProto.FLOAT)
            sc = self.node("Gather", [self.constant(f"{name}/scale", scale.astype(np.float32)), ids], f"{out}/scale")
            self.node("Mul", [rows, sc], out)
        elif kind == "table":
            scale = np.float32(np.abs(table).max() / 127)
            q = np.rint(table / scale).astype(np.int8)
            rows = self.node("Gather", [self.constant(f"{name}/int8", q), ids], f"{out}/rows")
            rows = self.node("Cast", [rows], f"{out}/float", to=TensorProto.FLOAT)
            self.node("Mul", [rows, self.constant(f"{name}/scale", scale)], out)
        else:
            V, H = table.shape
            b = table.reshape(V, H // BLOCK, BLOCK)
            # symmetric in -8..7 with signed extreme mapped to -8, as in ggml q4_0
            ext = np.take_along_axis(b, np.abs(b).argmax(-1, keepdims=True), -1)
            scale = (ext / -8).astype(np.float16)
            s32 = scale.astype(np.float32); s32[s32 == 0] = 1
            q = np.clip(np.rint(b / s32), -8, 7)
            q = (q + 8).astype(np.uint8).reshape(V, H)
            packed = q[:, : H // 2] | q[:, H // 2 :] << 4
            rows = self.node("Gather", [self.constant(f"{name}/int4", packed), ids], f"{out}/rows")
            low = self.node("BitwiseAnd", [rows, self.constant("int4/low", np.uint8(15))], f"{out}/low")
            high = self.node("BitShift", [rows, self.constant("int4/shift", np.uint8(4))], f"{out}/high", direction="RIGHT")
            both = self.node("Concat", [low, high], f"{out}/both", axis=-1)
            f = self.node("Cast", [both], f"{out}/float", to=TensorProto.FLOAT)
            f = self.node("Sub", [f, self.constant("int4/zero", np.float32(8))], f"{out}/centred")
            f = self.node("Reshape", [f, self.constant(f"int4/{H}", np.array([0, 0, H // BLOCK, BLOCK]))], f"{out}/blocks")
            sc = self.node("Gather", [self.constant(f"{name}/scale", s32.astype(np.float16)), ids], f"{out}/scale16")
            sc = self.node("Cast", [sc], f"{out}/scale", to=TensorProto.FLOAT)
            f = self.node("Mul", [f, sc], f"{out}/scaled")
            self.node("Reshape", [f, self.constant(f"int4/flat{H}", np.array([0, 0, H]))], out)

    def finish(self):
        used = {i for n in self.nodes for i in n.input}
        inits = [t for t in self.proto.graph.initializer if t.name in used] + list(self.added.values())
        from xlmprune.exporters.packing import _rebuilt
        r = _rebuilt(self.proto, self.nodes, inits, [])
        del r.graph.value_info[:]
        return r


def quantize_matrix(weight: np.ndarray, per_channel: bool, pairs: bool = True) -> tuple[np.ndarray, np.ndarray]:
    axis = 0 if per_channel else None
    scale = np.abs(weight).max(axis) / 127
    if pairs:
        w = weight if len(weight) % 2 == 0 else np.vstack([weight, np.zeros_like(weight[:1])])
        pos = np.maximum(w, 0).reshape(-1, 2, w.shape[1]).sum(1).max(axis)
        neg = np.maximum(-w, 0).reshape(-1, 2, w.shape[1]).sum(1).max(axis)
        scale = np.maximum(scale, np.maximum(pos, neg) / 127)
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale
