"""A comparison for people: comparison.md, comparison.html, the drawings, and the tables on the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmprune.compare.drawing import curves, draw_curves
from xlmprune.compare.plan import Plan, slug
from xlmprune.compare.table import DENSE
from xlmprune.core.files import write_atomically
from xlmprune.core.languages import language_name
from xlmprune.data.readers.lines import count_of
from xlmprune.report.findings import DASH, p_value, percent, plain, points
from xlmprune.report.tables import Table

if TYPE_CHECKING:
    from rich.console import RenderableType

Comparison = Mapping[str, Any]

ONE_SEED = "†"
SPREAD_NOTE = "Mean ± standard deviation over seeds. † one seed: its spread is unknown; a difference of a point says little."


def tables(facts: Comparison) -> list[Table]:
    """Every table, the headline first."""
    made = [*_headlines(facts)]
    for task in facts["tasks"]:
        found = (*_by_text(facts, task), _by_density(facts, task), _by_language(facts, task))
        made += [table for table in found if table]
    made += [table for table in (_tests(facts), _cells(facts)) if table]
    return made


def spread_text(spread: Mapping[str, Any] | None, planned: int = 0, signed: bool = False) -> str:
    """``64.3 ± 0.4``, ``64.3†`` for one seed, ``64.3 ± 0.4 (2 of 3)`` where seeds are missing."""
    if spread is None:
        return DASH
    text = points(spread["mean"]) if signed else f"{spread['mean']:.1f}"
    text += ONE_SEED if spread["sd"] is None else f" ± {spread['sd']:.1f}"
    return f"{text} ({spread['n']} of {planned})" if spread["n"] < planned else text


def _headlines(facts: Comparison) -> Iterator[Table]:
    if len(facts["tasks"]) > 1:
        for measure, title in (
            ("zero_shot_mean", "Zero-shot mean"),
            ("english", "Train language"),
            ("all_mean", "Mean of all languages"),
        ):
            yield _methods_by_task(facts, measure, title)
        return
    rows = facts["rows"]
    done = [row for row in rows if row["done"]]
    train = done[0]["train_language"] if done else "en"
    metric = done[0]["metric"] if done else "score"
    at = _one_density(facts)
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "encoder weights": lambda row: percent(row["encoder_density"]),
        f"{language_name(train)} dev": lambda row: spread_text(row["dev"]),
        language_name(train): lambda row: spread_text(row["english"]),
        "zero-shot mean": lambda row: spread_text(row["zero_shot_mean"]),
        "Δ": lambda row: spread_text(row.get("loss"), signed=True),
        "all languages": lambda row: spread_text(row["all_mean"]),
    }
    if at is not None:
        del columns["encoder weights"]
    if not any(row.get("dev") for row in rows):  # training.keep: last reads none
        del columns[f"{language_name(train)} dev"]
    yield Table(
        title=f"Methods on {facts['tasks'][0]}"
        + (f" at {percent(at)} of the encoder's weights" if at else ""),
        headings=["method", "seeds", *columns],
        rows=[
            [
                row["method"],
                _seeds(row),
                *(show(row) if row["done"] else _missing(row) for show in columns.values()),
            ]
            for row in rows
        ],
        note=f"{metric}, percent. {SPREAD_NOTE} Δ: zero-shot mean, pruned minus dense, in points.",
        styles=["mean" if row["method"] == DENSE else "" for row in rows],
    )


def _one_density(facts: Comparison) -> float | None:
    """The final density, if all methods have the same."""
    found = {
        round(row["encoder_density"], 3) for row in facts["rows"] if row["done"] and row["method"] != DENSE
    }
    return found.pop() if len(found) == 1 else None


def _seeds(row: Mapping[str, Any]) -> str:
    return str(row["done"]) if row["done"] == row["planned"] else f"{row['done']} of {row['planned']}"


def _missing(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    return "failed" if row["failed"] else "pending"


def _methods_by_task(facts: Comparison, measure: str, title: str) -> Table:
    by_place = {(row["method"], row["task"]): row for row in facts["rows"]}
    averages = {entry["method"]: entry for entry in facts["averages"]}
    metrics = {row["task"]: row["metric"] for row in facts["rows"] if row["done"]}
    lines = []
    for method in [DENSE, *facts["methods"]]:
        found = [by_place.get((method, task)) for task in facts["tasks"]]
        cells = [
            spread_text(row[measure], row["planned"]) if row and row["done"] else _missing(row)
            for row in found
        ]
        lines.append([method, *cells, spread_text(averages[method].get(measure))])
    density = _one_density(facts)
    at = f"At {percent(density)} of the encoder's weights. " if density else ""
    scored = ", ".join(f"{task} {metric}" for task, metric in metrics.items())
    return Table(
        title=title,
        headings=["method", *facts["tasks"], "Avg"],
        rows=lines,
        note=f"{at}{scored}; percent. {SPREAD_NOTE} Avg: mean over tasks, where every task is there.",
        styles=["mean", *[""] * len(facts["methods"])],
    )


def _rows_with(facts: Comparison, task: str, key: str) -> list[Mapping[str, Any]]:
    return [row for row in facts["rows"] if row["task"] == task and row.get(key)]


def _by_density(facts: Comparison, task: str) -> Table | None:
    rows = _rows_with(facts, task, "curve")
    measured = [stage for row in rows for stage in row["curve"] if stage["zero_shot_mean"]]
    columns = sorted({round(stage["encoder_density"], 3) for stage in measured}, reverse=True)
    if len(columns) < 2:
        return None
    lines = []
    for row in rows:
        found = {round(stage["encoder_density"], 3): stage["zero_shot_mean"] for stage in row["curve"]}
        lines.append([row["method"], *(spread_text(found.get(column)) for column in columns)])
    return Table(
        title=f"Zero-shot mean on {task} as weights go",
        headings=["method", *map(percent, columns)],
        rows=lines,
        note="Columns: encoder weights that remain. Where evaluation.max_stage_examples caps the curve, every column is "
        "measured on those examples alone, and the last differs from the table of methods, which uses all.",
    )


def _by_text(facts: Comparison, task: str) -> Iterator[Table]:
    """A table for each choice of languages whose text was read, unless it leaves no language out."""
    rows = _rows_with(facts, task, "languages")
    for place, codes in enumerate(facts["unlabelled"][task]):
        if not any(row["apart"][place]["held_out_mean"] for row in rows):
            continue
        yield Table(
            title=f"Languages of {task} with and without text: {', '.join(map(language_name, codes))}",
            headings=["method", "these", "the others"],
            rows=[
                [
                    row["method"],
                    *(spread_text(row["apart"][place][key]) for key in ("text_mean", "held_out_mean")),
                ]
                for row in rows
            ],
            note=f"Zero-shot means apart. {', '.join(_readers(facts, task, codes))} read unlabelled text of "
            f"{'this language' if len(codes) == 1 else f'these {len(codes)} languages'} and of no other; what that does "
            "for the others stands in the second column.",
        )


def _readers(facts: Comparison, task: str, codes: list[str]) -> list[str]:
    cells = [cell for cell in facts["cells"] if cell["task"] == task]
    return list(
        dict.fromkeys(cell["method"] for cell in cells if sorted(cell.get("unlabelled", [])) == codes)
    )


def _by_language(facts: Comparison, task: str) -> Table | None:
    rows = _rows_with(facts, task, "languages")
    if not rows:
        return None
    codes = list(dict.fromkeys(code for row in rows for code in row["languages"]))
    return Table(
        title=f"Languages of {task}",
        headings=["language", "code", *(row["method"] for row in rows)],
        rows=[
            [language_name(code), code, *(spread_text(row["languages"].get(code)) for row in rows)]
            for code in codes
        ],
        note="The train language first. A mean can rise while one language falls.",
        texts=2,
    )


def _tests(facts: Comparison) -> Table | None:
    if not facts["tests"]:
        return None
    ordered = sorted(facts["tests"], key=lambda test: (facts["tasks"].index(test["task"]), test["p_holm"]))
    many = len(facts["tasks"]) > 1
    return Table(
        title="Pairs of methods, on the same examples",
        headings=[
            *(["task"] if many else []),
            "method",
            "against",
            "difference",
            "p",
            "p (Holm)",
            "seeds in favour",
        ],
        rows=[
            [
                *([test["task"]] if many else []),
                test["second"],
                test["first"],
                points(test["difference"]),
                _at_most(test, test["p_value"]),
                _at_most(test, test["p_holm"]),
                f"{sum(value * test['difference'] > 0 for value in test['by_seed'].values())} of {len(test['seeds'])}",
            ]
            for test in ordered
        ],
        note=f"Zero-shot mean, first minus second, in points. p: randomization test, {facts['tests'][0]['rounds']:,} "
        f"exchanges of examples, of which ≤ marks the least they can show; Holm's correction for "
        f"{count_of(len(facts['tests']), 'test')}. It asks whether another test set "
        "would show the difference. Whether other seeds would is for the spread to say, and one seed cannot.",
        texts=3 if many else 2,
    )


def _at_most(test: Mapping[str, Any], value: float) -> str:
    """A p-value; marked where no exchange gave as large a difference, so that more of them would make it smaller."""
    shown = p_value(value)
    least = test["p_value"] <= 1 / (test["rounds"] + 1) + 1e-12
    return f"≤ {shown}" if least and not shown.startswith("<") else shown


def _cells(facts: Comparison) -> Table | None:
    return Table(
        title="Runs",
        headings=["folder", "method", "task", "seed", "state", "training", "dense stage"],
        rows=[
            [
                cell["name"],
                cell["method"],
                cell["task"],
                str(cell["seed"]),
                cell["status"] + (f" (exit code {cell['exit_code']})" if cell["exit_code"] else ""),
                f"{cell['seconds']:.0f} s" if "seconds" in cell else DASH,
                cell["dense_key"],
            ]
            for cell in facts["cells"]
        ],
        note="Each is an ordinary run folder with its bundle and report. Seconds of training include the dense stage, which "
        "runs with the same key share.",
        texts=3,
    )


def faults(facts: Comparison) -> list[str]:
    """A sentence for everything that went wrong, with the runs it happened to."""
    by_message: dict[str, list[str]] = {}
    for cell in facts["cells"]:
        if cell["message"]:
            by_message.setdefault(cell["message"], []).append(cell["name"])
    return [f"{', '.join(names)}: {message}" for message, names in by_message.items()]


# --- writing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """One task's curves."""

    task: str
    file: str
    svg: str


def drawings(facts: Comparison) -> list[Drawing]:
    """One for every task whose methods were measured at two densities or more."""
    found = []
    for task in facts["tasks"]:
        lines = curves(facts["rows"], task)
        if lines:
            svg = draw_curves(lines, f"Zero-shot mean on {task} against density")
            found.append(Drawing(task, f"zero_shot.{slug(task)}.svg", svg))
    return found


def sections(facts: Comparison) -> dict[str, Any]:
    """Every name that the templates use."""
    return {
        "name": facts["name"],
        "created": facts["created"],
        "origin": facts["origin"],
        "methods": facts["methods"],
        "tasks": facts["tasks"],
        "seeds": facts["seeds"],
        "notes": facts["notes"],
        "scaled_down": facts["scaled_down"],
        "faults": faults(facts),
        "tables": tables(facts),
    }


def render_markdown(facts: Comparison) -> str:
    """The comparison as GitHub-flavoured Markdown; drawings are linked."""
    from xlmprune.report.pages import squeeze, template_environment

    facts = plain(facts)
    template = template_environment(autoescape=False).get_template("comparison.md.j2")
    return squeeze(template.render(**sections(facts), drawings=drawings(facts)))


def render_html(facts: Comparison) -> str:
    """The comparison as one HTML page that needs no other file."""
    from markupsafe import Markup

    from xlmprune.report.pages import template_environment

    facts = plain(facts)
    # drawing.py escapes what it is given.
    drawn = [replace(drawing, svg=Markup(drawing.svg)) for drawing in drawings(facts)]
    template = template_environment(autoescape=True).get_template("comparison.html.j2")
    return template.render(**sections(facts), drawings=drawn)


def write(facts: Comparison, folder: Path) -> None:
    """Write comparison.json, .md, .html and the drawings into ``folder``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in drawings(plain(facts)):
        write_atomically(folder / drawing.file, drawing.svg + "\n")
    write_atomically(folder / "comparison.html", render_html(facts))
    write_atomically(folder / "comparison.md", render_markdown(facts))
    text = json.dumps(plain(facts), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / "comparison.json", text + "\n")


# --- the terminal -------------------------------------------------------------------------------------------------


def results_table(facts: Comparison) -> RenderableType:
    """Headline tables, tests and what went wrong, for `rich.print`."""
    from rich.console import Group
    from rich.text import Text

    facts = plain(facts)
    shown: list[RenderableType] = []
    tested = _tests(facts)
    for table in [*_headlines(facts), *([tested] if tested else [])]:
        shown += [_rich(table), Text(table.note, style="dim"), Text("")]
    shown += [Text(note) for note in facts["notes"]]
    if facts["scaled_down"]:
        shown.append(Text(f"Scaled down: {'; '.join(facts['scaled_down'])}."))
    shown += [Text(fault, style="red") for fault in faults(facts)]
    return Group(*shown)


def plan_table(plan: Plan) -> RenderableType:
    """The cells before they are run, and which share a dense stage."""
    from rich.console import Group
    from rich.text import Text

    table = Table(
        title=f"{plan.name}: {len(plan.cells)} runs",
        headings=["run", "method", "task", "seed", "dense stage"],
        rows=[
            [row["name"], row["method"], row["task"], str(row["seed"]), row["dense_key"]]
            for row in plan_facts(plan)
        ],
        texts=3,
    )
    return Group(_rich(table), *(Text(note) for note in plan.notes))


def plan_facts(plan: Plan) -> list[dict[str, Any]]:
    """The cells before they are run, as plain values."""
    from xlmprune.compare.dense import dense_key

    return [
        {
            "name": cell.name,
            "method": cell.method,
            "task": cell.task,
            "seed": cell.seed,
            "dense_key": dense_key(cell.recipe),
            "recipe": cell.recipe.resolved(),
        }
        for cell in plan.cells
    ]


def _rich(table: Table) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, title=table.title, title_justify="left")
    # Many columns do not fit a terminal of 80: there a cell may take two lines, and loses nothing.
    few = len(table.headings) <= 7
    for place, heading in enumerate(table.headings):
        figures = place >= table.texts
        title = heading.replace(" ", "\n") if figures else heading
        grid.add_column(title, justify="right" if figures else "left", no_wrap=few)
    for style, cells in table.marked():
        grid.add_row(*(Text(cell) for cell in cells), style="bold" if style == "mean" else None)
    return grid


__all__ = ["plan_facts", "plan_table", "render_html", "render_markdown", "results_table", "tables", "write"]
