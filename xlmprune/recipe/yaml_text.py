"""Read YAML as plain values with the line of every key, and write plain values as YAML.

The values are those of YAML 1.2: `no` is Norwegian, `3e-5` is a number, `2:4` and `2024-01-01` are text. PyYAML resolves
them by YAML 1.1, so only its parser is used. Keys given twice, aliases and tags are refused, and so is anything too large:
a recipe comes from other people too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from xlmprune.core.errors import RecipeError, first_line

KeyPath = tuple[str | int, ...]

MAX_CHARACTERS = 200_000
MAX_DEPTH = 20
MAX_DIGITS = 30
MAX_INTEGER = 2**63 - 1

INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+")
FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan"
)
CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}
REPLACED = "\ufffd"

BRACE = re.compile(r"(?:^|[:\[,-]\s+|\[)\{\w+\}")
"""A value that opens as `{language}.{split}.tsv` does, which YAML takes for a mapping."""

BRACE_HINT = (
    """; a value that begins with { needs quotes: path: "{language}.{split}.tsv", """
    """or in a shell --set 'task.path="{language}.{split}.tsv"'"""
)


def parse_yaml(text: str, origin: str) -> tuple[Any, dict[KeyPath, int]]:
    """Read a YAML text.

    Returns:
        Its values, and the line of every key and list entry.

    Raises:
        RecipeError: the text is not YAML, or holds what a recipe never needs; names ``origin`` and the line.
    """
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(f"{origin}: {len(text):,} characters; a recipe has at most {MAX_CHARACTERS:,}")
    reader = _Reader(text, origin)
    try:
        return reader.document(), reader.lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        # The fault may lie in the line before the one in which the parser noticed it.
        near = text.splitlines()[max(0, line - 1) : line + 1]
        hint = BRACE_HINT if any(map(BRACE.search, near)) else ""
        raise RecipeError(f"{origin}, line {line + 1}: not valid YAML: {error.problem}{hint}") from None
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
    ) as error:  # such as an escape that stands for no character
        raise RecipeError(f"{origin}: not valid YAML: {first_line(error)}") from None


class _Reader:
    """Builds plain values from the parser's events, which come one by one: what is too large is refused early."""

    def __init__(self, text: str, origin: str) -> None:
        self.origin = origin
        self.lines: dict[KeyPath, int] = {}
        self._events = yaml.parse(text, Loader=yaml.SafeLoader)

    def document(self) -> Any:
        documents = [self._value(event, ()) for event in self._events if isinstance(event, yaml.NodeEvent)]
        if len(documents) > 1:
            raise RecipeError(f"{self.origin}: holds {len(documents)} documents; a recipe has one")
        return documents[0] if documents else None

    def _value(self, event: Any, path: KeyPath) -> Any:
        self.lines.setdefault(path, _line(event))
        if isinstance(event, yaml.AliasEvent):
            raise self._fault(
                event, "anchors and aliases (&, *) are not allowed in recipes; write the values out"
            )
        if event.tag:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise self._fault(event, f"tags such as {tag} are not allowed in recipes; write only the value")
        if len(path) > MAX_DEPTH:
            raise self._fault(event, f"nested more than {MAX_DEPTH} levels deep; no recipe needs this")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            entries = self._until(yaml.SequenceEndEvent)
            return [self._value(entry, (*path, i)) for i, entry in enumerate(entries)]
        return self._scalar(event)

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in self._until(yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                raise self._fault(key, "a key must be a word")
            if key.value in found:
                raise self._fault(key, f"{key.value!r} is given twice")
            self.lines[*path, key.value] = _line(key)
            found[key.value] = self._value(next(self._events), (*path, key.value))
        return found

    def _until(self, end: type[yaml.Event]) -> Iterator[Any]:
        while not isinstance(event := next(self._events), end):
            yield event

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        # JSON writes a character beyond 16 bits as two escapes, which PyYAML leaves as two halves.
        text = event.value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if "\0" in text or text.count(REPLACED) > event.value.count(REPLACED):
            raise self._fault(event, "a text holds a NUL character or half a character")
        value = text if event.style else plain_value(text)
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise self._fault(event, "the number is too large")
        return value

    def _fault(self, event: Any, what: str) -> RecipeError:
        return RecipeError(f"{self.origin}, line {_line(event)}: {what}")


def _line(event: Any) -> int:
    return event.start_mark.line + 1


def plain_value(text: str) -> str | int | float | bool | None:
    """Read a scalar without quotes."""
    lower = text.lower()
    if lower in CONSTANTS:
        return CONSTANTS[lower]
    if INTEGER.fullmatch(text):
        digits = text.replace("_", "")
        return int(digits, 0) if len(digits) <= MAX_DIGITS else MAX_INTEGER + 1
    return float(lower.replace(".inf", "inf").replace(".nan", "nan")) if FLOAT.fullmatch(text) else text


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that `plain_value` would read as something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Only double quotes keep a line separator such as U+0085, which is written as an escape.
    style = '"' if not text.isprintable() else None if isinstance(plain_value(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump_yaml(values: Any) -> str:
    """Write plain values as YAML that `parse_yaml` reads back to equal ones."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
