"""INT8 forms that keep their languages: encoder matrices and embedding tables in eight bits (tables in four if asked).

What costs languages their accuracy, measured on the quickstart model (multilingual-e5-small, fine-tuned on English
commands, 31 % density): error of the logits relative to their spread, share of labels that stay as in fp32, over 21
languages and in the worst of them:

    ONNX Runtime's quantize_dynamic, one scale a matrix           0.172     89.2 %    77.6 %
    the same, one scale an output                                 0.163     90.1 %    79.0 %
    one scale an output, no sums that overflow                    0.117     93.2 %    84.9 %
    and outlier channels smoothed                                 0.032     97.4 %    92.1 %
    and word embeddings in four bits                              0.032     97.8 %    94.7 %

The first two depend on the processor (see below); these were measured on one without VNNI. The tables alone cost 0.004 in
eight bits a row and 0.012 in four bits (the dense model). All that is left is worth about half a point of zero-shot mean.

Outlier channels. Activations are quantised with one scale for the whole batch, and in XLM-R-like models one or two of
the channels that enter a feed-forward layer are thirty times larger than the others, which are then left with three bits.
`calibration.calibrate` finds them on unlabelled text. Dividing such a channel of the activations and multiplying its row of
the matrix by the same factor changes nothing in exact arithmetic and spreads the range over both (Xiao et al. 2023,
SmoothQuant, arXiv:2211.10438, Eq. 3); here only channels that stand out are touched, and only as far as the error falls.

Sums that overflow. x86 processors without VNNI add products in pairs, in 16 bits: 255·127 + 255·127 does not fit, and the
result depends on the processor. Scales are chosen so that two neighbours of one sign sum up to 128 at most, which fits
whatever the activations are. A pruned matrix has few such neighbours, so this costs it little.

Zeros stay zeros: matrices have no zero point.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from xlmprune.core.errors import BundleError
from xlmprune.export.graph import Additions, with_graph
from xlmprune.models import architecture

Embeddings = Literal["int8", "int4", "fp32"]

INT4 = "/int4"
"""Ends the name of a table in four bits; its scales end in `/scale`."""

LARGEST = 127
"""Of a weight. -128 is left out, so that a scale serves both signs."""

LARGEST_PAIR = 128
"""Of two neighbours of one sign: 255 · 128 fits 16 bits."""

BLOCK = 32
"""Values of a row that share a scale in a 4-bit table."""

SMALLEST_TABLE = 4096


def quantize(
    proto: onnx.ModelProto,
    per_channel: bool = True,
    embeddings: Embeddings = "int8",
    keep_fp32: Collection[str] = (),
    smoothing: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """Return the INT8 form of an fp32 graph, in standard operators that ONNX Runtime fuses into its integer kernels.

    Every product with a constant matrix outside the head becomes DynamicQuantizeLinear, MatMulInteger and a scale;
    a table's rows are looked up as they are stored and scaled then, so that it is small in memory too.

    Args:
        proto: of `export_onnx`, dense, with its weights in memory. Is not changed.
        per_channel: a scale for every output instead of one for the matrix: four bytes an output, no slower.
        embeddings: `int8` has a scale for every row, `int4` for every 32 values of the word embeddings.
        keep_fp32: names of matrices and tables to leave.
        smoothing: matrix name to [in] factors, of `calibration.calibrate`.

    Returns:
        A graph with the same inputs and outputs. `quantization` in its metadata says what was done.

    Raises:
        BundleError: there is nothing to quantise, as in a graph that is packed or INT8 already; or the width of a
            table does not suit 4-bit blocks.
        ValueError: `keep_fp32` or `smoothing` names what the graph does not have.
    """
    smoothing = smoothing or {}
    graph = _Rewriting(proto)
    unknown = sorted({*keep_fp32, *smoothing} - graph.weights.keys())
    if unknown:
        raise ValueError(f"the graph has no fp32 weights {', '.join(unknown)}")
    matrices = {name for name, _ in matrices_of(proto)} - set(keep_fp32)
    for node in proto.graph.node:
        if node.op_type == "MatMul" and node.input[1] in matrices:
            graph.add_product(node, per_channel, smoothing.get(node.input[1]))
        elif embeddings != "fp32" and graph.is_table(node) and node.input[0] not in keep_fp32:
            graph.add_lookup(node, embeddings)
        else:
            graph.nodes.append(node)
    if not graph.initializers:
        raise BundleError(
            "the graph has no fp32 matrices or tables to quantise; expected the dense fp32 graph of an export "
            "(unpack a packed file first)"
        )
    facts = {
        "per_channel": per_channel,
        "embeddings": embeddings,
        "smoothed": len(set(smoothing) & matrices),
        "fp32": sorted(keep_fp32),
    }
    return graph.finish(json.dumps(facts))


def matrices_of(proto: onnx.ModelProto) -> list[tuple[str, str]]:
    """(matrix, activation) of every product of an activation with a constant fp32 matrix outside the head.

    The head's matrices stay fp32: they are small, and what they put out are the logits.
    """
    weights = {
        t.name for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2
    }
    return [
        (node.input[1], node.input[0])
        for node in proto.graph.node
        if node.op_type == "MatMul"
        and node.input[1] in weights
        and architecture.part_of(node.input[1]) != "head"
    ]


def quantize_matrix(weight: np.ndarray, per_channel: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Eight-bit integers and their scale, for a graph's matrix [in, out].

    Returns:
        int8 [in, out], and fp32 [out] or, if not ``per_channel``, []. No two neighbours along [in] (0 and 1, 2 and 3, …)
        of one sign sum up to more than 128. Zeros are zeros.
    """
    axis = 0 if per_channel else None
    paired = weight if len(weight) % 2 == 0 else np.vstack([weight, np.zeros_like(weight[:1])])
    paired = paired.reshape(-1, 2, weight.shape[1])
    largest = np.abs(weight).max(axis)
    for part in (np.maximum(paired, 0), np.maximum(-paired, 0)):
        # One less than the bound, since both may be rounded up by a half.
        largest = np.maximum(largest, part.sum(1).max(axis) * (LARGEST / (LARGEST_PAIR - 1)))
    scale = _scale(largest)
    return np.clip(np.rint(weight / scale), -LARGEST, LARGEST).astype(np.int8), scale


def quantize_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 [rows, width] and fp32 scales [rows, 1]."""
    largest = np.abs(table).max(axis=1, keepdims=True)
    scale = _scale(largest)
    return np.rint(table / scale).astype(np.int8), scale


def _scale(largest: np.ndarray) -> np.ndarray:
    # Below the smallest normal number a step has few digits, and what is divided by it may pass the bounds.
    return np.maximum(np.where(largest == 0, 1, largest / LARGEST), np.finfo(np.float32).tiny).astype(
        np.float32
    )


def quantize_blocks(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Four bits a value: uint8 [rows, width / 2] and fp16 scales [rows, width / 32, 1].

    Value j is the low half of byte j for the first half of a row, the high half for the second; eight is zero. The
    value farthest from zero becomes -8 exactly, whichever its sign, since -8 has no counterpart.
    """
    rows, width = table.shape
    if width % BLOCK:
        raise BundleError(
            f"a table is {width} wide, and 4-bit blocks need a multiple of {BLOCK}: use int8 embeddings"
        )
    blocks = table.reshape(rows, width // BLOCK, BLOCK)
    farthest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    scale = (farthest / -8).astype(np.float16)
    divisor = np.where(scale == 0, 1, scale).astype(np.float32)
    values = (np.clip(np.rint(blocks / divisor), -8, 7) + 8).astype(np.uint8).reshape(rows, width)
    return values[:, : width // 2] | values[:, width // 2 :] << 4, scale


def restore_blocks(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Restore the fp32 table [rows, width] that `quantize_blocks` gave as four bits a value."""
    centred = np.concatenate([values & 15, values >> 4], axis=1).astype(np.float32) - 8
    return (centred.reshape(len(values), -1, BLOCK) * scale.astype(np.float32)).reshape(len(values), -1)


class _Rewriting(Additions):
    """The nodes of the new graph, in order, and the constants it adds to those of the old one."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        super().__init__()
        self.proto = proto
        self.weights = {t.name: t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT}

    def is_table(self, node: onnx.NodeProto) -> bool:
        """Return whether the node looks up rows of a table that is worth it."""
        if node.op_type != "Gather" or node.input[0] not in self.weights:
            return False
        dims = self.weights[node.input[0]].dims
        axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0)
        return len(dims) == 2 and axis == 0 and math.prod(dims) >= SMALLEST_TABLE

    def add_product(self, node: onnx.NodeProto, per_channel: bool, factors: np.ndarray | None) -> None:
        """x @ W as integers."""
        x, name = node.input
        weight = numpy_helper.to_array(self.weights[name])
        if factors is not None:
            weight = weight * factors[:, None]
            # Matrices of one input, as query, key and value, have the same factors and share what is made from it.
            divided = self.constant(f"{x}/smoothing", (1 / factors).astype(np.float32))
            x = self.node("Mul", [x, divided], f"{x}/smoothed")
        integers, scale = quantize_matrix(weight, per_channel)
        quantized, step, zero = (f"{x}/{part}" for part in ("int8", "scale", "zero_point"))
        self.node("DynamicQuantizeLinear", [x], quantized, step, zero)
        product = self.node(
            "MatMulInteger", [quantized, self.constant(f"{name}/int8", integers), zero], f"{name}/product"
        )
        scales = self.node("Mul", [step, self.constant(f"{name}/scale", scale)], f"{name}/scales")
        product = self.node("Cast", [product], f"{name}/float", to=TensorProto.FLOAT)
        self.node("Mul", [product, scales], node.output[0])

    def add_lookup(self, node: onnx.NodeProto, embeddings: Embeddings) -> None:
        """Rows of a table, scaled after they were looked up."""
        name, ids = node.input
        table, out = numpy_helper.to_array(self.weights[name]), node.output[0]
        if embeddings == "int4" and architecture.is_word_embedding(name):
            self._add_blocks(name, table, ids, out)
            return
        integers, scale = quantize_rows(table)
        rows = self.node("Gather", [self.constant(f"{name}/int8", integers), ids], f"{out}/rows")
        scales = self.node("Gather", [self.constant(f"{name}/scale", scale), ids], f"{out}/scales")
        rows = self.node("Cast", [rows], f"{out}/float", to=TensorProto.FLOAT)
        self.node("Mul", [rows, scales], out)

    def _add_blocks(self, name: str, table: np.ndarray, ids: str, out: str) -> None:
        values, scale = quantize_blocks(table)
        width = table.shape[1]
        rows = self.node("Gather", [self.constant(name + INT4, values), ids], f"{out}/rows")
        scales = self.node("Gather", [self.constant(f"{name}/scale", scale), ids], f"{out}/scales")
        scales = self.node("Cast", [scales], f"{out}/scales/float", to=TensorProto.FLOAT)
        low = self.node("BitwiseAnd", [rows, self.constant("int4/low", np.uint8(15))], f"{out}/low")
        shift = self.constant("int4/shift", np.uint8(4))
        high = self.node("BitShift", [rows, shift], f"{out}/high", direction="RIGHT")
        rows = self.node("Concat", [low, high], f"{out}/values", axis=-1)
        rows = self.node("Cast", [rows], f"{out}/float", to=TensorProto.FLOAT)
        rows = self.node("Sub", [rows, self.constant("int4/zero", np.float32(8))], f"{out}/centred")
        shape = np.array([0, 0, width // BLOCK, BLOCK], dtype=np.int64)
        rows = self.node("Reshape", [rows, self.constant(f"int4/blocks/{width}", shape)], f"{out}/blocks")
        rows = self.node("Mul", [rows, scales], f"{out}/scaled")
        shape = np.array([0, 0, width], dtype=np.int64)
        self.node("Reshape", [rows, self.constant(f"int4/row/{width}", shape)], out)

    def finish(self, facts: str) -> onnx.ModelProto:
        """Return the graph; weights that nothing uses any more are left out, and so are shapes that may no longer hold."""
        used = {name for node in self.nodes for name in node.input}
        used |= {entry.name for entry in self.proto.graph.output}
        kept = [tensor for tensor in self.proto.graph.initializer if tensor.name in used]
        result = with_graph(
            self.proto, node=self.nodes, initializer=[*kept, *self.initializers.values()], value_info=()
        )
        result.ClearField("doc_string")
        result.graph.ClearField("doc_string")
        result.metadata_props.add(key="quantization", value=facts)
        return result
