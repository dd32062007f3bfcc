"""From plain values to a `Recipe`: the schema, the parameters of its components, and what cannot go together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from xlmprune.core.errors import RecipeError
from xlmprune.recipe import registry
from xlmprune.recipe.explanations import Where, explain
from xlmprune.recipe.schema import Component, PruningRecipe, Recipe, TaskRecipe, unread_keys
from xlmprune.recipe.yaml_text import KeyPath


def validate_recipe(
    values: dict[str, Any],
    origin: str,
    positions: Mapping[KeyPath, str] | None = None,
    given: Mapping[KeyPath, str] | None = None,
    saved: bool = False,
) -> Recipe:
    """Build a `Recipe` from plain values.

    Args:
        origin: the file, for faults that have no position.
        positions: of the keys, as `read_recipe` returns them.
        given: what `apply_overrides` returned.
        saved: a run wrote the values. Keys that nothing reads are accepted then, since older versions accepted them, and
            they changed nothing; those of `task` are dropped.

    Raises:
        RecipeError: lists every fault, one a line.
    """
    where = Where(origin, positions or {}, given or {})
    if saved and isinstance(values.get("task"), dict):
        values = {**values, "task": without_unread(values["task"])}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError("\n".join(explain(error, Recipe, values, where))) from None
    faults = list(_component_faults(recipe, where))
    if not faults:
        conflicts = [*_conflicts(recipe), *([] if saved else _unread(recipe))]
        faults = [f"{where(path)}: {fault}" for path, fault in conflicts]
    if faults:
        raise RecipeError("\n".join(faults))
    return recipe


def without_unread(task: Mapping[str, Any], kept: Collection[str] = ()) -> dict[str, Any]:
    """Return the section `task` without the keys that its source does not read, but for those ``kept``."""
    dropped = set(unread_keys(task)) - set(kept)
    return {key: value for key, value in task.items() if key not in dropped}


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


Conflict = tuple[KeyPath, str]


def _conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Keys that are valid alone but not together."""
    criterion = build_component(recipe, "criterion")
    continuous = recipe.pruning.schedule.name == "continuous"
    yield from _pattern_conflicts(recipe)
    yield from _update_conflicts(recipe)
    yield from _training_conflicts(recipe, criterion, continuous)
    yield from _structure_conflicts(recipe, criterion)
    yield from _regrowth_conflicts(recipe, criterion, continuous)
    if recipe.pruning.observe_regularizer and criterion.replaces_weights:
        yield (
            ("pruning", "observe_regularizer"),
            f"the criterion {recipe.pruning.criterion.name} changes the weights that an update sees, and the regularizer "
            "holds those below; leave observe_regularizer out",
        )
    yield from _teacher_conflicts(recipe)
    yield from _floor_conflicts(recipe)
    yield from _size_conflicts(recipe)
    if recipe.pruning.structure is not None and recipe.pruning.pattern != "structured" and continuous:
        yield (
            ("pruning", "schedule"),
            "the schedule `continuous` prunes within one stage, but structure needs stages of its own; use another schedule",
        )
    languages = recipe.task.languages
    if isinstance(languages, list) and len(set(languages)) != len(languages):
        yield ("task", "languages"), "a language is listed twice"


def _pattern_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Find what cannot go with N of every M weights."""
    pattern, densities = recipe.pruning.pattern, build_component(recipe, "schedule").per_stage()
    if ":" not in pattern:
        return
    keep, of = map(int, pattern.split(":"))
    if densities and densities[-1] > keep / of:
        yield (
            ("pruning", "schedule"),
            f"pattern {pattern} ends at density {keep / of}, the schedule at {densities[-1]:.4g}",
        )


def _update_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Find ways to compute an update that exclude each other."""
    training, structure = recipe.training, recipe.pruning.structure
    several_sizes = structure is not None and structure.smallest is not None
    other = "compile" if training.compile else "cuda_graphs"
    rules = [
        (
            training.gradient_accumulation > training.batch_size,
            "gradient_accumulation",
            "there are more micro-batches than examples in a batch",
        ),
        (
            training.compile and several_sizes,
            "compile",
            "every size of the model in an update would be compiled anew; leave compile or pruning.structure.smallest out",
        ),
        (
            training.cuda_graphs and several_sizes,
            "cuda_graphs",
            "every size of the model in an update would be recorded anew; leave cuda_graphs or pruning.structure.smallest "
            "out",
        ),
        (
            training.compile and training.fast_dropout,
            "fast_dropout",
            "compiled layers draw dropout in their own way; leave compile or fast_dropout out",
        ),
        (
            training.cuda_graphs and training.frozen_weights == "cpu" and recipe.distillation is not None,
            "frozen_weights",
            "a recorded update reads the teacher where it was; leave cuda_graphs out, or set frozen_weights: bf16",
        ),
        (
            training.gradient_checkpointing and (training.compile or training.cuda_graphs),
            "gradient_checkpointing",
            f"layers that are computed again are neither compiled nor recorded; leave {other} or gradient_checkpointing out",
        ),
        (
            training.cuda_graphs and training.gradient_accumulation > 1,
            "cuda_graphs",
            "micro-batches have shares that a graph cannot change; leave cuda_graphs or gradient_accumulation out",
        ),
    ]
    yield from ((("training", key), said) for broken, key, said in rules if broken)


def _regrowth_conflicts(recipe: Recipe, criterion: Any, continuous: bool) -> Iterator[Conflict]:
    """Find what keeps pruned weights from returning."""
    pruning = recipe.pruning
    if not pruning.regrow:
        return
    if not continuous:
        yield ("pruning", "regrow"), "pruned weights can return only with the schedule `continuous`"
    if pruning.reconstruct is not None:
        yield (
            ("pruning", "reconstruct"),
            "refitted weights cannot return; set pruning.regrow: false or leave reconstruct out",
        )
    if not criterion.scores_pruned:
        yield (
            ("pruning", "regrow"),
            f"the criterion {pruning.criterion.name} does not score pruned weights; use pins, platon or "
            "movement",
        )


def _teacher_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Find what a teacher that is replaced cannot go with."""
    teacher = "finetuned" if recipe.distillation is None else recipe.distillation.teacher
    if teacher == "finetuned":
        return
    if recipe.pruning.structure is not None:
        yield (
            ("distillation", "teacher"),
            f"{teacher} replaces the teacher with the student, but structure makes the student smaller; use finetuned",
        )
    if recipe.training.keep == "last":
        yield (
            ("distillation", "teacher"),
            f"{teacher} needs dev scores, but training.keep: last reads no dev examples",
        )


def _floor_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Find what a floor is measured on and is not there."""
    floor = recipe.export.floor
    if floor.limits and floor.on == "dev" and recipe.training.keep == "last":
        yield ("export", "floor"), "on: dev needs dev examples, but training.keep: last reads none"
    if floor.limits and floor.on == "unlabelled" and recipe.unlabelled_text is None:
        yield (
            ("export", "floor"),
            "on: unlabelled needs unlabelled text; give export.calibration: task, or files with {language} in the name",
        )


def _training_conflicts(recipe: Recipe, criterion: Any, continuous: bool) -> Iterator[Conflict]:
    """Find what cannot go with stages that have no update."""
    training, key = recipe.training, ("training", "epochs_per_stage")
    pruned = training.epochs_per_stage if training.last_epochs is None else training.last_epochs
    if continuous and not pruned:
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


def _structure_conflicts(recipe: Recipe, criterion: Any) -> Iterator[Conflict]:
    """Find criteria that score heads, neurons or what remains before they have learned anything."""
    structure, name = recipe.pruning.structure, recipe.pruning.criterion.name
    if structure is None or not criterion.watches or _chooses_nothing(recipe):
        return
    pools = structure.importance == "criterion"
    if pools and not criterion.acts_on_dense:
        yield (
            ("pruning", "structure", "importance"),
            f"the criterion {name} begins to learn when single weights have been pruned, and heads and neurons go before "
            "that; use another importance, such as fisher",
        )
    elif not recipe.training.epochs_per_stage and (
        recipe.pruning.pattern != "structured" or (pools and structure.rounds > 1)
    ):
        yield (
            ("training", "epochs_per_stage"),
            f"the criterion {name} starts anew when heads and neurons have been removed, but 0 epochs have no update to "
            "learn from",
        )


def _chooses_nothing(recipe: Recipe) -> bool:
    """Return whether the criterion ranks neither single weights nor heads and neurons."""
    pruning = recipe.pruning
    return (
        pruning.pattern == "structured"
        and pruning.structure is not None
        and pruning.structure.importance != "criterion"
    )


def _unread(recipe: Recipe) -> Iterator[Conflict]:
    """Find keys that were set and that nothing would read."""
    pruning, distillation = recipe.pruning, recipe.distillation
    structure, criterion = pruning.structure, build_component(recipe, "criterion")
    if _chooses_nothing(recipe) and pruning.criterion != PruningRecipe.model_fields["criterion"].default:
        assert structure is not None
        yield (
            ("pruning", "criterion"),
            f"with pattern structured and importance {structure.importance}, the criterion {pruning.criterion.name} chooses "
            "nothing: leave it out, write `structure.importance: criterion`, or prune single weights with `pattern: "
            "unstructured`",
        )
    if ":" in pruning.pattern and pruning.scope not in (None, "layer"):
        keep, of = pruning.pattern.split(":")
        yield (
            ("pruning", "scope"),
            f"pattern {pruning.pattern} keeps {keep} of every {of} in each row: scope must be layer",
        )
    if structure is not None and structure.languages is not None:
        scored = criterion.needs_moments and not _chooses_nothing(recipe)
        by_text = registry.load("importance", structure.importance).reads_text
        if not (scored or by_text or pruning.reconstruct is not None):
            yield (
                ("pruning", "structure", "languages"),
                f"importance {structure.importance} reads no text, and nothing is refitted; leave languages out, or set "
                "pruning.reconstruct",
            )
    if pruning.observe_regularizer and not criterion.watches:
        yield (
            ("pruning", "observe_regularizer"),
            f"the criterion {pruning.criterion.name} sees no gradients; leave observe_regularizer out",
        )
    if distillation is not None and distillation.teacher == "finetuned":
        for key in ("ask_every", "dense_defends", "density_step"):
            if getattr(distillation, key) != type(distillation).model_fields[key].default:
                yield (
                    ("distillation", key),
                    f"the teacher `finetuned` is never replaced, so {key} is not read; leave it out",
                )


def _size_conflicts(recipe: Recipe) -> Iterator[Conflict]:
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
