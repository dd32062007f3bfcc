"""The dense stage, trained once for all cells that share it.

Fine-tuning before any pruning is about half of a run, and methods differ after it. `dense_recipe` reduces a recipe
to what its stage 0 reads: where two are equal, so are the two stages, bit by bit. That stage is then a run folder
of its own, `dense/<key>`, stopped at its first checkpoint, and every cell begins from a copy of it: the same files
that the cell would have written itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmprune import recipe as recipes
from xlmprune.core.errors import ModelError
from xlmprune.recipe import Component, ExportRecipe, PruningRecipe, Recipe

if TYPE_CHECKING:
    from xlmprune.core.progress import Reporter


def dense_recipe(recipe: Recipe) -> Recipe:
    """The recipe with everything that stage 0 does not read set to a default.

    The sections task and evaluation stay whole, since stage 0 also measures the dense model on every language.
    """
    training = recipe.training
    dense_epochs = training.dense_epochs or training.epochs_per_stage
    reduced = training.model_copy(
        update={
            "dense_epochs": dense_epochs,
            # Whether a dev set is required hangs on this being above 1; stage 0 asks nothing else of it.
            "epochs_per_stage": 1.0 if training.epochs_per_stage <= 1 else 2.0,
            "learning_rate": training.dense_learning_rate or training.learning_rate,
            "dense_learning_rate": None,
            "regularize_dense": True,
        }
    )
    watches = _criterion_acts_on_dense(recipe)
    return recipe.model_copy(
        update={
            "name": "dense",
            "training": reduced,
            "pruning": PruningRecipe(criterion=recipe.pruning.criterion) if watches else PruningRecipe(),
            "distillation": None,
            "regularizer": recipe.regularizer if _regularizes_dense(recipe) else Component(name="none"),
            "export": ExportRecipe(),
        }
    )


def dense_key(recipe: Recipe) -> str:
    """Twelve hexadecimal digits that are equal where stage 0 is; a new key of recipes leaves them as they were."""
    given = dense_recipe(recipe).model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]


def _regularizes_dense(recipe: Recipe) -> bool:
    regularizer = recipes.build(recipe, "regularizer")
    if not recipe.training.regularize_dense or not getattr(regularizer, "strength", 0):
        return False
    # In stage 0 there is nothing fine-tuned to align to yet.
    return getattr(regularizer, "reference", "pretrained") != "finetuned"


def _criterion_acts_on_dense(recipe: Recipe) -> bool:
    """Whether the criterion changes weights or collects state while nothing is pruned yet, found by trying."""
    import torch

    criterion = recipes.build(recipe, "criterion")
    weights = {"probe": torch.tensor([[0.5, -1.0], [2.0, -0.25]], requires_grad=True)}
    weights["probe"].grad = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    masks = {"probe": torch.ones(2, 2, dtype=torch.bool)}
    before = _state(criterion)
    seen = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for hook, further in (("before_forward", ()), ("observe", (1e-3,)), ("fold", ())):
            if hasattr(criterion, hook):
                getattr(criterion, hook)(weights, masks, *further)
                seen.append(weights["probe"].detach().clone())
    changed = any(not torch.equal(weight, torch.tensor([[0.5, -1.0], [2.0, -0.25]])) for weight in seen)
    after = _state(criterion)
    return changed or set(before) != set(after) or any(not torch.equal(before[k], after[k]) for k in before)


def _state(criterion: Any) -> dict[str, Any]:
    state = criterion.state() if hasattr(criterion, "state") else {}
    return {name: tensor.clone() for name, tensor in state.items()}


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
    """Train and measure stage 0 of a `dense_recipe` in ``folder``; goes on where it stopped, unless ``fresh``."""
    from xlmprune import pipeline
    from xlmprune.core.device import resolve_device
    from xlmprune.core.run_folder import RunFolder

    place = resolve_device(device)
    with RunFolder(folder, recipe, fresh) as run:
        if is_trained(folder):
            return
        try:
            pipeline.fine_prune(pipeline.prepare(recipe, run, place, reporter), until=0)
        finally:
            reporter.stop()


def plant_dense(dense: Path, recipe: Recipe, folder: Path, fresh: bool = False) -> bool:
    """Let the run in ``folder`` begin after its stage 0, from the one trained in ``dense``.

    Args:
        dense: a folder that `train_dense` filled, for this recipe's `dense_recipe`.
        fresh: start over in a folder that holds a run.

    Returns:
        False where the run has begun by itself or is finished; it is left as it is.

    Raises:
        ModelError: the dense stage is missing or damaged.
    """
    from xlmprune.core.run_folder import RunFolder

    with RunFolder(folder, recipe, fresh) as run:
        if is_begun(folder):
            return False
        # Read only: whoever plants next to us at the same time reads it too, so it is not locked.
        tensors, state = _read_dense(dense)
        if not run.start.is_dir():
            run.save_start(lambda place: _link_tree(dense / "checkpoint" / "start", place))
        tensors |= _own_tensors(recipe, tensors)
        state["progress"]["teaching"] = _own_teacher_choice(recipe, state["stages"][0]["dev"])
        run.events.cut(0)
        run.events.write("start", recipe_sha256=recipe.sha256(), device=_device_of(dense))
        run.events.write("dense_shared", key=dense_key(recipe), seconds=state["stages"][0]["seconds"])
        run.events.write("stage", **state["stages"][0])
        run.save(
            tensors, {key: state[key] for key in ("progress", "stages", "dense_others", "data", "device")}
        )
    return True


def _read_dense(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from xlmprune.core.run_folder import STATE

    if not is_trained(folder):
        raise ModelError(f"{folder}: no trained dense stage here; run the comparison again to train it")
    newest = max((folder / "checkpoint").glob("saved-*"))
    try:
        tensors = {file.stem: load_file(file) for file in newest.glob("*.safetensors")}
        return tensors, json.loads((newest / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: the dense stage is damaged ({error}); delete this folder and run again"
        ) from error


def _own_tensors(recipe: Recipe, dense: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the cell itself would have added to the checkpoint at the end of stage 0."""
    own: dict[str, dict[str, Any]] = {}
    regularizer, criterion = recipes.build(recipe, "regularizer"), recipes.build(recipe, "criterion")
    if getattr(regularizer, "reference", "pretrained") == "finetuned":
        own["finetuned"] = {name: dense["model"][name] for name in dense["masks"]}
    if hasattr(criterion, "state") and "criterion" not in dense:
        own["criterion"] = criterion.state()
    if recipe.distillation is not None:
        own["teacher"] = dense["model"]
    return own


def _own_teacher_choice(recipe: Recipe, dev: float | None) -> dict[str, Any] | None:
    """As `Teaching.begin` makes it: the dense model defends its score on English dev."""
    from xlmprune.training.distillation import TeacherChoice

    settings = recipe.distillation
    return (
        None if settings is None else TeacherChoice(settings, float("inf") if dev is None else dev).progress()
    )


def _device_of(dense: Path) -> str | None:
    from xlmprune.core.run_folder import EventLog

    events = EventLog(dense / "events.jsonl").read()
    return next((event.get("device") for event in events if event["event"] == "start"), None)


def _link_tree(source: Path, target: Path) -> None:
    """Copy a folder of files that nobody writes to again; as links where the disk has them, to spare a gigabyte each."""
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


__all__ = ["dense_key", "dense_recipe", "is_begun", "is_trained", "plant_dense", "train_dense"]
