"""Run ONNX files with OpenVINO, for `xlmprune bench --runtime openvino`.

Needs the package openvino. On a CPU with AMX or AVX-512 bf16, OpenVINO computes fp32 files in bf16 unless it is told not to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xlmprune.core.errors import BundleError, MachineError


class Input(NamedTuple):
    """An input of a file, as ONNX Runtime describes it."""

    name: str
    type: str


class OpenVinoSession:
    """An ONNX file opened by OpenVINO on the CPU, with the methods of an ONNX Runtime session that `bench` uses."""

    def __init__(self, path: Path, threads: int) -> None:
        """Open a file.

        Raises:
            MachineError: the package openvino is missing.
            BundleError: OpenVINO cannot open the file.
        """
        try:
            import openvino
        except ImportError:
            raise MachineError(
                "--runtime openvino needs the package openvino. Install it: pip install openvino"
            ) from None
        core = openvino.Core()
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        try:
            self._compiled = core.compile_model(core.read_model(path), "CPU", options)
        except RuntimeError as error:
            raise BundleError(
                f"{path} cannot be opened by OpenVINO {version()}: {' '.join(str(error).split())[:200]}"
            ) from error
        self._request = self._compiled.create_infer_request()
        self.precision: str = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()

    def get_inputs(self) -> list[Input]:
        """Return names and types of the inputs."""
        return [
            Input(entry.any_name, f"tensor({entry.element_type.to_dtype()})")
            for entry in self._compiled.inputs
        ]

    def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[Any]:
        """Return the arrays of all outputs. OpenVINO does not check ids and lengths: too large ones give wrong numbers."""
        found = self._request.infer(inputs)
        return [found[output] for output in self._compiled.outputs]


def version() -> str:
    """Return the version of OpenVINO, without its build."""
    import openvino

    return str(openvino.__version__.partition("-")[0])
