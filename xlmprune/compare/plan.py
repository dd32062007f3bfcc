"""What is compared: a recipe, and what differs from cell to cell.

Every cell is an ordinary recipe with a place in the table: a method (row), a task (column) and a seed (averaged
over). Cells come from ``--vary key=v1,v2`` or from a comparison file:

    recipe: quickstart                       # a file or a shipped recipe
    set: {export.onnx: [fp32]}               # for every cell
    methods:                                 # rows; each a set of overrides, perhaps with seeds of its own
      Random: {pruning.criterion: random, regularizer: none, seed: [1]}
      L2-MBP: {regularizer: none}
      Cosine-MBP: {regularizer: {name: cosine, strength: 100}}
    tasks:                                   # columns; overrides, or a recipe of their own
      XNLI: {recipe: xnli_cosine}
    vary: {seed: [1, 2, 3]}                  # every combination
    baseline: L2-MBP                         # test the others against it alone
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from xlmprune import recipe as recipes
from xlmprune.core.errors import RecipeError
from xlmprune.recipe import STRICT, Recipe, registry

Overrides = dict[str, Any]
"""Dotted key of a recipe to its value."""

SHARED_DENSE = (
    "Stage 0 is trained without the regularizer (training.regularize_dense: false), so that all methods prune the same "
    "fine-tuned model, seed by seed."
)


class ComparisonFile(BaseModel):
    """The keys of a comparison file."""

    model_config = STRICT

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """What the comparison is called; otherwise the file's name."""
    recipe: str | None = None
    """The recipe all cells begin with: a file (seen from the comparison file, or from here) or a shipped recipe."""
    set: Overrides = {}
    """Overrides for every cell."""
    methods: dict[str, Overrides] = {}
    """Rows of the table. A list of `seed`s is run in place of those varied."""
    tasks: dict[str, Overrides] = {}
    """Columns of the table; the key `recipe` gives a column a base recipe of its own."""
    vary: dict[str, list[Any]] = {}
    """Keys with their values; every combination is run. `seed` is averaged over, `task…` makes columns, others rows."""
    baseline: str | None = None
    """The method that the others are tested against; otherwise every pair is tested."""
    share_dense: bool = True
    """Train the dense stage once for all methods (without regularizer), where the recipe does not say otherwise."""


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    name: str
    """Its folder, and the end of its recipe's name."""
    method: str
    task: str
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class Plan:
    """All cells and how they are laid out."""

    name: str
    origin: str
    """The recipe or comparison file, for readers."""
    cells: tuple[Cell, ...]
    baseline: str | None = None
    notes: tuple[str, ...] = field(default=())
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


def shipped() -> dict[str, Path]:
    """Name and file of every comparison that comes with the package."""
    folders = {file.parent / "comparisons" for file in recipes.shipped().values()}
    return {file.stem: file for folder in sorted(folders) for file in sorted(folder.glob("*.yaml"))}


def read(
    name: str, vary: Sequence[str] = (), overrides: Sequence[str] = (), baseline: str | None = None
) -> Plan:
    """Lay out a comparison.

    Args:
        name: a comparison file, a recipe, or the name of a shipped one of either.
        vary: ``key=v1,v2`` each; added to what the file varies.
        overrides: ``key=value`` each, for every cell; stronger than anything else.
        baseline: the method to test against, as its row is called.

    Raises:
        RecipeError: names what is wrong, and where: an unknown key, no cells, the same cell twice.
    """
    file = _find(name)
    values, lines = recipes.parse_yaml(_text(file), str(file))
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: expected keys such as `recipe:`, found {type(values).__name__}")
    if _is_comparison(values):
        given = _read_file(values, lines, file)
    else:
        given = ComparisonFile(name=values.get("name", file.stem), recipe=str(file))
    return _lay_out(given, file, [_parse_vary(text) for text in vary], overrides, baseline)


def _find(name: str) -> Path:
    known = shipped()
    file = Path(name)
    if file.is_file():
        return file
    if name in known or (file.stem in known and file.parent == Path("recipes/comparisons")):
        return known[file.stem]
    try:
        return recipes.find(name)
    except RecipeError:
        if file.is_dir():
            raise
        every = [*recipes.shipped(), *known]
        raise RecipeError(
            f"no recipe or comparison at {name}, and none shipped is called so; {registry.nearest(file.stem, every)}"
        ) from None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: not UTF-8 text (byte {error.start})") from None


def _is_comparison(values: Mapping[str, Any]) -> bool:
    """Whether a file's keys are those of a comparison; a recipe has `task` and none of these."""
    return bool({"recipe", "methods", "tasks", "vary", "set"} & set(values))


def _read_file(values: dict[str, Any], lines: dict[Any, int], file: Path) -> ComparisonFile:
    for section in ("methods", "tasks"):
        if isinstance(values.get(section), dict):
            # `L2-MBP:` with nothing after it is the recipe as it is.
            values[section] = {label: {} if o is None else o for label, o in values[section].items()}
    try:
        return ComparisonFile.model_validate({"name": file.stem, **values})
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(error, lines, file))) from None


def _explain(error: ValidationError, lines: dict[Any, int], file: Path) -> Iterator[str]:
    for fault in error.errors():
        path = tuple(fault["loc"])
        line = next((lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in lines), 1)
        dotted = ".".join(map(str, path))
        if fault["type"] == "extra_forbidden":
            known = list(ComparisonFile.model_fields)
            yield f"{file}, line {line}: unknown key {dotted!r}; {registry.nearest(str(path[-1]), known)}"
        else:
            yield f"{file}, line {line}: {dotted}: {fault['msg'].lower()}, found {fault['input']!r}"


def _parse_vary(text: str) -> tuple[str, list[Any]]:
    """``key=v1,v2``: values are YAML, so ``regularizer={name: cosine, strength: 10},none`` has two."""
    key, equals, listed = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise RecipeError(f"--vary {text}: expected key=value1,value2, such as seed=1,2,3")
    values, _ = recipes.parse_yaml(f"[{listed}]", f"--vary {text}")
    return key, values


# --- from axes to cells ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """One point on an axis: overrides, and how the row or column they make is called."""

    label: str
    overrides: Overrides
    source: str
    """Where it was written, for messages."""
    recipe: str | None = None
    """Base recipe of this column."""
    seeds: tuple[Any, ...] | None = None
    """Run with these in place of those varied."""


def _lay_out(
    given: ComparisonFile,
    file: Path,
    vary: list[tuple[str, list[Any]]],
    overrides: Sequence[str],
    baseline: str | None,
) -> Plan:
    varied = {key: (values, f"{file}: vary.{key}") for key, values in given.vary.items()}
    asked: dict[str, list[Any]] = {}
    for key, values in vary:
        asked.setdefault(key, []).extend(values)
    varied |= {key: (values, f"--vary {key}") for key, values in asked.items()}
    for values, source in varied.values():
        if not values:
            raise RecipeError(f"{source}: no value is listed, so there is no cell to run")
    seeds = varied.pop("seed", None)
    rows = [_axis(key, *found) for key, found in varied.items() if key.split(".")[0] != "task"]
    columns = [_axis(key, *found) for key, found in varied.items() if key.split(".")[0] == "task"]
    if given.methods:
        rows.insert(
            0, [_row(label, o, file, own_seeds="seed" not in asked) for label, o in given.methods.items()]
        )
    if given.tasks:
        columns.insert(0, [_column(label, o, file) for label, o in given.tasks.items()])
    if not rows and not columns and seeds is None:
        raise RecipeError(
            f"{file}: nothing is varied, so there is nothing to compare. Give --vary key=value1,value2 (such as "
            "--vary regularizer=none,cosine --vary seed=1,2,3), or a comparison file with `methods:`"
        )
    builder = _Builder(given, file, overrides)
    drafts = [
        _Draft(column, row, seed)
        for column, row in itertools.product(itertools.product(*columns), itertools.product(*rows))
        for seed in _seed_axis(_own_seeds(row) or seeds)
    ]
    cells = tuple(_name_cells([builder.build(draft) for draft in drafts], given.name))
    _refuse_twins(cells)
    wanted = baseline or given.baseline
    methods = list(dict.fromkeys(cell.method for cell in cells))
    if wanted is not None and wanted not in methods:
        raise RecipeError(f"baseline {wanted!r} is no method here; {registry.nearest(wanted, methods)}")
    notes = [SHARED_DENSE] if builder.shares_dense else []
    return Plan(
        given.name, file.name, cells, wanted, (*notes, *_uneven_budgets(cells), *_extra_passes(cells))
    )


@dataclass(frozen=True)
class _Draft:
    column: tuple[_Choice, ...]
    row: tuple[_Choice, ...]
    seed: _Choice | None


def _seed_axis(seeds: tuple[list[Any], str] | None) -> list[_Choice | None]:
    if seeds is None:
        return [None]
    values, source = seeds
    return [_Choice(f"seed={seed}", {"seed": seed}, f"{source}={seed}") for seed in values]


def _own_seeds(row: tuple[_Choice, ...]) -> tuple[list[Any], str] | None:
    return next(((list(choice.seeds), choice.source) for choice in row if choice.seeds), None)


def _row(label: str, overrides: Overrides, file: Path, own_seeds: bool) -> _Choice:
    seeds, source = overrides.get("seed"), f"{file}: methods.{label}"
    if not isinstance(seeds, list):
        return _Choice(label, overrides, source)
    if not seeds:
        raise RecipeError(f"{source}.seed: no value is listed, so there is no cell to run")
    rest = {key: value for key, value in overrides.items() if key != "seed"}
    return _Choice(label, rest, source, seeds=tuple(seeds) if own_seeds else None)


def _column(label: str, overrides: Overrides, file: Path) -> _Choice:
    rest = {key: value for key, value in overrides.items() if key != "recipe"}
    base = overrides.get("recipe")
    if base is not None and not isinstance(base, str):
        raise RecipeError(f"{file}: tasks.{label}.recipe: expected a file or a recipe's name, found {base!r}")
    return _Choice(label, rest, f"{file}: tasks.{label}", base)


def _axis(key: str, values: list[Any], source: str) -> list[_Choice]:
    labels = [_label(key, value) for value in values]
    if len(set(labels)) < len(labels):  # the same name with other parameters: spell everything out
        labels = [f"{key}={json.dumps(value, ensure_ascii=False)}" for value in values]
    return [
        _Choice(label, {key: value}, f"{source}={value if isinstance(value, str) else json.dumps(value)}")
        for label, value in zip(labels, values, strict=True)
    ]


NAMED = ("regularizer", "pruning.criterion", "pruning.schedule", "task.name")
"""Keys whose values say by themselves what they are."""


def _label(key: str, value: Any) -> str:
    """How a value is called in the table: a component by its name, anything else with its key."""
    if isinstance(value, Mapping) and "name" in value:
        beside = ", ".join(f"{k}={v}" for k, v in value.items() if k != "name")
        return f"{value['name']} ({beside})" if beside else str(value["name"])
    if isinstance(value, str) and key in NAMED:
        return value
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"{key.rpartition('.')[2]}={shown}"


class _Builder:
    """Makes a validated recipe for every combination."""

    def __init__(self, given: ComparisonFile, file: Path, overrides: Sequence[str]) -> None:
        self.given = given
        self.file = file
        self.overrides = overrides
        self.shares_dense = False
        self.bases: dict[str, tuple[dict[str, Any], dict[Any, str], Path]] = {}

    def build(self, draft: _Draft) -> Cell:
        column_recipe = next((choice.recipe for choice in draft.column if choice.recipe), None)
        base = column_recipe or self.given.recipe
        if base is None:
            raise RecipeError(f"{self.file}: `recipe` is missing: the recipe that every cell begins with")
        values, lines, origin = self._base(base)
        values = copy.deepcopy(values)
        given: dict[Any, str] = {}
        parts = [*draft.column, *draft.row, *([draft.seed] if draft.seed else [])]
        for source, overrides in [
            (f"{self.file}: set", self.given.set),
            *((p.source, p.overrides) for p in parts),
        ]:
            for key, value in overrides.items():
                given |= dict.fromkeys(_put(values, key, value, source), source)
        for text in self.overrides:
            given |= dict.fromkeys(recipes.apply_overrides(values, [text]), f"--set {text}")
        if self.given.share_dense and "regularize_dense" not in (values.get("training") or {}):
            values.setdefault("training", {})
            values["training"]["regularize_dense"] = False
            self.shares_dense = True
        values["name"] = "cell"
        recipe = recipes.validate(values, str(origin), lines, given)
        method = ", ".join(choice.label for choice in draft.row) or self.given.name
        task = ", ".join(choice.label for choice in draft.column) or recipe.task.name
        return Cell("", method, task, recipe.seed, recipe)

    def _base(self, name: str) -> tuple[dict[str, Any], dict[Any, str], Path]:
        if name not in self.bases:
            beside = self.file.parent / name
            file = beside if beside.is_file() and beside != self.file else recipes.find(name)
            self.bases[name] = (*recipes.read(file), file)
        return self.bases[name]


def _put(values: dict[str, Any], key: str, value: Any, source: str) -> Iterator[Any]:
    """Set a dotted key; yields the path that was set."""
    try:
        yield from recipes.apply_overrides(values, [f"{key}={json.dumps(value, allow_nan=False)}"])
    except RecipeError as error:
        raise RecipeError(f"{source}: {str(error).removeprefix('--set ')}") from None
    except (TypeError, ValueError):
        raise RecipeError(f"{source}: {key}: {value!r} is no value that a recipe can hold") from None


def slug(text: str) -> str:
    """A word for file names: lower case, letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def _name_cells(cells: Sequence[Cell], name: str) -> Iterator[Cell]:
    columns = len({cell.task for cell in cells})
    methods, tasks = (
        _distinct_slugs(kind) for kind in zip(*((c.method, c.task) for c in cells), strict=True)
    )
    for cell in cells:
        parts = [methods[cell.method], *([tasks[cell.task]] if columns > 1 else []), f"seed{cell.seed}"]
        own = ".".join(parts)
        recipe = cell.recipe.model_copy(update={"name": f"{name}.{own}"})
        yield Cell(own, cell.method, cell.task, cell.seed, recipe)


def _distinct_slugs(labels: Sequence[str]) -> dict[str, str]:
    """A slug for each label, told apart by a few digits of its hash where two are alike or long."""
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
                f"two cells are the same run: {describe(seen[same])} and {describe(cell)}. Is a value listed twice, "
                "or does --set override what is varied?"
            )
        seen[same] = cell


def describe(cell: Cell) -> str:
    """A cell in words."""
    return f"{cell.method} on {cell.task} with seed {cell.seed}"


BUDGET = (
    "epochs_per_stage", "dense_epochs", "max_updates_per_stage", "batch_size",
)  # fmt: skip


def _uneven_budgets(cells: Sequence[Cell]) -> Iterator[str]:
    """A sentence for every column whose methods do not train equally long."""
    for task in dict.fromkeys(cell.task for cell in cells):
        budgets: dict[str, list[str]] = {}
        for cell in cells:
            if cell.task == task:
                schedule = recipes.build(cell.recipe, "schedule").densities()
                training = {key: getattr(cell.recipe.training, key) for key in BUDGET}
                budget = json.dumps([training, len(schedule), cell.recipe.task.max_train_examples])
                budgets.setdefault(budget, []).append(cell.method)
        if len(budgets) > 1:
            groups = "; ".join(", ".join(dict.fromkeys(methods)) for methods in budgets.values())
            yield f"Not one budget: on {task} these groups of methods train for different lengths: {groups}."


def _extra_passes(cells: Sequence[Cell]) -> Iterator[str]:
    """A sentence on what some methods compute beside the updates that all of them make."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        settings = cell.recipe.distillation
        criterion = recipes.build(cell.recipe, "criterion")
        extra = []
        if settings is not None:
            extra.append("a teacher's answers on every batch")
            if settings.unlabelled is not None:
                extra.append("as many unlabelled texts, for student and teacher")
        if (batches := getattr(criterion, "batches", None)) is not None:
            extra.append(f"gradients of {batches} batches a stage to score weights")
        if extra:
            found.setdefault(" and ".join(extra), {})[cell.method] = None
    if len(found) > 1 or any(set(methods) != {cell.method for cell in cells} for methods in found.values()):
        listed = "; ".join(f"{', '.join(methods)}: {extra}" for extra, methods in found.items())
        yield f"Beside the updates that all make, some compute more. {listed}."
