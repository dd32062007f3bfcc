"""The fp32 form: the model as it was trained. Take it where answers must equal PyTorch's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xlmprune.export.form import Form, Material, Tolerance

if TYPE_CHECKING:
    import onnx


class Fp32(Form):
    """The traced graph itself."""

    name = "fp32"
    file = "model.onnx"
    title = "fp32"
    tolerance = Tolerance(1e-3, 1.0)
    parity = Tolerance(1e-3, 0.999)
    serving_rank = 1

    def convert(self, graph: onnx.ModelProto, material: Material) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """Return ``graph`` itself."""
        return graph, {}

    def bytes_of(self, entries: int, matrix: bool) -> int:
        """Four bytes a value."""
        return 4 * entries
