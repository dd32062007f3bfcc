"""Read what the cells found, average it over seeds and test methods against each other: the keys of comparison.json."""

from __future__ import annotations

import functools
import itertools
import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlmprune.compare.plan import Cell, Plan, settings
from xlmprune.compare.work import Outcome
from xlmprune.core.errors import DataError
from xlmprune.core.formatting import timestamp
from xlmprune.core.run_folder import explain_report, report_file
from xlmprune.evaluation import score_file
from xlmprune.evaluation.collapse import COLLAPSE, collapsed
from xlmprune.evaluation.significance import ROUNDS, holm, randomization_test
from xlmprune.tasks.metrics import METRICS

SCHEMA_VERSION = 1

MEASURES = ("english", "zero_shot_mean", "all_mean")
"""As in a report's summary: the train language, the languages only evaluated, both together."""

DENSE = "No pruning"

Spread = dict[str, Any]
"""``mean``, ``sd`` (of a sample; None for one), ``n`` and ``values`` by seed."""

Comparison = Mapping[str, Any]
"""The content of comparison.json."""


def assemble(plan: Plan, outcomes: Mapping[str, Outcome], out: Path, tests: bool = True) -> dict[str, Any]:
    """Return the comparison as it stands; cells without an outcome are pending.

    Args:
        outcomes: by cell.
        out: the folder that holds the cells' folders.
        tests: whether to test methods against each other, which takes seconds.
    """
    cells = [_cell(cell, outcomes.get(cell.name), out) for cell in plan.cells]
    rows = [*_dense_rows(plan, cells), *_method_rows(plan, cells)]
    texts = {task: _texts(cells, task) for task in plan.tasks}
    for row in rows:
        row["apart"] = [_means_apart(row, set(codes)) for codes in texts[row["task"]]]
    tested, untested = _tests(plan, cells, out) if tests else ([], [])
    return {
        "schema_version": SCHEMA_VERSION,
        "name": plan.name,
        "created": timestamp(),
        "origin": plan.origin,
        "methods": plan.methods,
        "tasks": plan.tasks,
        "seeds": plan.seeds,
        "baseline": plan.baseline,
        "settings": [
            {"method": method, **settings(next(cell.recipe for cell in plan.cells if cell.method == method))}
            for method in plan.methods
        ],
        "notes": [*plan.notes, *_notes(plan, cells), *untested],
        "scaled_down": list(dict.fromkeys(note for cell in cells for note in cell.get("scaled_down", []))),
        "rows": rows,
        "unlabelled": texts,
        "averages": _averages(plan, rows),
        "tests": tested,
        "cells": cells,
    }


def exit_code(comparison: Comparison) -> int:
    """Return what the command ends with: 1 if any cell met an internal error, else 2, else 3, else 0."""
    codes = {cell["exit_code"] for cell in comparison["cells"]}
    return next((code for code in (1, 2, 3) if code in codes), 0)


def _cell(cell: Cell, outcome: Outcome | None, out: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": cell.name,
        "method": cell.method,
        "task": cell.task,
        "seed": cell.seed,
        "status": "pending",
        "exit_code": outcome.exit_code if outcome else 0,
        "message": outcome.message if outcome else "",
        "dense_key": cell.dense_key,
        "recipe_sha256": cell.recipe_sha256,
    }
    if outcome is None:
        return entry
    file = report_file(out / cell.name)
    if (
        outcome.failed or not file.is_file()
    ):  # a form that does not reproduce PyTorch fails its check without a bundle
        return entry | {"status": "failed"}
    return entry | {"status": "done", **_read(file, file.stat().st_mtime_ns)}


@functools.lru_cache(maxsize=10_000)
def _read(file: Path, changed: int) -> dict[str, Any]:
    """Read what the table needs of a report file, again only where it ``changed``; nobody changes the result."""
    with explain_report(file):
        return _measured(json.loads(file.read_text(encoding="utf-8")))


def _measured(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the table needs of a report."""
    summary, stages = report["summary"], report["stages"]
    train, density = summary["train_language"], report["model"]["encoder_density"]
    return {
        "train_language": train,
        "metric": report["languages"][train]["metric"],
        "encoder_density": density,
        "seconds": sum(stage["seconds"] for stage in stages),
        "scaled_down": report["scaled_down"],
        "dev": {"pruned": stages[-1]["dev"], "dense": stages[0]["dev"]},
        "pruned": {measure: summary[measure].get("pruned") for measure in MEASURES},
        "dense": {measure: summary[measure].get("dense") for measure in MEASURES},
        "languages": {
            language: {state: row[state] for state in ("dense", "pruned")}
            for language, row in report["languages"].items()
        },
        "collapsed": len(collapsed(report["layers"], density)),
        "unlabelled": _languages_read(report),
        "target_text": list(report.get("target_text", [])),
        "curve": [
            {key: stage.get(key) for key in ("stage", "encoder_density", "zero_shot_mean")}
            for stage in stages
        ],
    }


def _languages_read(report: Mapping[str, Any]) -> list[str]:
    """Languages whose unlabelled text a method read: to learn a teacher's answers, to rank weights or to refit them."""
    read = {code for code, row in report["languages"].items() if row.get("seen_unlabelled")}
    measured = set((report.get("moments") or {}).get("texts", ()))
    if not measured - read <= {report["summary"]["train_language"]}:
        read |= measured
    return [code for code in report["languages"] if code in read]


def spread(values: Mapping[int, float | None]) -> Spread | None:
    """Mean and sample standard deviation over seeds; None of nothing."""
    found = {seed: value for seed, value in values.items() if value is not None}
    if not found:
        return None
    listed = list(found.values())
    sd = float(np.std(listed, ddof=1)) if len(listed) > 1 else None
    return {"mean": float(np.mean(listed)), "sd": sd, "n": len(listed), "values": found}


def _method_rows(plan: Plan, cells: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for method, task in itertools.product(plan.methods, plan.tasks):
        planned = [cell for cell in cells if (cell["method"], cell["task"]) == (method, task)]
        if planned:
            yield {"method": method, "task": task, "planned": len(planned), **_row(planned, "pruned")}


def _dense_rows(plan: Plan, cells: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the models before pruning: for each seed the one that most methods began from."""
    for task in plan.tasks:
        column = [cell for cell in cells if cell["task"] == task]
        chosen = []
        for seed, common in _common_dense(column).items():
            of_seed = [cell for cell in column if (cell["seed"], cell["dense_key"]) == (seed, common)]
            chosen.append(next((cell for cell in of_seed if cell["status"] == "done"), of_seed[0]))
        yield {"method": DENSE, "task": task, "planned": len(chosen), **_row(chosen, "dense")}


def _common_dense(column: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """For each seed the dense stage that most methods began from."""
    keys: dict[int, list[str]] = {}
    for cell in column:
        keys.setdefault(cell["seed"], []).append(cell["dense_key"])
    return {seed: max(found, key=found.count) for seed, found in keys.items()}


def _row(cells: Sequence[dict[str, Any]], state: str) -> dict[str, Any]:
    done = [cell for cell in cells if cell["status"] == "done"]
    failed = sum(cell["status"] == "failed" for cell in cells)
    row: dict[str, Any] = {"done": len(done), "failed": failed}
    if not done:
        return row

    def over_seeds(*keys: Any) -> Spread | None:
        values: dict[int, Any] = {c["seed"]: functools.reduce(operator.getitem, keys, c) for c in done}
        return spread(values)

    first = done[0]
    row |= {
        "metric": first["metric"],
        "train_language": first["train_language"],
        "encoder_density": first["encoder_density"] if state == "pruned" else 1.0,
        "dev": over_seeds("dev", state),
        **{measure: over_seeds(state, measure) for measure in MEASURES},
        "languages": {code: over_seeds("languages", code, state) for code in first["languages"]},
    }
    if state == "pruned":
        row["loss"] = spread({cell["seed"]: _loss(cell) for cell in done})
        row["curve"] = [
            {
                "stage": stage["stage"],
                "encoder_density": stage["encoder_density"],
                "zero_shot_mean": over_seeds("curve", index, "zero_shot_mean"),
            }
            for index, stage in enumerate(first["curve"])
        ]
    return row


def _texts(cells: Sequence[Mapping[str, Any]], task: str) -> list[list[str]]:
    """Each choice of languages whose unlabelled text some method of the task read, the largest first."""
    found = {
        tuple(sorted(cell["unlabelled"])) for cell in cells if cell["task"] == task and cell.get("unlabelled")
    }
    return [list(codes) for codes in sorted(found, key=lambda codes: (-len(codes), codes))]


def _means_apart(row: Mapping[str, Any], with_text: set[str]) -> dict[str, Spread | None]:
    """Zero-shot means of the languages in ``with_text``, and of the others; None of no language."""
    others = {
        code: found for code, found in row.get("languages", {}).items() if code != row["train_language"]
    }
    apart = {
        "text_mean": [found["values"] for code, found in others.items() if code in with_text],
        "held_out_mean": [found["values"] for code, found in others.items() if code not in with_text],
    }
    return {
        key: spread({seed: float(np.mean([values[seed] for values in of])) for seed in of[0]}) if of else None
        for key, of in apart.items()
    }


def _loss(cell: Mapping[str, Any]) -> float | None:
    before, after = cell["dense"]["zero_shot_mean"], cell["pruned"]["zero_shot_mean"]
    return None if before is None or after is None else after - before


def _averages(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean over tasks, seed by seed, of the methods that finished every task with that seed."""
    if len(plan.tasks) < 2:
        return []
    averages = []
    for method in [DENSE, *plan.methods]:
        of_method = [row for row in rows if row["method"] == method]
        entry: dict[str, Any] = {"method": method}
        for measure in MEASURES:
            spreads = [row.get(measure) for row in of_method]
            if len(of_method) == len(plan.tasks) and all(spreads):
                values = [found["values"] for found in spreads if found]
                shared = [seed for seed in values[0] if all(seed in other for other in values)]
                entry[measure] = spread(
                    {seed: float(np.mean([of_task[seed] for of_task in values])) for seed in shared}
                )
        averages.append(entry)
    return averages


def _notes(plan: Plan, cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for task in plan.tasks:
        column = [cell for cell in cells if cell["task"] == task]
        yield from (f"On {task} {note}" for note in _column_notes(column))


def _column_notes(column: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Sentences on the cells of one task, without their beginning."""
    if readers := _methods(cell for cell in column if cell.get("unlabelled")):
        yield (
            "these methods also read unlabelled text of measured languages, so they are not zero-shot in the "
            f"strict sense: {readers}."
        )
    for said in dict.fromkeys(text for cell in column for text in cell.get("target_text", [])):
        yield f"{said}: {_methods(cell for cell in column if said in cell.get('target_text', []))}."
    common = _common_dense(column)
    if apart := _methods(cell for cell in column if cell["dense_key"] != common[cell["seed"]]):
        yield f"these methods trained their own dense stage, because the varied keys change that stage too: {apart}."
    done = [cell for cell in column if cell["status"] == "done"]
    densities = dict.fromkeys(round(cell["encoder_density"], 3) for cell in done)
    if len(densities) > 1:
        listed = "; ".join(
            f"{density:.1%}: {_methods(cell for cell in done if round(cell['encoder_density'], 3) == density)}"
            for density in densities
        )
        yield f"the final densities differ, so scores compare budgets as well as methods. {listed}."
    if empty := {cell["method"]: cell["collapsed"] for cell in done if cell["collapsed"]}:
        listed = ", ".join(f"{method} ({count})" for method, count in empty.items())
        yield (
            f"a ranking over all matrices at once left some with less than {COLLAPSE:.0%} of their weights (layer "
            f"collapse; number of matrices in brackets): {listed}."
        )
    metrics = {cell["metric"] for cell in done}
    if len(metrics) > 1:
        yield f"the methods were scored by different metrics: {', '.join(sorted(metrics))}."


def _methods(cells: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(cell["method"] for cell in cells))


# --- one method against another --------------------------------------------------------------------------------------


def _tests(
    plan: Plan, cells: Sequence[Mapping[str, Any]], out: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Every pair on the same examples and seeds, p-values corrected over all of them; and why some were left out."""
    found, untested = [], []
    for task in plan.tasks:
        runs: dict[str, dict[int, score_file.ExampleScores]] = {}
        done = [cell for cell in cells if cell["task"] == task and cell["status"] == "done"]
        for cell in done:
            try:
                kept = score_file.read(out / cell["name"] / score_file.NAME)
            except DataError as error:
                untested.append(f"Not tested: {error}.")
                continue
            runs.setdefault(cell["method"], {})[cell["seed"]] = kept
        for a, b in _pairs(plan, list(runs)):
            try:
                result = _test(runs[a], runs[b], done[0]["train_language"])
                found.append({"task": task, "first": a, "second": b, **result})
            except ValueError as error:
                untested.append(f"Not tested: {a} and {b} on {task}; {error}.")
    corrected = holm([entry["p_value"] for entry in found])
    for entry, p_holm in zip(found, corrected, strict=True):
        entry["p_holm"] = p_holm
    return found, untested


def _pairs(plan: Plan, methods: Sequence[str]) -> Iterable[tuple[str, str]]:
    if plan.baseline is None:
        return itertools.combinations(methods, 2)
    return (
        (plan.baseline, other) for other in methods if other != plan.baseline and plan.baseline in methods
    )


def _test(
    first: Mapping[int, score_file.ExampleScores], second: Mapping[int, score_file.ExampleScores], train: str
) -> dict[str, Any]:
    seeds = [seed for seed in first if seed in second]
    if not seeds:
        raise ValueError("no seed was run with both")
    runs = [*(first[seed] for seed in seeds), *(second[seed] for seed in seeds)]
    if len({run.metric for run in runs}) > 1 or any(run.fingerprints != runs[0].fingerprints for run in runs):
        raise ValueError("they were measured on different examples")
    languages = [language for language in runs[0].pruned if language != train] or [train]
    a, b = (
        [{language: of[seed].pruned[language] for language in languages} for seed in seeds]
        for of in (first, second)
    )
    if runs[0].metric not in METRICS:
        raise ValueError(f"no metric is called {runs[0].metric!r}")
    metric = METRICS[runs[0].metric]
    test = randomization_test(a, b, metric)
    by_seed = {
        seed: float(
            np.mean([metric.value(y[code].sum(0)) - metric.value(x[code].sum(0)) for code in languages])
        )
        for seed, x, y in zip(seeds, a, b, strict=True)
    }
    return {
        "seeds": seeds,
        "languages": len(languages),
        "difference": test.difference,
        "by_seed": by_seed,
        "p_value": test.p_value,
        "rounds": ROUNDS,
    }
