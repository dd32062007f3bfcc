"""What the schema knows about a key: its type in words, and the keys that a section has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from xlmprune.recipe.schema import Named

WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true/false",
    NoneType: "null",
    Any: "anything",
}


def alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation itself."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in alternatives(member)]
    return [annotation]


def fields_of(kind: Any) -> Mapping[str, FieldInfo]:
    """Return the fields of a pydantic model or dataclass; none for any other type."""
    return getattr(kind, "__pydantic_fields__", {})


def sections(annotation: Any) -> list[type[BaseModel]]:
    """Return the models among the alternatives of a key."""
    return [
        kind for kind in alternatives(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)
    ]


def annotation_at(annotation: Any, path: tuple[str | int, ...]) -> Any:
    """Return the type of the key at ``path`` below ``annotation``; None if there is no such key."""
    for part in path:
        inside = [_inside(kind, part) for kind in alternatives(annotation)]
        annotation = next((found for found in inside if found is not None), None)
    return annotation


def _inside(kind: Any, part: str | int) -> Any:
    if get_origin(kind) in (list, dict):
        return get_args(kind)[-1] if (get_origin(kind) is list) == isinstance(part, int) else None
    field = fields_of(kind).get(str(part))
    return None if field is None else field.annotation


def keys_at(annotation: Any, path: tuple[str | int, ...]) -> list[str]:
    """Names of the keys of the section at ``path``."""
    return [key for kind in alternatives(annotation_at(annotation, path)) for key in fields_of(kind)]


def paths_to(kind: type[BaseModel], key: str) -> Iterator[str]:
    """Give every dotted path in ``kind`` that ends with ``key``."""
    for name, field in fields_of(kind).items():
        if name == key:
            yield key
        for section in sections(field.annotation):
            yield from (f"{name}.{path}" for path in paths_to(section, key))


def describe_type(annotation: Any) -> str:
    """Say what a key takes: ``whole number or null``, ``list of text``, ```all` or list of text``."""
    return " or ".join(word for kind in alternatives(annotation) for word in _words(kind))


def _words(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [f"`{value}`" for value in get_args(kind)]
    if get_origin(kind) in (list, dict):
        collection = "list" if get_origin(kind) is list else "map"
        return [f"{collection} of {describe_type(get_args(kind)[-1])}"]
    if kind in WORDS:
        return [WORDS[kind]]
    return ["name, or name and keys" if issubclass(kind, Named) else "keys"]
