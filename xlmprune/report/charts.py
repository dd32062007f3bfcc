"""Charts of reports and comparisons as SVG text: they take their colours from the page, in light and in dark.

matplotlib would fix size and colours when the report is written; here a phone gets a drawing of its own and nothing
but text goes into the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log, log10
from typing import Any

from xlmprune.core import formatting
from xlmprune.core.languages import language_name

LABEL_GAP = 13.0
"""Pixels between the baselines of two labels, so that they never touch."""


@dataclass(frozen=True)
class Scale:
    """What the horizontal axis of a chart shows, the largest value at the left."""

    caption: str
    written: Callable[[float], str]
    """A value as the axis has it."""


REMAINING = Scale("encoder weights that remain", lambda density: f"{100 * density:.3g}%")
MILLISECONDS = Scale("milliseconds a text", lambda milliseconds: f"{milliseconds:.3g}")
BYTES = Scale("bytes of the file", lambda count: formatting.size(count))

FEW = 24
"""Up to so many languages all are named beside their curves."""


@dataclass(frozen=True)
class Line:
    """One curve of `draw_scores`."""

    label: str
    title: str
    points: list[tuple[float, float]]
    """(density, score), in the order of the stages; or another place on the `Scale`, from large to small."""
    style: str
    """``other``, ``worst``, ``train`` or ``mean``: a class of the page's style sheet."""


def score_lines(
    stages: Sequence[Mapping[str, Any]], train_language: str | None, worst: str | None
) -> list[Line]:
    """Return the curves of every language and of the zero-shot mean, the ones that matter last (drawn on top)."""
    codes: dict[str, None] = {}
    for stage in stages:
        codes.update(dict.fromkeys(stage.get("languages", {})))
    lines = []
    for code in codes:
        points = [
            (stage["encoder_density"], stage["languages"][code])
            for stage in stages
            if stage.get("languages", {}).get(code) is not None
        ]
        style = "train" if code == train_language else "worst" if code == worst else "other"
        lines.append(Line(code, language_name(code), points, style))
    mean = [
        (stage["encoder_density"], stage["zero_shot_mean"])
        for stage in stages
        if stage.get("zero_shot_mean") is not None
    ]
    if len([line for line in lines if line.style != "train"]) > 1:
        lines.append(Line("mean", "Zero-shot mean", mean, "mean"))
    order = ("other", "worst", "train", "mean")
    return sorted((line for line in lines if len(line.points) > 1), key=lambda line: order.index(line.style))


def size_lines(sizes: Sequence[Mapping[str, Any]], cost: str) -> list[Line]:
    """Return the curves of the zero-shot mean and of the lowest score of a language at each size, against the sizes' cost.

    Args:
        sizes: see `findings.size_rows`.
        cost: its key in a row.
    """
    rows = sorted(
        (row for row in sizes if row.get(cost) is not None and "lowest" in row), key=lambda row: -row[cost]
    )
    if len({row[cost] for row in rows}) < 2:
        return []
    return [
        Line("worst", "Lowest language", [(row[cost], row["lowest"]) for row in rows], "worst"),
        Line("mean", "Zero-shot mean", [(row[cost], row["zero_shot_mean"]) for row in rows], "mean"),
    ]


def draw_scores(lines: Sequence[Line], width: int, height: int, metric: str, scale: Scale = REMAINING) -> str:
    """Scores against the encoder weights that remain, dense at the left; or against another ``scale``.

    Up to 24 languages are named at the right, beyond that only the mean, the train language, the worst, the highest
    and the lowest; every curve says its name and its ends when pointed at.

    Args:
        lines: from `score_lines`, at least one.
        metric: what the vertical axis shows, for the caption read aloud by screen readers.
        scale: what the horizontal axis shows.
    """
    margins = (42, 146, 14, 44) if width > 500 else (30, 124, 14, 44)
    axes = Axes.around([point for line in lines for point in line.points], width, height, margins, scale)
    parts = [
        f'<svg class="scores{" many" if len(lines) > FEW else ""}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(metric)} against {scale.caption}">'
    ]
    parts += axes.draw()
    for line in lines:
        said = f"{line.title}: {line.points[0][1]:.1f} → {line.points[-1][1]:.1f}"
        parts.append(_draw_curve(line.points, line.style, said, axes))
    named = [(line.style, line.title, line.points[-1]) for line in _worth_naming(lines, width)]
    return "".join([*parts, *_draw_labels(named, axes), "</svg>"])


def _worth_naming(lines: Sequence[Line], width: int) -> list[Line]:
    others = [line for line in lines if line.style == "other"]
    if len(others) > FEW or width <= 500:
        by_end = sorted(others, key=lambda line: line.points[-1][1])
        others = [by_end[0], by_end[-1]] if len(by_end) > 1 else by_end
    return [*others, *(line for line in lines if line.style != "other")]


@dataclass(frozen=True)
class Axes:
    """The area of a chart of scores against density (or what else the scale shows), and its two scales.

    Densities stand at equal ratios from each other (each geometric stage is one step wide), unless one is zero.
    """

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    densities: list[float]
    """Largest first."""
    ticks: list[float]
    low: float
    high: float
    scale: Scale = REMAINING

    @classmethod
    def around(
        cls,
        points: Sequence[tuple[float, float]],
        width: int,
        height: int,
        margins: tuple[int, int, int, int],
        scale: Scale = REMAINING,
    ) -> Axes:
        """Axes that hold every (density, score); margins are left, right, top and bottom."""
        scores = [score for _, score in points]
        ticks = round_ticks(min(scores), max(scores))
        densities = sorted({density for density, _ in points}, reverse=True)
        low, high = min(ticks[0], *scores), max(ticks[-1], *scores)
        return cls(width, height, *margins, densities, ticks, low, high, scale)

    def x(self, density: float) -> float:
        """Horizontal position of a density, in pixels."""
        first, last = self._depth(self.densities[0]), self._depth(self.densities[-1])
        share = (self._depth(density) - first) / (last - first) if last > first else 0.0
        return self.left + share * (self.width - self.left - self.right)

    def y(self, score: float) -> float:
        """Vertical position of a score, in pixels."""
        return self.top + (self.high - score) / (self.high - self.low) * (
            self.height - self.top - self.bottom
        )

    def _depth(self, density: float) -> float:
        return -log(density) if self.densities[-1] > 0 else -density

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """Return the points as SVG writes them."""
        return " ".join(f"{self.x(density):.1f},{self.y(score):.1f}" for density, score in points)

    def draw(self) -> list[str]:
        """Draw the grid with its scores, and below it as many densities as have room."""
        end = self.width - self.right
        parts = [
            f'<line class="grid" x1="{self.left}" x2="{end}" y1="{self.y(tick):.1f}" y2="{self.y(tick):.1f}"/>'
            f'<text class="tick" x="{self.left - 8}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
            for tick in self.ticks
        ]
        taken: list[float] = []
        for density in [self.densities[0], self.densities[-1], *self.densities[1:-1]]:
            position = self.x(density)
            if all(abs(position - other) >= 44 for other in taken):
                taken.append(position)
                parts.append(
                    f'<text class="tick" x="{position:.1f}" y="{self.height - self.bottom + 20}" text-anchor="middle">'
                    f"{escape(self.scale.written(density))}</text>"
                )
        parts.append(
            f'<text class="tick" x="{(self.left + end) / 2}" y="{self.height - 5}" text-anchor="middle">'
            f"{escape(self.scale.caption)}</text>"
        )
        return parts


def _draw_curve(
    points: Sequence[tuple[float, float]], style: str, said: str, axes: Axes, band: str = ""
) -> str:
    path, (density, score) = axes.path(points), points[-1]
    # The wide, invisible twin is what a pointer can hit.
    return (
        f'<g class="curve {style}"><title>{escape(said)}</title>{band}<polyline class="reach" points="{path}"/>'
        f'<polyline points="{path}"/><circle cx="{axes.x(density):.1f}" cy="{axes.y(score):.1f}" r="3"/></g>'
    )


def _draw_labels(named: Sequence[tuple[str, str, tuple[float, float]]], axes: Axes) -> list[str]:
    """Names at the right ends of curves, moved apart where they would overlap, with a hairline back to their curve.

    Args:
        named: (style, name, last point) of each curve.
    """
    named = sorted(named, key=lambda entry: axes.y(entry[2][1]))
    heights = space_apart(
        [axes.y(score) for _, _, (_, score) in named], LABEL_GAP, axes.top, axes.height - axes.bottom
    )
    parts = []
    for (style, name, (density, score)), height in zip(named, heights, strict=True):
        x, y = axes.x(density), axes.y(score)
        parts.append(
            f'<g class="label {style}"><path d="M{x + 4:.1f} {y:.1f} L{axes.width - axes.right + 14} {height:.1f}"/>'
            f'<text x="{axes.width - axes.right + 18}" y="{height + 4:.1f}">{escape(name)}</text></g>'
        )
    return parts


def space_apart(heights: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Move sorted heights apart to at least ``gap``, as little as possible, within [top, bottom] if they fit."""
    if heights and gap * (len(heights) - 1) > bottom - top:
        gap = (bottom - top) / max(1, len(heights) - 1)
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap if moved else top))
    limit = bottom
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def round_ticks(low: float, high: float) -> list[float]:
    """Four to eight round values that cover [low, high]."""
    span = max(high - low, 1e-9)
    unit = 10.0 ** floor(log10(span / 5))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 7)
    first, last = floor(low / step), ceil(high / step)
    if first == last:
        last += 1
    return [round(number * step, 10) for number in range(first, last + 1)]


def draw_delta(delta: float, low: float, high: float, style: str) -> str:
    """Draw a bar for a table cell, from zero to ``delta``, on a scale from ``low`` (at most 0) to ``high`` (at least 0)."""
    width, height = 120, 16
    unit = (width - 4) / (high - low or 1.0)
    zero = 2 - low * unit
    start, length = zero + min(delta, 0.0) * unit, max(abs(delta) * unit, 1.0)
    return (
        f'<svg class="delta {style}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'aria-hidden="true">'
        f'<rect x="{start:.1f}" y="3" width="{length:.1f}" height="10" rx="2"/>'
        f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{height}"/></svg>'
    )


# --- several methods: a line and a band for each -------------------------------------------------------------------

LIGHT = ("#2458c6", "#c2352b", "#0a7f72", "#9a6700", "#7c4bc0", "#b0307e", "#4d7c0f", "#0f7ea8")
DARK = ("#8ab0ff", "#ff8a7d", "#4fd0bf", "#e3b341", "#b694f0", "#f28cc8", "#a3cf62", "#62c7ee")
"""Colours of the methods in their order; after the last they begin again with a dashed line."""


@dataclass(frozen=True)
class MethodLine:
    """One curve of `draw_methods`."""

    name: str
    points: list[tuple[float, float]]
    """(density, mean over seeds), in the order of the stages."""
    deviations: list[float] | None
    """Standard deviation at each point; None with one seed."""

    def edges(self) -> list[tuple[float, float]]:
        """Return the band around the line: its upper edge, and back along its lower edge."""
        if self.deviations is None:
            return []
        points = list(zip(self.points, self.deviations, strict=True))
        above = [(density, mean + sd) for (density, mean), sd in points]
        return above + [(density, mean - sd) for (density, mean), sd in reversed(points)]


def draw_methods(lines: Sequence[MethodLine], title: str) -> str:
    """Mean scores of methods with a band of one standard deviation to each side, as an SVG that can stand alone as a file.

    Args:
        lines: at least one.
        title: for screen readers.
    """
    width, height = 1000, max(460, 58 + int(LABEL_GAP * 1.3 * len(lines)))
    points = [point for line in lines for point in [*line.points, *line.edges()]]
    axes = Axes.around(points, width, height, (42, 220, 14, 44))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="bands" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{_methods_style()}</style>'
    ]
    parts += axes.draw()
    for number, line in enumerate(lines):
        band = f'<polygon points="{axes.path(line.edges())}"/>' if line.deviations else ""
        said = f"{line.name}: {line.points[0][1]:.1f} → {line.points[-1][1]:.1f}"
        said += f" ± {line.deviations[-1]:.1f}" if line.deviations else " (one seed)"
        parts.append(_draw_curve(line.points, _method_style(number), said, axes, band))
    named = [
        (_method_style(number), formatting.shorten(line.name, 30), line.points[-1])
        for number, line in enumerate(lines)
    ]
    return "".join([*parts, *_draw_labels(named, axes), "</svg>"])


def _method_style(number: int) -> str:
    return f"c{number % len(LIGHT)}" + (" dashed" if number // len(LIGHT) % 2 else "")


def _methods_style() -> str:
    return (
        ".bands{width:100%;height:auto;--grid:#d8dde4;--ink:#5c6773}"
        ".bands text{font:12px system-ui,sans-serif;fill:var(--ink)}"
        ".bands .grid,.bands .label path{stroke:var(--grid);fill:none}"
        ".bands .curve polyline{fill:none;stroke:var(--c);stroke-width:2.5;stroke-linejoin:round}"
        ".bands .curve.dashed polyline:not(.reach){stroke-dasharray:7 4}"
        ".bands .curve .reach{stroke:transparent;stroke-width:12;pointer-events:stroke}"
        ".bands .curve polygon{fill:var(--c);opacity:.13;stroke:none}"
        ".bands .curve circle,.bands .label text{fill:var(--c)}"
        ".bands .curve:hover polyline:not(.reach){stroke-width:4}"
        + "@media(prefers-color-scheme:dark){.bands{--grid:#343c47;--ink:#98a4b2}}"
        + colour_style(".bands")
    )


def colour_style(scope: str) -> str:
    """Give the classes ``c0``, ``c1`` and so on below ``scope`` their colour as ``--c``, in light and in dark."""

    def rules(colours: Sequence[str]) -> str:
        return "".join(f"{scope} .c{number}{{--c:{colour}}}" for number, colour in enumerate(colours))

    return rules(LIGHT) + "@media(prefers-color-scheme:dark){" + rules(DARK) + "}"


# --- weight norms: a panel for each kind of matrix --------------------------------------------------------------------


def draw_norms(title: str, rows: Sequence[tuple[int, float | None, float | None]]) -> str:
    """One kind of matrix in every layer: the norm before pruning (dashed) and after.

    Args:
        rows: (layer, norm before, norm after), layers in their order; None where a layer has no such matrix.
    """
    width, height, left, right, top, bottom = 320, 210, 40, 12, 12, 40
    values = [value for _, *pair in rows for value in pair if value is not None]
    ticks = round_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    first, last = rows[0][0], rows[-1][0]

    def x(layer: int) -> float:
        return left + (layer - first) / (last - first or 1) * (width - left - right)

    def y(value: float) -> float:
        return top + (high - value) / (high - low) * (height - top - bottom)

    parts = [
        f'<svg class="panel" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}: weight norm of every layer before and after pruning">'
    ]
    parts += [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    ]
    step = ceil(len(rows) / 8)
    parts += [
        f'<text x="{x(layer):.1f}" y="{height - bottom + 16}" text-anchor="middle">{layer}</text>'
        for layer, _, _ in rows[::step]
    ]
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">layer</text>')
    befores = [(layer, before) for layer, before, _ in rows]
    afters = [(layer, after) for layer, _, after in rows]
    for style, curve in (("before", befores), ("after", afters)):
        points = [(x(layer), y(value)) for layer, value in curve if value is not None]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        parts.append(f'<g class="{style}"><polyline points="{path}"/>')
        parts += [f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2.5"/>' for across, down in points]
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


# --- classes in a plane -----------------------------------------------------------------------------------------------

Extent = tuple[float, float, float, float]
"""Lowest and highest value on the first axis, then on the second."""


def extent_of(points: Sequence[Sequence[float]]) -> Extent:
    """Return the extent of points, with a margin."""
    across, down = ([point[axis] for point in points] for axis in (0, 1))
    margins = [0.04 * (max(values) - min(values)) or 1.0 for values in (across, down)]
    return (
        min(across) - margins[0],
        max(across) + margins[0],
        min(down) - margins[1],
        max(down) + margins[1],
    )


def draw_classes(
    points: Sequence[Sequence[float]],
    classes: Sequence[str],
    styles: Mapping[str, str],
    extent: Extent,
    axes: tuple[str, str],
    title: str,
) -> str:
    """Points in a plane, each in the style of its class.

    Args:
        classes: of each point, for its title and style.
        styles: from `class_styles`.
        axes: titles of the two axes.
        title: for screen readers.
    """
    width, height, left, bottom = 460, 340, 22, 22

    def x(value: float) -> float:
        return left + 6 + (value - extent[0]) / (extent[1] - extent[0]) * (width - left - 12)

    def y(value: float) -> float:
        return 6 + (extent[3] - value) / (extent[3] - extent[2]) * (height - bottom - 12)

    parts = [
        f'<svg class="panel points" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f'<rect class="frame" x="{left}" y="0.5" width="{width - left - 1}" height="{height - bottom - 1}" rx="4"/>'
        f'<text x="{(left + width) / 2}" y="{height - 5}" text-anchor="middle">{escape(axes[0])}</text>'
        f'<text transform="translate(13 {(height - bottom) / 2}) rotate(-90)" text-anchor="middle">{escape(axes[1])}</text>'
    ]
    parts += [
        f'<circle class="{styles[name]}" cx="{x(point[0]):.1f}" cy="{y(point[1]):.1f}" r="4">'
        f"<title>{escape(name)}</title></circle>"
        for point, name in zip(points, classes, strict=True)
    ]
    return "".join([*parts, "</svg>"])


REST = "rest"
"""The style of classes that have none of their own."""


def class_styles(classes: Sequence[str]) -> dict[str, str]:
    """Give the first sixteen classes a style each, eight colours filled and eight as rings, and the others grey."""
    return {
        name: _method_style(number) if number < 2 * len(LIGHT) else REST
        for number, name in enumerate(classes)
    }
