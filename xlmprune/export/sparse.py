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
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xlmprune.core.errors import BundleError, ModelError
from xlmprune.core.files import SAFETENSORS_FILE, replacing
from xlmprune.export import codes
from xlmprune.models import architecture
from xlmprune.models.checkpoint import name_some

if TYPE_CHECKING:
    from torch import Tensor, nn

LAYOUT = 1
KEY = "xlmprune"
MASK = ".mask"


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
    """What the metadata say: `layout`, `matrices`, and what the writer added. `{}` for a plain safetensors file.

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
        for name, entry in matrices.items():
            int(entry["kept"]), [int(side) for side in entry["shape"]], entry["code"]["name"], str(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{path}: the description of its pruned matrices is damaged ({error}); export again"
        ) from error
    if layout != LAYOUT:
        raise BundleError(
            f"{path} has sparse layout {layout}, expected {LAYOUT}; use the xlmprune that wrote it"
        )
    _check_sparse_header(path, header, matrices)
    return facts


def read_header(path: Path) -> dict[str, Any]:
    """The safetensors header: name to `dtype`, `shape`, `data_offsets`; and `__metadata__`.

    Raises:
        BundleError: missing, not safetensors, of another length than the header says, or with a key twice.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise BundleError(f"{path} is not a safetensors file, or is cut short: {size:,} bytes found")
            text = file.read(length)
        header = json.loads(text, object_pairs_hook=lambda pairs: _once(path, pairs))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except FileNotFoundError:
        raise BundleError(f"{path} is missing") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is not a safetensors file, or its header is damaged ({error})") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise BundleError(f"{path} is damaged: {size:,} bytes found, {expected:,} expected from its header")
    return header


def _once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, entry in pairs:
        if name in entries:
            raise BundleError(f"{path} holds {name} twice; export again")
        entries[name] = entry
    return entries


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
    return _read(path)[0]


def read_masks(path: Path) -> dict[str, Tensor]:
    """The mask of every pruned matrix, true remains; `{}` for a plain safetensors file."""
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    import torch
    from safetensors import SafetensorError, safe_open

    matrices = read_facts(path).get("matrices", {})
    tensors: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if name in matrices:
                    data = file.get_tensor(name + MASK).numpy()
                    masks[name] = torch.from_numpy(decode_mask(path, name, matrices[name], data))
                    tensors[name] = torch.zeros(matrices[name]["shape"], dtype=file.get_tensor(name).dtype)
                    tensors[name].masked_scatter_(masks[name], file.get_tensor(name))
                elif name.removesuffix(MASK) not in matrices:
                    tensors[name] = file.get_tensor(name)
    except SafetensorError as error:
        raise BundleError(f"{path} is damaged: {error}") from error
    return tensors, masks


def decode_mask(path: Path, name: str, entry: dict[str, Any], data: np.ndarray) -> np.ndarray:
    """The boolean mask of one matrix, in its shape, from its entry in `matrices` and its code."""
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
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = (
            "no such folder"
            if not folder.is_dir()
            else "config.json is missing; expected a folder written by xlmprune"
        )
        raise BundleError(f"{folder}: {what}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise BundleError(f"{path}: expected a JSON object")
    return config


def load(bundle: str | Path) -> nn.Module:
    """The PyTorch model of a bundle (or of any folder with config.json and model.safetensors), in eval mode.

    Weights are bit for bit those that were saved. Nothing of the bundle is executed.

    Raises:
        BundleError: a parameter is missing, foreign, or of another size; a file is missing or damaged.
    """
    import transformers
    from transformers.initialization import no_init_weights

    from xlmprune.pruning.structures import layout_in, resize

    folder = Path(bundle)
    config = read_config(folder)
    wanted = (config.get("architectures") or [None])[0]
    known = {name for family in architecture.families() for name in family.heads.values()}
    if wanted not in known:
        raise BundleError(
            f"{folder / 'config.json'}: architecture {wanted!r} found; expected one of {', '.join(sorted(known))}"
        )
    path = folder / SAFETENSORS_FILE
    try:
        layout = layout_in(config)
    except (ModelError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{folder}: {error}") from error
    tensors = read_sparse(path)
    with no_init_weights():
        head = getattr(transformers, wanted)
        model = head(head.config_class(**config))
        if layout is not None:
            resize(model, layout)
    _check_keys(path, tensors, model.state_dict())
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.eval()


def _check_keys(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    missing, foreign = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing:
        raise BundleError(f"{path}: {name_some(missing)} missing; the model of config.json needs every one")
    if foreign:
        raise BundleError(f"{path}: {name_some(foreign)} found, which the model of config.json does not have")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            found, expected = list(tensor.shape), list(wanted[name].shape)
            raise BundleError(f"{path}: {name} is {found}, expected {expected} from config.json")


def unpack(bundle: Path, out: Path) -> list[Path]:
    """Write ``out`` as a plain model folder, which `from_pretrained` and every tool accept.

    Returns:
        The files written: model.safetensors, config.json and the tokenizer's.

    Raises:
        BundleError: the bundle is damaged.
    """
    model = load(bundle)
    save_dense(model, out / SAFETENSORS_FILE)
    written = [out / SAFETENSORS_FILE]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if (bundle / name).is_file():
            with replacing(out / name) as partial:
                shutil.copyfile(bundle / name, partial)
            written.append(out / name)
    return written
