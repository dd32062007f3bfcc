"""The INT8 form: encoder matrices and embedding tables in eight bits. Small and fast; the first choice for serving.

How it quantizes is in `quantization.py`; which of several ways a run takes is measured in `choosing.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xlmprune.export.form import Form, Material, Tolerance

if TYPE_CHECKING:
    import onnx

    from xlmprune.recipe.schema import Embeddings


class Int8(Form):
    """Integer products with one scale for each output."""

    name = "int8"
    file = "model.int8.onnx"
    title = "INT8"
    # CPUs without VNNI add up INT8 products with saturation, and their answers differ by much more than rounding.
    tolerance = Tolerance(0.1, 0.9)
    parity = None
    calibrated = True
    serving_rank = 0

    def convert(self, graph: onnx.ModelProto, material: Material) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """Quantize in the way that measurement chooses."""
        from xlmprune.export.choosing import quantized

        choice = quantized(graph, material)
        return choice.proto, {"form": self.title, **choice.facts()}

    def sample(self, graph: onnx.ModelProto, embeddings: Embeddings) -> onnx.ModelProto:
        """Quantize without calibration."""
        from xlmprune.export.quantization import quantize

        return quantize(graph, embeddings=embeddings)

    def bytes_of(self, entries: int, matrix: bool) -> int:
        """One byte a value of a matrix, four of a vector."""
        return entries if matrix else 4 * entries
