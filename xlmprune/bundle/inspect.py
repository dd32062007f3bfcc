"""What a checkpoint, a model folder, an ONNX or safetensors file, or a bundle holds: density, norms and bytes.

Reads numpy arrays from the files, one at a time; neither PyTorch nor a model is needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlmprune.core.checkpoints import SAVED
from xlmprune.core.errors import BundleError
from xlmprune.core.files import SAFETENSORS_FILE
from xlmprune.core.formatting import decimals, number, percent
from xlmprune.core.tables import Table, rich_table, tabulate
from xlmprune.export import manifest, sparse
from xlmprune.export.runtime import bytes_of
from xlmprune.models import architecture

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


@dataclass(frozen=True)
class Stored:
    """One parameter as a file holds it."""

    name: str
    shape: tuple[int, ...]
    remaining: int | None
    """How many entries remain: marked by a mask, or other than zero. None where nobody asks (not prunable)."""
    norm: float
    """Frobenius norm."""
    bytes: int
    """In the file, mask or scales included."""


def inspect(path: str | Path, verify: bool = True) -> dict[str, Any]:
    """Density, norms and bytes of whatever lies at ``path``.

    Args:
        verify: compare the files of a bundle with its manifest first.

    Returns:
        ``path``, ``what`` (bundle, model, checkpoint, safetensors, onnx), ``parameters``, ``prunable``,
        ``encoder_density`` (of the prunable weights, None without any), ``model_density`` (of all), ``bytes`` of the
        file, ``bytes_by_part`` {embeddings, encoder, head, other}, ``matrices`` [{name, layer, module, shape, density,
        norm, bytes}] and the same summed up in ``layers`` and ``modules``. For a bundle the weights file is described,
        and under ``files`` each ONNX file likewise; ``structures_removed`` says whether layers, heads or neurons were
        removed, which no density counts.

    Raises:
        BundleError: nothing we know lies there, or it is damaged.
    """
    found = Path(path)
    if found.is_dir():
        return {"path": found.resolve().name, **_inspect_folder(found, verify)}
    if not found.is_file():
        raise BundleError(f"{found}: no such file or folder")
    if found.suffix == ".onnx":
        return {"path": found.name, "what": "onnx", **_describe(_read_onnx(found), bytes_of(found))}
    if found.suffix == ".safetensors":
        return {"path": found.name, "what": "safetensors", **_inspect_safetensors(found)}
    raise BundleError(f"{found}: expected a folder, or a file that ends in .onnx or .safetensors")


def _inspect_folder(folder: Path, verify: bool) -> dict[str, Any]:
    for inside in ("bundle", "checkpoint"):  # a run's folder
        if (folder / "recipe.yaml").is_file() and (folder / inside).is_dir():
            return _inspect_folder(folder / inside, verify)
    saved = sorted(folder.glob(f"{SAVED}[0-9]*"))
    if saved:
        return _inspect_folder(saved[-1], verify)
    if folder.name.startswith(SAVED):
        return {"what": "checkpoint", **_inspect_checkpoint(folder)}
    config = sparse.read_config(folder)
    if verify and manifest.is_bundle(folder, config):
        listed = [file for pattern in ("*.onnx", "*.onnx.data") for file in sorted(folder.glob(pattern))]
        manifest.require(folder, "config.json", SAFETENSORS_FILE, *(file.name for file in listed))
    if "xlmprune" not in config:
        return {"what": "model", **_inspect_safetensors(*_shards(folder))}
    facts = {"what": "bundle", **_inspect_safetensors(folder / SAFETENSORS_FILE)}
    facts["structures_removed"] = bool(config.get("structure"))
    graphs = sorted(folder.glob("*.onnx"))
    facts["files"] = {graph.name: _describe(_read_onnx(graph), bytes_of(graph)) for graph in graphs}
    return facts


def _shards(folder: Path) -> list[Path]:
    index = folder / f"{SAFETENSORS_FILE}.index.json"
    if not index.is_file():
        return [folder / SAFETENSORS_FILE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        for name in names:
            if Path(name).name != name or "\\" in name:
                raise ValueError(f"{name!r} is not the name of a file in the same folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{index} is damaged ({error}); expected a weight_map from parameters to files"
        ) from error
    return [folder / name for name in names]


# --- safetensors and checkpoints -------------------------------------------------------------------------------------


def _inspect_safetensors(*paths: Path) -> dict[str, Any]:
    stored = [entry for path in paths for entry in _read_safetensors(path)]
    return _describe(stored, sum(path.stat().st_size for path in paths))


def _read_safetensors(path: Path, count: Callable[[str, np.ndarray], int] | None = None) -> Iterator[Stored]:
    header = sparse.read_header(path)
    matrices = sparse.read_facts(path).get("matrices", {})
    file = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(file[:8].tobytes(), "little")
    sizes = {
        name: entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name[:2] != "__"
    }
    for name, size in sizes.items():
        if name.removesuffix(sparse.MASK) in matrices and name not in matrices:
            continue
        begin = start + header[name]["data_offsets"][0]
        values = _floats(path, name, file[begin : begin + size], header[name]["dtype"])
        shape = tuple(matrices[name]["shape"] if name in matrices else header[name]["shape"])
        remaining = None
        if name in matrices:
            remaining, size = matrices[name]["kept"], size + sizes[name + sparse.MASK]
        elif _is_prunable(name) and len(shape) == 2:
            remaining = count(name, values) if count else int(np.count_nonzero(values))
        yield Stored(name, shape, remaining, float(np.linalg.norm(values)), size)


def _floats(path: Path, name: str, raw: np.ndarray, dtype: str) -> np.ndarray:
    try:
        return _as_floats(path, name, raw, dtype)
    except ValueError as error:
        raise BundleError(f"{path}: {name} is damaged: {error}") from error


def _as_floats(path: Path, name: str, raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if str(dtype) not in DTYPES:
        raise BundleError(f"{path}: {name} is {dtype}, which cannot be inspected")
    return np.frombuffer(raw, DTYPES[dtype])


def _inspect_checkpoint(folder: Path) -> dict[str, Any]:
    """Inspect a run's checkpoint: parameters in one file, packed masks in another."""
    masks: dict[str, np.ndarray] = {}
    if (folder / "masks.safetensors").is_file():
        from safetensors.numpy import load_file

        masks = load_file(folder / "masks.safetensors")

    def count(name: str, values: np.ndarray) -> int:
        if name not in masks:
            return int(values.size)
        return int(np.unpackbits(masks[name], count=values.size, bitorder="little").sum())

    path = folder / SAFETENSORS_FILE
    return _describe(list(_read_safetensors(path, count)), path.stat().st_size)


# --- ONNX ------------------------------------------------------------------------------------------------------------


def _read_onnx(path: Path) -> Iterator[Stored]:
    """Parameters of a graph, packed and quantized ones included, under the names PyTorch has for them."""
    from onnx import numpy_helper

    from xlmprune.export.graph import TRANSPOSED, load_onnx, parameter_of, tensor_bytes
    from xlmprune.export.packing import unpack
    from xlmprune.export.quantization import INT4, restore_blocks

    graph = load_onnx(path)
    sizes: dict[str, int] = {}
    for tensor in graph.graph.initializer:
        parameter = parameter_of(tensor.name)
        if parameter:
            sizes[parameter] = sizes.get(parameter, 0) + tensor_bytes(tensor)
    groups: dict[str, list[Any]] = {}
    for tensor in unpack(graph).graph.initializer:
        groups.setdefault(parameter_of(tensor.name) or "", []).append(tensor)
    groups.pop("", None)
    for parameter, tensors in groups.items():
        # A quantized matrix comes with its scale and zero point, which are smaller than it.
        tensors.sort(key=lambda tensor: math.prod(tensor.dims), reverse=True)
        values = numpy_helper.to_array(tensors[0])
        beside = {
            ("scale" if "scale" in t.name else "zero" if "zero" in t.name else t.name): t for t in tensors[1:]
        }
        zero = numpy_helper.to_array(beside["zero"]) if "zero" in beside else None
        scale = numpy_helper.to_array(beside["scale"]) if "scale" in beside else None
        if tensors[0].name.endswith(INT4) and scale is not None:
            values, scale = restore_blocks(values, scale), None
        if zero is not None and zero.any():
            values = values.astype(np.int32) - zero
        prunable = _is_prunable(parameter) and values.ndim == 2
        transposed = tensors[0].name.startswith(parameter + TRANSPOSED)
        yield Stored(
            parameter,
            tuple(reversed(values.shape)) if transposed else values.shape,
            int(np.count_nonzero(values)) if prunable else None,
            _norm(values, scale),
            sizes.get(parameter, 0),
        )


def _is_prunable(name: str) -> bool:
    return name.endswith(".weight") and architecture.find_matrix(name) is not None


def _norm(values: np.ndarray, scale: np.ndarray | None) -> float:
    if scale is None:
        return float(np.linalg.norm(values.astype(np.float32, copy=False)))
    if scale.ndim == 1 and scale.size not in (1, values.shape[-1]):
        scale = scale[:, None]  # one a row, as of an embedding table
    return float(np.linalg.norm(values.astype(np.float32) * scale))


# --- summing up ------------------------------------------------------------------------------------------------------


def _describe(parameters: Iterable[Stored], size: int) -> dict[str, Any]:
    stored = list(parameters)
    matrices = [entry for entry in stored if entry.remaining is not None]
    total, prunable = sum(_numel(entry) for entry in stored), sum(_numel(entry) for entry in matrices)
    remaining = sum(entry.remaining or 0 for entry in matrices)
    by_part: dict[str, int] = dict.fromkeys(architecture.PARTS, 0)
    for entry in stored:
        by_part[architecture.part_of(entry.name)] += entry.bytes
    by_part["other"] += size - sum(by_part.values())  # the graph, names, metadata
    rows = [_row(entry) for entry in matrices]
    return {
        "parameters": total,
        "prunable": prunable,
        "encoder_density": remaining / prunable if prunable else None,
        "model_density": (total - prunable + remaining) / total if total else None,
        "bytes": size,
        "bytes_by_part": by_part,
        "matrices": rows,
        "layers": _sum_up(rows, "layer"),
        "modules": _sum_up(rows, "module"),
    }


def _row(entry: Stored) -> dict[str, Any]:
    found = architecture.find_matrix(entry.name)
    assert found is not None
    assert entry.remaining is not None
    return {
        "name": entry.name,
        "layer": found.layer,
        "module": found.module,
        "shape": list(entry.shape),
        "density": entry.remaining / max(_numel(entry), 1),
        "norm": entry.norm,
        "bytes": entry.bytes,
    }


def _sum_up(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows of equal ``key`` as one: densities weighted by size, norms of all weights together, bytes added."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    summed = []
    for value, members in sorted(groups.items()):
        weights = [math.prod(row["shape"]) for row in members]
        summed.append(
            {
                key: value,
                "parameters": sum(weights),
                "density": sum(row["density"] * n for row, n in zip(members, weights, strict=True))
                / sum(weights),
                "norm": math.sqrt(sum(row["norm"] ** 2 for row in members)),
                "bytes": sum(row["bytes"] for row in members),
            }
        )
    return summed


def _numel(entry: Stored) -> int:
    return math.prod(entry.shape)


def render(facts: dict[str, Any]) -> Any:
    """Return the facts as tables for the terminal."""
    from rich.console import Group

    density = "no prunable weights"
    if facts["encoder_density"] is not None:
        encoder, model = (percent(facts[key], 2) for key in ("encoder_density", "model_density"))
        density = f"encoder density {encoder}, model density {model}"
    if facts.get("structures_removed"):
        density += " of what is left after layers, heads or neurons were removed (report.md compares with the whole model)"
    title = f"{facts['path']} ({facts['what']}): {facts['parameters']:,} parameters, {density}"
    tables = [_matrix_table(facts, "modules", title), _matrix_table(facts, "layers"), _part_table(facts)]
    return Group(*(line for table in tables for line in (rich_table(table), "")))


def _matrix_table(facts: dict[str, Any], key: str, title: str = "") -> Table:
    columns: dict[str, Callable[[Any], str]] = {
        key[:-1]: lambda row: str(row[key[:-1]]),
        "parameters": lambda row: number(row["parameters"]),
        "density": lambda row: percent(row["density"], 2),
        "norm": lambda row: decimals(row["norm"]),
        "bytes": lambda row: number(row["bytes"]),
    }
    return tabulate(title, columns, facts[key])


def _part_table(facts: dict[str, Any]) -> Table:
    weights = {SAFETENSORS_FILE if facts["what"] == "bundle" else facts["path"]: facts}
    parts = architecture.PARTS
    rows = [
        [name, number(entry["bytes"]), *(number(entry["bytes_by_part"][part]) for part in parts)]
        for name, entry in {**weights, **facts.get("files", {})}.items()
    ]
    return Table("Bytes by part", ["file", "bytes", *parts], rows)
