"""The dense form of a bundle, for tools that cannot read packed files."""

from __future__ import annotations

from pathlib import Path

from xlmprune.checkpoint import explain_disk
from xlmprune.errors import BundleError
from xlmprune.exporters import onnx as onnx_export
from xlmprune.exporters import packing
from xlmprune.exporters import safetensors as safetensors_export
from xlmprune.serving import FILES


def unpack_bundle(bundle: Path, out: Path) -> list[str]:
    """Write ``out``: a plain model folder that `from_pretrained` accepts, and every ONNX file without packing.

    Returns:
        Names of the files written, relative to ``out``.

    Raises:
        BundleError: the bundle is damaged, or ``out`` is the bundle.
        MachineError: ``out`` cannot be written to.
    """
    if out.resolve() == bundle.resolve():
        raise BundleError(f"{out} is the bundle itself; unpack it into another folder")
    with explain_disk(out):
        written = safetensors_export.unpack(bundle, out)
        for file in FILES.values():
            if (bundle / file).is_file():
                proto = packing.unpack(onnx_export.load_onnx(bundle / file))
                written += onnx_export.save_onnx(proto, out / file)
    return [path.relative_to(out).as_posix() for path in written]
