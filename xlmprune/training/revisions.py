"""Pin what a run takes from the hub: the commits of its model and its data set, in the resolved recipe."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from xlmprune.core.errors import RecipeError
from xlmprune.core.hub import ask_again, commit_of
from xlmprune.recipe import registry
from xlmprune.recipe.loading import read_recipe
from xlmprune.recipe.schema import Recipe
from xlmprune.tasks import CorpusTask


def pin(recipe: Recipe, run: Path | None = None) -> Recipe:
    """Fill in the revisions that a recipe leaves open.

    A run that has begun keeps those it began with. Otherwise the hub says which commit is the newest; where neither the
    hub nor the cache knows one, the revision stays open.

    Args:
        run: the run folder; None for a run that starts over.
    """
    ask_again()
    begun = _recipe_in(run)
    for section, wanted in (("model", _hub_model(recipe)), ("task", _hub_set(recipe))):
        if wanted is None:
            continue
        name, kind, revision = wanted
        kept = begun.get(section)
        if isinstance(kept, dict) and kept.get("name") == getattr(recipe, section).name:
            commit = kept.get("revision")
        else:
            commit = commit_of(name, kind, revision)
        pinned = getattr(recipe, section).model_copy(update={"revision": commit})
        recipe = recipe.model_copy(update={section: pinned})
    return recipe


def _recipe_in(run: Path | None) -> dict[str, Any]:
    with suppress(RecipeError):
        if run is not None and (run / "recipe.yaml").is_file():
            return read_recipe(run / "recipe.yaml")[0]
    return {}


def _hub_model(recipe: Recipe) -> Any:
    """Return name, kind and wanted revision of a model of the hub that the recipe does not pin."""
    name = recipe.model.name
    local = name in registry.MODELS or Path(name).expanduser().is_dir() or name.startswith((".", "/", "~"))
    return None if local or recipe.model.revision else (name, "model", None)


def _hub_set(recipe: Recipe) -> Any:
    """Return name, kind and wanted revision of a data set of the hub that the recipe does not pin."""
    task = registry.load("task", recipe.task.name)
    if (
        recipe.task.source != "hub"
        or recipe.task.revision
        or not issubclass(task, CorpusTask)
        or not task.hub
    ):
        return None
    return task.hub.id, "dataset", task.hub.revision
