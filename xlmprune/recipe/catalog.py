"""The recipes that come with the package."""

from __future__ import annotations

import os
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from xlmprune.core.errors import RecipeError
from xlmprune.recipe.registry import nearest


def shipped_recipes() -> dict[str, Path]:
    """Name and file of every shipped recipe."""
    here = Path(__file__).parents[1]
    folder = here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """Find a recipe by its path, or a shipped recipe by its name.

    Raises:
        RecipeError: there is neither; names the nearest shipped recipe.
    """
    file = Path(name)
    if os.path.isfile(file):  # noqa: PTH113 - false for a name that is too long, where Path raises
        return file
    known = shipped_recipes()
    # The README writes `recipes/quickstart.yaml`, which works without a checkout too.
    if name in known or (file.stem in known and file.parent == Path("recipes")):
        return known[file.stem]
    if os.path.isdir(file):  # noqa: PTH112
        raise RecipeError(f"{name} is a folder; give a recipe file, or one of: {', '.join(known)}")
    if any(
        (folder / "comparisons" / f"{file.stem}.yaml").is_file()
        for folder in {f.parent for f in known.values()}
    ):
        raise RecipeError(f"{name} is a comparison of several runs: xlmprune compare {file.stem}")
    raise RecipeError(
        f"no recipe at {name}, and no shipped recipe has this name; {_near_file(file) or nearest(file.stem, list(known))}"
    )


def _near_file(file: Path) -> str:
    """Name the recipe file in the same folder that was probably meant; empty without one."""
    with suppress(OSError, ValueError):
        there = [found.name for found in file.parent.iterdir() if found.suffix in (".yaml", ".yml")]
        for near in get_close_matches(file.name, there, 1, cutoff=0.8):
            return f"did you mean {file.parent / near}?"
    return ""
