"""From pydantic's faults to sentences: where the fault is, what was found, what is allowed."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from xlmprune.recipe.fields import annotation_at, describe_type, keys_at, paths_to
from xlmprune.recipe.registry import nearest
from xlmprune.recipe.yaml_text import BRACE_HINT, KeyPath

MOST = 50
"""Faults that are explained; a reader fixes the first few and tries again."""

MOST_PLACES = 2
"""A key that is elsewhere in a recipe is suggested if it is in no more places than these."""

LONGEST = 200
"""Characters of a name that a sentence quotes."""

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
MISSING = ("missing", "missing_argument")
BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
REWORDED = {
    "string_too_long": "is too long",
    "too_short": "needs at least one entry",
    "string_pattern_mismatch": "use letters, digits and `_.-`, and begin with a letter or a digit",
}


@dataclass(frozen=True)
class Where:
    """Says where in the user's input a path of the recipe stands."""

    origin: str
    positions: Mapping[KeyPath, str]
    """``mine.yaml, line 3`` of every key."""
    given: Mapping[KeyPath, str]
    """The override that set a path, such as ``--set seed=1``."""

    def __call__(self, path: KeyPath) -> str:
        for given, override in self.given.items():
            if path and (given[: len(path)] == path or path[: len(given)] == given):
                return override
        parents = (path[:end] for end in range(len(path), -1, -1))
        return next((self.positions[parent] for parent in parents if parent in self.positions), self.origin)


@dataclass(frozen=True)
class _Fault:
    path: KeyPath
    sentence: str
    wrong_type: bool


def explain(error: ValidationError, kind: Any, values: Any, where: Where, above: KeyPath = ()) -> list[str]:
    """Make one sentence for each fault that pydantic found.

    Args:
        kind: the model or dataclass that was to be built.
        values: what it was to be built from.
        above: the path of ``values`` in the recipe.
    """
    faults = [_fault(fault, kind, values, above) for fault in error.errors(include_url=False)[:MOST]]
    # pydantic tries every alternative of a type and complains about each. What lies deeper says more.
    told = [fault for fault in faults if not any(_says_more(other, fault) for other in faults)]
    more = error.error_count() - MOST
    sentences = dict.fromkeys(f"{where(fault.path)}: {fault.sentence}" for fault in told)
    return [*sentences, *([f"{where.origin}: and {more} more errors"] if more > 0 else [])]


def _says_more(other: _Fault, fault: _Fault) -> bool:
    deeper = other.path[: len(fault.path)] == fault.path and other.path != fault.path
    return fault.wrong_type and (deeper or (other.path == fault.path and not other.wrong_type))


def _fault(fault: Any, kind: Any, values: Any, above: KeyPath) -> _Fault:
    keys = _keys(fault["loc"], values, whole=fault["type"] in (*UNKNOWN, *MISSING))
    path = (*above, *keys)
    name = ".".join(map(str, path))[:LONGEST]
    name = name if name.isprintable() else ascii(name)
    if fault["type"] in UNKNOWN:
        known = keys_at(kind, keys[:-1])
        places = [] if above else sorted(set(paths_to(kind, str(keys[-1]))))
        is_clear = 0 < len(places) <= MOST_PLACES
        advice = f"did you mean {' or '.join(places)}?" if is_clear else nearest(str(keys[-1]), known)
        return _Fault(path, f"unknown key {name!r}; {advice}", wrong_type=False)
    if fault["type"] in MISSING:
        return _Fault(path, f"{name!r} is missing", wrong_type=False)
    wrong_type = not (said := _said(fault))
    sentence = said or f"expected {describe_type(annotation_at(kind, keys))}"
    if wrong_type or not isinstance(fault["input"], dict | None):
        sentence += f", found {_shown(fault['input'])}"
    if fault["type"] == "string_type" and isinstance(fault["input"], dict):
        sentence += BRACE_HINT
    return _Fault(path, f"{name}: {sentence}" if name else sentence, wrong_type)


def _said(fault: Any) -> str:
    """Return what is wrong with a value of the right type; nothing for one of a wrong type."""
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    if fault["type"] in BOUNDS:
        return str(fault["msg"]).replace("Input should", "must")
    return REWORDED.get(fault["type"], "")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "keys"
    return json.dumps(value) if value is None or isinstance(value, bool) else reprlib.repr(value)


def _keys(loc: KeyPath, values: Any, whole: bool) -> KeyPath:
    """Return the keys of a path, without the names that pydantic gives to the alternatives that it tried."""
    keys: list[str | int] = []
    for depth, part in enumerate(loc):
        is_key = (
            part in values if isinstance(values, dict) else isinstance(values, list) and isinstance(part, int)
        )
        if is_key:
            values = values[part]
        if is_key or (whole and depth == len(loc) - 1):
            keys.append(part)
    return tuple(keys)
