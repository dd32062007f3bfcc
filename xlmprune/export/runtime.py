"""ONNX Runtime sessions: opening a file, checking its inputs and outputs, running it on numpy arrays.

Needs numpy and onnxruntime only, since servers come through here.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from xlmprune.core import machine
from xlmprune.core.errors import BundleError, MachineError, first_line

Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`input_ids`, `attention_mask` [batch, tokens] to logits [batch, labels] or [batch, tokens, labels]."""

INPUTS = ("input_ids", "attention_mask")

OLDEST_RUNTIME = {
    18: "1.15",
    19: "1.16",
    20: "1.17",
    21: "1.18",
    22: "1.21",
    23: "1.23",
    24: "1.24",
    25: "1.24",
}
"""Opset to the oldest ONNX Runtime that opens and runs our files, packed and dense, fp32, fp16 and INT8. Measured with
1.15.1, 1.16.3, 1.17.3, 1.18.1, 1.19.2, 1.20.1, 1.21.1, 1.22.1, 1.23.2 and 1.24.4; older ones were not tried."""

PACKED = "xlmprune.packed/"
"""Begins names in an ONNX file whose matrices the runtime has to rebuild when it opens it (see `export/packing.py`)."""


def open_session(
    path: Path,
    threads: int = 0,
    optimize: bool = True,
    spinning: bool = True,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Open an ONNX Runtime session on the CPU.

    Args:
        threads: within an operator; 0 takes `machine.runtime_threads`.
        optimize: False opens the graph as it is written. A packed file then rebuilds its matrices at every call,
            some 200 times slower, and a warning says so.
        spinning: False lets the threads rest between calls, so that several sessions do not disturb one another.
        profile: prefix of a file to write every operator's time to.

    Raises:
        BundleError: the file is missing, or ONNX Runtime cannot open it.
        MachineError: ``threads`` is below 0 or above `machine.MOST_THREADS`.
    """
    if not 0 <= threads <= machine.MOST_THREADS:
        raise MachineError(f"{threads} threads: expected a number from 0 to {machine.MOST_THREADS}")
    if not path.is_file():
        raise BundleError(f"{path} is missing")
    options = onnxruntime.SessionOptions()
    # Without a number the runtime takes one thread for each core of the host, whatever this process may use.
    options.intra_op_num_threads = threads or machine.runtime_threads()
    options.log_severity_level = 4  # what fails is said once, by the exception
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if not spinning:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BundleError(
            f"{path} cannot be opened by ONNX Runtime {onnxruntime.__version__}: {first_line(error)}"
        ) from error
    _give_back_memory()
    if not optimize and _contains(path, PACKED.encode()):
        warnings.warn(
            f"{path} is packed and was opened without graph optimization: its matrices are rebuilt at every call. Use at "
            "least ORT_ENABLE_BASIC, or the dense file that `xlmprune unpack` writes.",
            stacklevel=2,
        )
    return session


def _give_back_memory() -> None:
    """Return to the system what opening a file needed only for a while: a packed file leaves hundreds of MB behind.

    glibc keeps freed memory for later; other C libraries have no such call, and do without.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def onnx_files(path: Path) -> list[Path]:
    """Return the ONNX file and, where it has one, the file of its weights."""
    data = path.with_name(path.name + ".data")
    return [path, data] if data.is_file() else [path]


def bytes_of(path: Path) -> int:
    """Return the bytes of an ONNX file and of the weights beside it, if it has any there."""
    return sum(file.stat().st_size for file in onnx_files(path))


def _contains(path: Path, text: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def forward_of(session: onnxruntime.InferenceSession) -> Forward:
    """Return a function from numpy `input_ids`, `attention_mask` to numpy fp32 logits.

    The function raises BundleError where the graph fails on its inputs.
    """

    def forward(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        try:
            return session.run(["logits"], {"input_ids": input_ids, "attention_mask": attention_mask})[0]
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise BundleError(
                f"the model cannot be run on {list(input_ids.shape)} tokens: {first_line(error)}"
            ) from error

    return forward


def check_signature(session: onnxruntime.InferenceSession, path: Path, labels: int, kind: str) -> None:
    """Raise BundleError unless inputs and output are those of a bundle with so many labels."""
    inputs = {value.name: value.type for value in session.get_inputs()}
    if inputs != dict.fromkeys(INPUTS, "tensor(int64)"):
        raise BundleError(
            f"{path}: inputs {inputs} found, expected input_ids and attention_mask, tensor(int64)"
        )
    outputs = {value.name: value.shape for value in session.get_outputs()}
    shape = outputs.get("logits", [])
    if len(shape) != (3 if kind == "tokens" else 2) or shape[-1] != labels:
        raise BundleError(
            f"{path}: output {outputs} found, expected logits for {labels} labels; is it another task's model?"
        )
