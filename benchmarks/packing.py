"""Measure packing at the size of XLM-R base: bytes, load time, peak memory, latency, conversion.

    python benchmarks/packing.py [--vocabulary 60000] [--density 0.314] [--threads 1] [--folder DIR] [--export FILE]

The weights are random, and every encoder matrix is pruned to the density by magnitude. The export takes a minute or two
unless `--export` names an fp32 ONNX file. `running sum` is another way to rebuild a matrix, for comparison: it gathers the
non-zeros at the running sum of the mask.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from xlmprune.bundle import bench
from xlmprune.core import machine
from xlmprune.export import packing, quantization
from xlmprune.export.calibration import calibrate
from xlmprune.export.graph import export_onnx, load_onnx, save_onnx

XLMR_VOCABULARY = 250_002
HIDDEN = 768


@contextmanager
def timed(what: str, facts: dict[str, Any]) -> Iterator[None]:
    """Record the seconds, and the peak memory of this process so far."""
    start = time.perf_counter()
    yield
    facts[what] = {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_gb": _gigabytes(machine.process_memory()[1]),
    }
    print(what, facts[what], flush=True)


def _gigabytes(count: int | None) -> float | None:
    return None if count is None else round(count / 1e9, 2)


def export(path: Path, vocabulary: int, density: float) -> None:
    """Export XLM-R base with random weights and every encoder matrix pruned to ``density``."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=vocabulary,
        type_vocab_size=1,
        pad_token_id=1,
        max_position_embeddings=514,
        layer_norm_eps=1e-5,
    )
    config.num_labels = 3
    model = XLMRobertaForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.startswith("roberta.encoder.") and isinstance(module, torch.nn.Linear):
                flat = module.weight.view(-1)
                flat[flat.abs().topk(round((1 - density) * flat.numel()), largest=False).indices] = 0
    export_onnx(model, path)


def pack_by_running_sum(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Pack the same matrices as bits -> CumSum -> Gather."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    shared = {
        "bit": np.array([[1, 2, 4, 8, 16, 32, 64, 128]], np.uint8),
        "flat": np.array([-1]),
        "first": np.array(0),
    }
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in shared.items())
    nodes = []
    for tensor in list(graph.initializer):
        weight = numpy_helper.to_array(tensor)
        if weight.ndim != 2 or weight.size < packing.SMALLEST or (weight != 0).mean() >= packing.BELOW:
            continue
        name = tensor.name
        graph.initializer.remove(tensor)
        parts = {
            "bits": np.packbits(weight.ravel() != 0, bitorder="little")[:, None],
            "values": np.concatenate([np.zeros(1, weight.dtype), weight[weight != 0]]),
            "shape": np.array(weight.shape),
        }
        graph.initializer.extend(numpy_helper.from_array(a, f"{name}.{part}") for part, a in parts.items())
        for operator, inputs, output, attributes in (
            ("BitwiseAnd", [f"{name}.bits", "bit"], "1", {}),
            ("Cast", [f"{name}.1"], "2", {"to": TensorProto.BOOL}),
            ("Cast", [f"{name}.2"], "3", {"to": TensorProto.INT32}),
            ("Reshape", [f"{name}.3", "flat"], "4", {}),
            ("CumSum", [f"{name}.4", "first"], "5", {}),
            ("Mul", [f"{name}.5", f"{name}.4"], "6", {}),
            ("Reshape", [f"{name}.6", f"{name}.shape"], "7", {}),
        ):
            nodes.append(helper.make_node(operator, inputs, [f"{name}.{output}"], **attributes))  # type: ignore[arg-type]
        nodes.append(helper.make_node("Gather", [f"{name}.values", f"{name}.7"], [name]))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes + rest)
    return result


def make_feeds(batches: int = 8) -> list[dict[str, np.ndarray]]:
    """Return random texts. A real model is calibrated on unlabelled texts."""
    random = np.random.default_rng(0)
    ids = random.integers(4, 1000, (batches, 8, 32))
    return [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in ids]


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Convert, then measure all files side by side."""
    facts: dict[str, Any] = {"conversion": {}}
    steps = facts["conversion"]
    files = {"fp32": arguments.export or folder / "fp32.onnx"}
    if not arguments.export:
        with timed("export", steps):
            export(files["fp32"], arguments.vocabulary, arguments.density)
    with timed("read", steps):
        proto = load_onnx(files["fp32"])
    with timed("calibrate", steps):
        smoothing = calibrate(proto, make_feeds()).smoothing
    with timed("quantize", steps):
        form = quantization.quantize(proto, smoothing=smoothing)
    for name, dense in (("fp32", proto), ("int8", form)):
        files[name] = files.get(name, folder / f"{name}.onnx")
        with timed(f"pack and write {name}", steps):
            if not files[name].is_file():
                save_onnx(dense, files[name])
            files[f"{name} packed"] = folder / f"{name}.packed.onnx"
            save_onnx(packing.pack(dense), files[f"{name} packed"])
        files[f"{name} running sum"] = folder / f"{name}.sum.onnx"
        save_onnx(pack_by_running_sum(dense), files[f"{name} running sum"])
    del proto, form, dense
    facts["bench"] = bench.bench(
        files, batches=(1,), lengths=(64,), threads=(arguments.threads,), seconds=20, say=print
    )
    whole = files["fp32"].stat().st_size + 4 * HIDDEN * (XLMR_VOCABULARY - arguments.vocabulary)
    facts["of fp32 with the whole vocabulary"] = {
        name: round(path.stat().st_size / whole, 4) for name, path in files.items()
    }
    return facts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", type=int, default=60_000)
    parser.add_argument("--density", type=float, default=0.314)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--export", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        facts = measure(arguments.folder or Path(temporary), arguments)
    Console(width=110).print(bench.render(facts["bench"]))
    print(json.dumps({key: value for key, value in facts.items() if key != "bench"}, indent=1))


if __name__ == "__main__":
    main()
