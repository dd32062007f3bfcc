"""The drawings of a report's page that have several panels, with what stands beside each panel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from xlmprune.core.formatting import percent
from xlmprune.core.languages import language_name
from xlmprune.report import charts, findings
from xlmprune.report.findings import Report


@dataclass(frozen=True)
class Panel:
    """One drawing and its heading."""

    title: str
    drawing: Markup


def norms(report: Report) -> list[Panel]:
    """Draw the weight norms of each kind of matrix before and after pruning; nothing without them."""
    grid = findings.norm_grid(report)
    if grid is None:
        return []
    return [
        Panel(
            title,
            Markup(charts.draw_norms(title, [(layer, *cells[column]) for layer, cells in grid["rows"]])),
        )
        for column, title in enumerate(grid["columns"])
    ]


@dataclass(frozen=True)
class Classes:
    """Where the dense and the pruned model put the classes of two languages."""

    languages: list[str]
    """Their names."""
    panels: list[Panel]
    legend: list[tuple[str, str]]
    """(style, label)."""
    style: Markup
    """Rules for the page's style sheet."""


def classes(report: Report) -> Classes | None:
    """Draw the classes of the train language and of the zero-shot language that lost most; None without them."""
    found = report.get("classes") or {}
    points = found.get("points")
    if not points:
        return None
    met = {label for entry in points.values() for label in entry["labels"]}
    styles = charts.class_styles(
        [label for label in report.get("task", {}).get("labels", met) if label in met]
    )
    styles |= dict.fromkeys(met - styles.keys(), charts.REST)
    panels = [
        Panel(
            f"{language_name(language)}, {model}: {percent(found['shares'][language][model])} between classes",
            Markup(_draw(found, language, model, styles)),
        )
        for language in points
        for model in findings.MODELS
    ]
    legend = [(style, label) for label, style in styles.items() if style != charts.REST]
    if len(legend) < len(styles):
        legend.append((charts.REST, f"{len(styles) - len(legend)} further labels"))
    return Classes(list(map(language_name, points)), panels, legend, Markup(charts.colour_style(".points")))


def _draw(found: dict[str, Any], language: str, model: str, styles: dict[str, str]) -> str:
    # Both languages of a model lie in one plane, so that they can be compared.
    extent = charts.extent_of([point for entry in found["points"].values() for point in entry[model]])
    entry, (first, second) = found["points"][language], found["explained"][model]
    axes = (f"first axis, {percent(first, 0)} of the variance", f"second axis, {percent(second, 0)}")
    title = f"First token's vectors of the {model} model in {language_name(language)}, by label"
    return charts.draw_classes(entry[model], entry["labels"], styles, extent, axes, title)
