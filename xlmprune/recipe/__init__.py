"""Recipes: read YAML, apply overrides, validate, and write the resolved recipe.

A recipe is data. Nothing in it is imported or executed; names are looked up in the tables of `registry`.
"""

from xlmprune.recipe.editors import json_schema
from xlmprune.recipe.loading import apply_overrides, load, read
from xlmprune.recipe.registry import build
from xlmprune.recipe.schema import (
    STRICT,
    Component,
    DistillationRecipe,
    ExportRecipe,
    FloorRecipe,
    ModelRecipe,
    PruningRecipe,
    Recipe,
    TaskRecipe,
    VocabularyRecipe,
)
from xlmprune.recipe.shipped import find, shipped
from xlmprune.recipe.validation import validate, validate_task
from xlmprune.recipe.yaml_text import parse_yaml

__all__ = [
    "STRICT",
    "Component",
    "DistillationRecipe",
    "ExportRecipe",
    "FloorRecipe",
    "ModelRecipe",
    "PruningRecipe",
    "Recipe",
    "TaskRecipe",
    "VocabularyRecipe",
    "apply_overrides",
    "build",
    "find",
    "json_schema",
    "load",
    "parse_yaml",
    "read",
    "shipped",
    "validate",
    "validate_task",
]
