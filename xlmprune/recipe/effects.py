"""What each key of a recipe changes, and which keys may change when a run is resumed.

training    the trained weights; fixed once a run has begun
measuring   the scores of the stages; fixed too, so that the scores of one run can be compared
export      the bundle, which `xlmprune export` can make again from a finished run
conditions  how the same updates are computed, as the device and the threads say it too; a run resumes with another
            value only if that is allowed (`training.conditions`)
running     how the run is carried out; results stay the same
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from xlmprune.recipe.fields import sections
from xlmprune.recipe.schema import Effect, Recipe
from xlmprune.recipe.yaml_text import KeyPath

MAY_CHANGE: tuple[Effect, ...] = ("export", "conditions", "running")


class Difference(NamedTuple):
    """A key that two recipes give different values."""

    path: KeyPath
    before: Any
    now: Any

    @property
    def effect(self) -> Effect:
        """What the key changes."""
        return effect_of(self.path)

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path))} is {json.dumps(self.before)} there and {json.dumps(self.now)} here"


def differences(before: Any, now: Any, path: KeyPath = ()) -> Iterator[Difference]:
    """Compare two resolved recipes key by key."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *before]):
            yield from differences(before.get(key), now.get(key), (*path, key))
    elif before != now:
        yield Difference(path, before, now)


def effect_of(path: KeyPath) -> Effect:
    """Say what the key at ``path`` changes: the innermost key or section that declares it decides."""
    kinds: list[type[BaseModel]] = [Recipe]
    effect: Effect = "training"
    for key in path:
        fields = [kind.model_fields[str(key)] for kind in kinds if str(key) in kind.model_fields]
        if not fields:
            break
        kinds = sections(fields[0].annotation)
        declared = [*map(_declared, kinds), _declared(fields[0])]
        effect = next((found for found in reversed(declared) if found), effect)
    return effect


def _declared(part: type[BaseModel] | FieldInfo) -> Effect | None:
    extra = (
        part.json_schema_extra if isinstance(part, FieldInfo) else part.model_config.get("json_schema_extra")
    )
    return cast("Effect | None", extra.get("effect")) if isinstance(extra, dict) else None
