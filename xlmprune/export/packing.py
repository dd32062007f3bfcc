"""Self-expanding matrices: a pruned matrix stored as its mask and its non-zeros, rebuilt by standard operators.

The runtime folds the rebuilding while it opens the file, so what runs is the ordinary dense (or INT8) kernel: the file is
small, latency and outputs are those of the dense file. In ONNX Runtime this needs graph optimization at BASIC or above,
which is the default; with optimization off the matrices are rebuilt in every call. `unfolded` tells.

A matrix of n entries, row by row, becomes

    mask     -> flat mask [n] -> NonZero -> indices [1, non-zeros]            `bits`, `n:m`
    gaps     -> digits -> CumSum         -> indices [1, non-zeros]            `gaps`, for a density below about 0.2
    zeros [1, n], indices, values -> ScatterElements -> Reshape -> the matrix, under its old name

`bits`  one bit an entry, little-endian: BitwiseAnd with 1, 2, 4, … 128.
`n:m`   each group's pattern as a digit among the m-over-n, several digits in a byte or an int32, a table gives the mask.
        Groups run along the inputs of a layer, which are the rows of a graph's [in, out]; a Transpose then comes last.
`gaps`  the distance from one non-zero to the next as a digit, several in an int32; where the distance is too long for a
        digit, a zero is stored on the way.

The smallest code is taken, matrix by matrix. Scattering to indices takes a third of the memory of gathering by the running
sum of the mask, and half the time: everything that is folded stays in memory until the last matrix is done, and the sum has
four bytes for every entry, the indices eight for every non-zero. The number of non-zeros is written into `value_info`:
ONNX Runtime 1.27 to 1.31 fold nothing whose size they do not know before.

Zeros come back as +0.0.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from xlmprune.core.errors import BundleError
from xlmprune.core.files import temporary_folder
from xlmprune.export.codes import find_pattern, join_digits, pattern_bytes, pattern_ranks
from xlmprune.export.graph import Additions, opset_of, weight_bytes, with_graph
from xlmprune.export.runtime import PACKED, open_session

LOWEST_OPSET = 18
"""BitwiseAnd, and ScatterElements as it is now."""

PREFIX = PACKED
"""Begins the name of every node and initializer that packing adds; the rest is the matrix and a part of it."""

LARGEST_EXPANSION = 1000
"""Entries of a packed matrix for each byte of the file at most."""

SMALL = 1 << 24
"""Entries that a packed matrix of any file may have: one that is all zeros takes hardly a byte."""

BELOW = 0.6
SMALLEST = 4096
"""Entries from which a matrix is packed; a smaller one would gain less than its nodes take."""

_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8)
_GAPS_BELOW = 0.3
_WORD = 2**31


# --- pack ------------------------------------------------------------------------------------------------------------


def pack(proto: onnx.ModelProto, below: float = BELOW, smallest: int = SMALLEST) -> onnx.ModelProto:
    """Replace every pruned matrix by its mask, its non-zeros and the operators that rebuild it.

    Args:
        proto: with its weights in memory (`onnx.load_onnx`). Is not changed.
        below: matrices with a larger share of non-zeros stay as they are. They would still be smaller packed, but
            loading takes longer the more there is to scatter.
        smallest: entries a matrix must have.

    Returns:
        A graph of standard operators with the same inputs, outputs and initializer names; the dense graph itself
        where nothing is pruned.

    Raises:
        BundleError: the graph's opset is below 18.
    """
    opset = opset_of(proto)
    if opset < LOWEST_OPSET:
        raise BundleError(
            f"the graph has opset {opset}, packing needs {LOWEST_OPSET} or more: "
            f"export with `opset: 20`, or write it dense with `onnx_layout: dense`"
        )
    overridable = {entry.name for entry in proto.graph.input}
    packed = Additions(PREFIX)
    kept = []
    for tensor in proto.graph.initializer:
        worth = (
            tensor.data_type in _TYPES
            and math.prod(tensor.dims) >= smallest
            and tensor.name not in overridable
            and _pack_tensor(packed, tensor, below)
        )
        if not worth:
            kept.append(tensor)
    return with_graph(
        proto,
        node=[*packed.nodes, *proto.graph.node],
        initializer=[*kept, *packed.initializers.values()],
        value_info=[*proto.graph.value_info, *packed.value_info],
    )


def _pack_tensor(graph: Additions, tensor: onnx.TensorProto, below: float) -> bool:
    """Add one matrix; False, and nothing added, where it stays dense."""
    values = numpy_helper.to_array(tensor)
    marked = values != 0
    count = int(marked.sum())
    if count >= below * values.size:
        return False
    if count == 0:
        _zeros(graph, values.dtype, values.shape, tensor.name)
        return True
    # PyTorch's groups lie along its columns, [out, in], and the graph holds the transpose of that.
    transposed = values.ndim == 2 and find_pattern(marked) is None and find_pattern(marked.T) is not None
    if transposed:
        values, marked = values.T, marked.T
    codes: list[_Code] = [_Bits(marked), *_patterns(marked), *_gaps(marked)]
    code = min(codes, key=lambda code: code.bytes + code.stored * values.itemsize)
    if code.bytes + code.stored * values.itemsize >= values.nbytes:
        return False
    name, part = tensor.name, PREFIX + tensor.name
    indices = code.add(graph, name)
    stored = graph.constant(f"{name}/values", values.ravel()[code.indices()][None])
    zeros = _zeros(graph, values.dtype, (1, values.size))
    flat = graph.node("ScatterElements", [zeros, indices, stored], f"{part}/flat", axis=1)
    shape = _shape(graph, values.shape)
    if transposed:
        matrix = graph.node("Reshape", [flat, shape], f"{part}/transposed")
        graph.node("Transpose", [matrix], name, perm=[1, 0])
    else:
        graph.node("Reshape", [flat, shape], name)
    return True


def _zeros(graph: Additions, dtype: np.dtype, shape: tuple[int, ...], name: str | None = None) -> str:
    """Zeros under ``name``, or shared by all matrices of that size."""
    value = numpy_helper.from_array(np.zeros(1, dtype))
    output = name or f"{PREFIX}zeros/{dtype.name}/{'x'.join(map(str, shape))}"
    return graph.node("ConstantOfShape", [_shape(graph, shape)], output, value=value)


def _shape(graph: Additions, shape: tuple[int, ...]) -> str:
    return graph.constant(f"shape/{'x'.join(map(str, shape))}", np.array(shape, dtype=np.int64))


# --- codes for the indices of non-zeros -------------------------------------------------------------------------------


class _Code(Protocol):
    bytes: int
    """What the indices take in the file."""
    stored: int
    """How many values go with them."""

    def indices(self) -> np.ndarray:
        """Where the stored values lie in the flat matrix, int64 [stored]."""

    def add(self, graph: Additions, name: str) -> str:
        """Add the nodes that give the indices, int64 or int32 [1, stored]."""


class _Bits:
    """One bit an entry."""

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask.ravel()
        self.stored = int(self.mask.sum())
        self.bytes = -(-self.mask.size // 8)

    def indices(self) -> np.ndarray:
        return np.flatnonzero(self.mask)

    def add(self, graph: Additions, name: str) -> str:
        part = PREFIX + name
        data = graph.constant(f"{name}/bits", np.packbits(self.mask, bitorder="little")[:, None])
        bit = graph.constant("bit", (1 << np.arange(8)).astype(np.uint8)[None])
        mask = graph.node("BitwiseAnd", [data, bit], f"{part}/bytes")
        # Bits behind the last entry are not set, so nothing has to be cut off.
        return _places_of_mask(graph, name, mask, 8 * self.bytes, self.stored)


class _Pattern:
    """n of every m entries: the rank of each group's pattern as a digit."""

    def __init__(self, mask: np.ndarray, n: int, m: int, digits: int, dtype: type) -> None:
        self.mask = mask.ravel()
        self.stored = int(self.mask.sum())
        self.n, self.m, self.digits, self.dtype = n, m, digits, dtype
        self.words = -(-self.mask.size // (m * digits))
        self.bytes = self.words * np.dtype(dtype).itemsize

    def indices(self) -> np.ndarray:
        return np.flatnonzero(self.mask)

    def add(self, graph: Additions, name: str) -> str:
        part, known = PREFIX + name, pattern_bytes(self.n, self.m)
        words = join_digits(pattern_ranks(self.mask, self.n, self.m), len(known), self.digits)[:, None]
        data = graph.constant(f"{name}/patterns", words.astype(self.dtype))
        table = np.unpackbits(known[:, None], axis=1, bitorder="little", count=self.m)
        if self.dtype is np.uint8:
            # One table for the whole byte: its digits need not be taken apart.
            several = np.arange(len(known) ** self.digits)
            taken = several[:, None] // len(known) ** np.arange(self.digits) % len(known)
            key = graph.constant(
                f"table/{self.n}:{self.m}x{self.digits}", table[taken].reshape(len(several), -1).astype(bool)
            )
            index = graph.node("Cast", [data], f"{part}/rank", to=TensorProto.INT32)
        else:
            key = graph.constant(f"table/{self.n}:{self.m}", table.astype(bool))
            index = _add_digits(graph, name, data, len(known), self.digits)
        mask = graph.node("Gather", [key, index], f"{part}/groups")
        size, entries = self.words * self.digits * self.m, self.mask.size
        return _places_of_mask(graph, name, mask, size, self.stored, entries if entries != size else None)


class _Gaps:
    """Distances between non-zeros as digits; a zero is stored where one digit does not reach."""

    def __init__(self, indices: np.ndarray, digits: int) -> None:
        self.base, self.digits = _largest_base(digits), digits
        self.marked = indices
        steps = np.diff(indices, prepend=0)
        self.stops = np.maximum(steps - 1, 0) // (self.base - 1)
        self.stored = int(indices.size + self.stops.sum())
        self.bytes = 4 * -(-self.stored // digits)

    def indices(self) -> np.ndarray:
        return np.cumsum(self._steps())

    def _steps(self) -> np.ndarray:
        steps = np.full(self.stored, self.base - 1, dtype=np.int64)
        rest = np.diff(self.marked, prepend=0) - self.stops * (self.base - 1)
        steps[np.cumsum(self.stops + 1) - 1] = rest
        return steps

    def add(self, graph: Additions, name: str) -> str:
        part = PREFIX + name
        words = join_digits(self._steps(), self.base, self.digits).astype(np.int32)[:, None]
        data = graph.constant(f"{name}/gaps", words)
        steps = _add_digits(graph, name, data, self.base, self.digits)
        steps = graph.node("Reshape", [steps, _shape(graph, (1, words.size * self.digits))], f"{part}/steps")
        if words.size * self.digits != self.stored:
            steps = _add_cut(graph, name, steps, self.stored, axis=1)
        return graph.node("CumSum", [steps, graph.constant("one", np.array(1, np.int64))], f"{part}/places")


def _patterns(mask: np.ndarray) -> Iterable[_Pattern]:
    found = find_pattern(mask)
    if found is None:
        return
    base = len(pattern_bytes(*found))
    yield _Pattern(mask, *found, digits=int(math.log(256, base) + 1e-9), dtype=np.uint8)
    yield _Pattern(mask, *found, digits=int(math.log(_WORD - 1, base)), dtype=np.int32)


def _gaps(mask: np.ndarray) -> Iterable[_Gaps]:
    indices = np.flatnonzero(mask)
    if indices.size > _GAPS_BELOW * mask.size:
        return
    for digits in range(2, 11):
        yield _Gaps(indices, digits)


def _largest_base(digits: int) -> int:
    """Return the largest base of which so many digits fit an int32 that is not negative."""
    base = int(_WORD ** (1 / digits)) + 1
    while base**digits > _WORD:
        base -= 1
    return base


def _add_digits(graph: Additions, name: str, words: str, base: int, width: int) -> str:
    """int32 [words, width]."""
    part = PREFIX + name
    powers = graph.constant(f"powers/{base}x{width}", (base ** np.arange(width)).astype(np.int32)[None])
    shifted = graph.node("Div", [words, powers], f"{part}/shifted")
    return graph.node(
        "Mod", [shifted, graph.constant(f"base/{base}", np.array(base, np.int32))], f"{part}/digits"
    )


def _places_of_mask(
    graph: Additions, name: str, mask: str, size: int, count: int, cut: int | None = None
) -> str:
    """Add the nodes that give the indices of ``count`` marked entries among the first ``cut`` of a mask of ``size``."""
    part = PREFIX + name
    flat = graph.node("Reshape", [mask, _shape(graph, (size,))], f"{part}/mask")
    if cut is not None:
        flat = _add_cut(graph, name, flat, cut, axis=0)
    indices = graph.node("NonZero", [flat], f"{part}/places")
    graph.value_info.append(helper.make_tensor_value_info(indices, TensorProto.INT64, [1, count]))
    return indices


def _add_cut(graph: Additions, name: str, data: str, length: int, axis: int) -> str:
    bounds = [
        graph.constant(key, np.array([value], np.int64))
        for key, value in (("zero", 0), (f"length/{length}", length), (f"axis/{axis}", axis))
    ]
    return graph.node("Slice", [data, *bounds], f"{PREFIX}{name}/cut")


# --- unpack ----------------------------------------------------------------------------------------------------------


def packed_names(proto: onnx.ModelProto) -> list[str]:
    """Return the matrices a graph holds packed, in its order."""
    return [
        output
        for node in proto.graph.node
        if node.name.startswith(PREFIX)
        for output in node.output
        if not output.startswith(PREFIX)
    ]


def is_packed(proto: onnx.ModelProto) -> bool:
    """Return whether the graph rebuilds any matrix."""
    return bool(packed_names(proto))


def unpack(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the dense graph: every packed matrix an ordinary initializer again, bit for bit. Needs NumPy only.

    Raises:
        BundleError: the parts of a matrix do not fit together.
    """
    names = packed_names(proto)
    ours = [node for node in proto.graph.node if node.name.startswith(PREFIX)]
    producers = {output: node for node in ours for output in node.output}
    constants = {t.name: t for t in proto.graph.initializer if t.name.startswith(PREFIX)}
    dense = []
    largest = max(SMALL, LARGEST_EXPANSION * weight_bytes(proto))
    for name in names:
        try:
            _check_sizes(ours, constants, largest)
            dense.append(numpy_helper.from_array(_evaluate(name, producers, constants), name))
        except (ValueError, IndexError, KeyError, TypeError, RecursionError, MemoryError) as error:
            raise BundleError(
                f"packed matrix {name!r} cannot be rebuilt ({error}): the file is damaged; "
                "write the bundle again"
            ) from error
    nodes = [node for node in proto.graph.node if not node.name.startswith(PREFIX)]
    kept = [t for t in proto.graph.initializer if not t.name.startswith(PREFIX)]
    info = [entry for entry in proto.graph.value_info if not entry.name.startswith(PREFIX)]
    return with_graph(proto, node=nodes, initializer=[*kept, *dense], value_info=info)


def _check_sizes(
    nodes: Iterable[onnx.NodeProto], constants: dict[str, onnx.TensorProto], largest: int
) -> None:
    """Refuse matrices that no file of this size holds, before memory is asked for."""
    for node in nodes:
        if node.op_type == "ConstantOfShape":
            shape = numpy_helper.to_array(constants[node.input[0]]).tolist()
            if min(shape, default=0) < 0 or math.prod(shape) > largest:
                raise ValueError(f"a matrix of {shape} in a file that holds at most {largest:,} entries")


def _evaluate(
    name: str, producers: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]
) -> np.ndarray:
    """One value of the graph from the operators that lead to it."""
    if name in constants:
        return numpy_helper.to_array(constants[name])
    node = producers[name]
    inputs = [_evaluate(entry, producers, constants) for entry in node.input]
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    return _OPERATORS[node.op_type](*inputs, **attributes)


def _scatter(data: np.ndarray, indices: np.ndarray, values: np.ndarray, axis: int) -> np.ndarray:
    if indices.shape != values.shape:
        raise ValueError(f"{indices.shape[axis]} indices and {values.shape[axis]} values")
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < data.shape[axis]:
        raise ValueError(f"a value lies outside of the {data.shape[axis]} entries")
    out = data.copy()
    np.put_along_axis(out, indices.astype(np.int64), values, axis)
    return out


def _cast(data: np.ndarray, to: int, **_: Any) -> np.ndarray:
    return data.astype(helper.tensor_dtype_to_np_dtype(to))


def _constant_of_shape(shape: np.ndarray, value: onnx.TensorProto) -> np.ndarray:
    return np.full(tuple(shape), numpy_helper.to_array(value)[0])


_OPERATORS: dict[str, Callable[..., np.ndarray]] = {
    "BitwiseAnd": np.bitwise_and,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": lambda data, axis: np.cumsum(data, axis=int(axis)),
    "Div": np.floor_divide,
    "Gather": lambda data, index: data[index],
    "Mod": np.mod,
    "NonZero": lambda data: np.stack(np.nonzero(data)),
    "Reshape": lambda data, shape: data.reshape(tuple(shape)),
    "ScatterElements": _scatter,
    "Slice": lambda data, start, end, axis: data.take(np.arange(int(start[0]), int(end[0])), int(axis[0])),
    "Transpose": lambda data, perm: data.transpose(perm),
}


# --- does this runtime fold? -----------------------------------------------------------------------------------------


def unfolded(path: Path, inputs: dict[str, np.ndarray], optimize: bool = True) -> list[str]:
    """Return the rebuilding nodes that this machine's ONNX Runtime still executes in every call; none where it folds.

    Opens the file, with or without graph optimization, and runs it once on ``inputs``.

    Raises:
        MachineError: the folder for temporary files is full.
    """
    with temporary_folder() as folder:
        session = open_session(path, optimize=optimize, profile=folder / "profile")
        session.run(None, inputs)
        text = Path(session.end_profiling()).read_text(encoding="utf-8")
        try:
            events = json.loads(text)
        except ValueError as error:  # the runtime does not say that it could not write
            raise OSError(errno.ENOSPC, "the runtime's profile is cut short") from error
    names = {event["name"] for event in events if event.get("cat") == "Node"}
    return sorted(name.removesuffix("_kernel_time") for name in names if name.startswith(PREFIX))
