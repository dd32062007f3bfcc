"""What a run found, for people: report.md, report.html, the bundle's README.md and the table on the terminal.

All of them show one dictionary, the content of report.json. A section whose keys are missing is left out; nothing is
filled in for it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from xlmprune.core.files import REPORT_FILE, write_atomically
from xlmprune.core.formatting import plain
from xlmprune.core.tables import rich_table
from xlmprune.report import charts, drawings, findings, labels, model_card, shipped
from xlmprune.report.findings import Report
from xlmprune.report.tables import describe_columns
from xlmprune.report.templating import sections, squeeze, template_environment

if TYPE_CHECKING:
    from rich.console import RenderableType


def render_markdown(report: Report) -> str:
    """Render the report as GitHub-flavoured Markdown."""
    template = template_environment(autoescape=False).get_template("report.md.j2")
    return squeeze(template.render(**sections(plain(report))))


def render_html(report: Report) -> str:
    """Render the report as one HTML page that needs no other file: style and drawings are inside it."""
    report = plain(report)
    names = sections(report) | {
        "tiles": (tiles := shipped.tiles(report)),
        "tile_columns": shipped.columns_of(len(tiles)),
        "rows": [*findings.rows(report), *findings.mean_rows(report)],
        "files": findings.file_rows(report),
        "parts": findings.part_rows(report),
        "timed": findings.speed_rows(report),
        "grid": findings.layer_grid(report, "alignment"),
        "stages": report.get("stages", []),
        "before_export": "" if findings.shown_key(report) == "pruned" else " before export",
        "zero_shot_count": findings.zero_shot_count(report),
    }
    deltas = [row.delta for row in names["rows"] if row.delta is not None]
    low, high = min([0.0, *deltas]), max([0.0, *deltas])
    # charts.py escapes what it is given.
    names["bars"] = {
        row.name: Markup(charts.draw_delta(row.delta, low, high, row.style))
        for row in names["rows"]
        if row.delta is not None
    }
    lines = charts.score_lines(
        names["stages"], findings.train_language(report), findings.worst_language(report)
    )
    names["curves"] = {
        kind: Markup(charts.draw_scores(lines, width, height, findings.metric_name(report)))
        for kind, width, height in CHARTS
        if lines
    }
    names["frontiers"] = [
        {
            kind: Markup(charts.draw_scores(found, width, height, findings.metric_name(report), scale))
            for kind, width, height in CHARTS
        }
        for key, scale in (("median_ms", charts.MILLISECONDS), ("bytes", charts.BYTES))
        if (found := charts.size_lines(findings.size_rows(report), key))
    ]
    names |= {"answered": labels.languages_answered(report), "errors": labels.errors_by_language(report)}
    names |= {"norms": drawings.norms(report), "classes": drawings.classes(report)}
    return template_environment(autoescape=True).get_template("report.html.j2").render(**names)


CHARTS = (("wide", 1000, 540), ("narrow", 380, 420))
"""Width and height of a chart on a large screen and on a phone."""


def results_table(report: Report) -> RenderableType:
    """Return the table of languages and under it what is shipped, the scores and details, for `rich.print`."""
    from rich.console import Group
    from rich.text import Text

    report = plain(report)
    names = sections(report)
    shown: list[RenderableType] = []
    for warning in names["warnings"]:
        shown += [Text(f"Warning: {warning}", style="bold yellow"), Text()]
    if "languages" in names["tables"]:
        whole = names["tables"]["languages"]
        left_out = [heading for heading in whole.headings if heading.startswith(LEFT_TO_FILES)]
        table = dataclasses.replace(whole.without(left_out), title="")
        said = " ".join(
            filter(
                None,
                (
                    f"{findings.metric_name(report)}, percent.",
                    describe_columns(report),
                    findings.describe_baselines(report),
                    findings.describe_chance(report),
                ),
            )
        )
        shown += [rich_table(table), Text(), Text(said, style="dim"), Text()]
    if "sizes" in names["tables"]:
        shown += [rich_table(names["tables"]["sizes"].without(("parameters", "form"))), Text()]
    scaled = f"Scaled down: {'; '.join(names['scaled_down'])}." if names["scaled_down"] else ""
    return Group(*shown, *(Text(said) for said in (names["shipped"], scaled, *names["sentences"]) if said))


LEFT_TO_FILES = ("code", "ONNX ", "baseline", "95% interval", "gained", "lost", "unlabelled text")
"""Beginnings of the headings of columns that would not fit a terminal of 80; report.md has them."""


# --- writing ------------------------------------------------------------------------------------------------


def write(report: Report, folder: Path) -> None:
    """Write report.html, report.md, README.md and report.json into ``folder``, each whole or not at all.

    report.json comes last, so that the other files are complete where it exists. A number that is not finite is
    written as null, because JSON cannot hold it.
    """
    texts = {
        "report.html": render_html(report),
        "report.md": render_markdown(report),
        "README.md": model_card.render(report),
        REPORT_FILE: json.dumps(plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(folder / name, text)
