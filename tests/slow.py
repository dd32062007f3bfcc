"""Mark what the default suite leaves out; `pytest -m slow` runs it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def _slow(value: Any) -> Any:
    """Mark one value; a tuple has the values of several parameters."""
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)


def slow_but(quick: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Return the values of a parameter, with the mark `slow` on all that are not among ``quick``."""
    return [value if value in quick else _slow(value) for value in values]


def slow_after(count: int, values: Iterable[Any]) -> list[Any]:
    """Return the values of a parameter, with the mark `slow` on all but the first ``count``."""
    return [value if number < count else _slow(value) for number, value in enumerate(values)]
