"""A comparison of 240 cells, whose runs are stood in for: it plans, is interrupted, resumes, and is read."""

import contextlib
import copy
import json
from concurrent.futures import Future
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from sample_report import sample_report
from slow import slow_but

from xlmprune.compare import plan, running, work
from xlmprune.core.progress import Reporter
from xlmprune.evaluation import score_file
from xlmprune.training import checkpoint

EXAMPLES = 60

GRID = {
    "recipe": "xnli_cosine",
    "baseline": "magnitude of four, strength=1",
    "methods": {
        f"{name} of four": {"pruning.criterion": name} for name in ("magnitude", "lamp", "random", "eq6")
    },
    "vary": {
        "regularizer.strength": [0.01, 0.1, 1, 10, 100, 1000],
        "seed": [1],
    },
}


class StandIn(contextlib.AbstractContextManager):
    """Writes what a run leaves: its folder, its report and the score of every example. Interrupted after ``limit`` cells."""

    def __init__(self, made, limit=None):
        self.recipes = {cell.name: cell.recipe for cell in made.cells}
        self.limit, self.names = limit, []
        self.report = sample_report(14, EXAMPLES)

    def __exit__(self, *_):
        pass

    def submit(self, given):
        done = Future()
        if self.limit is not None and len(self.names) >= self.limit:
            done.set_result(work.Outcome(given.name, work.INTERRUPTED, "interrupted"))
            return done
        self.names.append(given.name)
        folder = Path(given.arguments[given.arguments.index("--out") + 1])
        if given.name in self.recipes:
            self.run(folder, self.recipes[given.name])
        else:  # a dense stage
            (folder / "bundle").mkdir(parents=True)
            (folder / "bundle" / "report.json").write_text("{}")
        done.set_result(work.Outcome(given.name))
        return done

    def run(self, path, recipe):
        with checkpoint.open_run(path, recipe) as folder:
            report, scores = self.results(recipe)
            score_file.write(folder.path / score_file.NAME, scores)
            (folder.begin_bundle() / "report.json").write_text(json.dumps(report), encoding="utf-8")
            folder.ship()

    def results(self, recipe):
        """Make a report whose scores follow from the strength of the regularizer, and the examples behind them."""
        report = copy.deepcopy(self.report)
        random = np.random.default_rng([recipe.seed, len(recipe.pruning.criterion.name)])
        right = 0.6 + 0.03 * np.log10(recipe.regularizer.parameters.get("strength", 1))
        pruned = {
            code: np.stack([random.random(EXAMPLES) < right, np.ones(EXAMPLES)], axis=1).astype(float)
            for code in report["languages"]
        }
        for code, row in report["languages"].items():
            row["pruned"] = 100 * float(pruned[code][:, 0].mean())
        for stage in report["stages"]:
            stage.setdefault("dev", 80.0)
        others = [row["pruned"] for code, row in report["languages"].items() if code != "en"]
        report["summary"]["zero_shot_mean"]["pruned"] = float(np.mean(others))
        return report, score_file.ExampleScores(report["languages"]["en"]["metric"], pruned, pruned)


def compare(made, out, executor):
    return running.compare(made, out, executor, "cpu", reporter=Reporter(Console(quiet=True)))


@pytest.mark.parametrize("seeds", slow_but([1], [1, 10]))
def test_a_grid_is_planned_interrupted_resumed_and_summarised(seeds, tmp_path, monkeypatch):
    vary = {**GRID["vary"], "seed": list(range(1, seeds + 1))}
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({**GRID, "vary": vary}, sort_keys=False), encoding="utf-8")
    cells = 24 * seeds
    read, written = [], []
    count(monkeypatch, "xlmprune.compare.plan.read_recipe", read)
    count(monkeypatch, "xlmprune.compare.pages.write", written)
    made = plan.read(str(file))
    assert (len(made.cells), len(made.methods), made.seeds) == (cells, 24, vary["seed"])
    assert len(read) == 1, "not once for every cell"
    first = StandIn(made, limit=cells // 6)
    with pytest.raises(KeyboardInterrupt):
        compare(made, tmp_path / "out", first)
    dense = [name for name in first.names if name.startswith("dense")]
    assert 1 <= len(dense) <= seeds, "methods with the same seed share it"
    second = StandIn(made)
    facts = compare(made, tmp_path / "out", second)
    assert not set(first.names) & set(second.names), "what was finished is not run again"
    assert {*first.names, *second.names} - {f"dense stage {cell.dense_key}" for cell in made.cells} == set(
        second.recipes
    )
    assert [cell["status"] for cell in facts["cells"]] == ["done"] * cells
    assert [(row["done"], row["planned"]) for row in facts["rows"][1:]] == [(seeds, seeds)] * 24
    assert len(facts["tests"]) == 23
    assert max(test["p_holm"] for test in facts["tests"]) <= 1
    assert len(written) < 30 + cells // 8, (
        "a comparison whose cells end quickly does not write its pages after each of them"
    )
    sizes = {file.suffix: file.stat().st_size for file in (tmp_path / "out").glob("comparison.*")}
    assert sizes[".html"] < 300_000
    third = StandIn(made)
    assert compare(made, tmp_path / "out", third)["rows"] == facts["rows"]
    assert third.names == []


def count(monkeypatch, name, calls):
    """Note every call of a function."""
    module, _, attribute = name.rpartition(".")
    original = getattr(import_module(module), attribute)

    def counted(*given, **named):
        calls.append(given)
        return original(*given, **named)

    monkeypatch.setattr(name, counted)
