"""The dense form of a bundle, for tools that cannot read packed files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from xlmprune.core.errors import BundleError, RecipeError
from xlmprune.core.files import REPORT_FILE, explain_disk, replacing, temporary_folder
from xlmprune.export import graph as onnx_export
from xlmprune.export import manifest, packing
from xlmprune.export import sparse as safetensors_export
from xlmprune.export.form import DENSE_MODEL, all_forms, expected_files, forms_in
from xlmprune.export.runtime import onnx_files

Layout = Literal["bundle", "transformers.js"]
"""`bundle`: ONNX files have the names that they have in the bundle. `transformers.js`: in the folder `onnx`, under the names
that transformers.js and optimum look for, and with a tokenizer that transformers.js can read."""

LAYOUTS: tuple[str, ...] = get_args(Layout)
ONNX_FOLDER = "onnx"
TOKENIZER = "tokenizer.json"

REMOVED = "\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f"
"""Characters that the normalizer `Nmt` removes, as a class of a regular expression."""
SPACES = "\t\n\f\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd"
"""Characters that `Nmt` turns into a space."""


def unpack_bundle(bundle: Path, out: Path, verify: bool = True, layout: Layout = "bundle") -> list[str]:
    """Write ``out``: a plain model folder that `from_pretrained` accepts, and every ONNX file without packing.

    Graphs that this bundle does not have are removed from ``out``. The manifest there lists what was written.

    Args:
        verify: compare the bundle's files with its manifest first.
        layout: where the ONNX files go, and for which tools.

    Returns:
        Names of the files written, relative to ``out``.

    Raises:
        BundleError: the bundle is damaged, or ``out`` is the bundle or inside it.
        MachineError: ``out`` cannot be written to.
        RecipeError: there is no such layout.
    """
    if layout not in LAYOUTS:
        raise RecipeError(f"--layout {layout}: expected one of {', '.join(LAYOUTS)}")
    if out.resolve() == bundle.resolve():
        raise BundleError(f"{out} is the bundle itself; unpack it into another folder")
    if bundle.resolve() in out.resolve().parents:
        raise BundleError(f"{out} is inside the bundle, which must not change; unpack it into another folder")
    if verify:
        graphs = [file.name for graph in forms_in(bundle).values() for file in onnx_files(graph)]
        manifest.require(bundle, *safetensors_export.FILES, *graphs)
    with explain_disk(out):
        written = safetensors_export.unpack(bundle, out, verify=False)
        if layout == "transformers.js":
            (out / ONNX_FOLDER).mkdir(exist_ok=True)
            _write_tokenizer_of_js(out / TOKENIZER)
        for file in forms_in(bundle).values():
            proto = packing.unpack(onnx_export.load_onnx(file))
            written += onnx_export.save_onnx(proto, out / _graph_name(file.name, layout))
        # Of another bundle unpacked here before; left there, they would be taken for this one's.
        possible = [
            out / _graph_name(form.file, known) for form in all_forms().values() for known in get_args(Layout)
        ]
        for stale in {file for graph in possible for file in onnx_files(graph)} - {*written}:
            stale.unlink(missing_ok=True)
        if (bundle / manifest.FILE).is_file():
            facts = manifest.read(bundle)
            manifest.write(out, facts["versions"], facts["recipe_sha256"], written)
            written.append(out / manifest.FILE)
    return [path.relative_to(out).as_posix() for path in written]


def _graph_name(file: str, layout: Layout) -> str:
    """Return the path of an ONNX file: ``model.int8.onnx``, or ``onnx/model_int8.onnx``."""
    if layout == "bundle":
        return file
    stem, _, form = file.removesuffix(".onnx").partition(".")
    return f"{ONNX_FOLDER}/{stem}_{form}.onnx" if form else f"{ONNX_FOLDER}/{stem}.onnx"


def _write_tokenizer_of_js(file: Path) -> None:
    """Rewrite a tokenizer.json so that transformers.js reads it and gives the same ids."""
    values = json.loads(file.read_text(encoding="utf-8"))
    values["normalizer"] = without_nmt(values.get("normalizer"))
    with replacing(file) as partial:
        partial.write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")


def without_nmt(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a normalizer of tokenizer.json that does the same without `Nmt`, which transformers.js does not know."""
    if normalizer is None:
        return None
    if normalizer["type"] == "Sequence":
        return {**normalizer, "normalizers": [without_nmt(part) for part in normalizer["normalizers"]]}
    if normalizer["type"] != "Nmt":
        return normalizer
    replaced = {"": REMOVED, " ": SPACES}
    parts = [
        {"type": "Replace", "pattern": {"Regex": f"[{characters}]"}, "content": content}
        for content, characters in replaced.items()
    ]
    return {"type": "Sequence", "normalizers": parts}


@contextmanager
def contenders(
    bundle: Path, against: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> Iterator[dict[str, Path]]:
    """ONNX files to measure side by side, by name; the first is what the others are compared with.

    That is ``against``, a bundle or an ONNX file, where it is given. Else, where layers, heads or neurons were removed, it
    is the whole dense fp32 model, which needs PyTorch. Else it is the dense form of the bundle's first form. What the bundle
    does not hold is written for the while.

    Args:
        say: told what is written, and why the whole model is not.

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
        if whole := _whole_model(bundle, temporary, say):
            yield {DENSE_MODEL: whole, **ours}
            return
        form, file = next(iter(ours.items()))
        dense = _plain(file, temporary)
        yield ours if dense == file else {f"{form} dense": dense, **ours}


@contextmanager
def plain_forms(bundle: Path) -> Iterator[dict[str, Path]]:
    """ONNX files of a bundle by form, for runtimes that do not open packed ones, which are unpacked for the while.

    Raises:
        BundleError: a file cannot be read.
        MachineError: there is no room for the unpacked files.
    """
    with temporary_folder() as temporary:
        yield {form: _plain(file, temporary) for form, file in forms_in(bundle).items()}


def _whole_model(bundle: Path, folder: Path, say: Callable[[str], None]) -> Path | None:
    """Write the whole dense model where structures were removed; None where none were, or where it cannot be built."""
    try:
        model = manifest.read_json(bundle / REPORT_FILE).get("model")
    except (FileNotFoundError, BundleError):
        return None
    if not isinstance(model, dict) or not model.get("structure"):
        return None
    try:
        from xlmprune.export.sizing import write_whole_of_bundle

        say(
            "exporting the dense model to compare with, which can take a minute; --against compares with another file"
        )
        return write_whole_of_bundle(bundle, folder)
    except ImportError as error:
        reason = f"it needs the package {error.name}, which is not installed"
    except BundleError as error:
        reason = str(error)
    say(f"the dense model was not measured: {reason}. The speedups compare with a file of the pruned model")
    return None


def _plain(file: Path, folder: Path) -> Path:
    """Return the file itself; where it is packed, an unpacked copy in the folder."""
    proto = onnx_export.load_onnx(file)
    if not packing.is_packed(proto):
        return file
    onnx_export.save_onnx(packing.unpack(proto), folder / file.name)
    return folder / file.name


def _others(against: Path) -> dict[str, Path]:
    if against.is_file():
        return {against.name: against}
    found = {f"{against.name} {name}": file for name, file in forms_in(against).items()}
    if not found:
        raise BundleError(f"{against} is neither an ONNX file nor a bundle with one")
    return found
