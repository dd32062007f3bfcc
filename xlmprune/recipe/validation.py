"""From plain values to a `Recipe`: the schema, the parameters of its components, and what cannot go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from xlmprune.core.errors import RecipeError
from xlmprune.recipe import registry
from xlmprune.recipe.explanations import Where, explain
from xlmprune.recipe.schema import Component, Recipe, TaskRecipe
from xlmprune.recipe.yaml_text import KeyPath


def validate_recipe(
    values: dict[str, Any],
    origin: str,
    positions: Mapping[KeyPath, str] | None = None,
    given: Mapping[KeyPath, str] | None = None,
) -> Recipe:
    """Build a `Recipe` from plain values.

    Args:
        origin: the file, for faults that have no position.
        positions: of the keys, as `read_recipe` returns them.
        given: what `apply_overrides` returned.

    Raises:
        RecipeError: lists every fault, one a line.
    """
    where = Where(origin, positions or {}, given or {})
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError("\n".join(explain(error, Recipe, values, where))) from None
    faults = list(_component_faults(recipe, where))
    faults = faults or [f"{where(path)}: {fault}" for path, fault in _conflicts(recipe)]
    if faults:
        raise RecipeError("\n".join(faults))
    return recipe


def validate_task(values: Any, origin: str, given: Mapping[KeyPath, str]) -> TaskRecipe:
    """Build the section `task` alone.

    Args:
        given: what `apply_overrides` returned.

    Raises:
        RecipeError: lists every fault, one a line.
    """
    try:
        return TaskRecipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(
            "\n".join(explain(error, TaskRecipe, values, Where(origin, {}, given), ("task",)))
        ) from None


def _component_faults(recipe: Recipe, where: Where) -> Iterator[str]:
    """Unknown names, and parameters that a component does not accept."""
    for table, dotted, component in recipe.components():
        path = tuple(dotted.split("."))
        try:
            kind = registry.load(table, component.name)
            TypeAdapter(kind).validate_python(component.parameters)
        except RecipeError as error:
            yield f"{where(path)}: {error}"
        except ValidationError as error:
            yield from explain(error, kind, component.parameters, where, path)
    try:
        registry.load("task", recipe.task.name)
    except RecipeError as error:
        yield f"{where(('task', 'name'))}: {error}"


def _conflicts(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Keys that are valid alone but not together."""
    training, pruning, distillation = recipe.training, recipe.pruning, recipe.distillation
    densities = build_component(recipe, "schedule").per_stage()
    if ":" in pruning.pattern:
        keep, of = map(int, pruning.pattern.split(":"))
        if pruning.scope == "global":
            yield (
                ("pruning", "scope"),
                f"pattern {pruning.pattern} keeps {keep} of every {of} in each row: scope must be layer",
            )
        if densities and densities[-1] > keep / of:
            yield (
                ("pruning", "schedule"),
                f"pattern {pruning.pattern} ends at density {keep / of}, the schedule at {densities[-1]:.4g}",
            )
    if training.gradient_accumulation > training.batch_size:
        yield ("training", "gradient_accumulation"), "there are more micro-batches than examples in a batch"
    if training.compile and pruning.structure is not None and pruning.structure.smallest is not None:
        yield (
            ("training", "compile"),
            "every size of the model in an update would be compiled anew; leave compile or pruning.structure.smallest out",
        )
    if training.cuda_graphs and pruning.structure is not None and pruning.structure.smallest is not None:
        yield (
            ("training", "cuda_graphs"),
            "every size of the model in an update would be recorded anew; leave cuda_graphs or pruning.structure.smallest "
            "out",
        )
    if training.compile and training.fast_dropout:
        yield (
            ("training", "fast_dropout"),
            "compiled layers draw dropout in their own way; leave compile or fast_dropout out",
        )
    if training.cuda_graphs and training.frozen_weights == "cpu" and recipe.distillation is not None:
        yield (
            ("training", "frozen_weights"),
            "a recorded update reads the teacher where it was; leave cuda_graphs out, or set frozen_weights: bf16",
        )
    if training.gradient_checkpointing and (training.compile or training.cuda_graphs):
        other = "compile" if training.compile else "cuda_graphs"
        yield (
            ("training", "gradient_checkpointing"),
            f"layers that are computed again are neither compiled nor recorded; leave {other} or gradient_checkpointing out",
        )
    if training.cuda_graphs and training.gradient_accumulation > 1:
        yield (
            ("training", "cuda_graphs"),
            "micro-batches have shares that a graph cannot change; leave cuda_graphs or gradient_accumulation out",
        )
    criterion, continuous = build_component(recipe, "criterion"), pruning.schedule.name == "continuous"
    yield from _training_conflicts(recipe, criterion, continuous)
    if pruning.regrow and not continuous:
        yield ("pruning", "regrow"), "pruned weights can return only with the schedule `continuous`"
    if pruning.regrow and pruning.reconstruct is not None:
        yield (
            ("pruning", "reconstruct"),
            "refitted weights cannot return; set pruning.regrow: false or leave reconstruct out",
        )
    if pruning.regrow and not criterion.scores_pruned:
        yield (
            ("pruning", "regrow"),
            f"the criterion {pruning.criterion.name} does not score pruned weights; use pins, platon or "
            "movement",
        )
    if pruning.structure is not None and pruning.pattern != "structured" and continuous:
        yield (
            ("pruning", "schedule"),
            "the schedule `continuous` prunes within one stage, but structure needs stages of its own; use another schedule",
        )
    if pruning.structure is not None and distillation is not None and distillation.teacher != "finetuned":
        yield (
            ("distillation", "teacher"),
            f"{distillation.teacher} replaces the teacher with the student, but structure makes the student smaller; use "
            "finetuned",
        )
    if distillation is not None and distillation.teacher != "finetuned" and training.keep == "last":
        yield (
            ("distillation", "teacher"),
            f"{distillation.teacher} needs dev scores, but training.keep: last reads no dev examples",
        )
    floor = recipe.export.floor
    if floor.limits and floor.on == "dev" and training.keep == "last":
        yield ("export", "floor"), "on: dev needs dev examples, but training.keep: last reads none"
    if floor.limits and floor.on == "unlabelled" and recipe.unlabelled_text is None:
        yield (
            ("export", "floor"),
            "on: unlabelled needs unlabelled text; give export.calibration: task, or files with {language} in the name",
        )
    yield from _size_conflicts(recipe)
    languages = recipe.task.languages
    if isinstance(languages, list) and len(set(languages)) != len(languages):
        yield ("task", "languages"), "a language is listed twice"


def _training_conflicts(recipe: Recipe, criterion: Any, continuous: bool) -> Iterator[tuple[KeyPath, str]]:
    """Find what cannot go with stages that have no update."""
    training, key = recipe.training, ("training", "epochs_per_stage")
    if continuous and 0 in (training.epochs_per_stage, training.last_epochs):
        yield key, "the schedule `continuous` prunes during training, but 0 epochs have no update"
    if training.epochs_per_stage:
        return
    if training.dense_epochs is None:
        yield key, "0 trains nothing after pruning; set dense_epochs to the length of stage 0"
    if criterion.watches and not criterion.acts_on_dense:
        name = recipe.pruning.criterion.name
        yield (
            key,
            f"the criterion {name} learns what to prune in the stages after stage 0, but 0 epochs have no update",
        )


def _size_conflicts(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Keys that do not go with the training or the export of several sizes."""
    structure, sizes = recipe.pruning.structure, recipe.export.sizes
    smallest = None if structure is None else structure.smallest
    if structure is None or smallest is None:
        if sizes is not None:
            yield (
                ("export", "sizes"),
                "only a model that is trained with pruning.structure.smallest has sizes; set that key, or leave sizes out",
            )
        return
    needed = {
        "pattern: structured": recipe.pruning.pattern == "structured",
        "structure.rounds: 1": structure.rounds == 1,
        "structure.scope: layer": structure.scope == "layer",
        "no structure.budget": structure.budget is None,
        "no structure.languages": structure.languages is None,
    }
    for setting, given in needed.items():
        if not given:
            yield ("pruning", "structure", "smallest"), f"training several sizes needs {setting} in pruning"
    if sizes is not None and sizes[-1] < smallest:
        yield (
            ("export", "sizes"),
            f"size {sizes[-1]:g} is below pruning.structure.smallest, {smallest:g}, and was not trained",
        )


def build_component(recipe: Recipe, table: str) -> Any:
    """Build the component of ``table`` that the recipe names, from its parameters."""
    for name, _, component in recipe.components():
        if name == table:
            return instantiate(table, component)
    raise KeyError(table)


def instantiate(table: str, component: Component) -> Any:
    """Build a component of ``table`` from its parameters."""
    return TypeAdapter(registry.load(table, component.name)).validate_python(component.parameters)
