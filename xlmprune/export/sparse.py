"""Sparse `model.safetensors`: for every pruned matrix its remaining values and a code that says where they stand.

Layout, version 1. An ordinary safetensors file whose metadata carry one JSON string `xlmprune`:

    {"layout": 1, "matrices": {NAME: {"shape": [out, in], "kept": k, "code": {"name": "rice", "low_bits": 1, …}}}, …}

For each NAME among `matrices` the file holds

    NAME         [k], the matrix's dtype: the remaining values, row by row
    NAME.mask    uint8, 1-D: which entries remain, in the code that `export/codes.py` describes

and every other parameter as it is. A matrix in which everything remains is stored as it is, too. `codes` takes the
smallest of its codes per matrix: bits per weight come within 3 % of H(p) + p·b, with b the bits of a value.

Under its own name a pruned matrix has one dimension. That is on purpose: `from_pretrained`, which knows nothing of
this layout, then stops at a size mismatch, where a missing name would be filled with random numbers without an error.
`unpack` writes the plain file that every tool reads.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xlmprune.core.errors import BundleError, ModelError
from xlmprune.core.files import SAFETENSORS_FILE, keys_once, replacing
from xlmprune.export import codes, manifest
from xlmprune.models import architecture
from xlmprune.models.checkpoint import check_config, name_some

if TYPE_CHECKING:
    from torch import Tensor, nn

LAYOUT = 1
KEY = "xlmprune"
MASK = ".mask"

FLOATS = frozenset(("F64", "F32", "F16", "BF16"))
"""Types of safetensors that a parameter may have."""

FILES = (SAFETENSORS_FILE, "config.json", "tokenizer.json", "tokenizer_config.json")
"""What `unpack` reads."""

LARGEST_EXPANSION = 1000
"""Weights for each byte of a file at most; a model of which one weight in 5,000 remains has about 400."""

SMALL = 1 << 24
"""Weights that any file may describe."""


# --- writing ---------------------------------------------------------------------------------------------------------


def save_sparse(
    model: nn.Module, masks: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write the model's parameters, those named in ``masks`` as values and code.

    Args:
        masks: parameter name to boolean mask of its shape, true remains.
        metadata: further JSON facts, kept beside `layout`; strings, numbers, lists.

    Raises:
        ValueError: a mask of another shape, or a pruned weight that is not zero (the file would not be the model).
    """
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    matrices: dict[str, Any] = {}
    unknown = set(masks) - set(model.state_dict())
    if unknown:
        raise ValueError(f"masks for parameters the model does not have: {sorted(unknown)}")
    for name, parameter in model.state_dict().items():
        weight = parameter.detach().cpu().contiguous()
        mask = masks.get(name)
        if mask is None or bool(mask.all()):
            tensors[name] = weight
            continue
        if mask.shape != weight.shape:
            raise ValueError(f"{name}: the mask is {list(mask.shape)}, the weight {list(weight.shape)}")
        mask = mask.detach().cpu()
        values = weight[mask]
        if torch.count_nonzero(values) != torch.count_nonzero(weight):
            raise ValueError(f"{name}: weights that the mask has pruned are not zero")
        coded = codes.encode(mask.numpy())
        tensors[name], tensors[name + MASK] = values, torch.from_numpy(coded.data)
        matrices[name] = {"shape": list(weight.shape), "kept": values.numel(), "code": coded.code}
    facts = {**(metadata or {}), "layout": LAYOUT, "matrices": matrices}
    with replacing(path) as partial:
        # One key only: with two, safetensors writes them in an order that changes from file to file.
        save_file(tensors, partial, {KEY: json.dumps(facts, sort_keys=True)})


def save_dense(model: nn.Module, path: Path) -> None:
    """Write the model's parameters as they are, for any tool."""
    from safetensors.torch import save_file

    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in model.state_dict().items()}
    with replacing(path) as partial:
        save_file(tensors, partial, {"format": "pt"})


# --- reading ---------------------------------------------------------------------------------------------------------


def read_facts(path: Path) -> dict[str, Any]:
    """Return what the metadata say: `layout`, `matrices`, and what the writer added. `{}` for a plain safetensors file.

    Needs neither PyTorch nor the tensors.

    Raises:
        BundleError: not a safetensors file, cut short, or with a key twice; or of a layout we cannot read.
    """
    header = read_header(path)
    if KEY not in header.get("__metadata__", {}):
        return {}
    try:
        facts = json.loads(header["__metadata__"][KEY])
        layout, matrices = facts["layout"], facts["matrices"]
        for entry in matrices.values():
            if not all(manifest.is_count(value) for value in (entry["kept"], *entry["shape"])):
                raise ValueError(f"kept {entry['kept']!r} of shape {entry['shape']!r}")
            entry["code"]["name"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"{path}: the description of its pruned matrices is damaged ({error}); export again"
        ) from error
    if layout != LAYOUT:
        raise BundleError(
            f"{path} has sparse layout {layout}, expected {LAYOUT}; use the xlmprune that wrote it"
        )
    _check_sparse_header(path, header, matrices)
    entries = sum(math.prod(entry["shape"]) for entry in matrices.values())
    if entries > max(SMALL, LARGEST_EXPANSION * path.stat().st_size):
        raise BundleError(
            f"{path}: its {path.stat().st_size:,} bytes describe {entries:,} weights, which no pruned model does"
        )
    return facts


def read_header(path: Path) -> dict[str, Any]:
    """Return the safetensors header: name to `dtype`, `shape`, `data_offsets`; and `__metadata__`.

    Raises:
        BundleError: missing, not safetensors, of another length than the header says, or with a key twice.
    """
    manifest.require_file(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise BundleError(f"{path} is not a safetensors file, or is cut short: {size:,} bytes found")
            text = file.read(length)
        header = json.loads(text, object_pairs_hook=keys_once)
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        for entry in entries:
            begin, end = entry["data_offsets"]
            if not all(map(manifest.is_count, (begin, end, *entry["shape"]))) or begin > end:
                raise ValueError(f"shape {entry['shape']!r} at {begin!r} to {end!r}")
            if not isinstance(entry["dtype"], str):
                raise ValueError(f"dtype {entry['dtype']!r}")
        ends = [entry["data_offsets"][1] for entry in entries]
    except FileNotFoundError:
        raise BundleError(f"{path} is missing") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path} is not a safetensors file, or its header is damaged ({error})") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise BundleError(f"{path} is damaged: {size:,} bytes found, {expected:,} expected from its header")
    return header


def _check_sparse_header(path: Path, header: dict[str, Any], matrices: dict[str, Any]) -> None:
    for name, entry in matrices.items():
        for part, dtype in ((name, None), (name + MASK, "U8")):
            if part not in header:
                raise BundleError(f"{path}: {part} is missing")
            if len(header[part]["shape"]) != 1 or (dtype and header[part]["dtype"] != dtype):
                found = f"{header[part]['dtype']} {header[part]['shape']}"
                raise BundleError(f"{path}: {part} is {found}, expected one dimension")
        values, entries = header[name]["shape"][0], math.prod(entry["shape"])
        if values != entry["kept"] or values > entries:
            raise BundleError(f"{path}: {name} has {values} values, expected {entry['kept']} of {entries}")
    stray = [name for name in header if name.endswith(MASK) and name.removesuffix(MASK) not in matrices]
    if stray:
        raise BundleError(f"{path}: {stray[0]} belongs to no matrix of this file")


def read_sparse(path: Path) -> dict[str, Tensor]:
    """Every parameter by name, pruned matrices expanded, exactly as saved. Reads plain safetensors files as well.

    Raises:
        BundleError: the file is damaged; names the key.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    matrices = read_facts(path).get("matrices", {})
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if name in matrices:
                    data = file.get_tensor(name + MASK).numpy()
                    mask = torch.from_numpy(decode_mask(path, name, matrices[name], data))
                    values = file.get_tensor(name)
                    tensors[name] = torch.zeros(matrices[name]["shape"], dtype=values.dtype)
                    tensors[name].masked_scatter_(mask, values)
                elif name.removesuffix(MASK) not in matrices:
                    tensors[name] = file.get_tensor(name)
    except SafetensorError as error:
        raise BundleError(f"{path} is damaged: {error}") from error
    return tensors


def decode_mask(path: Path, name: str, entry: dict[str, Any], data: np.ndarray) -> np.ndarray:
    """Return the boolean mask of one matrix, in its shape, from its entry in `matrices` and its code."""
    try:
        mask = codes.decode(entry["code"], data, math.prod(entry["shape"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: {name}{MASK} is damaged: {error}") from error
    if np.count_nonzero(mask) != entry["kept"]:
        raise BundleError(
            f"{path}: {name}{MASK} marks {np.count_nonzero(mask)} entries, expected {entry['kept']}"
        )
    return mask.reshape(entry["shape"])


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a bundle or model folder.

    Raises:
        BundleError: it is missing or not JSON.
    """
    try:
        return manifest.read_json(folder / "config.json")
    except FileNotFoundError:
        missing = "config.json is missing" if folder.is_dir() else "no such folder"
        raise BundleError(f"{folder}: {missing}; expected a folder written by xlmprune") from None


def load(bundle: str | Path, verify: bool = True) -> nn.Module:
    """Load the PyTorch model of a bundle (or of any folder with config.json and model.safetensors), in eval mode.

    Weights are bit for bit those that were saved. Nothing of the bundle is executed.

    Args:
        verify: compare the files of a bundle with its manifest first. A folder without a manifest and without the
            section `xlmprune` in config.json is no bundle, and is opened as it is.

    Raises:
        BundleError: a parameter is missing, foreign, or of another size or type; a file is missing or damaged.
    """
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    from xlmprune.pruning.structures import layout_in, resize

    folder = Path(bundle)
    config = read_config(folder)
    if verify and manifest.is_bundle(folder, config):
        manifest.require(folder, "config.json", SAFETENSORS_FILE)
    named = config.get("architectures")
    wanted = named[0] if isinstance(named, list) and named else None
    known = {name for family in architecture.families() for name in family.heads.values()}
    if wanted not in known:
        raise BundleError(
            f"{folder / 'config.json'}: architecture {wanted!r} found; expected one of {', '.join(sorted(known))}"
        )
    path = folder / SAFETENSORS_FILE
    _check_settings(folder, config, len(read_header(path)))
    try:
        layout = layout_in(config)
    except (ModelError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{folder}: {error}") from error

    def build() -> nn.Module:
        head = getattr(transformers, wanted)
        model = head(head.config_class(**config))
        if layout is not None:
            resize(model, layout)
        return model

    try:
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
    except Exception as error:  # a configuration can be wrong in as many ways as transformers has lines
        raise BundleError(f"{folder / 'config.json'} describes no model: {error}") from error
    # Compared before memory is asked for: a small file may claim to be a large model.
    _check_keys(path, _shapes(path), shapes)
    _check_types(path, shapes)
    tensors = read_sparse(path)
    with no_init_weights():
        model = build()
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


def _check_settings(folder: Path, config: Mapping[str, Any], tensors: int) -> None:
    """Refuse numbers that no model has, before anything is built from them."""
    path = folder / "config.json"
    try:
        check_config(str(folder), config)
    except ModelError as error:
        raise BundleError(str(error)) from None
    layers = config.get("num_hidden_layers", 0)
    if layers > tensors:
        raise BundleError(
            f"{path}: num_hidden_layers is {layers}, and {SAFETENSORS_FILE} holds {tensors} tensors"
        )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of a file, by name, without reading any."""
    header, matrices = read_header(path), read_facts(path).get("matrices", {})
    masks = {name + MASK for name in matrices}
    return {
        name: tuple(matrices[name]["shape"] if name in matrices else entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__" and name not in masks
    }


def _check_keys(path: Path, found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]]) -> None:
    missing, foreign = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        raise BundleError(f"{path}: {name_some(missing)} missing; the model of config.json needs every one")
    if foreign:
        raise BundleError(f"{path}: {name_some(foreign)} found, which the model of config.json does not have")
    for name, shape in found.items():
        if tuple(shape) != tuple(wanted[name]):
            raise BundleError(
                f"{path}: {name} is {list(shape)}, expected {list(wanted[name])} from config.json"
            )


def _check_types(path: Path, names: Iterable[str]) -> None:
    """Refuse parameters that are no floating-point numbers, or not all of one type."""
    header = read_header(path)
    by_type: dict[Any, str] = {}
    for name in names:
        by_type.setdefault(header[name]["dtype"], name)
    if len(by_type) > 1:
        found = ", ".join(f"{name} is {dtype}" for dtype, name in by_type.items())
        raise BundleError(f"{path}: {found}; expected one type for all parameters")
    if unknown := set(by_type) - FLOATS:
        raise BundleError(
            f"{path}: the parameters are {unknown.pop()}; expected one of {', '.join(sorted(FLOATS))}"
        )


def unpack(bundle: Path, out: Path, verify: bool = True) -> list[Path]:
    """Write ``out`` as a plain model folder, which `from_pretrained` and every tool accept.

    Returns:
        The files written: model.safetensors, config.json and the tokenizer's.

    Raises:
        BundleError: the bundle is damaged.
    """
    model = load(bundle, verify)
    save_dense(model, out / SAFETENSORS_FILE)
    written = [out / SAFETENSORS_FILE]
    for name in FILES[1:]:
        if (bundle / name).is_file():
            with replacing(out / name) as partial:
                shutil.copyfile(bundle / name, partial)
            written.append(out / name)
    return written
