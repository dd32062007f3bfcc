"""Zero-shot mean against density, a line and a band for each method, as one self-contained SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import log
from typing import Any

from xlmprune.report.charts import LABEL_GAP, spread
from xlmprune.report.charts import round_ticks as round_ticks

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 1000, 42, 220, 14, 44

LIGHT = ("#2458c6", "#c2352b", "#0a7f72", "#9a6700", "#7c4bc0", "#b0307e", "#4d7c0f", "#0f7ea8")
DARK = ("#8ab0ff", "#ff8a7d", "#4fd0bf", "#e3b341", "#b694f0", "#f28cc8", "#a3cf62", "#62c7ee")
"""One after the other; after the last they begin again with a dashed line."""


@dataclass(frozen=True)
class Point:
    """A stage of a method."""

    density: float
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Curve:
    """A method."""

    label: str
    points: list[Point]


def curves(rows: Sequence[Mapping[str, Any]], task: str) -> list[Curve]:
    """The curve of every method of a task that was measured at two densities or more, from a comparison's rows."""
    found = []
    for row in rows:
        if row["task"] == task:
            points = [
                Point(
                    stage["encoder_density"], stage["zero_shot_mean"]["mean"], stage["zero_shot_mean"]["sd"]
                )
                for stage in row.get("curve", [])
                if stage["zero_shot_mean"] is not None
            ]
            if len({point.density for point in points}) > 1:
                found.append(Curve(row["method"], points))
    return found


def draw_curves(lines: Sequence[Curve], title: str) -> str:
    """Means over seeds with a band of one standard deviation to each side, dense at the left.

    Densities stand at equal ratios from each other. Every curve is named at its end and says its ends when pointed at.

    Args:
        lines: at least one.
        title: for screen readers.
    """
    height = max(460, TOP + BOTTOM + int(LABEL_GAP * 1.3 * len(lines)))
    points = [point for line in lines for point in line.points]
    depths = [_depth(point.density) for point in points]
    ends = [point.mean + side * (point.sd or 0.0) for point in points for side in (-1, 1)]
    ticks = round_ticks(min(ends), max(ends))
    low, high = min(ticks[0], *ends), max(ticks[-1], *ends)
    first, last = min(depths), max(depths)

    def x(density: float) -> float:
        return LEFT + (_depth(density) - first) / ((last - first) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(score: float) -> float:
        return TOP + (high - score) / (high - low) * (height - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="bands" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{_style()}</style>'
    ]
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    parts += _density_ticks(sorted({point.density for point in points}, reverse=True), x, height)
    for number, line in enumerate(lines):
        parts.append(_draw_curve(line, number, x, y))
    parts += _draw_names(lines, x, y, height)
    return "".join([*parts, "</svg>"])


def _depth(density: float) -> float:
    return -log(max(density, 1e-6))


def _density_ticks(densities: Sequence[float], x: Any, height: int) -> list[str]:
    parts: list[str] = []
    taken: list[float] = []
    for density in [densities[0], densities[-1], *densities[1:-1]]:
        place = x(density)
        if all(abs(place - other) >= 46 for other in taken):
            taken.append(place)
            parts.append(
                f'<text x="{place:.1f}" y="{height - BOTTOM + 20}" text-anchor="middle">{100 * density:.3g}%</text>'
            )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{height - 5}" text-anchor="middle">encoder weights that remain</text>'
    )
    return parts


def _draw_curve(line: Curve, number: int, x: Any, y: Any) -> str:
    path = " ".join(f"{x(p.density):.1f},{y(p.mean):.1f}" for p in line.points)
    band = ""
    if all(point.sd is not None for point in line.points):
        above = [(p.density, p.mean + (p.sd or 0.0)) for p in line.points]
        below = [(p.density, p.mean - (p.sd or 0.0)) for p in reversed(line.points)]
        corners = " ".join(f"{x(density):.1f},{y(score):.1f}" for density, score in [*above, *below])
        band = f'<polygon points="{corners}"/>'
    first, final = line.points[0], line.points[-1]
    said = f"{line.label}: {first.mean:.1f} → {final.mean:.1f}"
    said += f" ± {final.sd:.1f}" if final.sd is not None else " (one seed)"
    return (
        f'<g class="curve {_classes(number)}"><title>{escape(said)}</title>{band}<polyline class="reach" points="{path}"/>'
        f'<polyline points="{path}"/><circle cx="{x(final.density):.1f}" cy="{y(final.mean):.1f}" r="3"/></g>'
    )


def _draw_names(lines: Sequence[Curve], x: Any, y: Any, height: int) -> list[str]:
    ordered = sorted(enumerate(lines), key=lambda entry: y(entry[1].points[-1].mean))
    places = spread([y(line.points[-1].mean) for _, line in ordered], LABEL_GAP * 1.15, TOP, height - BOTTOM)
    parts = []
    for (number, line), place in zip(ordered, places, strict=True):
        end = line.points[-1]
        start_x, start_y = x(end.density), y(end.mean)
        name = line.label if len(line.label) <= 30 else line.label[:29] + "…"
        parts.append(
            f'<g class="name {_classes(number)}"><path d="M{start_x + 4:.1f} {start_y:.1f} L{WIDTH - RIGHT + 14} '
            f'{place:.1f}"/><text x="{WIDTH - RIGHT + 18}" y="{place + 4:.1f}">{escape(name)}</text></g>'
        )
    return parts


def _classes(number: int) -> str:
    return f"c{number % len(LIGHT)}" + (" dashed" if number // len(LIGHT) % 2 else "")


def _style() -> str:
    """In the drawing itself, so that it can stand alone as a file."""

    def colours(of: Sequence[str]) -> str:
        return "".join(f".bands .c{number}{{--c:{colour}}}" for number, colour in enumerate(of))

    return (
        ".bands{width:100%;height:auto;--grid:#d8dde4;--ink:#5c6773}"
        ".bands text{font:12px system-ui,sans-serif;fill:var(--ink)}"
        ".bands .grid,.bands .name path{stroke:var(--grid);fill:none}"
        ".bands .curve polyline{fill:none;stroke:var(--c);stroke-width:2.5;stroke-linejoin:round}"
        ".bands .curve.dashed polyline:not(.reach){stroke-dasharray:7 4}"
        ".bands .curve .reach{stroke:transparent;stroke-width:12;pointer-events:stroke}"
        ".bands .curve polygon{fill:var(--c);opacity:.13;stroke:none}"
        ".bands .curve circle,.bands .name text{fill:var(--c)}"
        ".bands .curve:hover polyline:not(.reach){stroke-width:4}"
        + colours(LIGHT)
        + "@media(prefers-color-scheme:dark){.bands{--grid:#343c47;--ink:#98a4b2}"
        + colours(DARK)
        + "}"
    )


__all__ = ["Curve", "Point", "curves", "draw_curves"]
