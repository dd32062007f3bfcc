"""Refuse a component that defines a hook which nothing calls, when its module is imported."""

from __future__ import annotations

from collections.abc import Collection

from xlmprune.recipe.registry import nearest


def refuse_unknown_hooks(cls: type, hooks: Collection[str], declared: Collection[str]) -> None:
    """Check the public names that a subclass defines against those that its base declares.

    Args:
        hooks: names of methods that the loop calls.
        declared: names of the facts (`ClassVar`) that the base declares, which a subclass may set.

    Raises:
        TypeError: a public method or class fact has a name that the base does not know; names the nearest one.
    """
    known = sorted({*hooks, *declared})
    for name, value in vars(cls).items():
        method = callable(value) or isinstance(value, property | classmethod | staticmethod)
        if method and not name.startswith("_") and name not in known:
            raise TypeError(f"{cls.__name__}.{name} is not a known hook; {nearest(name, known)}")
    for name, annotation in vars(cls).get("__annotations__", {}).items():
        if "ClassVar" in str(annotation) and name not in known:
            raise TypeError(f"{cls.__name__}.{name} is not a known class fact; {nearest(name, known)}")
