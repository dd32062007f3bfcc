"""Mark what the default suite leaves out; `pytest -m slow` runs it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(quick: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Return the values of a parameter, with the mark `slow` on all that are not among ``quick``."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


def slow_after(count: int, values: Iterable[Any]) -> list[Any]:
    """Return the values of a parameter, with the mark `slow` on all but the first ``count``."""
    return [
        value if number < count else pytest.param(value, marks=pytest.mark.slow)
        for number, value in enumerate(values)
    ]
