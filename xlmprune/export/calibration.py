"""What INT8 does to the products of a model, measured on unlabelled text: outlier channels, and which matrices suffer most.

`quantization` says what outlier channels are and why dividing them helps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from xlmprune.core.files import temporary_folder
from xlmprune.export.graph import save_onnx
from xlmprune.export.quantization import matrices_of, quantize_matrix
from xlmprune.export.runtime import open_session

if TYPE_CHECKING:
    import onnxruntime

Feed = Mapping[str, np.ndarray]

USUAL = 0.9
LIMITS = (0.5, 1.0, 2.0)
"""Tried for smoothing: a channel may reach this many times what nine in ten of the channels stay below."""

TOKENS = 1000
"""On which errors are measured, evenly taken from all. The least error changes by less than a tenth with more."""


@dataclass(frozen=True)
class Calibration:
    """What unlabelled text says about the inputs of the matrices."""

    smoothing: dict[str, np.ndarray]
    """Matrix name to [in] factors, for inputs whose error they lower."""
    error: dict[str, float]
    """Matrix name to the error of its product, relative to the product's standard deviation, with smoothing."""
    plain: dict[str, float]
    """The same without."""
    outlier: dict[str, float]
    """Matrix name to the largest channel of its input, in times of the median channel."""

    def worst(self, count: int) -> list[str]:
        """Return the matrices with the largest errors."""
        return sorted(self.error, key=lambda name: -self.error[name])[:count]


def calibrate(proto: onnx.ModelProto, feeds: Iterable[Feed], folder: Path | None = None) -> Calibration:
    """Run the fp32 graph on unlabelled text, measure the error that INT8 makes in every product, and lower it.

    Args:
        proto: dense fp32.
        feeds: batches of `input_ids` and `attention_mask` in all languages to be served. A few sentences of each are
            enough; padding is left out.
        folder: for a file of the while, as large as the graph; where the system has its temporary files if None.

    Raises:
        ValueError: there is no text.
    """
    inputs: dict[str, list[str]] = {}
    for name, activation in matrices_of(proto):
        inputs.setdefault(activation, []).append(name)
    seen = _activations(proto, list(inputs), feeds, folder)
    wanted = {name for names in inputs.values() for name in names}
    weights = {t.name: t for t in proto.graph.initializer if t.name in wanted}
    found = Calibration({}, {}, {}, {})
    for activation, names in inputs.items():
        matrices = [numpy_helper.to_array(weights[name]) for name in names]
        x = seen.pop(activation)
        factors, before, after = smooth(x, np.concatenate(matrices, axis=1))
        channels = np.abs(x).max(0)
        for name in names:
            found.plain[name], found.error[name] = before, after
            found.outlier[name] = float(channels.max() / max(float(np.median(channels)), 1e-9))
            if factors is not None:
                found.smoothing[name] = factors
    return found


def smooth(x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray | None, float, float]:
    """Factors for the channels of x that stand out, where they lower the error of x @ weight by a tenth or more.

    Returns:
        factors fp32 [in], at least 1, or None; the error without and with them (see `product_error`).
    """
    channels = np.abs(x).max(0)
    usual = float(np.quantile(channels, USUAL)) or 1.0
    exact = x @ weight
    before = product_error(x, weight, exact)
    best, least = None, 0.9 * before
    for limit in LIMITS:
        factors = np.maximum(channels / (limit * usual), 1).astype(np.float32)
        error = product_error(x / factors, weight * factors[:, None], exact)
        if error < least:
            best, least = factors, error
    return best, before, before if best is None else least


def product_error(x: np.ndarray, weight: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square error of the INT8 product, relative to the standard deviation of the exact one over tokens."""
    integers, scale = quantize_matrix(weight)
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / 255 or 1.0
    zero = np.rint(-low / step)
    rounded = (np.clip(np.rint(x / step) + zero, 0, 255) - zero).astype(np.float32)
    difference = (rounded @ integers.astype(np.float32)) * (step * scale) - exact
    variance = float(((exact - exact.mean(0)) ** 2).sum())
    return math.sqrt(float((difference**2).sum()) / variance) if variance else 0.0


def _activations(
    proto: onnx.ModelProto, names: Sequence[str], feeds: Iterable[Feed], folder: Path | None
) -> dict[str, np.ndarray]:
    """fp32 [tokens, in] of every activation."""
    feeds = [{name: np.asarray(values) for name, values in feed.items()} for feed in feeds]
    total = sum(int(feed["attention_mask"].sum()) for feed in feeds)
    if not total:
        raise ValueError("calibration needs text, and there is none")
    # The same tokens of every activation, spread over all batches and so over all languages.
    taken = np.zeros(total, dtype=bool)
    taken[np.linspace(0, total - 1, min(TOKENS, total)).astype(int)] = True
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    session = _open(proto, names, folder)
    start = 0
    for feed in feeds:
        real = feed["attention_mask"].astype(bool)
        part = taken[start : start + int(real.sum())]
        start += len(part)
        for name, values in zip(names, session.run(list(names), feed)):
            seen[name].append(values[real][part])
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def _open(
    proto: onnx.ModelProto, outputs: Sequence[str], folder: Path | None
) -> onnxruntime.InferenceSession:
    """Open a session that also gives inner values; through a file, since protobuf sends no more than 2 GB."""
    count = len(proto.graph.output)
    proto.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs
    )
    try:
        with temporary_folder(folder) as path:
            save_onnx(proto, path / "calibration.onnx")
            return open_session(path / "calibration.onnx")
    finally:
        del proto.graph.output[count:]
