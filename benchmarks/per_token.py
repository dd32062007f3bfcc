"""What would a scale for each token cost in INT8, where ONNX Runtime has one for each tensor?

    python benchmarks/per_token.py [--calls 200]

With one scale for a whole batch (`DynamicQuantizeLinear`), the INT8 answer to a text depends a little on the other texts of
its batch. A scale for each token removes that. ONNX Runtime has no fused kernel for it, so it is built from standard
operators here. Both graphs multiply the same matrices, take turns, and use one thread. Prints the medians of the processor
time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

SHAPES = ((384, 384), (384, 1536), (1536, 384), (768, 3072), (3072, 768))
"""Inputs and outputs of the products in the quickstart's model and in XLM-R base."""
ROWS = (64, 512)
"""Tokens in a call: 1 x 64 and 8 x 64."""


def _node(operator: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


PER_TENSOR = [
    _node("DynamicQuantizeLinear", "x", "q scale zero"),
    _node("MatMulInteger", "q weight zero", "product"),
    _node("Cast", "product", "float", to=TensorProto.FLOAT),
    _node("Mul", "scale weight_scale", "both"),
    _node("Mul", "float both", "y"),
]
PER_TOKEN = [
    _node("Abs", "x", "size"),
    _node("ReduceMax", "size last", "largest", keepdims=1),
    _node("Mul", "largest step", "raw"),
    _node("Max", "raw least", "scale"),
    _node("Div", "x scale", "scaled"),
    _node("Add", "scaled middle", "shifted"),
    _node("Round", "shifted", "rounded"),
    _node("Cast", "rounded", "q", to=TensorProto.UINT8),
    _node("MatMulInteger", "q weight zero", "product"),
    _node("Cast", "product", "float", to=TensorProto.FLOAT),
    _node("Mul", "float scale", "by_token"),
    _node("Mul", "by_token weight_scale", "y"),
]


def model(nodes: list[NodeProto], inputs: int, outputs: int) -> ModelProto:
    """Return a graph that multiplies x [tokens, inputs] by a constant INT8 matrix [inputs, outputs]."""
    weight = np.random.default_rng(0).integers(-63, 64, (inputs, outputs)).astype(np.int8)
    constants = {
        "weight": weight,
        "weight_scale": np.full(outputs, 0.01, np.float32),
        "zero": np.uint8(128),
        "middle": np.float32(128),
        "step": np.float32(1 / 127),
        "least": np.float32(1e-9),
        "last": np.array([-1], np.int64),
    }
    read = {name for node in nodes for name in node.input} - {name for node in nodes for name in node.output}
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", outputs])],
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in constants.items()
            if name in read
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=200)
    calls = parser.parse_args().calls
    one_thread = onnxruntime.SessionOptions()
    one_thread.intra_op_num_threads = 1
    print(f"{'tokens x in x out':<22}{'per tensor, us':>16}{'per token, us':>16}{'ratio':>8}")
    for rows in ROWS:
        for inputs, outputs in SHAPES:
            sessions = [
                onnxruntime.InferenceSession(model(nodes, inputs, outputs).SerializeToString(), one_thread)
                for nodes in (PER_TENSOR, PER_TOKEN)
            ]
            x = np.random.default_rng(1).normal(size=(rows, inputs)).astype(np.float32)
            took: list[list[float]] = [[], []]
            for _ in range(calls):
                for session, times in zip(sessions, took, strict=True):
                    begun = time.process_time()
                    session.run(None, {"x": x})
                    times.append(1e6 * (time.process_time() - begun))
            tensor, token = map(statistics.median, took)
            shape = f"{rows} x {inputs} x {outputs}"
            print(f"{shape:<22}{tensor:16.0f}{token:16.0f}{token / tensor:8.2f}", flush=True)


if __name__ == "__main__":
    main()
