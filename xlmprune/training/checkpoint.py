"""A run's checkpoint: the state of training, what was measured so far, and the data that it was made with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xlmprune.core import processes
from xlmprune.core.checkpoints import DamagedError, Numbers, Tensors
from xlmprune.core.errors import DataError, RecipeError
from xlmprune.core.run_folder import FolderOfFirst, RunFolder
from xlmprune.evaluation.observing import Observed
from xlmprune.recipe.effects import MAY_CHANGE, differences
from xlmprune.recipe.loading import load_recipe
from xlmprune.recipe.schema import Recipe, TrainingRecipe
from xlmprune.recipe.validation import validate_recipe
from xlmprune.recipe.yaml_text import parse_yaml
from xlmprune.training.conditions import Conditions
from xlmprune.training.datasets import UNLABELLED
from xlmprune.training.stages import StageScores
from xlmprune.training.state import TrainState


def open_run(path: Path, recipe: Recipe, fresh: bool = False) -> RunFolder:
    """Open the run folder of a recipe, which is the first process's alone; see `RunFolder`."""
    if not processes.is_first():
        return FolderOfFirst(path)
    return RunFolder(path, recipe.to_yaml(), recipe.sha256(), partial(difference, recipe), fresh)


def difference(recipe: Recipe, text: str, file: Path) -> str | None:
    """Say where the recipe that ``file`` holds differs from ``recipe``; None where they are equal."""
    values, _ = parse_yaml(text, str(file))
    # A file of an older version lacks keys that were added since; their defaults are what it meant. Where it is not valid
    # at all, the values as they stand show the difference.
    with suppress(RecipeError):
        values = validate_recipe(values, str(file), saved=True).resolved()
    return first_difference(values, recipe.resolved())


def first_difference(found: Any, wanted: Any) -> str | None:
    """Name the first key in which two resolved recipes differ, with both values, among those that may not change."""
    keys = (key for key in differences(found, wanted) if key.effect not in MAY_CHANGE)
    return next(map(str, keys), None)


def recipe_file(path: Path) -> Path:
    """Return the resolved recipe of the run folder ``path``.

    Raises:
        RecipeError: there is none.
    """
    file = path / "recipe.yaml"
    if not file.is_file():
        raise RecipeError(f"{path}: is not a run folder; it has no recipe.yaml")
    return file


def require_only_export_changes(path: Path, before: Recipe, now: Recipe) -> None:
    """Raise RecipeError if the recipe of the finished run in ``path`` changed in more than its export."""
    for key in differences(before.resolved(), now.resolved()):
        if key.effect not in MAY_CHANGE:
            name = ".".join(map(str, key.path))
            raise RecipeError(
                f"{path}: {name} changes {key.effect}; in a finished run only export settings can change"
            )


def require_same_export(folder: RunFolder, recipe: Recipe) -> None:
    """Raise RecipeError if the bundle of a finished run was made with other export settings."""
    found = load_recipe(str(folder.path / "recipe.yaml"), saved=True).resolved()
    keys = [key for key in differences(found, recipe.resolved()) if key.effect == "export"]
    if keys:
        options = (f"{'.'.join(map(str, key.path))}={json.dumps(key.now)}" for key in keys)
        command = " ".join(f"--set {shlex.quote(option)}" for option in options)
        raise RecipeError(
            f"{folder.path}: this run is finished, and its bundle has other settings ({', '.join(map(str, keys))}). Make "
            f"the bundle again with: xlmprune export {shlex.quote(str(folder.path))} {command}"
        )


def save(
    folder: RunFolder,
    state: TrainState,
    scores: StageScores,
    conditions: Conditions,
    changes: list[dict[str, Any]],
) -> None:
    """Write a checkpoint.

    Args:
        conditions: of this start.
        changes: those of earlier starts that were allowed to change.
    """
    tensors = state.tensors()
    dense = {
        language: torch.from_numpy(np.ascontiguousarray(part)) for language, part in scores.dense.items()
    }
    observed = {name: torch.from_numpy(array) for name, array in scores.dense_observed.tensors().items()}
    numbers: Numbers = {
        "progress": state.progress(),
        "stages": scores.rows,
        "dense_others": scores.dense_others,
        "data": dict(scores.data.fingerprints),
        "conditions": conditions,
        "changes": changes,
    }
    measured = {name: part for name, part in (("dense", dense), ("observed", observed)) if part}
    folder.save({**tensors, **measured}, numbers)


def restore(
    folder: RunFolder,
    state: TrainState,
    scores: StageScores,
    settings: TrainingRecipe,
    say: Callable[[str], None],
) -> Numbers | None:
    """Stand where the newest intact checkpoint left the run; return its numbers, or None where there is no checkpoint.

    Args:
        say: told about a damaged checkpoint.

    Raises:
        DataError: the data changed since the run started.
        ModelError: the checkpoint is damaged.
    """
    found = processes.from_first(lambda: _latest(folder, dict(scores.data.fingerprints), say))
    if found is None:
        return None
    tensors, numbers = found
    try:
        state.restore(tensors, numbers["progress"], settings)
        scores.rows, scores.dense_others = numbers["stages"], numbers["dense_others"]
        dense = tensors.get("dense", {})
        measured = scores.data.tests if scores.rows and "languages" in scores.rows[0] else dense
        scores.dense = {language: dense[language].numpy() for language in measured}
        observed = tensors.get("observed", {})
        scores.dense_observed = Observed.of_tensors({name: part.numpy() for name, part in observed.items()})
    except KeyError as error:
        raise DamagedError(f"{folder.checkpoints}: {error} is missing; use --fresh to start over") from error
    return numbers


def _latest(
    folder: RunFolder, data: dict[str, str], say: Callable[[str], None]
) -> tuple[Tensors, Numbers] | None:
    found = folder.latest(say)
    if found is not None:
        _require_same_data(folder.path, found[1], data)
    return found


def _require_same_data(path: Path, numbers: Numbers, now: dict[str, str]) -> None:
    known = numbers["data"]
    if after_stage_0(numbers):
        # Stage 0 may have been trained for several runs, and reads no unlabelled text.
        now = {what: mark for what, mark in now.items() if what in known or not what.startswith(UNLABELLED)}
    changed = [what for what in known if now.get(what, known[what]) != known[what]]
    if changed or known.keys() != now.keys():
        changed += sorted(known.keys() ^ now.keys())
        raise DataError(
            f"{path}: the data changed since the run started ({', '.join(changed)}). Put the files back to resume, or use "
            "--fresh to start over with these"
        )


def after_stage_0(numbers: Numbers) -> bool:
    """Return whether a checkpoint was made right after stage 0."""
    return (numbers["progress"]["stage"], numbers["progress"]["update"]) == (1, 0)
