"""Read a comparison file over the one that it is based on.

A file may look like this:

    base: quickstart_methods                 # another comparison; keys given here replace its keys, `set` key by key
    recipe: quickstart                       # a file or a shipped recipe
    set: {export.onnx: [fp32]}               # for every cell
    methods:                                 # rows; each a set of overrides, perhaps with seeds of its own
      Random: {method: random, seed: [1]}
      L2-MBP: {method: l2}
      Strong cosine: {method: cosine, regularizer.strength: 1000}
    tasks:                                   # columns; overrides, or a recipe of their own
      XNLI: {recipe: xnli_cosine}
    vary: {seed: [1, 2, 3]}                  # every combination
    baseline: L2-MBP                         # test the others against it alone
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from xlmprune.core.errors import RecipeError
from xlmprune.recipe import registry
from xlmprune.recipe.catalog import find_recipe, shipped_recipes
from xlmprune.recipe.explanations import Where, explain
from xlmprune.recipe.loading import read_keys
from xlmprune.recipe.schema import STRICT

Overrides = dict[str, Any]
"""Dotted key of a recipe to its value."""

KEYS = {"recipe", "methods", "tasks", "vary", "set"}
"""Keys of a comparison file that a recipe does not have."""


class ComparisonFile(BaseModel):
    """The keys of a comparison file."""

    model_config = STRICT

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the comparison; by default the file's name."""
    base: str | None = None
    """Another comparison to start from: a file beside this one, or a shipped comparison. Keys given here replace its keys;
    the overrides of `set` are put over its own one by one."""
    recipe: str | None = None
    """The recipe that every cell begins with: a file (relative to the comparison file, or to here) or a shipped recipe."""
    set: Overrides = {}
    """Overrides for every cell."""
    methods: dict[str, Overrides] = {}
    """Rows of the table. A method with a list of `seed`s runs with these and not with those varied."""
    tasks: dict[str, Overrides] = {}
    """Columns of the table; the key `recipe` gives a column its own base recipe."""
    vary: dict[str, list[Any]] = {}
    """Keys with their values; every combination is run. `seed` is averaged over, `task…` makes columns, others rows."""
    baseline: str | None = None
    """The method that the others are tested against; by default every pair is tested."""


def shipped() -> dict[str, Path]:
    """Return name and file of every comparison that comes with the package."""
    folders = {file.parent / "comparisons" for file in shipped_recipes().values()}
    return {file.stem: file for folder in sorted(folders) for file in sorted(folder.glob("*.yaml"))}


def find_file(name: str) -> Path:
    """Find a comparison file or a recipe: a path, or the name of a shipped one.

    Raises:
        RecipeError: there is none.
    """
    known, file = shipped(), Path(name)
    if (
        file.stem in known
        and not file.is_file()
        and name in (file.stem, f"recipes/comparisons/{file.stem}.yaml")
    ):
        return known[file.stem]
    try:
        return find_recipe(name)
    except RecipeError:
        if file.is_dir():
            raise
        nearest = registry.nearest(file.stem, [*shipped_recipes(), *known])
        raise RecipeError(
            f"no recipe or comparison at {name}, and no shipped one has this name; {nearest}"
        ) from None


def read_file(file: Path, above: tuple[Path, ...] = ()) -> ComparisonFile:
    """Read a comparison file over its base; a recipe is a comparison of one cell.

    Args:
        above: files that are based on this one.

    Raises:
        RecipeError: names the fault and its line.
    """
    values, lines = read_keys(file)
    if not KEYS & set(values):
        return ComparisonFile(name=values.get("name", file.stem), recipe=str(file))
    for section in ("methods", "tasks"):
        if isinstance(values.get(section), dict):
            # `L2-MBP:` with nothing after it runs the recipe without changes.
            values[section] = {label: {} if o is None else o for label, o in values[section].items()}
    try:
        given = ComparisonFile.model_validate({"name": file.stem, **values})
    except ValidationError as error:
        positions = {path: f"{file}, line {line}" for path, line in lines.items()}
        where = Where(f"{file}, line 1", positions, {})
        raise RecipeError("\n".join(explain(error, ComparisonFile, values, where))) from None
    return given if given.base is None else _over_base(given, file, (*above, file.resolve()))


def _over_base(given: ComparisonFile, file: Path, above: tuple[Path, ...]) -> ComparisonFile:
    """Put the keys of a comparison over those of its base.

    Args:
        above: the files that led here, this one the last.
    """
    assert given.base is not None
    beside, known = file.parent / given.base, shipped()
    found = beside if beside.is_file() else known.get(given.base)
    if found is None:
        raise RecipeError(
            f"{file}: base: no file {beside}, and no shipped comparison is called {given.base!r}; "
            f"{registry.nearest(given.base, list(known))}"
        )
    if found.resolve() in above:
        raise RecipeError(f"{file}: base {given.base!r} leads back to a comparison that is based on it")
    if not KEYS & set(read_keys(found)[0]):
        raise RecipeError(f"{file}: base {given.base!r} is a recipe; name it with `recipe`")
    below = read_file(found, above)
    own = {key: getattr(given, key) for key in given.model_fields_set if key != "base"}
    own["set"] = below.set | given.set
    return below.model_copy(update={**_anchored(below, found.parent), **own})


def _anchored(given: ComparisonFile, folder: Path) -> dict[str, Any]:
    """Return the recipes that a comparison in ``folder`` names, such that another file may name them too."""

    def path(recipe: Any) -> Any:
        beside = folder / recipe if isinstance(recipe, str) else None
        return str(beside) if beside is not None and beside.is_file() else recipe

    tasks = {
        label: overrides | ({"recipe": path(overrides["recipe"])} if "recipe" in overrides else {})
        for label, overrides in given.tasks.items()
    }
    return {"recipe": path(given.recipe), "tasks": tasks}
