"""The dense form of a bundle, for tools that cannot read packed files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xlmprune.core.errors import BundleError
from xlmprune.core.files import explain_disk, temporary_folder
from xlmprune.export import graph as onnx_export
from xlmprune.export import manifest, packing
from xlmprune.export import sparse as safetensors_export
from xlmprune.export.form import all_forms, expected_files, forms_in
from xlmprune.export.runtime import onnx_files


def unpack_bundle(bundle: Path, out: Path, verify: bool = True) -> list[str]:
    """Write ``out``: a plain model folder that `from_pretrained` accepts, and every ONNX file without packing.

    Graphs that this bundle does not have are removed from ``out``. The manifest there lists what was written.

    Args:
        verify: compare the bundle's files with its manifest first.

    Returns:
        Names of the files written, relative to ``out``.

    Raises:
        BundleError: the bundle is damaged, or ``out`` is the bundle or inside it.
        MachineError: ``out`` cannot be written to.
    """
    if out.resolve() == bundle.resolve():
        raise BundleError(f"{out} is the bundle itself; unpack it into another folder")
    if bundle.resolve() in out.resolve().parents:
        raise BundleError(
            f"{out} lies inside the bundle, which must stay as it is; unpack it into another folder"
        )
    if verify:
        graphs = [file.name for graph in forms_in(bundle).values() for file in onnx_files(graph)]
        manifest.require(bundle, *safetensors_export.FILES, *graphs)
    with explain_disk(out):
        written = safetensors_export.unpack(bundle, out, verify=False)
        for file in forms_in(bundle).values():
            proto = packing.unpack(onnx_export.load_onnx(file))
            written += onnx_export.save_onnx(proto, out / file.name)
        # Of another bundle unpacked here before; left there, they would be taken for this one's.
        for form in all_forms().values():
            for stale in {*onnx_files(out / form.file)} - {*written}:
                stale.unlink(missing_ok=True)
        if (bundle / manifest.FILE).is_file():
            facts = manifest.read(bundle)
            manifest.write(out, facts["versions"], facts["recipe_sha256"], written)
            written.append(out / manifest.FILE)
    return [path.relative_to(out).as_posix() for path in written]


@contextmanager
def contenders(bundle: Path, against: Path | None = None) -> Iterator[dict[str, Path]]:
    """ONNX files to measure side by side, by name; the first is what the others are compared with.

    That is ``against``, a bundle or an ONNX file, where it is given, and else the dense form of the bundle's first
    form, written for the while where the bundle has it packed.

    Raises:
        BundleError: there is nothing to measure.
        MachineError: there is no room for the dense form.
    """
    ours = forms_in(bundle)
    if not ours:
        raise BundleError(
            f"{bundle} has no ONNX file; expected a bundle written by xlmprune, with {expected_files()}"
        )
    with temporary_folder() as temporary:
        if against is not None:
            yield {**_others(against), **ours}
            return
        form, file = next(iter(ours.items()))
        proto = onnx_export.load_onnx(file)
        if not packing.is_packed(proto):
            yield ours
            return
        dense = temporary / file.name
        onnx_export.save_onnx(packing.unpack(proto), dense)
        del proto
        yield {f"{form} dense": dense, **ours}


def _others(against: Path) -> dict[str, Path]:
    if against.is_file():
        return {against.name: against}
    found = {f"{against.name} {name}": file for name, file in forms_in(against).items()}
    if not found:
        raise BundleError(f"{against} is neither an ONNX file nor a bundle with one")
    return found
