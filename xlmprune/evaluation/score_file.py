"""scores.safetensors: what the main metric sums up, for every test example, before and after pruning.

A report holds a score per language; tests of two models on the same examples need the examples one by one. Each
run folder keeps them here, with a fingerprint of the examples, so that runs on different data are never paired.
Numpy only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from xlmprune.core.errors import DataError
from xlmprune.core.files import replacing
from xlmprune.data.examples import Examples

NAME = "scores.safetensors"


@dataclass(frozen=True)
class ExampleScores:
    """The statistics of one run, by language."""

    metric: str
    """Name of the main metric, in `metrics.METRICS`."""
    pruned: dict[str, np.ndarray]
    """[examples, k] of the pruned model; `metric.value(statistics.sum(0))` is the score."""
    dense: dict[str, np.ndarray]
    """The same of the dense model."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the test examples; equal if two runs were measured on the same examples."""


def fingerprint(examples: Examples) -> str:
    """Give sixteen hexadecimal digits that change with any text, label, group or their order."""
    content = [examples.first, examples.second, examples.labels, examples.groups]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]


def write(path: Path, scores: ExampleScores) -> None:
    """Write the file, whole or not at all."""
    tensors = {
        f"{form}|{language}": np.ascontiguousarray(statistics)
        for form, by_language in (("pruned", scores.pruned), ("dense", scores.dense))
        for language, statistics in by_language.items()
    }
    metadata = {
        "metric": scores.metric,
        "languages": json.dumps(list(scores.pruned)),
        "fingerprints": json.dumps(scores.fingerprints),
    }
    with replacing(path) as partial:
        save_file(tensors, partial, metadata)


def read(path: Path) -> ExampleScores:
    """Read what `write` wrote, languages in their order.

    Raises:
        DataError: the file is missing or damaged.
    """
    found: Mapping[str, dict[str, np.ndarray]] = {"pruned": {}, "dense": {}}
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            for language in json.loads(metadata["languages"]):
                for form, by_language in found.items():
                    by_language[language] = file.get_tensor(f"{form}|{language}")
            return ExampleScores(
                metadata["metric"], found["pruned"], found["dense"], json.loads(metadata["fingerprints"])
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as the scores of a run ({error})") from error
