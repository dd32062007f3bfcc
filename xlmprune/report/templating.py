"""What the report's pages and the model card share: the templates, the figures in them, and the words of each section."""

from __future__ import annotations

import functools
import re
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from xlmprune.core import formatting
from xlmprune.core.languages import language_name
from xlmprune.core.tables import Table
from xlmprune.report import findings, method, shipped
from xlmprune.report.findings import Report
from xlmprune.report.tables import all_tables


def _cell(value: Any) -> str:
    """Text for a cell of a Markdown table: nothing in it can end the cell or begin markup."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", text)


def _code(text: str) -> str:
    """Return a code span that shows ``text`` as it is, backticks included."""
    text = " ".join(text.split())
    ticks = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    return f"{ticks}{text}{ticks}" if len(ticks) == 1 else f"{ticks} {text} {ticks}"


def _fence(text: str) -> str:
    """Return a fence longer than any run of backticks in ``text``."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def markdown_table(table: Table) -> str:
    """Return a table in GitHub's notation."""
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
    """Jinja2 over the package's templates, with the functions of `formatting` as filters."""
    environment = Environment(
        loader=PackageLoader("xlmprune.report"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    figures = ("percent", "score", "points", "p_value", "size", "amount", "number")
    environment.filters.update({name: getattr(formatting, name) for name in figures})
    environment.filters.update(
        cell=_cell, code=_code, fence=_fence, markdown=markdown_table, language=language_name
    )
    return environment


def sections(report: Report) -> dict[str, Any]:
    """Every name the templates use; a section without data is empty.

    Args:
        report: plain values, see `formatting.plain`.
    """
    recipe = report.get("recipe")
    said = (
        findings.describe_scores(report),
        findings.describe_gains(report),
        findings.describe_unlabelled(report),
        findings.describe_files(report),
        shipped.describe_budget(report),
        method.describe_structure(report),
        findings.describe_density(report),
        findings.describe_vocabulary(report),
        findings.describe_sizes(report),
        findings.describe_regularizer(report),
        findings.describe_floor(report),
    )
    return {
        "name": report.get("name", "xlmprune run"),
        "heading": shipped.describe_model(report),
        "created": report.get("created"),
        "warnings": report.get("warnings", []),
        "shipped": shipped.describe_shipped(report),
        "sentences": [sentence for sentence in said if sentence],
        "curve_note": findings.describe_curve(report),
        "refused": [_ended(said) for said in report.get("refused", {}).values()],
        "scaled_down": report.get("scaled_down", []),
        "collapse": findings.describe_collapse(report),
        "notes": [
            _ended(said) for said in (*findings.describe_data(report), *findings.describe_batches(report))
        ],
        "tables": all_tables(report),
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else "",
    }


def _ended(sentence: str) -> str:
    """Return a sentence with its full stop."""
    return sentence if sentence.endswith((".", "!", "?", "…")) else f"{sentence}."


def squeeze(text: str) -> str:
    """Sections that were left out leave no gaps."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
