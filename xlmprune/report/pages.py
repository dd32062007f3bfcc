"""What a run found, for people: report.md, report.html, the bundle's README.md and the table on the terminal.

All of them show one dictionary, the content of report.json. A section whose keys are missing is left out; nothing is
filled in for it. Sentences and figures are made here once, so that every form says the same.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from xlmprune.core.files import write_atomically
from xlmprune.core.languages import language_name
from xlmprune.report import charts, findings
from xlmprune.report.findings import Report, plain
from xlmprune.report.tables import Table, all_tables

if TYPE_CHECKING:
    from rich.console import RenderableType


def _cell(value: Any) -> str:
    """Text for a cell of a Markdown table: nothing in it can end the cell or begin markup."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", text)


def _code(text: str) -> str:
    """A code span that shows ``text`` as it is, backticks included."""
    text = " ".join(text.split())
    ticks = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    return f"{ticks}{text}{ticks}" if len(ticks) == 1 else f"{ticks} {text} {ticks}"


def _fence(text: str) -> str:
    """A fence longer than any run of backticks in ``text``."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def markdown_table(table: Table) -> str:
    """A table in GitHub's notation."""
    rule = ["---"] * table.texts + ["---:"] * (len(table.headings) - table.texts)
    lines = [[_cell(heading) for heading in table.headings], rule]
    for style, cells in table.marked():
        escaped = [_cell(cell) for cell in cells]
        if style in ("worst", "mean"):
            escaped[0] = f"**{escaped[0]}**"
        lines.append(escaped)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@functools.cache
def template_environment(autoescape: bool) -> Environment:
    """Jinja2 over the package's templates, with the figures of `findings` as filters."""
    environment = Environment(
        loader=PackageLoader("xlmprune.report"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    figures = ("percent", "score", "points", "p_value", "size", "amount", "number")
    environment.filters.update({name: getattr(findings, name) for name in figures})
    environment.filters.update(
        cell=_cell, code=_code, fence=_fence, markdown=markdown_table, language=language_name
    )
    return environment


def sections(report: Report) -> dict[str, Any]:
    """Every name the templates use; a section without data is empty.

    Args:
        report: plain values, see `findings.plain`.
    """
    recipe = report.get("recipe")
    said = (
        findings.describe_density(report),
        findings.describe_vocabulary(report),
        findings.describe_scores(report),
        findings.describe_unlabelled(report),
        findings.describe_files(report),
    )
    return {
        "name": report.get("name", "xlmprune run"),
        "created": report.get("created"),
        "sentences": [sentence for sentence in said if sentence],
        "refused": list(report.get("refused", {}).values()),
        "scaled_down": report.get("scaled_down", []),
        "collapse": findings.describe_collapse(report),
        "notes": findings.describe_data(report),
        "tables": all_tables(report),
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else "",
    }


def render_markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    template = template_environment(autoescape=False).get_template("report.md.j2")
    return squeeze(template.render(**sections(plain(report))))


def render_html(report: Report) -> str:
    """The report as one HTML page that needs no other file: style and drawings are inside it."""
    report = plain(report)
    names = sections(report) | {
        "model": report.get("model", {}),
        "rows": [*findings.rows(report), *findings.mean_rows(report)],
        "files": findings.file_rows(report),
        "parts": findings.part_rows(report),
        "timed": findings.speed_rows(report),
        "grid": findings.layer_grid(report, "alignment"),
        "stages": report.get("stages", []),
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
    names["drawings"] = {
        kind: Markup(charts.draw_scores(lines, width, height, findings.metric_name(report)))
        for kind, width, height in (("wide", 1000, 540), ("narrow", 380, 420))
        if lines
    }
    return template_environment(autoescape=True).get_template("report.html.j2").render(**names)


def squeeze(text: str) -> str:
    """Sections that were left out leave no gaps."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def model_card(report: Report) -> str:
    """README.md of the bundle; see `model_card.render`."""
    from xlmprune.report.model_card import render

    return render(report)


def results_table(report: Report) -> RenderableType:
    """The table of languages and the headline sentences under it, for `rich.print`."""
    import rich.table
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.text import Text

    report = plain(report)
    names = sections(report)
    shown: list[RenderableType] = []
    if "languages" in names["tables"]:
        languages = names["tables"]["languages"]
        kept = [i for i, heading in enumerate(languages.headings) if heading not in LEFT_TO_FILES]
        table = rich.table.Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        for i in kept:
            table.add_column(languages.headings[i], justify="right" if i else "left", no_wrap=True)
        for style, cells in languages.marked():
            table.add_row(*(Text(cells[i]) for i in kept), style=STYLES.get(style))
        said = f"{findings.metric_name(report)}, percent. {findings.describe_chance(report)}"
        shown += [table, Text(), Text(said, style="dim"), Text()]
    scaled = f"Scaled down: {'; '.join(names['scaled_down'])}." if names["scaled_down"] else ""
    return Group(*shown, *(Text(said) for said in (*names["sentences"], scaled) if said))


LEFT_TO_FILES = ("code", "95% interval", "gained", "lost", "unlabelled text")
"""Columns that would not fit a terminal of 80; report.md has them."""

STYLES = {"worst": "bold red", "train": "cyan", "mean": "bold"}


# --- writing ------------------------------------------------------------------------------------------------


def write(report: Report, folder: Path) -> None:
    """Write report.html, report.md, README.md and report.json into ``folder``, each whole or not at all.

    report.json comes last: where it stands, the others do. A number that is not finite is written as null, because
    JSON has no word for it.
    """
    texts = {
        "report.html": render_html(report),
        "report.md": render_markdown(report),
        "README.md": model_card(report),
        "report.json": json.dumps(plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomically(folder / name, text)
