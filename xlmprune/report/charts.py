"""Drawings of the report as SVG text: they take their colours from the page, in light and in dark.

matplotlib would fix size and colours when the report is written; here a phone gets a drawing of its own and nothing
but text goes into the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log, log10
from typing import Any

from xlmprune.core.languages import language_name

LABEL_GAP = 13.0
"""Pixels between the baselines of two labels, so that they never touch."""


FEW = 24
"""Up to so many languages all are named beside their curves."""


@dataclass(frozen=True)
class Line:
    """One curve of `draw_scores`."""

    label: str
    title: str
    points: list[tuple[float, float]]
    """(density, score), in the order of the stages."""
    style: str
    """``other``, ``worst``, ``train`` or ``mean``: a class of the page's style sheet."""


def score_lines(
    stages: Sequence[Mapping[str, Any]], train_language: str | None, worst: str | None
) -> list[Line]:
    """The curves of every language and of the zero-shot mean, the ones that matter last (drawn on top)."""
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


def draw_scores(lines: Sequence[Line], width: int, height: int, metric: str) -> str:
    """Scores against the encoder weights that remain, dense at the left.

    Densities stand at equal ratios from each other (each geometric stage is one step wide). Up to 24 languages are
    named at the right, beyond that only the mean, the train language, the worst, the highest and the lowest; every
    curve says its name and its ends when pointed at.

    Args:
        lines: from `score_lines`, at least one.
        metric: what the vertical axis shows, for the caption read aloud by screen readers.
    """
    left, right, top, bottom = (42, 146, 14, 44) if width > 500 else (30, 124, 14, 44)
    densities = sorted({density for line in lines for density, _ in line.points}, reverse=True)
    scores = [score for line in lines for _, score in line.points]
    ticks = round_ticks(min(scores), max(scores))
    low, high = min(ticks[0], min(scores)), max(ticks[-1], max(scores))

    def x(density: float) -> float:
        span = _depth(densities[-1], densities) - _depth(densities[0], densities)
        share = (_depth(density, densities) - _depth(densities[0], densities)) / span if span else 0.0
        return left + share * (width - left - right)

    def y(score: float) -> float:
        return top + (high - score) / (high - low) * (height - top - bottom)

    parts = [
        f'<svg class="scores{" many" if len(lines) > FEW else ""}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(metric)} of every language against remaining encoder weights">'
    ]
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    last = -100.0
    for density in [densities[0], densities[-1], *densities[1:-1]]:
        place = x(density)
        crowded = place - last < 44 or width - right - place < 44
        if density not in (densities[0], densities[-1]) and crowded:
            continue
        last = last if density == densities[-1] else place
        parts.append(
            f'<text class="tick" x="{place:.1f}" y="{height - bottom + 20}" text-anchor="middle">'
            f"{100 * density:.3g}%</text>"
        )
    parts.append(
        f'<text class="tick" x="{(left + width - right) / 2}" y="{height - 5}" text-anchor="middle">'
        "encoder weights that remain</text>"
    )
    for line in lines:
        path = " ".join(f"{x(density):.1f},{y(score):.1f}" for density, score in line.points)
        first, final = line.points[0][1], line.points[-1][1]
        # The wide, invisible twin is what a pointer can hit.
        parts.append(
            f'<g class="curve {line.style}"><title>{escape(line.title)}: {first:.1f} → {final:.1f}</title>'
            f'<polyline class="reach" points="{path}"/><polyline points="{path}"/>'
            f'<circle cx="{x(line.points[-1][0]):.1f}" cy="{y(final):.1f}" r="3"/></g>'
        )
    parts += _draw_labels(_worth_naming(lines, width), x, y, top, height - bottom)
    return "".join([*parts, "</svg>"])


def _worth_naming(lines: Sequence[Line], width: int) -> list[Line]:
    others = [line for line in lines if line.style == "other"]
    if len(others) > FEW or width <= 500:
        by_end = sorted(others, key=lambda line: line.points[-1][1])
        others = [by_end[0], by_end[-1]] if len(by_end) > 1 else by_end
    return [*others, *(line for line in lines if line.style != "other")]


def _draw_labels(lines: Sequence[Line], x: Any, y: Any, top: float, bottom: float) -> list[str]:
    """Names at the right ends of curves, moved apart where they would overlap, with a hairline back to their curve."""
    lines = sorted(lines, key=lambda line: y(line.points[-1][1]))
    places = spread([y(line.points[-1][1]) for line in lines], LABEL_GAP, top, bottom)
    parts = []
    for line, place in zip(lines, places):
        end_x, end_y = x(line.points[-1][0]), y(line.points[-1][1])
        parts.append(
            f'<g class="label {line.style}"><path d="M{end_x + 4:.1f} {end_y:.1f} L{end_x + 14:.1f} {place:.1f}"/>'
            f'<text x="{end_x + 18:.1f}" y="{place + 4:.1f}">{escape(line.title)}</text></g>'
        )
    return parts


def spread(places: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Move sorted places apart to at least ``gap``, as little as possible, within [top, bottom] if they fit."""
    if places and gap * (len(places) - 1) > bottom - top:
        gap = (bottom - top) / max(1, len(places) - 1)
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap if moved else top))
    limit = bottom
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def _depth(density: float, densities: Sequence[float]) -> float:
    """Horizontal place of a density before scaling: equal ratios equally far, unless a density is zero."""
    return -log(density) if densities[-1] > 0 else -density


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
    """A bar for a table cell, from zero to ``delta``, on a scale from ``low`` (at most 0) to ``high`` (at least 0)."""
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
