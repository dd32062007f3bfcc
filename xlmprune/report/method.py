"""What was removed from the model and by what, in words; and what is true only of models that lost single weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlmprune.core.formatting import amount, number
from xlmprune.export.form import all_forms
from xlmprune.report.findings import Report, acting_regularizer, trains_after_pruning


def lost_weights(report: Report) -> bool:
    """Return whether single weights of the matrices that remain were pruned; they are zeros at run time."""
    densities = [layer["density"] for layer in report.get("layers", []) if layer.get("density") is not None]
    if densities:
        return any(density < 1 for density in densities)
    pruning = (report.get("recipe") or {}).get("pruning")
    return pruning is not None and pruning.get("pattern") != "structured"


def lost_structures(report: Report) -> bool:
    """Return whether layers, heads or neurons were removed."""
    return bool(report.get("model", {}).get("structure"))


def packed_files(report: Report) -> list[str]:
    """Name the shipped ONNX files that hold matrices by their non-zeros."""
    if "packed" in report:
        return list(report["packed"])
    # Reports of older versions do not say; such a run packed whatever had zeros.
    export = (report.get("recipe") or {}).get("export") or {}
    if export.get("onnx_layout") != "packed" or not lost_weights(report):
        return []
    return [form.file for form in all_forms().values() if form.file in report.get("files", {form.file: {}})]


def describe_method(report: Report) -> str:
    """Say how the model was pruned, structures first; empty where nothing was."""
    pruning = (report.get("recipe") or {}).get("pruning")
    if pruning is None:
        return ""
    done = []
    if lost_structures(report):
        found = report["model"]["structure"]
        ranked = _ranked_by(pruning) if {"attention heads", "FFN neurons"} & {*_removed(found)} else ""
        done.append(f"{_listed(_removed(found))} were removed ({ranked}{describe_kept(found)})")
    if lost_weights(report):
        done.append(f"single weights were set to zero ({_criterion(pruning)}{_alignment(report)})")
    elif done:
        done[0] += _alignment(report)
    if not done:
        return ""
    if pruning.get("reconstruct"):
        done.append("the remaining weights were refitted by least squares on text without labels")
    when = "while it was fine-tuned" if trains_after_pruning(report) else "after it was fine-tuned"
    return f"It was pruned {when}: {_listed(done, 'and then')}."


def describe_structure(report: Report) -> str:
    """Say what is left of layers, heads and neurons, and who can load it; empty where only single weights were pruned."""
    if not lost_structures(report):
        return ""
    found = report["model"]["structure"]
    said = f"{describe_kept(found)}: {amount(found['parameters'])} parameters."
    if found["stock"]:
        return f"{said} Plain transformers loads the unpacked model."
    return (
        f"{said} The configuration of plain transformers cannot describe these sizes: load the model with "
        "xlmprune.load, or serve the ONNX file."
    )


def describe_kept(found: Mapping[str, Any]) -> str:
    """Count the layers, heads and neurons that remain, and those that there were."""
    layers, whole = found["layers"], found["whole"]
    heads, neurons = ([layer[key] for layer in layers] for key in ("heads", "neurons"))
    return (
        f"{len(layers)} of {whole['layers']} layers remain, with {_spread(heads)} of {whole['heads']} attention heads and "
        f"{_spread(neurons)} of {number(whole['neurons'])} FFN neurons each"
    )


def _removed(found: Mapping[str, Any]) -> list[str]:
    layers, whole = found["layers"], found["whole"]
    lost = {
        "layers": len(layers) < whole["layers"],
        "attention heads": any(layer["heads"] < whole["heads"] for layer in layers),
        "FFN neurons": any(layer["neurons"] < whole["neurons"] for layer in layers),
    }
    return [name for name, is_lost in lost.items() if is_lost] or ["structures"]


def _ranked_by(pruning: Mapping[str, Any]) -> str:
    importance = (pruning.get("structure") or {}).get("importance")
    if importance is None:
        return ""
    return f"importance {_criterion(pruning) if importance == 'criterion' else importance}; "


def _criterion(pruning: Mapping[str, Any]) -> str:
    pattern = pruning.get("pattern", "unstructured")
    said = f"criterion {(pruning.get('criterion') or {}).get('name', 'magnitude')}"
    return said if pattern in ("unstructured", "structured") else f"{said}, pattern {pattern}"


def _alignment(report: Report) -> str:
    regularizer = acting_regularizer(report)
    if not regularizer or not trains_after_pruning(report):
        return ""
    if regularizer["name"] == "l2":
        return ", L2 decay of the weights toward zero"
    return f", {regularizer['name']} alignment with the {regularizer.get('reference', 'pretrained')} weights"


def _listed(names: list[str], last: str = "and") -> str:
    *first, end = names
    return f"{', '.join(first)} {last} {end}" if first else end


def _spread(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return number(low) if low == high else f"{number(low)} to {number(high)}"
