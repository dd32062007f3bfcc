"""Rewrite the parts of the documentation that come from the code: `make docs`.

This script makes the text between `<!-- from the code: NAME -->` and `<!-- end -->` in README.md and docs/*.md. A test
checks that the text is current.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from xlmprune.export.form import all_forms
from xlmprune.recipe import registry
from xlmprune.recipe.catalog import shipped_recipes
from xlmprune.recipe.effects import effect_of
from xlmprune.recipe.fields import describe_type, sections
from xlmprune.recipe.loading import load_recipe
from xlmprune.recipe.methods import METHODS
from xlmprune.recipe.schema import Component, Recipe
from xlmprune.recipe.validation import build_component

ROOT = Path(__file__).parent.parent
FILES = ("README.md", "docs/commands.md", "docs/methods.md", "docs/recipe.md")
BLOCK = re.compile(r"(<!-- from the code: (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def renew(text: str) -> str:
    """``text`` with every generated block as the code has it now."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{make(found[2]).strip()}\n\n{found[4]}", text)


def make(name: str) -> str:
    """Return the content of the block ``name``, such as ``criteria``, ``help compress``, ``recipe keys``."""
    kind, _, rest = name.partition(" ")
    if kind == "help":
        return f"```console\n$ xlmprune {rest + ' ' if rest else ''}--help\n{command_help(rest.split()).rstrip()}\n```"
    if kind == "commands":
        return "\n\n".join(f"## {command}\n\n{make(f'help {command}')}" for command in command_names())
    if kind == "recipes":
        headings = ["recipe", "task and source", "model", "criterion and regularizer", "encoder weights left"]
        return _table(headings, [describe_recipe(key) for key in shipped_recipes()])
    if name == "recipe keys":
        return recipe_reference()
    if name == "tasks":
        rows = [[f"`{key}`", describe("task", key)] for key in registry.TABLES["task"]]
        return _table(["task", "what is asked, and how it is scored"], rows)
    if name == "importance":
        rows = [[f"`{key}`", describe("importance", key)] for key in registry.IMPORTANCES]
        return _table(["importance", "how heads and neurons are ranked"], rows)
    if name == "family":
        rows = [[f"`{key}`", describe_family(key)] for key in registry.FAMILIES]
        return _table(["model type", "models"], rows)
    if name == "methods":
        rows = [[f"`{key}`", preset.text] for key, preset in METHODS.items()]
        return _table(["method", "what it is, and what differs from the paper"], rows)
    if name == "tracker":
        return _table(
            ["tracker", "what it gets"], [[f"`{key}`", describe(name, key)] for key in registry.TRACKERS]
        )
    if name == "form":
        rows = [[f"`{key}`", describe(name, key), f"`{form.file}`"] for key, form in all_forms().items()]
        return _table(["form", "what it is", "file"], rows)
    rows = [
        [f"`{key}`", describe(name, key), ", ".join(parameters(name, key))] for key in registry.TABLES[name]
    ]
    return _table([name, "what it does", "parameters and their defaults"], rows)


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


# --- components ---------------------------------------------------------------------------------------------


def describe(table: str, name: str) -> str:
    """Return the first paragraph of a component's module, or of its class where a module holds several."""
    entry = registry.TABLES[table][name]
    module = entry.partition(":")[0]
    shared = sum(other.startswith(f"{module}:") for other in registry.TABLES[table].values()) > 1
    component = registry.load(table, name)
    source = component if shared else inspect.getmodule(component)
    paragraph = (inspect.getdoc(source) or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def describe_family(name: str) -> str:
    """Return the first line of a family's module."""
    module = import_module(registry.FAMILIES[name].partition(":")[0])
    return (inspect.getdoc(module) or "").partition("\n")[0]


def parameters(table: str, name: str) -> Iterator[str]:
    """``strength: 100`` for every parameter of a component; without a value where the recipe must give one."""
    schema = TypeAdapter(registry.load(table, name)).json_schema()
    for key, facts in schema.get("properties", {}).items():
        yield f"`{key}: {_plain(facts['default'])}`" if "default" in facts else f"`{key}`"


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- command line and recipes -------------------------------------------------------------------------------


def command_names() -> list[str]:
    """Return the commands in the order of `xlmprune --help`."""
    listed = command_help([]).partition("Commands:\n")[2]
    return re.findall(r"^  (\w[\w-]*)", listed, re.MULTILINE)


def command_help(arguments: list[str]) -> str:
    """Return what `xlmprune … --help` prints on a terminal of 80 columns."""
    from typer.testing import CliRunner

    from xlmprune.cli import app

    runner = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    result = runner.invoke(app, [*arguments, "--help"], prog_name="xlmprune")
    if result.exit_code != 0:
        raise ValueError(f"xlmprune {' '.join(arguments)} --help: exit code {result.exit_code}")
    return "\n".join(line.rstrip() for line in result.stdout.splitlines())


def describe_recipe(name: str) -> list[str]:
    """Return a line of the table of shipped recipes."""
    recipe = load_recipe(name)
    strength = getattr(build_component(recipe, "regularizer"), "strength", None)
    source = "" if recipe.task.name == "quickstart" else f", {recipe.task.source}"
    model = recipe.model.name.rpartition("/")[2]
    if recipe.model.vocabulary != "keep":
        model += ", trimmed vocabulary"
    return [
        f"`{name}`",
        recipe.task.name + source,
        model,
        f"{recipe.pruning.criterion.name}, {recipe.regularizer.name}"
        + (f" {strength:g}" if strength else ""),
        _left(recipe),
    ]


def _left(recipe: Recipe) -> str:
    """Say what remains: of weights, or of layers, heads and neurons."""
    structure = recipe.pruning.structure
    if recipe.pruning.pattern == "structured" and structure is not None:
        asked = {"layers": structure.layers, "heads": structure.heads, "neurons": structure.neurons}
        asked["sizes down to"] = structure.smallest
        return ", ".join(f"{key} {value}" for key, value in asked.items() if value not in (None, 1))
    densities = build_component(recipe, "schedule").per_stage()
    return f"{100 * densities[-1]:.3g}% in {len(densities)} stage{'s' if len(densities) > 1 else ''}"


def recipe_reference() -> str:
    """Every key of a recipe: type, default, and the sentence under its field in the code."""
    return "\n\n".join(_section(path, model) for path, model in _sections(Recipe, ""))


def _sections(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for key, field in model.model_fields.items():
        for inner in sections(field.annotation):
            if inner is not Component:
                yield from _sections(inner, f"{path}.{key}".lstrip("."))


def _section(path: str, model: type[BaseModel]) -> str:
    rows = []
    for key, field in model.model_fields.items():
        within = (*(path.split(".") if path else ()), key)
        changes = "" if sections(field.annotation) or key in ("base", "method") else effect_of(within)
        meaning = " ".join((field.description or "").split())
        rows.append([f"`{key}`", describe_type(field.annotation), _default(field), changes, meaning])
    title = f"`{path}`" if path else "The recipe"
    table = _table(["key", "type", "default", "changes", "meaning"], rows)
    return f"## {title}\n\n{inspect.getdoc(model)}\n\n{table}"


def _default(field: FieldInfo) -> str:
    value = field.default
    if field.is_required():
        return "required"
    if isinstance(value, Component):
        return f"`{value.name}`"
    if isinstance(value, BaseModel):
        return ""
    return f"`{_plain(value) if not isinstance(value, list) else '[' + ', '.join(map(str, value)) + ']'}`"


if __name__ == "__main__":
    for name in FILES:
        file = ROOT / name
        file.write_text(renew(file.read_text(encoding="utf-8")), encoding="utf-8")
