"""A Triton model repository: `<name>/config.pbtxt` and `<name>/1/model.onnx`.

Triton's dynamic batching joins requests of equal length only; clients that pad to a few common lengths profit from it.
The file is the form that serves best, INT8 where it ships (`form.form_to_serve`). A packed model is rebuilt when Triton
loads it. For its TensorRT accelerator ship the dense layout.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from xlmprune.core.errors import RecipeError
from xlmprune.core.files import link_or_copy

MODEL_FILE = "1/model.onnx"
"""The graph of a model, in the model's folder: Triton looks for it under this name."""

MAX_BATCH_SIZE = 64
MAX_QUEUE_DELAY_MICROSECONDS = 1000


def write_triton(folder: Path, name: str, onnx_file: Path, labels: Sequence[str], kind: str) -> list[Path]:
    """Write ``folder/name``, a model that ``tritonserver --model-repository=folder`` serves.

    Args:
        folder: the repository, made if it is not there.
        name: of the model; letters, digits, ``_``, ``-`` and ``.``.
        onnx_file: linked to where the file system allows, else copied. Its external data are copied: the onnx package
            refuses data with several hard links.
        labels: in the order of the outputs; written to `labels.txt`, from which Triton names classes.
        kind: ``text``, ``pair`` or ``tokens``.

    Returns:
        The files written.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise RecipeError(f"Triton cannot serve a model called {name!r}; use letters, digits, _, - and .")
    model = folder / name / MODEL_FILE
    model.parent.mkdir(parents=True, exist_ok=True)
    written = [folder / name / "config.pbtxt"]
    written[0].write_text(_config(name, onnx_file.name, len(labels), kind), encoding="utf-8")
    if kind != "tokens":
        written.append(folder / name / "labels.txt")
        written[1].write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    _link(onnx_file, model)
    written.append(model)
    data = onnx_file.with_name(onnx_file.name + ".data")
    if data.is_file():  # the graph asks for it by this name
        model.with_name(data.name).unlink(missing_ok=True)
        shutil.copy2(data, model.with_name(data.name))
        written.append(model.with_name(data.name))
    return written


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    link_or_copy(source, target)


def _config(name: str, file: str, labels: int, kind: str) -> str:
    dims = f"[ -1, {labels} ]" if kind == "tokens" else f"[ {labels} ]"
    label_file = "" if kind == "tokens" else '\n    label_filename: "labels.txt"'
    return f"""# {MODEL_FILE} is {file} of the bundle.
name: "{name}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH_SIZE}
input [
  {{
    name: "input_ids"
    data_type: TYPE_INT64
    dims: [ -1 ]
  }},
  {{
    name: "attention_mask"
    data_type: TYPE_INT64
    dims: [ -1 ]
  }}
]
output [
  {{
    name: "logits"
    data_type: TYPE_FP32
    dims: {dims}{label_file}
  }}
]
dynamic_batching {{
  max_queue_delay_microseconds: {MAX_QUEUE_DELAY_MICROSECONDS}
}}
"""
