"""The dense stage, trained once for all runs that share it.

Fine-tuning before any pruning is about half of a run, and methods differ after it. `dense_recipe` reduces a recipe
to what its stage 0 reads: where two are equal, so are the two stages, bit by bit. `start_from` lets a run begin after
stage 0 of such a run, with the same checkpoint that it would have written itself.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from xlmprune.core.checkpoints import Numbers, Tensors, read_newest, saved_in
from xlmprune.core.errors import ModelError, RecipeError
from xlmprune.core.files import link_or_copy
from xlmprune.core.run_folder import RunFolder, start_damage
from xlmprune.recipe.effects import differences, effect_of
from xlmprune.recipe.schema import (
    Component,
    DistillationRecipe,
    EvaluationRecipe,
    ExportRecipe,
    PruningRecipe,
    Recipe,
    TrainingRecipe,
)
from xlmprune.recipe.validation import validate_recipe
from xlmprune.recipe.yaml_text import parse_yaml
from xlmprune.training.checkpoint import after_stage_0
from xlmprune.training.distillation import TeacherChoice
from xlmprune.training.method import Method, build_method
from xlmprune.training.optimizer import warmup_updates


def dense_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of a run that trains and measures stage 0 alone, and exports no ONNX form."""
    schedule = Component.model_validate({"name": "geometric", "stages": 0})
    reduced = _reduced(recipe)
    return reduced.model_copy(
        update={
            "pruning": reduced.pruning.model_copy(update={"schedule": schedule}),
            "export": ExportRecipe(onnx=[], triton=False),
        }
    )


def dense_key(recipe: Recipe) -> str:
    """Return twelve hexadecimal digits that are equal where stage 0 is; new keys of recipes do not change them."""
    given = _read_by_stage_0(recipe).model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]


def _read_by_stage_0(recipe: Recipe) -> Recipe:
    """Return the recipe with everything that changes no number of stage 0 set to a default."""
    reduced = _reduced(recipe)
    idle = [key for key in TrainingRecipe.model_fields if effect_of(("training", key)) == "running"]
    if reduced.regularizer.name == "none" or recipe.training.frozen_weights == "cpu":
        idle.append("frozen_weights")
    training = {key: TrainingRecipe.model_fields[key].get_default(call_default_factory=True) for key in idle}
    return reduced.model_copy(
        update={
            "training": reduced.training.model_copy(update=training),
            "evaluation": reduced.evaluation.model_copy(update={"stage_precision": "fp32"}),
        }
    )


def _reduced(recipe: Recipe) -> Recipe:
    """Return the recipe with everything that stage 0 does not read set to a default.

    The sections task and evaluation stay, since stage 0 also measures the dense model on every language.
    """
    training = recipe.training
    method = build_method(recipe.pruning, recipe.regularizer)
    regularized = training.regularize_dense and _regularizes_dense(method)
    settings = training.model_copy(
        update={
            "dense_epochs": training.epochs_per_stage
            if training.dense_epochs is None
            else training.dense_epochs,
            "epochs_per_stage": 1.0,  # not read, since `dense_epochs` is given
            "learning_rate": training.dense_learning_rate or training.learning_rate,
            "last_epochs": None,
            "dense_learning_rate": None,
            "warmup_updates": warmup_updates(training, stage=0),
            "dense_warmup_updates": None,
            "report_to": [],
            "regularize_dense": regularized,
        }
    )
    pruning, given = PruningRecipe(), recipe.pruning
    if method.acts_on_dense:
        pruning = PruningRecipe(criterion=given.criterion, observe_regularizer=given.observe_regularizer)
    return recipe.model_copy(
        update={
            "name": "dense",
            "task": recipe.task.model_copy(update={"title": None, "licence": None}),
            "training": settings,
            "pruning": pruning,
            "distillation": None,
            "regularizer": recipe.regularizer if regularized else Component(name="none"),
            "evaluation": recipe.evaluation.model_copy(
                update={"sample_errors": EvaluationRecipe().sample_errors}
            ),
            "export": ExportRecipe(),
        }
    )


def _regularizes_dense(method: Method) -> bool:
    # In stage 0 there are no fine-tuned weights to compare with yet.
    return bool(method.regularizer.strength) and method.regularizer.reference != "finetuned"


# --- starting from it ------------------------------------------------------------------------------------------------


def start_from(dense: Path, recipe: Recipe, folder: RunFolder) -> bool:
    """Let the run in ``folder`` begin after stage 0 of the finished run in ``dense``.

    Args:
        dense: a run folder whose recipe has `pruning.schedule.stages: 0` and the same stage 0.

    Returns:
        False where the run in ``folder`` has begun already; it is left as it is.

    Raises:
        RecipeError: the stage 0 of ``dense`` is another one.
        ModelError: ``dense`` holds no finished dense run, or it is damaged.
    """
    if saved_in(folder.checkpoints):
        return False
    tensors, numbers = read_dense(dense, recipe)
    method = build_method(recipe.pruning, recipe.regularizer)
    distillation = recipe.distillation
    if not folder.start.is_dir():
        folder.save_start(lambda target: _link_tree(dense / "checkpoint" / "start", target))
    # It may be another: then no number of stage 0 depends on it.
    numbers["conditions"]["frozen_weights"] = recipe.training.frozen_weights
    numbers["progress"]["teaching"] = _teacher_choice(distillation, numbers["stages"][0]["dev"])
    _write_events(recipe, folder, numbers)
    kept = ("progress", "stages", "dense_others", "data", "conditions", "changes")
    folder.save(_own_tensors(method, distillation, tensors), {key: numbers[key] for key in kept})
    return True


def read_dense(dense: Path, recipe: Recipe) -> tuple[Tensors, Numbers]:
    """Read the last checkpoint of the finished run in ``dense``; see `start_from`.

    Raises:
        RecipeError: its stage 0 is not that of ``recipe``.
        ModelError: it is no finished dense run, or it is damaged.
    """
    _require_same_stage_0(dense, recipe)
    # Not locked: other runs may read it at the same time.
    found = read_newest(dense / "checkpoint")
    if found is None or not after_stage_0(found[1]) or "languages" not in found[1]["stages"][-1]:
        raise ModelError(
            f"{dense}: has no finished dense run; finish that run, with pruning.schedule.stages: 0"
        )
    if damage := start_damage(dense, found[1]["start"]):
        raise ModelError(
            f"{dense / 'checkpoint' / 'start'}: {damage}; train this dense run again with --fresh"
        )
    return found


def _require_same_stage_0(dense: Path, recipe: Recipe) -> None:
    file = dense / "recipe.yaml"
    if not file.is_file():
        raise ModelError(f"{dense}: is not a run folder; it has no recipe.yaml")
    values, _ = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    found = validate_recipe(values, str(file), saved=True)
    if dense_key(found) != dense_key(recipe):
        ours, theirs = (_read_by_stage_0(one).resolved() for one in (recipe, found))
        said = next(map(str, differences(theirs, ours)))
        raise RecipeError(f"{dense}: its stage 0 differs from the stage 0 of this recipe ({said})")


def _own_tensors(method: Method, distillation: DistillationRecipe | None, dense: Tensors) -> Tensors:
    """Return what the run itself would have saved at the end of stage 0."""
    own: Tensors = {name: dense[name] for name in ("model", "masks", "dense", "observed") if name in dense}
    if method.regularizer.reference == "finetuned":
        own["finetuned"] = {name: dense["model"][name] for name in dense["masks"]}
    if method.acts_on_dense:
        own["criterion"] = dense["criterion"]
    elif state := method.criterion.state():
        own["criterion"] = state
    if distillation is not None:
        own["teacher"] = dense["model"]
    return own


def _teacher_choice(distillation: DistillationRecipe | None, dev: float | None) -> dict[str, Any] | None:
    """Return the choice that `Teaching.begin` makes: the dense model defends its score on dev."""
    if distillation is None:
        return None
    return TeacherChoice(distillation, float("inf") if dev is None else dev).progress()


def _write_events(recipe: Recipe, folder: RunFolder, numbers: Numbers) -> None:
    row = numbers["stages"][0]
    folder.events.cut(0)
    folder.events.write("start", recipe_sha256=recipe.sha256(), conditions=numbers["conditions"])
    folder.events.write("dense_shared", key=dense_key(recipe), seconds=row["seconds"])
    folder.events.write("stage", **row)


def _link_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=link_or_copy)
