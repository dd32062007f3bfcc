"""The dense stage of a comparison, trained once for all cells that share it: a run folder of its own, `dense/<key>`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from xlmprune.recipe import Recipe
from xlmprune.training.dense import dense_key, dense_recipe

if TYPE_CHECKING:
    from xlmprune.core.progress import Reporter


# --- making and copying it -------------------------------------------------------------------------------------------


def is_trained(folder: Path) -> bool:
    """Whether the folder holds a run that is past its stage 0."""
    return _saved_stage(folder) >= 1


def is_begun(folder: Path) -> bool:
    """Whether the folder holds a run with a checkpoint or a bundle, which needs no dense stage from elsewhere."""
    return _saved_stage(folder) >= 0 or (folder / "bundle" / "report.json").is_file()


def _saved_stage(folder: Path) -> int:
    """The stage that the newest checkpoint stands in; -1 where there is none."""
    from xlmprune.core.run_folder import STATE

    states = sorted((folder / "checkpoint").glob(f"saved-*/{STATE}"))
    if not states:
        return -1
    return int(json.loads(states[-1].read_text(encoding="utf-8"))["progress"]["stage"])


def train_dense(recipe: Recipe, folder: Path, device: str, reporter: Reporter, fresh: bool = False) -> None:
    """Train and measure the stage 0 of a `dense_recipe` in ``folder``; resumes where it stopped, unless ``fresh``."""
    from xlmprune import pipeline

    pipeline.run(recipe, folder, device, fresh, reporter)


def plant_dense(dense: Path, recipe: Recipe, folder: Path, fresh: bool = False) -> bool:
    """Let the run in ``folder`` begin after its stage 0, from the one trained in ``dense``; see `start_from`."""
    from xlmprune.training.checkpoint import open_run
    from xlmprune.training.dense import start_from

    with open_run(folder, recipe, fresh) as run:
        return run.finished() is None and start_from(dense, recipe, run)


__all__ = ["dense_key", "dense_recipe", "is_begun", "is_trained", "plant_dense", "train_dense"]
