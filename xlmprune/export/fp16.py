"""The fp16 form: matrices stored in half precision, computed in fp32. Half the bytes of fp32 at the same speed.

Each matrix keeps its name; a Cast node restores fp32, and the runtime folds it while it opens the file. Half precision keeps
11 significant bits, so a weight of at least 6.1e-5 in size changes by at most 0.05 %. A smaller one changes by at most
3.0e-8, which may be all of it: below 3.0e-8 it becomes zero. A matrix with a value beyond 65,504 stays fp32, and so do
vectors (biases, LayerNorm): they are small, and sums are sensitive to them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xlmprune.export.form import Form, Material, Tolerance

if TYPE_CHECKING:
    import onnx

HALF = "/half"
"""Ends the name of a matrix in half precision; the part before it names the fp32 matrix."""

SMALLEST = 1024
"""Entries from which a matrix is stored in half precision; a smaller one gains less than its node takes."""


class Fp16(Form):
    """Matrices in half precision, a Cast node each."""

    name = "fp16"
    file = "model.fp16.onnx"
    title = "fp16"
    tolerance = Tolerance(1e-3, 1.0)
    parity = Tolerance(1e-2, 0.99)
    serving_rank = 2

    def convert(self, graph: onnx.ModelProto, material: Material) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """Store every matrix whose values fit in half precision."""
        return halve(graph), {}

    def bytes_of(self, entries: int, matrix: bool) -> int:
        """Two bytes a value of a matrix that is large enough, else four."""
        return entries * (2 if matrix and entries >= SMALLEST else 4)


def halve(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its fp32 matrices stored in half precision; ``proto`` is left as it is."""
    from onnx import TensorProto, helper, numpy_helper

    from xlmprune.export.graph import with_graph

    kept, casts = [], []
    for tensor in proto.graph.initializer:
        halved = _halved(tensor)
        if halved is None:
            kept.append(tensor)
            continue
        kept.append(numpy_helper.from_array(halved, tensor.name + HALF))
        casts.append(
            helper.make_node(
                "Cast", [tensor.name + HALF], [tensor.name], name=f"{tensor.name}/cast", to=TensorProto.FLOAT
            )
        )
    return with_graph(proto, node=[*casts, *proto.graph.node], initializer=kept)


def _halved(tensor: onnx.TensorProto) -> np.ndarray | None:
    """Return the values in half precision; None where the tensor stays as it is."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or math.prod(tensor.dims) < SMALLEST:
        return None
    values = numpy_helper.to_array(tensor)
    if not np.abs(values).max() <= np.finfo(np.float16).max:
        return None
    return values.astype(np.float16)
