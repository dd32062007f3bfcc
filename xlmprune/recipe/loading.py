"""From a file to a recipe: its YAML, the recipe it is based on, and the options `--set`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from xlmprune.core.errors import RecipeError
from xlmprune.recipe.catalog import find, shipped
from xlmprune.recipe.fields import sections
from xlmprune.recipe.registry import nearest
from xlmprune.recipe.schema import TASK_TEXT, Component, Named, Recipe
from xlmprune.recipe.validation import validate
from xlmprune.recipe.yaml_text import MAX_CHARACTERS, MAX_DEPTH, KeyPath, parse_yaml

Positions = dict[KeyPath, str]
"""``mine.yaml, line 3`` of every key."""


PATHS = (
    ("model", "name"),
    ("model", "vocabulary", "files"),
    ("task", "path"),
    ("pruning", "structure", "budget", "table"),
    ("distillation", "unlabelled"),
    ("export", "calibration"),
)
"""Keys that hold paths. In a file they are relative to it; in a shipped recipe and in options, to the working directory."""


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        name: a file, or the name of a shipped recipe.
        overrides: ``a.b=value`` each, checked like the file.

    Raises:
        RecipeError: lists every fault, one a line, each with its position, what was found and what is allowed.
    """
    file = find(name)
    values, positions = read(file)
    return validate(values, str(file), positions, apply_overrides(values, overrides))


def read(file: Path) -> tuple[dict[str, Any], Positions]:
    """Read the values of a recipe, those of its base included, and the position of every key.

    Raises:
        RecipeError: the file cannot be read, or its base cannot be found or leads back to it.
    """
    values, positions = _read_one(file)
    name = values.pop("name", re.sub(r"[^A-Za-z0-9_.-]+", "_", file.stem).lstrip("_.-") or "recipe")
    chain = [file.resolve()]
    while (base := values.pop("base", None)) is not None:
        position = positions.pop(("base",))
        file = _find_base(base, file, position)
        if file.resolve() in chain or len(chain) > MAX_DEPTH:
            raise RecipeError(f"{position}: base {base!r} leads back to a recipe that is based on it")
        chain.append(file.resolve())
        below, below_positions = _read_one(file)
        below.pop("name", None)
        values, positions = _merge(below, values), below_positions | positions
    return {"name": name, **values}, positions


def _read_one(file: Path) -> tuple[dict[str, Any], Positions]:
    try:
        with file.open(encoding="utf-8-sig") as opened:
            values, lines = parse_yaml(opened.read(MAX_CHARACTERS + 1), str(file))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise RecipeError(f"{file}: cannot be read ({error.strerror})") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: expected keys such as `task:`, found {type(values).__name__}")
    for path in NAMED:
        if (section := _holder(values, path)) is not None and isinstance(section[path[-1]], str):
            section[path[-1]] = {"name": section[path[-1]]}
    is_shipped = file.resolve() in {known.resolve() for known in shipped().values()}
    _anchor(values, Path.cwd() if is_shipped else file.absolute().parent)
    return values, {path: f"{file}, line {line}" for path, line in lines.items()}


def _holder(values: Any, path: KeyPath) -> Any:
    """The section that holds the last key of ``path``; None if it does not."""
    for key in path[:-1]:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) and path[-1] in values else None


def _anchor(values: dict[str, Any], folder: Path) -> None:
    """Make relative paths absolute, so that the resolved recipe means the same from any folder."""
    for path in PATHS:
        if (section := _holder(values, path)) is not None:
            value = section[path[-1]]
            if isinstance(value, list):
                section[path[-1]] = [_absolute(entry, folder) for entry in value]
            # A model may also be one of the hub. `os.path` is false for a name that is too long, where Path raises.
            elif path != ("model", "name") or (isinstance(value, str) and os.path.isdir(folder / value)):  # noqa: PTH112
                section[path[-1]] = _absolute(value, folder)


def _absolute(value: Any, folder: Path) -> Any:
    if not isinstance(value, str) or value in ("", "quickstart", *TASK_TEXT) or value.startswith("~"):
        return value
    return os.path.normpath(folder / value)


def _find_base(base: Any, file: Path, position: str) -> Path:
    """The file that ``file`` is based on: beside it, or shipped."""
    if not isinstance(base, str):
        raise RecipeError(
            f"{position}: base: expected a file or the name of a shipped recipe, found {base!r:.50}"
        )
    beside, known = file.parent / base, shipped()
    if os.path.isfile(beside):  # noqa: PTH113 - false for a name that is too long, where Path raises
        return beside
    if base in known:
        return known[base]
    advice = nearest(base, list(known))
    raise RecipeError(
        f"{position}: base: no file {beside!s:.300}, and no shipped recipe is called {base!r:.100}; {advice}"
    )


def _merge(base: Any, own: Any) -> Any:
    """Put ``own`` over ``base``, key by key. A section with another name keeps nothing of the base's section."""
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    if own.get("name") not in (None, base.get("name")):
        return own
    return base | {key: _merge(base[key], value) if key in base else value for key, value in own.items()}


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[KeyPath, str]:
    """Put each ``a.b=value`` into ``values``; return the option that set each path, for messages."""
    given: dict[KeyPath, str] = {}
    for override in overrides:
        option = f"--set {override}"
        dotted, equals, text = override.partition("=")
        path = tuple(part.strip() for part in dotted.split("."))
        if not equals or not all(path):
            raise RecipeError(f"{option}: expected key=value, such as training.batch_size=16")
        if len(path) > MAX_DEPTH or path == ("base",):
            raise RecipeError(f"{option}: no value can be set there")
        value, _ = parse_yaml(text, option)
        _section(values, path[:-1], option)[path[-1]] = value
        given[path] = option
    _anchor(values, Path.cwd())
    return given


def _section(values: dict[str, Any], path: tuple[str, ...], option: str) -> dict[str, Any]:
    """The section at ``path`` inside ``values``, added where it is missing."""
    for depth, part in enumerate(path):
        here = path[: depth + 1]
        inside = values.get(part)
        if here in NAMED:
            inside = NAMED[here] if inside is None else inside
            inside = {"name": inside} if isinstance(inside, str) else inside
        inside = {} if inside is None else inside
        if not isinstance(inside, dict):
            raise RecipeError(f"{option}: {'.'.join(here)} is {inside!r:.50} and has no keys")
        values[part] = inside
        values = inside
    return values


def _named_parts(kind: type[BaseModel], above: KeyPath = ()) -> Iterator[tuple[KeyPath, str | None]]:
    """The path of everything that a bare name may stand for, and the name of the component there by default."""
    for key, field in kind.model_fields.items():
        for section in sections(field.annotation):
            if issubclass(section, Named):
                yield (*above, key), field.default.name if section is Component else None
            yield from _named_parts(section, (*above, key))


NAMED: Mapping[KeyPath, str | None] = dict(_named_parts(Recipe))
