"""Recipes: read YAML, apply overrides, validate, and write the resolved recipe.

A recipe is data. Nothing in it is imported or executed; names are looked up in the tables of `registry`.
"""

# ruff: noqa: F401
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlmprune.recipe.catalog import find, shipped
    from xlmprune.recipe.editors import json_schema
    from xlmprune.recipe.effects import MAY_CHANGE, differences, effect_of
    from xlmprune.recipe.loading import apply_overrides, load, read
    from xlmprune.recipe.schema import (
        STRICT,
        Component,
        DistillationRecipe,
        EvaluationRecipe,
        ExportRecipe,
        FloorRecipe,
        ModelRecipe,
        PruningRecipe,
        Recipe,
        ReconstructRecipe,
        TaskRecipe,
        TrainingRecipe,
        VocabularyRecipe,
    )
    from xlmprune.recipe.validation import build, validate, validate_task
    from xlmprune.recipe.yaml_text import parse_yaml

_MODULES = {
    "editors": "json_schema",
    "effects": "MAY_CHANGE differences effect_of",
    "loading": "apply_overrides load read",
    "schema": "STRICT Component DistillationRecipe EvaluationRecipe ExportRecipe FloorRecipe ModelRecipe PruningRecipe "
    "Recipe ReconstructRecipe TaskRecipe TrainingRecipe VocabularyRecipe",
    "catalog": "find shipped",
    "validation": "build validate validate_task",
    "yaml_text": "parse_yaml",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: serving reads the registry alone, without pydantic and PyYAML."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
