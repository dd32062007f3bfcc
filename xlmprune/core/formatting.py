"""Numbers as people read them: percentages, points, sizes, counts. A value that is missing or not finite shows as a dash."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

DASH = "–"


def is_known(value: float | None) -> TypeGuard[float]:
    """Whether a number is there, and is finite."""
    return value is not None and math.isfinite(value)


def percent(share: float | None, digits: int = 1) -> str:
    """Write ``0.3138`` as ``31.4%``."""
    return f"{100 * share:.{digits}f}%" if is_known(share) else DASH


def score(value: float | None) -> str:
    """Write a metric, which is in percent already, to one decimal."""
    return f"{value:.1f}" if is_known(value) else DASH


def points(value: float | None) -> str:
    """Write a difference of two metrics with its sign."""
    if not is_known(value):
        return DASH
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def difference(before: float | None, after: float | None) -> float | None:
    """Return the difference of two metrics as `score` shows them, so that a reader who subtracts finds the same."""
    if not is_known(before) or not is_known(after):
        return None
    return round(round(after, 1) - round(before, 1), 1)


def p_value(value: float | None) -> str:
    """Write a p-value: ``0.03``, ``< 0.001``."""
    if not is_known(value):
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def size(count: float | None) -> str:
    """Write bytes as kB, MB or GB of a thousand each."""
    if not is_known(count):
        return DASH
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.{1 if count < 100 * factor else 0}f} {unit}"
    return f"{count:.0f} B"


def amount(count: float | None) -> str:
    """Write ``278,045,955`` as ``278.0 M``; smaller numbers with separators."""
    if count is None:
        return DASH
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"


def count_of(count: int, what: str) -> str:
    """Write ``1 layer``, ``1,200 layers``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def shorten(text: str, most: int = 40) -> str:
    """Cut a text to ``most`` characters, the last of them an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def number(value: float | str | None) -> str:
    """Write counts with separators, and other numbers in three significant digits."""
    if isinstance(value, float):
        return f"{value:.3g}" if is_known(value) else DASH
    return DASH if value is None else f"{value:,}" if isinstance(value, int) else value


def clock(seconds: float) -> str:
    """Format a duration as a clock: ``1:05`` for minutes and seconds, ``2:01:05`` with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def timestamp() -> str:
    """Write the present time in UTC, to the second: ``2026-01-31T23:59:59Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def decimals(value: float | None, digits: int = 2) -> str:
    """Write a number with a fixed count of decimals."""
    return f"{value:.{digits}f}" if is_known(value) else DASH


def plain(value: Any) -> Any:
    """Convert to values that JSON and YAML know: numpy's numbers become Python's, tuples lists, NaN and infinity None."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
