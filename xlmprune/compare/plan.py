"""Lay out a comparison: every cell of the table is an ordinary recipe with a method (row), a task (column) and a seed.

Cells come from ``--vary key=v1,v2`` or from a comparison file (see `comparison_file`).
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from xlmprune.compare.comparison_file import ComparisonFile, Overrides, find_file, read_file
from xlmprune.core.errors import RecipeError
from xlmprune.recipe import registry
from xlmprune.recipe.catalog import find_recipe
from xlmprune.recipe.loading import DENSE_KEYS, apply_overrides, read_recipe
from xlmprune.recipe.schema import Recipe
from xlmprune.recipe.validation import build_component, validate_recipe
from xlmprune.recipe.yaml_text import KeyPath, parse_yaml
from xlmprune.training.dense import dense_key
from xlmprune.training.method import build_method

ReadRecipe = Callable[[Path], tuple[dict[str, Any], dict[KeyPath, str]]]

PLAIN_DENSE = (
    "Stage 0 is trained without the regularizer (training.regularize_dense: false), as `xlmprune compress` does by "
    "default."
)
SHARED_DENSE = "All methods with the same seed prune the same fine-tuned model."
OWN_DENSE = "Runs of a task and seed share it where their column `dense stage` is the same."


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    name: str
    """Name of its folder, and the end of its recipe's name."""
    method: str
    task: str
    seed: int
    recipe: Recipe

    @cached_property
    def dense_key(self) -> str:
        """Return what is equal where stage 0 is, see `dense.dense_key`."""
        return dense_key(self.recipe)

    @cached_property
    def recipe_sha256(self) -> str:
        """Return the identity of the recipe."""
        return self.recipe.sha256()

    def __str__(self) -> str:
        return f"{self.method} on {self.task} with seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """All cells and their layout."""

    name: str
    origin: str
    """Name of the recipe or comparison file, for readers."""
    cells: tuple[Cell, ...]
    baseline: str | None = None
    notes: tuple[str, ...] = ()
    """What a reader of the table must know."""

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(cell.method for cell in self.cells))

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(cell.task for cell in self.cells))

    @property
    def seeds(self) -> list[int]:
        return sorted({cell.seed for cell in self.cells})

    def part(self, names: Collection[str]) -> Plan:
        """Return the plan of these cells alone."""
        return replace(self, cells=tuple(cell for cell in self.cells if cell.name in names))


def read(
    name: str, vary: Sequence[str] = (), overrides: Sequence[str] = (), baseline: str | None = None
) -> Plan:
    """Lay out a comparison.

    Args:
        name: a comparison file, a recipe, or the name of a shipped one of either.
        vary: ``key=v1,v2`` each; added to what the file varies.
        overrides: ``key=value`` each, for every cell; they win over everything else.
        baseline: the method to test against, as its row is called.

    Raises:
        RecipeError: names the fault and its source: an unknown key, no cells, the same cell twice.
    """
    file = find_file(name)
    given = read_file(file)
    axes = _axes(given, file, vary)
    read_once: ReadRecipe = cache(read_recipe)
    built = [_build(given, file, choices, overrides, read_once) for choices in axes]
    cells = tuple(_name_cells(built, given.name))
    _refuse_twins(cells)
    baseline = baseline or given.baseline
    plan = Plan(given.name, file.name, cells, baseline)
    if baseline is not None and baseline not in plan.methods:
        raise RecipeError(
            f"baseline {baseline!r} is not a method of this comparison; {registry.nearest(baseline, plan.methods)}"
        )
    return Plan(given.name, file.name, cells, baseline, _notes(cells))


def _notes(cells: Sequence[Cell]) -> tuple[str, ...]:
    plain = not any(cell.recipe.training.regularize_dense for cell in cells)
    keys = {(cell.task, cell.seed): cell.dense_key for cell in cells}
    shared = all(keys[cell.task, cell.seed] == cell.dense_key for cell in cells)
    dense = [f"{PLAIN_DENSE} {SHARED_DENSE if shared else OWN_DENSE}"] if plain else []
    return (*dense, *_uneven_budgets(cells), *_extra_passes(cells))


# --- from axes to cells ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """One point on an axis: overrides, and the label of the row or column that they make."""

    label: str
    overrides: Overrides
    source: str
    """Where it was written, for messages."""


@dataclass(frozen=True)
class _Choices:
    """One point on every axis."""

    column: tuple[_Choice, ...]
    row: tuple[_Choice, ...]
    seed: tuple[_Choice, ...]


def _axes(given: ComparisonFile, file: Path, options: Sequence[str]) -> list[_Choices]:
    """Every combination of columns, rows and seeds."""
    asked: dict[str, list[Any]] = {}
    for key, values in map(_parse_vary, options):
        asked.setdefault(key, []).extend(values)
    varied = {key: _axis(key, values, f"{file}: vary.{key}") for key, values in given.vary.items()}
    varied |= {key: _axis(key, values, f"--vary {key}") for key, values in asked.items()}
    seeds = varied.pop("seed", None)
    rows = [axis for key, axis in varied.items() if key.split(".")[0] != "task"]
    columns = [axis for key, axis in varied.items() if key.split(".")[0] == "task"]
    for section, axes in (("methods", rows), ("tasks", columns)):
        if named := getattr(given, section):
            axes.insert(0, [_Choice(label, o, f"{file}: {section}.{label}") for label, o in named.items()])
    if not rows and not columns and seeds is None:
        raise RecipeError(
            f"{file}: nothing is varied, so there is nothing to compare. Give --vary key=value1,value2 (such as "
            "--vary regularizer=none,cosine --vary seed=1,2,3), or a comparison file with `methods:`"
        )
    return [
        _Choices(column, row, seed)
        for column, chosen in itertools.product(itertools.product(*columns), itertools.product(*rows))
        for row, own in [_take_seeds(chosen)]
        for seed in itertools.product((seeds if "seed" in asked else own or seeds) or [_Choice("", {}, "")])
    ]


def _take_seeds(row: tuple[_Choice, ...]) -> tuple[tuple[_Choice, ...], list[_Choice] | None]:
    """Return the row without the list of seeds that a method may have, and that list."""
    own = None
    rest = []
    for choice in row:
        overrides = dict(choice.overrides)
        if isinstance(overrides.get("seed"), list):
            own = _axis("seed", overrides.pop("seed"), f"{choice.source}.seed")
        rest.append(_Choice(choice.label, overrides, choice.source))
    return tuple(rest), own


def _parse_vary(text: str) -> tuple[str, list[Any]]:
    """Split ``key=v1,v2``; values are YAML, so ``regularizer={name: cosine, strength: 10},none`` has two."""
    key, equals, listed = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--vary {text}: expected key=value1,value2, such as seed=1,2,3")
    values, _ = parse_yaml(f"[{listed}]", f"--vary {text}")
    return key.strip(), values


def _axis(key: str, values: list[Any], source: str) -> list[_Choice]:
    if not values:
        raise RecipeError(f"{source}: no value is listed, so there is no cell to run")
    labels = [_label(key, value) for value in values]
    if len(set(labels)) < len(labels):  # the same name with other parameters: spell everything out
        labels = [f"{key}={json.dumps(value, ensure_ascii=False)}" for value in values]
    return [
        _Choice(label, {key: value}, f"{source}={value if isinstance(value, str) else json.dumps(value)}")
        for label, value in zip(labels, values, strict=True)
    ]


NAMED = ("method", "regularizer", "pruning.criterion", "pruning.schedule", "task.name")
"""Keys whose values need no key beside them to be understood."""


def _label(key: str, value: Any) -> str:
    """Return the name of a value in the table: a component's name, or anything else with its key."""
    if isinstance(value, Mapping) and "name" in value:
        beside = ", ".join(f"{k}={v}" for k, v in value.items() if k != "name")
        return f"{value['name']} ({beside})" if beside else str(value["name"])
    if isinstance(value, str) and key in NAMED:
        return value
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"{key.rpartition('.')[2]}={shown}"


def _build(
    given: ComparisonFile, file: Path, choices: _Choices, options: Sequence[str], read: ReadRecipe
) -> Cell:
    """Build a cell with its recipe validated; its name comes later, with all the others.

    Args:
        read: gives the values of a recipe file, which many cells begin with.
    """
    base, parts = given.recipe, [_Choice("", given.set, f"{file}: set")]
    for choice in choices.column:
        base = choice.overrides.get("recipe", base)
        if base is not None and not isinstance(base, str):
            raise RecipeError(f"{choice.source}.recipe: expected a file or a recipe's name, found {base!r}")
        rest = {key: value for key, value in choice.overrides.items() if key != "recipe"}
        parts.append(_Choice(choice.label, rest, choice.source))
    if base is None:
        raise RecipeError(f"{file}: `recipe` is missing: the recipe that every cell begins with")
    origin = file.parent / base
    origin = origin if origin.is_file() and origin != file else find_recipe(base)
    values, lines = copy.deepcopy(read(origin))
    values["name"] = "cell"
    sources: dict[Any, str] = {}
    if choices.row:  # stage 0 is that of the options before a method of a row keeps it
        parts.append(_Choice("", dict(_dense_options(options)), "--set"))
    for part in [*parts, *choices.row, *choices.seed]:
        for key, value in sorted(part.overrides.items(), key=lambda entry: entry[0] != "method"):
            sources |= dict.fromkeys(_put(values, key, value, part.source), part.source)
    sources |= apply_overrides(values, options)
    recipe = validate_recipe(values, str(origin), lines, sources)
    method = ", ".join(choice.label for choice in choices.row) or given.name
    task = ", ".join(choice.label for choice in choices.column) or recipe.task.name
    return Cell("", method, task, recipe.seed, recipe)


def _dense_options(options: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Key and value of the options that stage 0 takes where it has none of its own."""
    for option in options:
        key, _, text = option.partition("=")
        section, _, name = key.strip().partition(".")
        if section == "training" and name in DENSE_KEYS:
            yield key.strip(), parse_yaml(text, f"--set {option}")[0]


def _put(values: dict[str, Any], key: str, value: Any, source: str) -> Iterable[Any]:
    """Set a dotted key; returns the path that was set."""
    try:
        return apply_overrides(values, [f"{key}={json.dumps(value, allow_nan=False)}"])
    except RecipeError as error:
        raise RecipeError(f"{source}: {str(error).removeprefix('--set ')}") from None
    except (TypeError, ValueError):
        raise RecipeError(f"{source}: {key}: {value!r} is not a value that a recipe can hold") from None


def slug(text: str) -> str:
    """Return a word for file names: lower case, letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def _name_cells(cells: Sequence[Cell], name: str) -> Iterator[Cell]:
    methods = _distinct_slugs([cell.method for cell in cells])
    tasks = _distinct_slugs([cell.task for cell in cells])
    for cell in cells:
        parts = [methods[cell.method], *([tasks[cell.task]] if len(tasks) > 1 else []), f"seed{cell.seed}"]
        own = ".".join(parts)
        recipe = cell.recipe.model_copy(update={"name": f"{name}.{own}"})
        yield Cell(own, cell.method, cell.task, cell.seed, recipe)


def _distinct_slugs(labels: Sequence[str]) -> dict[str, str]:
    """Return a slug for each label; where two are alike or one is long, a few digits of its hash tell them apart."""
    found = {label: slug(label) for label in labels}
    short = list(found.values())
    for label, text in found.items():
        if short.count(text) > 1 or len(text) > 60:
            found[label] = f"{text[:50]}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
    return found


def _refuse_twins(cells: Sequence[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        same = cell.recipe.model_copy(update={"name": "cell"}).sha256()
        if same in seen:
            raise RecipeError(
                f"two cells are the same run: {seen[same]} and {cell}. Is a value listed twice, or does --set override "
                "a varied key?"
            )
        seen[same] = cell


# --- what a reader must know -----------------------------------------------------------------------------------------


def _budget(recipe: Recipe) -> str:
    """Return what the weights that ship have been trained for, all stages together."""
    training, method = recipe.training, build_method(recipe.pruning, recipe.regularizer)
    every = training.epochs_per_stage
    stages = [
        every if training.dense_epochs is None else training.dense_epochs,
        *[every] * (len(method.densities) - 1),
    ]
    if len(stages) > 1:
        stages[-1] = every if training.last_epochs is None else training.last_epochs
    if method.continuous is not None and method.continuous.restart:
        del stages[0]  # what it learned is not in the weights
    cap = training.max_updates_per_stage
    updates = None if cap is None else cap * len(stages)
    return json.dumps([round(sum(stages), 6), updates, training.batch_size, recipe.task.max_train_examples])


def settings(recipe: Recipe) -> dict[str, str]:
    """Return what makes a method: how weights are chosen, when, and what is added to the loss; defaults filled in."""
    pruning, distillation, training = recipe.pruning, recipe.distillation, recipe.training
    parts = {
        table: " ".join([component.name, *(f"{k}={_plain(v)}" for k, v in component.parameters.items())])
        for table, _, component in recipe.components()
    }
    scope = pruning.scope or build_component(recipe, "criterion").default_scope
    teacher: str = "" if distillation is None else distillation.teacher
    if distillation is not None and distillation.unlabelled is not None:
        teacher += " on text"
    return {
        **parts,
        "scope": scope if pruning.pattern == "unstructured" else pruning.pattern,
        "regrow": "yes" if pruning.regrow else "",
        "teacher": teacher,
        "learning_rate": f"{training.learning_rate:g}",
        "weight_decay": f"{training.weight_decay:g}" if training.weight_decay else "",
        "regularize_dense": "yes" if training.regularize_dense else "",
    }


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _uneven_budgets(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a sentence for every column whose methods do not train equally long."""
    for task in dict.fromkeys(cell.task for cell in cells):
        budgets: dict[str, dict[str, None]] = {}
        for cell in cells:
            if cell.task == task:
                budgets.setdefault(_budget(cell.recipe), {})[cell.method] = None
        if len(budgets) > 1:
            groups = "; ".join(registry.listed(methods) for methods in budgets.values())
            yield f"Budgets differ: on {task} these groups of methods train for different lengths: {groups}."


def _extra_passes(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a sentence on what some methods compute in addition to the updates that all of them make."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        settings = cell.recipe.distillation
        criterion = build_component(cell.recipe, "criterion")
        extra = []
        if settings is not None:
            extra.append("a teacher's answers on every batch")
            if settings.unlabelled is not None:
                extra.append("as many unlabelled texts for student and teacher")
        if (batches := getattr(criterion, "batches", None)) is not None:
            extra.append(f"gradients of {batches} batches per stage to score weights")
        if extra:
            found.setdefault(" and ".join(extra), {})[cell.method] = None
    everywhere = {cell.method for cell in cells}
    if len(found) > 1 or any(set(methods) != everywhere for methods in found.values()):
        listed = "; ".join(f"{', '.join(methods)}: {extra}" for extra, methods in found.items())
        yield f"In addition to the updates that all methods make, some compute more. {listed}."
