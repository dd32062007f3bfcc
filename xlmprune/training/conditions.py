"""The conditions of every start of a run: what computes, with which precision, threads, processes and library versions.

The same recipe and data give the same weights, bit for bit, only under the same conditions. A run that resumes under
others says so, and only where that was allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from xlmprune.core.device import require_fixed_workspace, resolve_precision
from xlmprune.core.errors import MachineError
from xlmprune.core.machine import environment, processor_name
from xlmprune.recipe.effects import effect_of
from xlmprune.recipe.schema import TrainingRecipe
from xlmprune.training import graphs
from xlmprune.training.tracking import require_packages

CHOSEN = tuple(key for key in TrainingRecipe.model_fields if effect_of(("training", key)) == "conditions")
"""Keys of the recipe's `training` that are conditions."""

ALTERING = (
    "device", "device_name", "precision", "threads", "processes", *CHOSEN,
    "xlmprune", "torch", "cuda", "transformers", "tokenizers", "numpy",
)  # fmt: skip
"""Conditions that alter results. The others are recorded too."""

Conditions = dict[str, Any]
Changes = dict[str, tuple[Any, Any]]
"""Name of a condition to its values before and now."""


def conditions(device: torch.device, settings: TrainingRecipe) -> Conditions:
    """Return the conditions that a run with these settings has here."""
    used = "bf16" if resolve_precision(settings.precision, device) is torch.bfloat16 else "fp32"
    return {
        "device_name": processor_name(),
        **environment(device),
        "precision": used,
        **{key: getattr(settings, key) for key in CHOSEN},
    }


def require_possible(device: torch.device, settings: TrainingRecipe) -> None:
    """Refuse settings that a run cannot have here, before anything is read.

    Raises:
        MachineError: a package, a GPU or a setting of the environment is missing.
    """
    require_packages(settings.report_to)
    if settings.cuda_graphs:
        graphs.require_possible(device)
    if settings.deterministic:
        require_fixed_workspace(device)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Return the conditions that changed and alter results. What an earlier version did not record is not compared."""
    # A run that an older version began had neither several processes nor these keys.
    later = [key for key in CHOSEN if key in now and key != "gradient_accumulation"]
    defaults = {key: TrainingRecipe.model_fields[key].default for key in later}
    before = {"processes": 1, **defaults, **before}
    recorded = [key for key in ALTERING if key in before]
    return {key: (before[key], now.get(key)) for key in recorded if before[key] != now.get(key)}


def describe(changed: Mapping[str, Any]) -> str:
    """Write changes as ``threads 2 -> 1, precision "fp32" -> "bf16"``."""
    return ", ".join(
        f"{key} {json.dumps(before)} -> {json.dumps(now)}" for key, (before, now) in changed.items()
    )


def require_allowed(changed: Changes, allowed: bool, path: Path) -> None:
    """Refuse to resume under conditions that alter results, unless that was allowed.

    Raises:
        MachineError: names what changed and what to do.
    """
    if changed and not allowed:
        threads = " (OMP_NUM_THREADS sets the threads)" if "threads" in changed else ""
        raise MachineError(
            f"{path}: the conditions changed since the last start of this run: {describe(changed)}. The result could "
            f"differ from that of an uninterrupted run. Resume under the earlier conditions{threads}, or accept the change "
            "with --allow-change"
        )
