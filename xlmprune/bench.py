"""Latency, throughput, load time, peak memory and bytes of ONNX files side by side, so that the ratios can be trusted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np


def quick(file: Path, tokens: int = 64, seconds: float = 2.0) -> dict[str, Any]:
    """Median latency of one text, for the report.

    Args:
        tokens: length of the text; cut to what the model's positions allow.
        seconds: how long to measure.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    ids = np.full((1, tokens), 5, dtype=np.int64)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for _ in range(3):
        session.run(None, feed)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 10:
        start = time.perf_counter()
        session.run(None, feed)
        taken.append(1e3 * (time.perf_counter() - start))
    median, high = np.percentile(taken, [50, 95])
    return {
        "batch": 1,
        "tokens": tokens,
        "median_ms": round(float(median), 3),
        "p95_ms": round(float(high), 3),
        "texts_per_second": round(1e3 / float(median), 2),
    }
