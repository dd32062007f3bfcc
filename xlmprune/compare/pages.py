"""Show a comparison to people: comparison.md, comparison.html, its charts, and the tables on the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmprune.compare.plan import Plan, slug
from xlmprune.compare.results import DENSE, Comparison
from xlmprune.core.files import write_atomically
from xlmprune.core.formatting import DASH, count_of, p_value, percent, plain, points
from xlmprune.core.languages import language_name
from xlmprune.core.tables import Table, rich_table, tabulate
from xlmprune.report.charts import MethodLine, draw_methods
from xlmprune.report.templating import squeeze, template_environment

if TYPE_CHECKING:
    from rich.console import RenderableType

Row = Mapping[str, Any]

ONE_SEED = "†"
SPREAD_NOTE = "Mean ± standard deviation over seeds. † one seed: the spread is unknown, so small differences mean little."


def tables(comparison: Comparison) -> list[Table]:
    """Every table, the headline first."""
    made: list[Table | None] = [*_headlines(comparison)]
    for task in comparison["tasks"]:
        made += [*_by_text(comparison, task), _by_density(comparison, task), _by_language(comparison, task)]
    made += [_tests(comparison), _settings(comparison), _cells(comparison)]
    return [table for table in made if table]


def spread_text(spread: Mapping[str, Any] | None, planned: int = 0, signed: bool = False) -> str:
    """Write ``64.3 ± 0.4``, ``64.3†`` for one seed, ``64.3 ± 0.4 (2 of 3)`` where seeds are missing."""
    if spread is None:
        return DASH
    text = points(spread["mean"]) if signed else f"{spread['mean']:.1f}"
    text += ONE_SEED if spread["sd"] is None else f" ± {spread['sd']:.1f}"
    return f"{text} ({spread['n']} of {planned})" if spread["n"] < planned else text


def _headlines(comparison: Comparison) -> Iterator[Table]:
    if len(comparison["tasks"]) == 1:
        yield _methods_on_one_task(comparison)
        return
    yield _methods_by_task(comparison, "zero_shot_mean", "Zero-shot mean")
    yield _methods_by_task(comparison, "english", "Train language")
    yield _methods_by_task(comparison, "all_mean", "Mean of all languages")


def _methods_on_one_task(comparison: Comparison) -> Table:
    rows = comparison["rows"]
    done = next((row for row in rows if row["done"]), {"train_language": "en", "metric": "score"})
    train = language_name(done["train_language"])
    density = _one_density(comparison)
    columns: dict[str, Callable[[Row], str]] = {
        "method": lambda row: row["method"],
        "seeds": lambda row: str(row["done"]) + f" of {row['planned']}" * (row["done"] < row["planned"]),
    }
    if density is None:
        columns["encoder weights"] = _if_done(lambda row: percent(row["encoder_density"]))
    if any(row.get("dev") for row in rows):  # training.keep: last reads no dev examples
        columns[f"{train} dev"] = _if_done(lambda row: spread_text(row["dev"]))
    columns |= {
        train: _if_done(lambda row: spread_text(row["english"])),
        "zero-shot mean": _if_done(lambda row: spread_text(row["zero_shot_mean"])),
        "Δ": _if_done(lambda row: spread_text(row.get("loss"), signed=True)),
        "all languages": _if_done(lambda row: spread_text(row["all_mean"])),
    }
    at = f" at {percent(density)} of the encoder's weights" if density else ""
    note = f"{done['metric']}, percent. {SPREAD_NOTE} Δ: zero-shot mean, pruned minus dense, in points."
    title = f"Methods on {comparison['tasks'][0]}{at}"
    return tabulate(title, columns, rows, note, style=lambda row: "mean" if row["method"] == DENSE else "")


def _if_done(show: Callable[[Row], str]) -> Callable[[Row], str]:
    return lambda row: show(row) if row["done"] else "failed" if row["failed"] else "pending"


def _one_density(comparison: Comparison) -> float | None:
    """Return the final density, if all methods have the same."""
    done = [row for row in comparison["rows"] if row["done"] and row["method"] != DENSE]
    found = {round(row["encoder_density"], 3) for row in done}
    return found.pop() if len(found) == 1 else None


def _methods_by_task(comparison: Comparison, measure: str, title: str) -> Table:
    rows = {(row["method"], row["task"]): row for row in comparison["rows"]}
    averages = {entry["method"]: entry for entry in comparison["averages"]}
    metrics = {row["task"]: row["metric"] for row in comparison["rows"] if row["done"]}
    show = _if_done(lambda row: spread_text(row[measure], row["planned"]))

    def of(task: str) -> Callable[[str], str]:
        return lambda method: show(rows[method, task]) if (method, task) in rows else ""

    columns: dict[str, Callable[[str], str]] = {
        "method": str,
        **{task: of(task) for task in comparison["tasks"]},
        "Avg": lambda method: spread_text(averages[method].get(measure)),
    }
    density = _one_density(comparison)
    at = f"At {percent(density)} of the encoder's weights. " if density else ""
    scored = ", ".join(f"{task} {metric}" for task, metric in metrics.items())
    note = f"{at}{scored}; percent. {SPREAD_NOTE} Avg: mean over tasks, for methods that have every task."
    methods = [DENSE, *comparison["methods"]]
    return tabulate(title, columns, methods, note, style=lambda method: "mean" if method == DENSE else "")


def _rows_with(comparison: Comparison, task: str, key: str) -> list[Row]:
    return [row for row in comparison["rows"] if row["task"] == task and row.get(key)]


def _by_density(comparison: Comparison, task: str) -> Table | None:
    curves = {
        row["method"]: {
            round(stage["encoder_density"], 3): stage["zero_shot_mean"]
            for stage in row["curve"]
            if stage["zero_shot_mean"]
        }
        for row in _rows_with(comparison, task, "curve")
    }
    densities = sorted({density for curve in curves.values() for density in curve}, reverse=True)
    if len(densities) < 2:
        return None
    return Table(
        title=f"Zero-shot mean on {task} by density",
        headings=["method", *map(percent, densities)],
        rows=[
            [method, *(spread_text(curve.get(density)) for density in densities)]
            for method, curve in curves.items()
        ],
        note="Columns: encoder weights that remain. Where evaluation.max_stage_examples limits the examples, every column "
        "is measured on these examples only, so the last column differs from the table of methods, which uses all examples.",
    )


def _by_text(comparison: Comparison, task: str) -> Iterator[Table]:
    """Yield a table for each choice of languages whose text was read, unless it leaves no language out."""
    rows = _rows_with(comparison, task, "languages")
    for index, codes in enumerate(comparison["unlabelled"][task]):
        if any(row["apart"][index]["held_out_mean"] for row in rows):
            cells = [cell for cell in comparison["cells"] if cell["task"] == task]
            readers = dict.fromkeys(c["method"] for c in cells if sorted(c.get("unlabelled", [])) == codes)
            yield Table(
                title=f"Languages of {task} with and without text: {', '.join(map(language_name, codes))}",
                headings=["method", "with text", "without text"],
                rows=[
                    [
                        row["method"],
                        *map(spread_text, map(row["apart"][index].get, ("text_mean", "held_out_mean"))),
                    ]
                    for row in rows
                ],
                note=f"Two zero-shot means. {', '.join(readers)} read unlabelled text of "
                f"{'this language' if len(codes) == 1 else f'these {len(codes)} languages'} and of no others. The "
                "last column shows the effect on the other languages.",
            )


def _by_language(comparison: Comparison, task: str) -> Table | None:
    rows = _rows_with(comparison, task, "languages")
    codes = list(dict.fromkeys(code for row in rows for code in row["languages"]))
    if not rows:
        return None
    return Table(
        title=f"Languages of {task}",
        headings=["language", "code", *(row["method"] for row in rows)],
        rows=[
            [language_name(code), code, *(spread_text(row["languages"].get(code)) for row in rows)]
            for code in codes
        ],
        note="The train language comes first. A mean can rise while one language falls.",
        texts=2,
    )


def _tests(comparison: Comparison) -> Table | None:
    tests, tasks = comparison["tests"], comparison["tasks"]
    if not tests:
        return None
    columns: dict[str, Callable[[Row], str]] = {"task": lambda test: test["task"]} if len(tasks) > 1 else {}
    columns |= {
        "method": lambda test: test["second"],
        "against": lambda test: test["first"],
        "difference": lambda test: points(test["difference"]),
        "p": lambda test: _at_most(test, test["p_value"]),
        "p (Holm)": lambda test: _at_most(test, test["p_holm"]),
        "seeds in favour": lambda test: (
            f"{sum(value * test['difference'] > 0 for value in test['by_seed'].values())} of {len(test['seeds'])}"
        ),
    }
    note = (
        f"Difference of the zero-shot means, first minus second, in points. p: randomization test with "
        f"{tests[0]['rounds']:,} random exchanges of examples; ≤ marks the smallest p-value that this number of exchanges "
        f"can show. Holm's correction covers {count_of(len(tests), 'test')}. The test asks whether another test set would "
        "show the difference. The spread over seeds shows whether other seeds would; one seed cannot show this."
    )
    ordered = sorted(tests, key=lambda test: (tasks.index(test["task"]), test["p_holm"]))
    return tabulate("Pairs of methods, on the same examples", columns, ordered, note, texts=len(columns) - 4)


def _at_most(test: Row, value: float) -> str:
    """Return a p-value; marked where no exchange gave as large a difference, so that more of them would make it smaller."""
    shown = p_value(value)
    least = test["p_value"] <= 1 / (test["rounds"] + 1) + 1e-12
    return f"≤ {shown}" if least and not shown.startswith("<") else shown


CELL_COLUMNS: dict[str, Callable[[Row], str]] = {
    "folder": lambda cell: cell["name"],
    "method": lambda cell: cell["method"],
    "task": lambda cell: cell["task"],
    "seed": lambda cell: str(cell["seed"]),
    "state": lambda cell: cell["status"] + (f" (exit code {cell['exit_code']})" if cell["exit_code"] else ""),
    "training": lambda cell: f"{cell['seconds']:.0f} s" if "seconds" in cell else DASH,
    "dense stage": lambda cell: cell["dense_key"],
}


SETTINGS = {
    "criterion": "criterion",
    "scope": "scope",
    "regularizer": "regularizer",
    "schedule": "schedule",
    "regrow": "pruned weights return",
    "teacher": "teacher",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "regularize_dense": "regularizer in stage 0",
}


def _settings(comparison: Comparison) -> Table | None:
    """Return what each row stands for; columns that are empty everywhere are left out."""
    rows = comparison.get("settings", [])
    if not rows:
        return None
    columns: dict[str, Callable[[Row], str]] = {"method": lambda row: row["method"]}
    for key, heading in SETTINGS.items():
        if any(row[key] for row in rows):
            columns[heading] = lambda row, key=key: row[key] or DASH  # type: ignore[misc]
    note = "The settings are those on the first task. The recipe of every run is in its folder."
    return tabulate("What the methods are", columns, rows, note, texts=len(columns))


def _cells(comparison: Comparison) -> Table:
    note = (
        "Each is an ordinary run folder with its bundle and report. Seconds of training include the dense stage; runs with "
        "the same key share it."
    )
    return tabulate("Runs", CELL_COLUMNS, comparison["cells"], note, texts=3)


def faults(comparison: Comparison) -> list[str]:
    """Return a sentence for everything that went wrong, with the runs it happened to."""
    by_message: dict[str, list[str]] = {}
    for cell in comparison["cells"]:
        if cell["message"]:
            by_message.setdefault(cell["message"], []).append(cell["name"])
    return [f"{', '.join(names)}: {message}" for message, names in by_message.items()]


# --- writing ------------------------------------------------------------------------------------------------------


def charts(comparison: Comparison) -> dict[str, str]:
    """Draw an SVG for every task whose methods were measured at two densities or more."""
    found = {}
    for task in comparison["tasks"]:
        lines = [line for row in _rows_with(comparison, task, "curve") if (line := _line(row))]
        if lines:
            found[task] = draw_methods(lines, f"Zero-shot mean on {task} against density")
    return found


def _line(row: Row) -> MethodLine | None:
    stages = [(stage["encoder_density"], stage["zero_shot_mean"]) for stage in row["curve"]]
    measured = [(density, spread) for density, spread in stages if spread is not None]
    if len({density for density, _ in measured}) < 2:
        return None
    deviations = [spread["sd"] for _, spread in measured]
    means = [(density, spread["mean"]) for density, spread in measured]
    return MethodLine(row["method"], means, None if None in deviations else deviations)


def _chart_file(task: str) -> str:
    return f"zero_shot.{slug(task)}.svg"


def render(comparison: Comparison, kind: str) -> str:
    """Write the comparison as ``md`` (GitHub's Markdown, with links to the charts) or ``html`` (one self-contained page)."""
    from markupsafe import Markup

    comparison = plain(comparison)
    # charts.py escapes what it is given.
    drawn = [
        {"task": task, "file": _chart_file(task), "svg": Markup(svg)}
        for task, svg in charts(comparison).items()
    ]
    template = template_environment(autoescape=kind == "html").get_template(f"comparison.{kind}.j2")
    text = template.render(**comparison, shown=tables(comparison), faults=faults(comparison), drawings=drawn)
    return squeeze(text) if kind == "md" else text


def write(comparison: Comparison, folder: Path) -> None:
    """Write comparison.json, .md, .html and the charts into ``folder``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    comparison = plain(comparison)
    for task, svg in charts(comparison).items():
        write_atomically(folder / _chart_file(task), svg + "\n")
    for kind in ("html", "md"):
        write_atomically(folder / f"comparison.{kind}", render(comparison, kind))
    text = json.dumps(comparison, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / "comparison.json", text + "\n")


# --- the terminal -------------------------------------------------------------------------------------------------


def results_table(comparison: Comparison) -> RenderableType:
    """Headline tables, tests and what went wrong, for `rich.print`."""
    from rich.console import Group
    from rich.text import Text

    comparison = plain(comparison)
    shown: list[RenderableType] = []
    for table in [*_headlines(comparison), _tests(comparison)]:
        if table:
            shown += [
                rich_table(table, wrap=len(table.headings) > 7),
                Text(table.note, style="dim"),
                Text(""),
            ]
    shown += [Text(note) for note in comparison["notes"]]
    if comparison["scaled_down"]:
        shown.append(Text(f"Scaled down: {'; '.join(comparison['scaled_down'])}."))
    return Group(*shown, *(Text(fault, style="red") for fault in faults(comparison)))


def plan_table(plan: Plan) -> RenderableType:
    """Return the cells before they run, and which of them share a dense stage."""
    from rich.console import Group
    from rich.text import Text

    columns = {"run": CELL_COLUMNS["folder"], **CELL_COLUMNS}
    for heading in ("folder", "state", "training"):
        del columns[heading]
    table = tabulate(f"{plan.name}: {len(plan.cells)} runs", columns, plan_entries(plan), texts=3)
    return Group(rich_table(table, wrap=len(table.headings) > 7), *(Text(note) for note in plan.notes))


def plan_entries(plan: Plan) -> list[dict[str, Any]]:
    """Return the cells before they run, as plain values."""
    return [
        {
            "name": cell.name,
            "method": cell.method,
            "task": cell.task,
            "seed": cell.seed,
            "dense_key": cell.dense_key,
            "recipe": cell.recipe.resolved(),
        }
        for cell in plan.cells
    ]
