"""From a file to a recipe: its YAML, the recipe it is based on, its method, and the options `--set`."""

from __future__ import annotations

import copy
import json
import os
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from xlmprune.core.errors import RecipeError
from xlmprune.recipe.catalog import find_recipe, shipped_recipes
from xlmprune.recipe.fields import sections
from xlmprune.recipe.methods import values_of
from xlmprune.recipe.registry import nearest
from xlmprune.recipe.schema import TASK_TEXT, Component, Named, Recipe, TrainingRecipe
from xlmprune.recipe.validation import validate_recipe
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

DELIMITER = ("task", "delimiter")

MARKS = frozenset(string.punctuation) - {"~"}
"""Characters that are text where an option has nothing else, also those that YAML takes for its own. `~` means null."""


def load_recipe(name: str, overrides: Sequence[str] = (), saved: bool = False) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        name: a file, or the name of a shipped recipe.
        overrides: ``a.b=value`` each, checked like the file.
        saved: the file is the one that a run wrote; see `validate_recipe`.

    Raises:
        RecipeError: lists every fault, one a line, each with its position, what was found and what is allowed.
    """
    file = find_recipe(name)
    values, positions = read_recipe(file)
    given = apply_overrides(values, overrides)
    if ("method",) in given and ("name",) not in given:
        values["name"] = f"{values['name']}.{_last_method(overrides)}"
    return validate_recipe(values, str(file), positions, given, saved)


def _last_method(overrides: Sequence[str]) -> str:
    """Return the method that the options choose."""
    parts = [option.partition("=") for option in overrides]
    *_, last = (parse_yaml(text, "--set method")[0] for key, _, text in parts if key.strip() == "method")
    return str(last)


def recipe_of(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a file, of a shipped recipe's name, or of its keys as a mapping.

    Args:
        overrides: values of keys; a nested mapping changes only the keys that it has.

    Raises:
        RecipeError: lists every fault, one a line.
    """
    options = [f"{key}={json.dumps(value)}" for key, value in _flat(overrides)]
    if not isinstance(source, Mapping):
        return load_recipe(str(source), options)
    own = json.loads(json.dumps(dict(source)))
    values: dict[str, Any] = {}
    if (method := own.pop("method", None)) is not None:
        _apply_method(values, method, "recipe: method")
    values = {"name": "recipe", **_merge(values, own)}
    return validate_recipe(values, "recipe", None, apply_overrides(values, options))


def _flat(overrides: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield ``("training.seed", 1)`` for ``{"training": {"seed": 1}}``; a mapping with a name is one value."""
    for key, value in overrides.items():
        if isinstance(value, Mapping) and "name" not in value:
            yield from ((f"{key}.{inner}", entry) for inner, entry in _flat(value))
        else:
            yield key, value


def read_recipe(file: Path) -> tuple[dict[str, Any], Positions]:
    """Read the values of a recipe, those of its base included, and the position of every key.

    Raises:
        RecipeError: the file cannot be read, or its base cannot be found or leads back to it.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", file.stem).lstrip("_.-") or "recipe"
    values: dict[str, Any] = {}
    positions: Positions = {}
    chain = list(_chain(file))
    name = chain[0][0].get("name", name)
    for own, own_positions in reversed(chain):
        own.pop("name", None)
        if (method := own.pop("method", None)) is not None:
            _apply_method(values, method, f"{own_positions.pop(('method',))}: method")
        values, positions = _merge(values, own), positions | own_positions
    return {"name": name, **values}, positions


def _chain(file: Path) -> Iterator[tuple[dict[str, Any], Positions]]:
    """Yield the values of a recipe, of its base, of that one's base, and so on."""
    seen: list[Path] = []
    while True:
        seen.append(file.resolve())
        values, positions = _read_one(file)
        base = values.pop("base", None)
        yield values, positions
        if base is None:
            return
        position = positions.pop(("base",))
        file = _find_base(base, file, position)
        if file.resolve() in seen or len(seen) > MAX_DEPTH:
            raise RecipeError(f"{position}: base {base!r} leads back to a recipe that is based on it")


DENSE_KEYS = {
    "learning_rate": "dense_learning_rate",
    "warmup_updates": "dense_warmup_updates",
    "epochs_per_stage": "dense_epochs",
}
"""What stage 0 has of its own, by the key that it takes otherwise."""


def _apply_method(values: dict[str, Any], name: Any, position: str) -> None:
    """Put the method's values over ``values``. Stage 0 stays as it was, so that all methods prune the same dense model.

    A published training scheme keeps all of stage 0, also what it does not change itself: keys beside it may.
    """
    chosen = copy.deepcopy(values_of(name, position))
    given = values.get("training")
    before = given if isinstance(given, dict) else {}
    for key, dense_key in DENSE_KEYS.items() if "training" in chosen else ():
        # Without a base there is no stage 0 yet, and keys beside the method are for both.
        if before.get(dense_key) is None and (values or key in chosen["training"]):
            default = TrainingRecipe.model_fields[key].default
            chosen["training"][dense_key] = before.get(key, default)
    values |= {section: _merge(values.get(section), part) for section, part in chosen.items()}


def read_keys(file: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Read the keys of a recipe or of a comparison, and the line of each.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or has no keys.
    """
    try:
        with file.open(encoding="utf-8-sig") as opened:
            values, lines = parse_yaml(opened.read(MAX_CHARACTERS + 1), str(file))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise RecipeError(f"{file}: cannot be read ({error.strerror})") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: expected keys such as `task:`, found {type(values).__name__}")
    return values, lines


def _read_one(file: Path) -> tuple[dict[str, Any], Positions]:
    values, lines = read_keys(file)
    for path in NAMED:
        if (section := _holder(values, path)) is not None and isinstance(section[path[-1]], str):
            section[path[-1]] = {"name": section[path[-1]]}
    is_shipped = file.resolve() in {known.resolve() for known in shipped_recipes().values()}
    _anchor(values, Path.cwd() if is_shipped else file.absolute().parent)
    _read_tab(values)
    return values, {path: f"{file}, line {line}" for path, line in lines.items()}


def _holder(values: Any, path: KeyPath) -> Any:
    """Return the section that holds the last key of ``path``; None if it does not."""
    for key in path[:-1]:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) and path[-1] in values else None


def change_paths(values: dict[str, Any], change: Callable[[KeyPath, Any], Any]) -> None:
    """Replace what the keys of `PATHS` hold in ``values`` by ``change(key, value)``, entry by entry where it is a list."""
    for path in PATHS:
        if (section := _holder(values, path)) is not None:
            value = section[path[-1]]
            section[path[-1]] = (
                [change(path, entry) for entry in value] if isinstance(value, list) else change(path, value)
            )


def _anchor(values: dict[str, Any], folder: Path) -> None:
    """Make relative paths absolute, so that the resolved recipe means the same from any folder."""

    def anchored(path: KeyPath, value: Any) -> Any:
        # A model may also be one of the hub. `os.path` is false for a name that is too long, where Path raises.
        if path == ("model", "name") and not (isinstance(value, str) and os.path.isdir(folder / value)):  # noqa: PTH112
            return value
        return _absolute(value, folder)

    change_paths(values, anchored)


def _absolute(value: Any, folder: Path) -> Any:
    if not isinstance(value, str) or value in ("", "quickstart", *TASK_TEXT) or value.startswith("~"):
        return value
    return os.path.normpath(folder / value)


def _find_base(base: Any, file: Path, position: str) -> Path:
    """Return the file that ``file`` is based on: beside it, or shipped."""
    if not isinstance(base, str):
        raise RecipeError(
            f"{position}: base: expected a file or the name of a shipped recipe, found {base!r:.50}"
        )
    beside, known = file.parent / base, shipped_recipes()
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
    """Put each ``a.b=value`` into ``values``; return the option that set each path, for messages.

    A ``method`` goes first, so that the others win over it wherever they stand.
    """
    given: dict[KeyPath, str] = {}
    for override in sorted(overrides, key=lambda text: text.partition("=")[0].strip() != "method"):
        option = f"--set {override}"
        dotted, equals, text = override.partition("=")
        path = tuple(part.strip() for part in dotted.split("."))
        if not equals or not all(path):
            raise RecipeError(f"{option}: expected key=value, such as training.batch_size=16")
        if path == ("base",):
            raise RecipeError(
                f"{option}: write `base` in the recipe file, or give that recipe to the command"
            )
        if len(path) > MAX_DEPTH:
            raise RecipeError(f"{option}: no value can be set there")
        value = _value(path, text, option)
        if path == ("method",):
            _apply_method(values, value, option)
        else:
            _section(values, path[:-1], option)[path[-1]] = value
        given[path] = option
    _anchor(values, Path.cwd())
    _read_tab(values)
    return given


def _value(path: tuple[str, ...], text: str, option: str) -> Any:
    """Read the value of an option as YAML; a single punctuation character stands for itself."""
    if text.strip() in MARKS:
        return text.strip()
    if path == DELIMITER and text in ("\t", " "):
        return text
    return parse_yaml(text, option)[0]


def _read_tab(values: dict[str, Any]) -> None:
    r"""Replace a delimiter that is written as ``\t`` by a tab. YAML itself does so only between double quotes."""
    section = _holder(values, DELIMITER)
    if section is not None and section["delimiter"] == r"\t":
        section["delimiter"] = "\t"


def _section(values: dict[str, Any], path: tuple[str, ...], option: str) -> dict[str, Any]:
    """Return the section at ``path`` inside ``values``, added where it is missing."""
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
    """Yield the path of everything that a bare name may stand for, and the name of the component there by default."""
    for key, field in kind.model_fields.items():
        for section in sections(field.annotation):
            if issubclass(section, Named):
                yield (*above, key), field.default.name if section is Component else None
            yield from _named_parts(section, (*above, key))


NAMED: Mapping[KeyPath, str | None] = dict(_named_parts(Recipe))
