"""A JSON Schema of recipes, with which editors complete and check them."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from xlmprune.recipe import registry
from xlmprune.recipe.methods import METHODS
from xlmprune.recipe.schema import Recipe


def json_schema() -> dict[str, Any]:
    """Make a JSON Schema (2020-12) of recipes, with the parameters of every component."""
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    definitions = schema["$defs"]
    definitions.pop("Component")
    sections = {"criterion": "PruningRecipe", "schedule": "PruningRecipe", "regularizer": None}
    for table, section in sections.items():
        definitions[table.capitalize()] = _choices(table, definitions)
        owner = definitions[section] if section else schema
        description = owner["properties"][table]["description"]
        owner["properties"][table] = {"$ref": f"#/$defs/{table.capitalize()}", "description": description}
    definitions["TaskRecipe"]["properties"]["name"] |= {"enum": list(registry.TASKS)}
    schema["properties"]["method"] |= {"anyOf": [{"enum": list(METHODS)}, {"type": "null"}]}
    for name in ("model", "task"):
        part, description = schema["properties"][name], Recipe.model_fields[name].description
        part |= {"anyOf": [{"$ref": part.pop("$ref")}, {"type": "string"}], "description": description}
    # The name is the file's where the recipe gives none, and a base may give the task.
    schema["required"] = []
    schema["anyOf"] = [{"required": ["task"]}, {"required": ["base"]}]
    return schema


def _choices(table: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return what may stand for a component: a bare name, or a name with the parameters of that component."""
    choices: list[dict[str, Any]] = [{"enum": list(registry.TABLES[table])}]
    for name in registry.TABLES[table]:
        choice = TypeAdapter(registry.load(table, name)).json_schema()
        definitions.update(choice.pop("$defs", {}))
        choice["properties"] = {"name": {"const": name}, **choice.get("properties", {})}
        choice["required"] = ["name", *choice.get("required", [])]
        choice["additionalProperties"] = False
        choices.append(choice)
    return {"anyOf": choices}
