"""Methods against each other: the plan, the dense stage they share, the table, and the tests behind it."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import traceback
import types
import xml.etree.ElementTree as ElementTree
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from slow import slow_but
from test_report import HOSTILE, Page
from tiny_run import write_recipe, write_workplace
from typer.testing import CliRunner

from xlmprune import pipeline
from xlmprune.cli import app
from xlmprune.compare import local, pages, plan, results, running, work
from xlmprune.compare import ray as ray_executor
from xlmprune.compare.comparison_file import shipped
from xlmprune.core import own_process
from xlmprune.core.errors import DataError, MachineError, RecipeError
from xlmprune.core.machine import processors
from xlmprune.core.progress import Reporter
from xlmprune.evaluation import score_file
from xlmprune.recipe.loading import load_recipe
from xlmprune.recipe.registry import CRITERIA, listed
from xlmprune.recipe.validation import build_component
from xlmprune.training.dense import dense_key


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return write_workplace(tmp_path_factory.mktemp("work"), repeat=2)


def write_base(workplace):
    """The recipe that cells begin with: two stages of a few updates, seven zero-shot languages."""
    training = {"epochs_per_stage": 2, "dense_epochs": 2, "batch_size": 8, "learning_rate": 1e-2}
    schedule = {"name": "geometric", "step_fraction": 0.5, "stages": 2}
    return write_recipe(
        workplace,
        training={**training, "max_length": 32},
        pruning={"schedule": schedule},
        export={"onnx": [], "triton": False},
    )


@pytest.fixture
def base(workplace):
    return write_base(workplace)


QUIET = Reporter(Console(quiet=True))


def comparison_file(folder, name="mine.yaml", **values):
    file = folder / name
    file.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return str(file)


def load(base, *overrides):
    return load_recipe(str(base), list(overrides))


# --- the plan --------------------------------------------------------------------------------------------------------


def test_every_combination_is_a_cell(base):
    made = plan.read(
        str(base),
        ["regularizer=none,{name: cosine, strength: 10}", "seed=1,2,3", "pruning.criterion=random,lamp"],
    )
    assert made.methods == [
        "none, random",
        "none, lamp",
        "cosine (strength=10), random",
        "cosine (strength=10), lamp",
    ]
    assert made.seeds == [1, 2, 3]
    assert made.tasks == ["classification"]
    assert len(made.cells) == len({cell.name for cell in made.cells}) == 12
    cell = made.cells[-1]
    assert cell.name == "cosine-strength-10-lamp.seed3"
    assert (cell.recipe.name, cell.recipe.seed) == (f"tiny.{cell.name}", 3)
    assert cell.recipe.pruning.criterion.name == "lamp"
    assert cell.recipe.regularizer.parameters == {"strength": 10}
    assert cell.recipe.task == load(base).task


def test_a_file_names_rows_and_columns(base, tmp_path):
    (tmp_path / "other.yaml").write_text(base.read_text().replace("batch_size: 8", "batch_size: 4"))
    file = comparison_file(
        tmp_path,
        recipe=str(base),
        set={"export.triton": False},
        methods={
            "L2-MBP": {"regularizer": "none"},
            "Cosine-MBP": {"regularizer": {"name": "cosine", "strength": 7}},
            "as is": None,
        },
        tasks={"XNLI": {"task.metric": "accuracy"}, "POS": {"recipe": "other.yaml"}},
        vary={"seed": [1, 2]},
        baseline="L2-MBP",
    )
    made = plan.read(file, overrides=["training.max_length=16"])
    assert made.name == "mine"
    assert made.methods == ["L2-MBP", "Cosine-MBP", "as is"]
    assert made.tasks == ["XNLI", "POS"]
    assert made.baseline == "L2-MBP"
    assert len(made.cells) == 12
    for cell in made.cells:
        assert cell.recipe.training.batch_size == (8 if cell.task == "XNLI" else 4)
        assert cell.recipe.training.max_length == 16
        assert not cell.recipe.export.triton
    assert made.cells[0].name == "l2-mbp.xnli.seed1"


def test_options_add_to_a_file_and_win(base, tmp_path):
    file = comparison_file(
        tmp_path, recipe=str(base), vary={"seed": [1, 2]}, methods={"a": {}, "b": {"regularizer": "none"}}
    )
    assert plan.read(file, ["seed=5,6"], ["training.max_length=16"]).seeds == [5, 6]
    assert plan.read(file, ["seed=5", "seed=6"]).seeds == [5, 6]
    with pytest.raises(RecipeError, match=r"same run.*a on .* b on"):
        plan.read(file, [], ["regularizer=frobenius"])


def test_a_method_may_have_seeds_of_its_own(base, tmp_path):
    methods = {"often": {"regularizer": "none", "seed": [1, 2, 3]}, "once": {"pruning.criterion": "random"}}
    file = comparison_file(tmp_path, recipe=str(base), methods=methods, vary={"seed": [3]})
    assert [cell.name for cell in plan.read(file).cells] == [
        "often.seed1",
        "often.seed2",
        "often.seed3",
        "once.seed3",
    ]
    assert {cell.seed for cell in plan.read(file, ["seed=9"]).cells} == {9}
    methods["often"]["seed"] = []
    with pytest.raises(RecipeError, match=r"methods.often.seed: no value"):
        plan.read(comparison_file(tmp_path, recipe=str(base), methods=methods))


def test_methods_with_like_names_get_folders_of_their_own(base, tmp_path):
    methods = {"α=1": {"seed": 1}, "β=1": {"seed": 2}, "1": {"seed": 3}, "x" * 90: {"seed": 4}}
    made = plan.read(comparison_file(tmp_path, recipe=str(base), methods=methods))
    assert len({cell.name for cell in made.cells}) == 4
    assert all(cell.name.isascii() and len(cell.name) < 80 for cell in made.cells)


def test_a_value_that_two_share_by_name_is_spelt_out(base):
    made = plan.read(str(base), ["task.languages=all,[de],[de, th]"])
    assert made.tasks == ["languages=all", 'languages=["de"]', 'languages=["de", "th"]']
    assert plan._axis("regularizer", ["none", {"name": "none"}], "")[0].label == 'regularizer="none"'


@pytest.mark.parametrize("given", [True, False])
def test_the_dense_stage_is_the_same_for_all_unless_the_recipe_says_otherwise(base, given):
    overrides = ["training.regularize_dense=true"] if given else []
    made = plan.read(str(base), ["regularizer=none,cosine"], overrides)
    keys = {dense_key(cell.recipe) for cell in made.cells}
    assert len(keys) == (2 if given else 1)
    assert any(plan.SHARED_DENSE in note for note in made.notes) != given


def test_a_run_alone_and_a_run_of_a_comparison_are_trained_alike():
    alone = load_recipe("xnli_cosine")
    (cell,) = plan.read(
        "xnli_cosine", ["regularizer={name: cosine, strength: 100.0, reference: pretrained}"]
    ).cells
    assert not alone.training.regularize_dense
    assert cell.recipe.model_copy(update={"name": alone.name}) == alone


@pytest.mark.parametrize("order", [1, -1])
def test_a_row_may_name_a_method_and_change_it(base, tmp_path, order):
    row = {"method": "lamp", "pruning.criterion": {"name": "magnitude"}, "pruning.schedule.stages": 3}
    file = comparison_file(tmp_path, recipe=str(base), methods={"A": dict(list(row.items())[::order])})
    (cell,) = plan.read(file).cells
    assert (cell.recipe.pruning.criterion.name, cell.recipe.pruning.scope) == ("magnitude", "global")
    assert plan.read(str(base), ["method=l2,lamp"]).methods == ["l2", "lamp"]
    with pytest.raises(RecipeError, match=r"methods\.A: method=.*no method is called 'lam'"):
        plan.read(comparison_file(tmp_path, recipe=str(base), methods={"A": {"method": "lam"}}))


def test_a_comparison_may_start_from_another(base, tmp_path):
    below = tmp_path / "below"
    below.mkdir()
    (below / "own.yaml").write_text(base.read_text().replace("batch_size: 8", "batch_size: 4"))
    comparison_file(
        below,
        "one.yaml",
        recipe="own.yaml",
        set={"training.max_length": 16, "export.triton": False},
        methods={"A": {}, "B": {"regularizer": "none"}},
        vary={"seed": [1, 2]},
        baseline="A",
    )
    made = plan.read(
        comparison_file(tmp_path, base="below/one.yaml", set={"training.max_length": 24}, vary={"seed": [5]})
    )
    assert (made.name, made.methods, made.seeds, made.baseline) == ("mine", ["A", "B"], [5], "A")
    training = made.cells[0].recipe.training
    assert (training.max_length, training.batch_size) == (24, 4)
    assert not made.cells[0].recipe.export.triton
    rows = plan.read(comparison_file(tmp_path, base="below/one.yaml", methods={"C": {}}, baseline=None))
    assert (rows.methods, rows.seeds, rows.baseline) == (["C"], [1, 2], None)
    assert plan.read(comparison_file(tmp_path, base="table1_xnli", vary={"seed": [7]})).tasks == ["xnli"]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("tabel1", {}, "base: no file .*tabel1, and no shipped comparison.*did you mean 'table1'"),
        ("mine.yaml", {}, "base 'mine.yaml' leads back"),
        ("other.yaml", {"base": "mine.yaml", "set": {}}, "base 'mine.yaml' leads back"),
        ("other.yaml", {"task": "xnli"}, "base 'other.yaml' is a recipe; name it with `recipe`"),
        ("other.yaml", {"set": {}, "methdos": {}}, "other.yaml, line [0-9]: unknown key 'methdos'"),
    ],
)
def test_bases_of_comparisons_that_cannot_be(tmp_path, first, second, said):
    comparison_file(tmp_path, "other.yaml", **second)
    with pytest.raises(RecipeError, match=said):
        plan.read(comparison_file(tmp_path, base=first, vary={"seed": [1]}))


def test_what_the_rows_are_is_written_beside_them(compared):
    _, out, _, comparison = compared
    by_method = {entry["method"]: entry for entry in comparison["settings"]}
    assert by_method["cosine"]["regularizer"] == "cosine"
    assert "| cosine | magnitude | layer | cosine |" in (out / "comparison.md").read_text()
    row = plan.settings(load("quickstart", "method=l2"))
    assert row["regularizer"] == "l2 strength=0.01 decoupled=true"


def test_what_restarts_needs_as_many_updates_as_stage_0_and_the_others_stages(base):
    published = "{name: continuous, every: 1, restart: true, final_density: 0.25}"
    for epochs, even in ((6, True), (4, False)):
        made = plan.read(
            comparison_file(
                base.parent,
                recipe=str(base),
                methods={
                    "staged": {},
                    "published": {
                        "pruning.schedule": yaml.safe_load(published),
                        "training.epochs_per_stage": epochs,
                    },
                },
            )
        )
        assert (not [note for note in made.notes if "Budgets differ" in note]) == even


@pytest.mark.slow
def test_table_1_takes_the_papers_number_for_parts_of_speech():
    metrics = {cell.task: cell.recipe.task.metric for cell in plan.read("table1").cells}
    assert metrics["POS"] == "pos_xglue"
    assert {metric for task, metric in metrics.items() if task != "POS"} == {None}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart_methods", "table1", "table1_xnli"])
def test_the_large_comparisons_have_every_method(name):
    made = plan.read(name)
    chosen = {cell.recipe.pruning.criterion.name for cell in made.cells}
    assert chosen >= set(CRITERIA) - {"wanda", "sparsegpt"}
    regularizers = {cell.method: cell.recipe.regularizer for cell in made.cells}
    for method, regularizer in regularizers.items():
        decays = regularizer.parameters == {"strength": 0.01, "decoupled": True}
        assert decays == method.startswith("L2-"), method
    if name == "quickstart_methods":
        seeds = {m: sorted(cell.seed for cell in made.cells if cell.method == m) for m in made.methods}
        thrice = {"L2-MBP", "Cosine-MBP", "Frobenius-MBP", "PINS", "PINS score"}
        assert {method for method, listed in seeds.items() if listed == [1, 2, 3]} == thrice
        assert all(listed == [1] for method, listed in seeds.items() if method not in thrice)
        shared = {
            cell.method for cell in made.cells if dense_key(cell.recipe) == dense_key(made.cells[0].recipe)
        }
        assert shared >= {"L2-MBP", "Cosine-MBP", "Frobenius-MBP", "PINS", "PLATON", "oBERT", "L0-MBP"}


OWN_DENSE = {
    "table1": {"Movement", "PINS score"},
    "table1_xnli": {"Movement", "PINS score"},
    "quickstart_methods": {"Movement", "PINS score", "PINS score + cosine", "PINS score + text"},
    "quickstart_structures": {"31 % of weights"},
    "six_tasks": {"single weights"},
    "pos_methods": {"PINS score"},
}
"""Rows that train a dense stage of their own, as the comparisons' comments say."""


@pytest.mark.parametrize("options", [[], ["training.epochs_per_stage=3"], ["training.learning_rate=0.25"]])
@pytest.mark.parametrize("name", slow_but(sorted({*OWN_DENSE} - {"table1"}), sorted(OWN_DENSE)))
def test_the_other_rows_of_a_column_prune_one_dense_model(name, options):
    columns: dict[object, dict[str, set[str]]] = {}
    for cell in plan.read(name, ["seed=1"], options).cells:
        columns.setdefault(cell.task, {}).setdefault(dense_key(cell.recipe), set()).add(cell.method)
    for column in columns.values():
        shared = max(column.values(), key=len)
        assert {method for methods in column.values() for method in methods} - shared == OWN_DENSE[name]


def test_keys_beside_a_published_scheme_leave_stage_0_alone(tmp_path):
    beside = {"training": {"epochs_per_stage": 180, "learning_rate": 1.0, "warmup_updates": 7}}
    text = "base: xnli_cosine\nmethod: {}\n" + yaml.safe_dump(beside)
    keys = set()
    for method in ("pins", "platon", "obert"):
        file = tmp_path / f"{method}.yaml"
        file.write_text(text.format(method), encoding="utf-8")
        keys.add(dense_key(load_recipe(str(file))))
    assert keys == {dense_key(load_recipe("xnli_cosine"))}


def test_unequal_budgets_are_said(base):
    assert "random" not in " ".join(plan.read(str(base), ["pruning.criterion=random,lamp"]).notes)
    (note,) = plan.read(str(base), ["training.epochs_per_stage=1,2"]).notes[1:]
    assert "epochs_per_stage=1" in note
    assert "Budgets differ" in note
    (note,) = plan.read(str(base), ["training.last_epochs=0,null"], ["training.epochs_per_stage=2"]).notes[1:]
    assert "Budgets differ" in note


@pytest.mark.parametrize(
    ("vary", "overrides", "said"),
    [
        (
            ["regularizr=none"],
            [],
            "--vary regularizr=none: unknown key 'regularizr'; did you mean 'regularizer'",
        ),
        (["regularizer=none,cosin"], [], "--vary regularizer=cosin.*did you mean 'cosine'"),
        (["regularizer.strenth=1,2"], [], "strenth.*did you mean 'strength'"),
        (["seed=1,two"], [], "--vary seed=two"),
        (["seed.x=1"], [], "--vary seed.x=1: seed: expected whole number"),
        (["seed=1"], ["pruning.scop=layer"], "--set pruning.scop=layer.*'scope'"),
        (["seed="], [], "--vary seed: no value is listed"),
        (["seed"], [], "--vary seed: expected key=value1,value2"),
        (["seed=1,[2"], [], "--vary seed=1,\\[2.*not valid YAML"),
        (["seed=1,1"], [], "same run.*seed 1"),
        ([], [], "nothing is varied"),
    ],
)
def test_what_cannot_be_varied(base, vary, overrides, said):
    with pytest.raises(RecipeError, match=said):
        plan.read(str(base), vary, overrides)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"vary": {"seed": [1]}, "method": {}}, "line [0-9]+: unknown key 'method'; did you mean 'methods'"),
        ({"vary": {"seed": 1}}, "line [0-9]+: vary.seed: expected list of anything, found 1"),
        ({"vary": [1]}, "line [0-9]+: vary: expected map of list of anything, found"),
        ({"vary": {"seed": [1]}, "base": 5}, "line [0-9]+: base: expected text or null, found 5"),
        ({"vary": {"seed": []}}, "vary.seed: no value"),
        ({"methods": {"A": {"regularizer": "frob"}}}, "methods.A.*no regularizer is called 'frob'"),
        ({"methods": {"A": {}}, "baseline": "B"}, "baseline 'B' is not a method of this comparison; .*A"),
        ({"tasks": {"A": {"recipe": 3}}}, "tasks.A.recipe"),
        ({"tasks": {"A": {"recipe": "nowhere.yaml"}}}, "no recipe at nowhere.yaml"),
        ({"methods": {"A": {"seed": float("nan")}}}, "methods.A: seed: nan"),
        ({"set": {"training.batchsize": 3}, "vary": {"seed": [1]}}, "set: unknown key 'training.batchsize'"),
    ],
)
def test_faults_in_a_file(base, tmp_path, values, said):
    with pytest.raises(RecipeError, match=said):
        plan.read(comparison_file(tmp_path, recipe=str(base), **values))


def test_a_name_that_is_none_is_explained(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: ../x\nrecipe: quickstart\nvary: {seed: [1]}\n")
    with pytest.raises(RecipeError, match=r"line 1: name: use letters, digits and `_\.-`, .*found '\.\./x'"):
        plan.read(str(file))


def test_no_such_file(tmp_path):
    with pytest.raises(
        RecipeError, match=r"no recipe or comparison at quikstart_methods.*did you mean 'quickstart"
    ):
        plan.read("quikstart_methods")
    with pytest.raises(RecipeError, match="is a folder"):
        plan.read(str(tmp_path))
    file = tmp_path / "empty.yaml"
    file.write_text("")
    with pytest.raises(RecipeError, match="expected keys"):
        plan.read(str(file))
    with pytest.raises(RecipeError, match="`recipe` is missing"):
        plan.read(comparison_file(tmp_path, vary={"seed": [1]}))


LARGE = ("table1", "table1_xnli")


@pytest.mark.parametrize("name", slow_but(sorted({*shipped()} - {*LARGE}), sorted(shipped())))
def test_shipped_comparisons_are_valid_and_say_how_to_run(name):
    made = plan.read(name)
    text = shipped()[name].read_text(encoding="utf-8")
    assert any(f"xlmprune compare {name}" in line for line in text.splitlines() if line.startswith("#"))
    assert len(made.cells) > 1
    assert plan.read(f"recipes/comparisons/{name}.yaml") == made
    if any(cell.recipe.pruning.structure for cell in made.cells):
        return  # rows of several sizes, and some without training
    densities = {build_component(cell.recipe, "schedule").per_stage()[-1] for cell in made.cells}
    assert len({round(density, 2) for density in densities}) == 1, "one final density"
    assert not [note for note in made.notes if "Budgets differ" in note]


def test_every_method_of_table_1_on_xnli_has_a_recipe_of_its_own():
    made = plan.read("table1_xnli")
    recipes_of = {
        "Random": "random", "Global-Random": "global_random", "L0-MBP": "l0", "L2-MBP": "l2",
        "L2-Global-MBP": "l2_global", "L2-Gradient-MBP": "gradient", "Lookahead": "lookahead", "LAMP": "lamp",
        "PINS score": "pins_score", "Cosine-MBP": "cosine", "Frobenius-MBP": "frobenius", "PINS": "pins",
        "PLATON": "platon", "Movement": "movement", "oBERT": "obert",
    }  # fmt: skip
    assert set(made.methods) == {*recipes_of, "Eq. 6"}
    for cell in made.cells:
        if cell.method not in recipes_of:
            continue
        own = load_recipe(f"xnli_{recipes_of[cell.method]}")
        assert cell.recipe.pruning.criterion == own.pruning.criterion
        assert cell.recipe.distillation == own.distillation
        assert build_component(cell.recipe, "regularizer") == build_component(own, "regularizer")
        if own.pruning.schedule.name == "geometric":
            assert (cell.recipe.training, cell.recipe.pruning) == (own.training, own.pruning)


# --- the whole command -----------------------------------------------------------------------------------------------


class InProcess(contextlib.AbstractContextManager):
    """Gives every piece of work to the command line in this process, which spares the start of Python."""

    def __init__(self):
        self.works = []

    def __exit__(self, *_):
        pass

    def submit(self, given):
        self.works.append(given)
        with contextlib.chdir(given.directory):
            result = CliRunner().invoke(app, given.arguments)
        message = work.last_sentence(result.stderr.splitlines()) if result.exit_code else ""
        if result.exception and not isinstance(result.exception, SystemExit):
            message = traceback.format_exception_only(result.exception)[-1].strip()
        done = Future()
        done.set_result(work.Outcome(given.name, result.exit_code, message))
        return done

    def cells(self):
        """(name, whether it starts from a shared dense stage) of every cell that was run."""
        return [(w.name, "--start-from" in w.arguments) for w in self.works if not w.name.startswith("dense")]


def compare(made, out, executor=None, **options):
    return running.compare(made, out, executor or InProcess(), "cpu", reporter=QUIET, **options)


@pytest.fixture(scope="module")
def compared_once(workplace, tmp_path_factory):
    made = plan.read(
        str(write_base(workplace)), ["regularizer=none,cosine", "seed=1,2"], ["training.epochs_per_stage=1"]
    )
    out = tmp_path_factory.mktemp("compared") / "out"
    executor = InProcess()
    return made, out, executor, compare(made, out, executor)


@pytest.fixture
def compared(compared_once, tmp_path):
    """(plan, a folder of its own, executor, comparison) of a finished comparison: two methods, two seeds."""
    made, out, executor, comparison = compared_once
    shutil.copytree(out, tmp_path / "out")
    return made, tmp_path / "out", executor, comparison


def test_a_comparison_from_end_to_end(compared):
    made, out, executor, comparison = compared
    assert results.exit_code(comparison) == 0
    dense_stages = [w.name for w in executor.works if w.needs is None]
    assert dense_stages == [f"dense stage {dense_key(made.cells[index].recipe)}" for index in (0, 1)]
    assert executor.cells() == [(cell.name, True) for cell in made.cells]
    reports = {c.name: json.loads((out / c.name / "bundle" / "report.json").read_text()) for c in made.cells}
    for row in comparison["rows"]:
        state, method = ("dense", "none") if row["method"] == results.DENSE else ("pruned", row["method"])
        for measure in results.MEASURES:
            values = [reports[f"{method}.seed{seed}"]["summary"][measure][state] for seed in (1, 2)]
            assert row[measure]["mean"] == pytest.approx(np.mean(values))
            assert row[measure]["sd"] == pytest.approx(np.std(values, ddof=1))
        assert set(row["languages"]) == set(reports["none.seed1"]["languages"])
    dense_of = [
        reports[f"{method}.seed1"]["summary"]["zero_shot_mean"]["dense"] for method in ("none", "cosine")
    ]
    assert dense_of[0] == dense_of[1]
    (test,) = comparison["tests"]
    of = {row["method"]: row["zero_shot_mean"]["mean"] for row in comparison["rows"]}
    assert test["difference"] == pytest.approx(of["cosine"] - of["none"])
    assert test["p_holm"] == test["p_value"]
    assert comparison["rows"][1]["curve"][-1]["zero_shot_mean"]["mean"] == pytest.approx(of["none"])
    stored = json.loads((out / "comparison.json").read_text())
    assert stored["rows"][1]["zero_shot_mean"]["values"].keys() == {"1", "2"}
    assert "± " in (out / "comparison.md").read_text()
    assert (out / "zero_shot.classification.svg").is_file()


def test_a_cell_that_starts_from_the_shared_stage_is_the_run_alone(compared, tmp_path):
    """The recipe that the cell ran from repeats it, and its model is the same byte for byte."""
    _, out, _, _ = compared
    for name in ("none.seed1", "cosine.seed2"):
        alone = tmp_path / f"{name}.alone"
        command = ["compress", str(out / name / "recipe.yaml"), "--out", str(alone), "--device", "cpu"]
        assert CliRunner().invoke(app, command).exit_code == 0
        model = "bundle/model.safetensors"
        assert (alone / model).read_bytes() == (out / name / model).read_bytes()


def test_again_it_does_nothing_and_resumes_where_something_is_missing(compared):
    made, out, _, comparison = compared
    again = InProcess()
    same = compare(made, out, again)
    assert again.works == []
    assert {**same, "created": 0} == {**comparison, "created": 0}
    # A crash before the bundle was whole, and one before anything was saved.
    shutil.rmtree(out / "cosine.seed1" / "bundle")
    shutil.rmtree(out / "none.seed2")
    missing = compare(made, out, again)
    assert [name for name, _ in again.cells()] == ["none.seed2", "cosine.seed1"]
    assert len(again.works) == 2, "the dense stages are there"
    assert missing["rows"][1]["languages"] == comparison["rows"][1]["languages"]
    assert missing["tests"] == comparison["tests"]


def test_only_some_methods(compared):
    """The table keeps every row, and a dense stage trained before is used though one run alone asks for it."""
    made, out, _, comparison = compared
    for name in ("none.seed1", "cosine.seed1"):
        shutil.rmtree(out / name)
    again = InProcess()
    part = compare(made, out, again, only=["cosine"])
    assert again.cells() == [("cosine.seed1", True)]
    assert [(cell["name"], cell["status"]) for cell in part["cells"]] == [
        ("none.seed1", "pending"),
        *((cell["name"], "done") for cell in comparison["cells"][1:]),
    ]
    assert results.exit_code(part) == 0
    assert compare(made, out, again)["tests"] == comparison["tests"]
    with pytest.raises(RecipeError, match=r"--only 'cosin': no such method here; did you mean 'cosine'\?"):
        compare(made, out, again, only=["cosin"])


def test_a_dense_stage_found_trained_serves_a_run_that_is_alone(compared, base):
    _, out, _, _ = compared
    alone = plan.read(str(base), ["regularizer=cosine", "seed=1"], ["training.epochs_per_stage=1"])
    shutil.rmtree(out / "cosine.seed1")
    again = InProcess()
    compare(alone, out, again)
    assert again.cells() == [("cosine.seed1", True)]
    assert len(again.works) == 1, "nothing is trained that is there"


@pytest.mark.slow
def test_fresh_starts_over(compared):
    made, out, _, comparison = compared
    marks = [out / "none.seed1" / "recipe.yaml", *(out / "dense").glob("*/recipe.yaml")]
    before = [mark.stat().st_mtime_ns for mark in marks]
    again = InProcess()
    same = compare(made, out, again, fresh=True)
    assert len(again.works) == 6
    assert all(mark.stat().st_mtime_ns != then for mark, then in zip(marks, before, strict=True))
    assert same["rows"][1]["languages"] == comparison["rows"][1]["languages"]


def test_a_cell_that_fails_leaves_the_others(base, tmp_path):
    made = plan.read(
        str(base), ["training.learning_rate=1e-2,1e12", "seed=1"], ["training.gradient_clip=null"]
    )
    comparison = compare(made, tmp_path)
    assert results.exit_code(comparison) == 2
    good, bad = comparison["cells"]
    assert (good["status"], bad["status"]) == ("done", "failed")
    assert "diverged" in bad["message"]
    rows = pages.tables(comparison)[0].rows
    assert rows[2][1:3] == ["0 of 1", "failed"]
    assert rows[1][3].endswith(pages.ONE_SEED)
    assert "diverged" in (tmp_path / "comparison.html").read_text()


def test_an_internal_error_is_exit_code_1_and_wins(base, tmp_path, monkeypatch):
    made = plan.read(str(base), ["seed=1,2"])

    def broken(recipe, *_, **__):
        if recipe.seed == 1:
            raise DataError("no such file")
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(pipeline, "run", broken)
    comparison = compare(made, tmp_path)
    assert [cell["exit_code"] for cell in comparison["cells"]] == [2, 1]
    assert [cell["message"] for cell in comparison["cells"]] == ["no such file", "ZeroDivisionError: ours"]
    assert results.exit_code(comparison) == 1


def test_a_failed_check_without_a_bundle_is_a_failed_cell(base, tmp_path):
    made = plan.read(str(base), ["seed=1"])
    outcomes = {cell.name: work.Outcome(cell.name, 3, "fp32 differs") for cell in made.cells}
    comparison = results.assemble(made, outcomes, tmp_path)
    assert [cell["status"] for cell in comparison["cells"]] == ["failed"]
    assert results.exit_code(comparison) == 3


def test_a_dense_stage_that_fails_fails_its_cells(workplace, tmp_path):
    lost = write_recipe(workplace, task={"path": str(tmp_path / "{language}.{split}.tsv")})
    comparison = compare(plan.read(str(lost), ["regularizer=none,cosine"]), tmp_path / "out")
    for cell in comparison["cells"]:
        assert cell["message"].startswith("its dense stage failed: no test file of any language")
        assert cell["exit_code"] == 2


def test_a_folder_of_another_comparison_is_refused_and_its_pages_stay(compared, base):
    _, out, _, _ = compared
    pages_before = {file.name: file.read_bytes() for file in out.glob("comparison.*")}
    other = plan.read(str(base), ["regularizer=none,cosine", "seed=1,2"])
    with pytest.raises(RecipeError, match=r"epochs_per_stage is 1.0 there and 2.0 here.*Nothing was written"):
        compare(other, out)
    assert {file.name: file.read_bytes() for file in out.glob("comparison.*")} == pages_before


def test_a_file_where_the_folder_of_runs_should_be_is_a_sentence(base, tmp_path):
    (tmp_path / "file").write_text("mine")
    result = CliRunner().invoke(
        app, ["compare", str(base), "--vary", "seed=1", "--out", str(tmp_path / "file")]
    )
    assert result.exit_code == 2, result.output
    assert "is not a folder" in result.output
    assert (tmp_path / "file").read_text() == "mine"


def test_a_plan_shows_the_methods_that_would_run(base):
    command = [
        "compare",
        str(base),
        "--vary",
        "regularizer=none,cosine",
        "--vary",
        "seed=1,2",
        "--dry-run",
        "--json",
    ]
    found = CliRunner().invoke(app, [*command, "--only", "none"])
    assert [cell["name"] for cell in json.loads(found.stdout)] == ["none.seed1", "none.seed2"]
    refused = CliRunner().invoke(app, [*command, "--only", "non"])
    assert refused.exit_code == 2
    assert "no such method here; did you mean 'none'?" in refused.stderr


def test_a_plan_says_which_runs_share_a_dense_stage(base):
    same = plan.read(str(base), ["pruning.criterion=magnitude,random", "seed=1,2"])
    assert "All methods with the same seed prune the same fine-tuned model" in same.notes[0]
    own = plan.read(str(base), ["pruning.criterion=magnitude,pins", "seed=1,2"])
    assert "share it where their column `dense stage` is the same" in own.notes[0]


def test_names_with_commas_are_told_apart():
    assert listed(["dense, distilled", "half"]) == "'dense, distilled', half"


def test_the_whole_plan_is_shown_before_it_runs(base):
    made = plan.read(str(base), ["regularizer=none,cosine", "seed=1,2"])
    console = Console(width=160, file=io.StringIO())
    console.print(pages.plan_table(made))
    text = console.file.getvalue()
    assert "4 runs" in text
    for row in pages.plan_entries(made):
        assert row["name"] in text
        assert row["dense_key"] in text
    json.dumps(pages.plan_entries(made))


# --- executors -------------------------------------------------------------------------------------------------------


def piece(*arguments, name="piece", **changes):
    return work.Work(name, tuple(map(str, arguments)), str(Path.cwd()), **changes)


def perform(works, executor=None):
    return list(running.perform(works, executor or local.LocalExecutor()))


def stand_in(folder, monkeypatch, script):
    """A shell script in Python's place; it finds the arguments of the piece of work in $*."""
    fake = folder / "python"
    fake.write_text(f"#!/bin/sh\nshift 3\n{script}\n")  # the first three are -P -m xlmprune
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(fake))


def test_a_process_for_each_piece(tmp_path, monkeypatch, capfd):
    """The real command: its exit code and its sentence; stdout stays clean for the table, a user's files are no code."""
    (tmp_path / "inspect.py").write_text("raise SystemExit('a file of the user was imported')")
    monkeypatch.chdir(tmp_path)
    lost, after = perform([piece("compress", "nowhere", name="lost"), piece("x", name="after", needs="lost")])
    assert lost.exit_code == 2
    assert lost.message.startswith("no recipe at nowhere")
    assert (after.exit_code, after.message) == (2, f"its dense stage failed: {lost.message}")
    said = capfd.readouterr()
    assert said.out == ""
    assert f"xlmprune: {lost.message}" in said.err


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("kill -9 $$", 1, "killed.*memory"),
        ("exit 7", 7, "exit code 7"),
        ("kill -11 $$", 1, "signal 11"),
        ("echo 'xlmprune: one' >&2; echo 'xlmprune: two' >&2; echo more >&2; exit 2", 2, "^one\ntwo$"),
        ("echo 'xlmprune: lost 3 points' >&2; exit 3", 3, "^lost 3 points$"),
        ("printf 'Traceback\\n  line\\nValueError: x\\n' >&2; exit 1", 1, "^ValueError: x$"),
        ("echo 'xlmprune: fine' >&2", 0, "^$"),
    ],
)
def test_how_a_process_ends(tmp_path, monkeypatch, script, code, said):
    stand_in(tmp_path, monkeypatch, script)
    (outcome,) = perform([piece()])
    assert (outcome.exit_code, outcome.failed) == (code, code not in (0, 3))
    assert re.search(said, outcome.message)


def test_an_interrupted_process_interrupts(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "exit 130")
    with pytest.raises(KeyboardInterrupt):
        perform([piece()])


@pytest.mark.skipif(os.name != "posix", reason="SIGTERM ends a process on POSIX alone")
def test_a_process_ends_with_its_parent(base, tmp_path):
    arguments = ["compress", str(base), "--out", str(tmp_path), "--set", "training.dense_epochs=50000"]
    variables = {**own_process.environment(), own_process.END_WITH_STDIN: "1"}
    with subprocess.Popen(
        own_process.command("xlmprune", *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=variables,
    ) as process:
        process.stdin.close()
        # Python itself ends with SIGINT if the signal arrives while an import executes code from a string.
        assert process.wait(timeout=60) in (-signal.SIGTERM, -signal.SIGINT, 130)


def test_several_processes_at_once(tmp_path, monkeypatch, capfd):
    """Each of the two waits for a sign of the other, and a third gets the place of the first to end."""
    here = tmp_path / "signs"
    here.mkdir()
    wait = f"""touch {here}/$1
echo "I am here" >&2
n=0
while [ $(ls {here} | wc -l) -lt 2 ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n + 1)); done
echo "$OMP_NUM_THREADS" > {here}/$1
[ $n -lt 300 ]"""
    stand_in(tmp_path, monkeypatch, wait)
    monkeypatch.setenv("OMP_NUM_THREADS", "1000")
    outcomes = perform([piece(name, name=name) for name in ("one", "two", "three")], local.LocalExecutor(2))
    assert sorted((o.name, o.exit_code) for o in outcomes) == [("one", 0), ("three", 0), ("two", 0)]
    said = capfd.readouterr().err.splitlines()
    assert sorted(said) == ["one: I am here", "three: I am here", "two: I am here"]
    assert {file.read_text().strip() for file in here.iterdir()} == {str(processors())}, (
        "no more than PyTorch takes"
    )


def test_a_cell_waits_for_its_dense_stage_and_others_pass_it(tmp_path, monkeypatch):
    """With a place free, a piece that waits for nothing takes it; a failed dense stage takes no place."""
    log = tmp_path / "log"
    script = f"""echo "$1" >> {log}
[ "$1" = dense ] && until grep -q own {log}; do sleep 0.05; done
[ "$1" = lost ] && until grep -q dense {log}; do sleep 0.05; done
[ "$1" = lost ] && exit 7
exit 0"""
    stand_in(tmp_path, monkeypatch, script)
    needs = {"dense": None, "cell": "dense", "lost": None, "orphan": "lost", "own": None}
    works = [piece(name, name=name, needs=needed) for name, needed in needs.items()]
    outcomes = {o.name: o for o in perform(works, local.LocalExecutor(2))}
    assert {name: o.exit_code for name, o in outcomes.items()} == {
        "dense": 0, "cell": 0, "lost": 7, "orphan": 7, "own": 0,
    }  # fmt: skip
    begun = log.read_text().split()
    assert sorted(begun[:2]) == ["dense", "lost"]
    assert begun[2:] == ["own", "cell"]
    assert "exit code 7" in outcomes["orphan"].message


def test_what_each_of_several_gets(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("xlmprune.core.machine.allowed_processors", lambda: 8)
    monkeypatch.setattr("xlmprune.core.machine.processor_quota", lambda: None)
    monkeypatch.setattr("xlmprune.core.gpu.count", lambda: 2)
    assert local.share(0, 1, "auto") == {}
    assert [local.share(slot, 3, "auto") for slot in range(3)] == [
        {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": gpu} for gpu in "010"
    ]
    assert local.share(0, 20, "cuda:1") == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setattr("xlmprune.core.machine.processor_quota", lambda: 4.0)
    assert local.share(0, 2, "cpu") == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,5")
    assert local.share(1, 2, "cuda")["CUDA_VISIBLE_DEVICES"] == "5"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert "CUDA_VISIBLE_DEVICES" not in local.share(1, 2, "auto")


@pytest.mark.slow
def test_an_interrupted_comparison_has_saved(base, tmp_path):
    """SIGTERM at the command: the runs in progress stop with a checkpoint, and the command is interrupted."""
    made = ["training.learning_rate=1e-2,1e-3"]
    long = ["training.dense_epochs=5000", "training.checkpoint_minutes=60", "training.keep=last"]
    command = ["compare", base, "--out", tmp_path, "--device", "cpu", "--jobs", 2]
    command += [part for text in made for part in ("--vary", text)]
    command += [part for text in long for part in ("--set", text)]
    folders = [tmp_path / cell.name for cell in plan.read(str(base), made, long).cells]
    with subprocess.Popen(
        own_process.command("xlmprune", *map(str, command)),
        stderr=subprocess.PIPE,
        text=True,
        env=own_process.environment(),
    ) as parent:
        logs = [folder / "events.jsonl" for folder in folders]
        for _ in range(3000):
            if all(log.is_file() and "update" in log.read_text() for log in logs):
                break
            time.sleep(0.1)
        parent.send_signal(signal.SIGTERM)
        said = parent.stderr.read()
    assert parent.returncode == 130, said
    assert all(list(folder.glob("checkpoint/saved-*")) for folder in folders), said


class FakeRay(types.ModuleType):
    """Enough of Ray for what no real cluster here can show: GPUs, an address where nobody is, a task that dies."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, gpus=2.0, cpus=8.0):
        super().__init__("ray")
        self.resources = {"GPU": gpus, "CPU": cpus} if gpus else {"CPU": cpus}
        self.running = False

    def is_initialized(self):
        return self.running

    def init(self, **_):
        if os.environ.get("RAY_ADDRESS") == "nowhere":
            raise ConnectionError("refused")
        self.running = True

    def shutdown(self):
        self.running = False

    def cluster_resources(self):
        return self.resources

    def remote(self, **options):
        self.options = options
        return lambda function: types.SimpleNamespace(remote=self._die)

    def _die(self, _):
        assert self.running
        died = Future()
        died.set_exception(self.exceptions.RayError("worker died\nmore"))
        return types.SimpleNamespace(future=lambda: died)


def test_a_ray_task_that_dies_is_a_failed_cell(tmp_path, monkeypatch):
    fake = FakeRay(gpus=0)
    monkeypatch.setitem(sys.modules, "ray", fake)
    (outcome,) = perform([piece(device="cpu")], ray_executor.RayExecutor(cpus=2))
    assert (fake.options["num_gpus"], fake.options["num_cpus"]) == (0, 2)
    assert (outcome.exit_code, outcome.message) == (1, "its Ray task died: worker died")
    assert not fake.running


@pytest.mark.parametrize(
    ("options", "device", "said"),
    [
        ({"gpus": 3}, "auto", "asks for 3 GPUs.* has 2"),
        ({"cpus": 9}, "auto", "9 cores"),
        ({"gpus": 0}, "cuda", "no GPU for each"),
    ],
)
def test_what_ray_cannot_give(monkeypatch, options, device, said):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    with pytest.raises(MachineError, match=said):
        perform([piece(device=device)], ray_executor.RayExecutor(**options))
    assert not fake.running


def test_a_ray_cluster_that_does_not_answer(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(MachineError, match="no Ray cluster at nowhere"):
        perform([piece()], ray_executor.RayExecutor())


def test_executors_by_name(monkeypatch):
    assert isinstance(running.make_executor("local"), local.LocalExecutor)
    assert running.make_executor("local", jobs=4).jobs == 4
    with pytest.raises(MachineError, match="--executor slurm: expected local or ray"):
        running.make_executor("slurm")
    with pytest.raises(MachineError, match="--jobs 0: expected 1 or more"):
        running.make_executor("local", jobs=0)
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    assert running.make_executor("ray", gpus=0.5).gpus == 0.5
    with pytest.raises(MachineError, match="--jobs is for --executor local"):
        running.make_executor("ray", jobs=2)


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MachineError, match=r"ray>=2.50"):
        ray_executor.RayExecutor()


@pytest.mark.slow
def test_on_a_real_local_ray(base, tmp_path):
    """The command with --executor ray: a local cluster starts, and a cell and one that fails run on it."""
    made = ["training.learning_rate=1e-2,1e12"]
    options = ["--set", "training.gradient_clip=null", "--set", "training.dense_epochs=1", "--json"]
    command = ["compare", base, "--vary", *made, *options, "--out", tmp_path, "--device", "cpu"]
    ran = subprocess.run(
        own_process.command("xlmprune", *map(str, command), "--executor", "ray"),
        capture_output=True,
        text=True,
        env=own_process.environment(),
        timeout=300,
    )
    assert ran.returncode == 2, ran.stderr
    good, bad = json.loads(ran.stdout)["cells"]
    assert (good["status"], bad["status"]) == ("done", "failed")
    assert "diverged" in bad["message"]
    assert "Started a local Ray instance" in ran.stderr


def test_runs_on_other_data_are_not_tested(compared):
    made, out, _, _ = compared
    for cell in ("cosine.seed1", "cosine.seed2"):
        kept = score_file.read(out / cell / score_file.NAME)
        score_file.write(
            out / cell / score_file.NAME, dataclasses.replace(kept, fingerprints={"de": "other"})
        )
    outcomes = {cell.name: work.Outcome(cell.name) for cell in made.cells}
    comparison = results.assemble(made, outcomes, out)
    assert comparison["tests"] == []
    assert any("different examples" in note for note in comparison["notes"])


# --- pages -----------------------------------------------------------------------------------------------------------


def spread_of(*values):
    return results.spread(dict(enumerate(values)))


def some_facts(methods=("A", "B"), tasks=("XNLI",), seeds=2, **changes):
    rows = []
    for task in tasks:
        for number, method in enumerate((results.DENSE, *methods)):
            values = [70 - 5 * number + seed for seed in range(seeds)]
            row = {
                "method": method,
                "task": task,
                "planned": seeds,
                "done": seeds,
                "failed": 0,
                "metric": "accuracy",
            }
            row |= {
                "train_language": "en",
                "encoder_density": 0.31 if number else 1.0,
                "loss": spread_of(*values),
            }
            row |= {measure: spread_of(*values) for measure in results.MEASURES}
            row["languages"] = {"en": spread_of(*values), "sw": spread_of(*values)}
            if number:
                row["curve"] = [
                    {
                        "stage": k,
                        "encoder_density": 0.5**k,
                        "zero_shot_mean": spread_of(*(v - k for v in values)),
                    }
                    for k in range(3)
                ]
            rows.append(row)
    test = {"task": tasks[0], "first": methods[0], "second": methods[1], "seeds": [0, 1], "languages": 1}
    test |= {
        "difference": -5.0,
        "by_seed": {0: -5.0, 1: -5.0},
        "p_value": 0.01,
        "p_holm": 0.02,
        "rounds": 100,
    }
    cells = [
        {
            "name": f"{method}.{task}",
            "method": method,
            "task": task,
            "seed": 0,
            "status": "done",
            "exit_code": 0,
        }
        | {"message": "", "dense_key": "0", "seconds": 1.0}
        for method in methods
        for task in tasks
    ]
    averages = [{"method": m, "zero_shot_mean": spread_of(60.0, 61.0)} for m in (results.DENSE, *methods)]
    facts = {
        "unlabelled": {task: [] for task in tasks},
        "name": "mine",
        "created": "now",
        "origin": "mine.yaml",
        "methods": list(methods),
        "tasks": list(tasks),
    }
    facts |= {
        "seeds": list(range(seeds)),
        "notes": [],
        "scaled_down": [],
        "rows": rows,
        "tests": [test],
    }
    return facts | {"averages": averages if len(tasks) > 1 else [], "cells": cells} | changes


def printed(facts, width=160):
    console = Console(width=width, file=io.StringIO())
    console.print(pages.results_table(facts))
    return console.file.getvalue()


def test_spreads_in_words():
    assert pages.spread_text(spread_of(64.0, 65.0)) == "64.5 ± 0.7"
    assert pages.spread_text(spread_of(64.0)) == "64.0†"
    assert pages.spread_text(spread_of(64.0, None, 65.0), planned=3) == "64.5 ± 0.7 (2 of 3)"
    assert pages.spread_text(spread_of(-1.0), signed=True) == "−1.0†"
    assert pages.spread_text(spread_of()) == "–"


def test_one_task_has_its_means_as_columns():
    text = printed(some_facts())
    assert "Methods on XNLI at 31.0% of the encoder's weights" in text
    narrow = printed(some_facts(), width=80)
    assert narrow.count("± 0.7") == text.count("± 0.7")
    facts = some_facts()
    facts["rows"][1]["encoder_density"] = 0.1
    assert pages.tables(facts)[0].headings[2] == "encoder weights"
    assert "No pruning" in text
    assert "65.5 ± 0.7" in text
    assert "2 of 2" in text, "seeds in favour"


def test_several_tasks_are_columns_with_their_average():
    headline = pages.tables(some_facts(tasks=("XNLI", "POS")))[0]
    assert headline.headings == ["method", "XNLI", "POS", "Avg"]
    assert headline.rows[0] == ["No pruning", "70.5 ± 0.7", "70.5 ± 0.7", "60.5 ± 0.7"]
    assert "31.0%" in headline.note


def test_the_least_p_that_the_exchanges_can_show_is_marked():
    facts = some_facts()
    test = facts["tests"][0] | {"rounds": 10_000, "p_value": 1 / 10_001, "p_holm": 19 / 10_001}
    facts["tests"] = [test, {**test, "p_value": 2 / 10_001, "p_holm": 38 / 10_001}]
    (found,) = (made for made in pages.tables(facts) if made.title.startswith("Pairs"))
    assert [row[3:5] for row in found.rows] == [["< 0.001", "≤ 0.002"], ["< 0.001", "0.004"]]


def test_the_table_of_densities_has_those_that_were_measured():
    """With `evaluation.stage_interval` stages between have no scores, and then no column."""
    facts = some_facts()
    (found,) = (made for made in pages.tables(facts) if "by density" in made.title)
    assert found.headings == ["method", "100.0%", "50.0%", "25.0%"]
    assert found.rows[0] == ["A", "65.5 ± 0.7", "64.5 ± 0.7", "63.5 ± 0.7"]
    for row in facts["rows"][1:]:
        row["curve"][1]["zero_shot_mean"] = None
    (found,) = (made for made in pages.tables(facts) if "by density" in made.title)
    assert found.headings == ["method", "100.0%", "25.0%"]
    for row in facts["rows"][1:]:
        row["curve"][2]["zero_shot_mean"] = None
    assert not [made for made in pages.tables(facts) if "by density" in made.title]


def test_languages_that_gave_text_stand_apart():
    """A table for each choice of languages, though another method read text of all."""
    scores = (("en", 90.0), ("sw", 40.0), ("th", 50.0))
    row = {
        "train_language": "en",
        "languages": {code: results.spread({1: value}) for code, value in scores},
    }
    apart = results._means_apart(row, {"en", "th"})
    assert (apart["text_mean"]["mean"], apart["held_out_mean"]["mean"]) == (50.0, 40.0)
    every = results._means_apart(row, {"sw", "th"})
    assert (every["text_mean"]["mean"], every["held_out_mean"]) == (45.0, None)
    cells = [
        {"task": "XNLI", "method": method, "unlabelled": codes}
        for method, codes in (("A", ["th", "sw"]), ("B", ["th"]), ("C", []), ("D", ["sw", "th"]))
    ]
    texts = results._texts([*cells, {"task": "POS", "unlabelled": ["de"]}, {"task": "XNLI"}], "XNLI")
    assert texts == [["sw", "th"], ["th"]]
    facts = some_facts(unlabelled={"XNLI": texts})
    for found, cell in zip(facts["cells"], cells, strict=False):
        found["unlabelled"] = cell["unlabelled"]
    for of in facts["rows"]:
        of["languages"] = row["languages"]
        of["apart"] = [every, apart]
    (found,) = (made for made in pages.tables(facts) if "with and without text" in made.title)
    assert found.title.endswith(": Thai")
    assert found.rows[1] == ["A", "50.0†", "40.0†"]
    assert "B read unlabelled text of this language and of no other" in found.note


def test_text_that_was_read_to_rank_or_refit_or_count_is_named():
    report = {
        "summary": {"train_language": "en"},
        "languages": {"en": {}, "de": {}, "th": {"seen_unlabelled": False}},
    }
    moments = {"source": "x", "uses": ["pruning.reconstruct"], "without": []}
    assert results._languages_read(report) == []
    assert results._languages_read({**report, "moments": {**moments, "texts": {"en": 3}}}) == []
    refitted = results._languages_read({**report, "moments": {**moments, "texts": {"th": 3, "en": 2}}})
    assert refitted == ["en", "th"]
    common = {"status": "pending", "seed": 1, "dense_key": "k"}
    cells = [
        {
            **common,
            "method": "A",
            "unlabelled": refitted,
            "target_text": ["text was read to count", "and refit"],
        },
        {**common, "method": "B", "unlabelled": [], "target_text": ["text was read to count"]},
    ]
    read, *others = results._column_notes(cells)
    assert read.endswith("not zero-shot in the strict sense: A.")
    assert others == ["text was read to count: A, B.", "and refit: A."]


def test_what_some_compute_beside_the_updates_is_said(base):
    def extra(*vary):
        return [
            note
            for note in plan.read(str(base), list(vary)).notes
            if note.startswith("In addition to the updates")
        ]

    assert extra("regularizer=none,cosine") == []
    (note,) = extra("distillation=null,{teacher: finetuned}")
    assert 'distillation={"teacher": "finetuned"}: a teacher\'s answers' in note.replace("'", "'")
    (note,) = extra("pruning.criterion=magnitude,gradient", "distillation=null,{unlabelled: task}")
    assert note.count("gradients of 1 batches per stage") == 2
    assert "as many unlabelled texts for student and teacher and gradients" in note


@pytest.mark.parametrize("tasks", [("XNLI",), ("XNLI", "POS")])
@pytest.mark.parametrize("seeds", [1, 3])
def test_pages_are_whole(tasks, seeds):
    facts = some_facts(methods=("A", HOSTILE), tasks=tasks, seeds=seeds, notes=[HOSTILE], name=HOSTILE)
    html = pages.render(facts, "html")
    page = Page(html)
    assert not page.open
    assert "script" not in page.tags
    for svg in pages.charts(facts).values():
        root = ElementTree.fromstring(svg)
        bands = root.findall(".//{*}polygon")
        assert len(bands) == (2 if seeds > 1 else 0)
    markdown = pages.render(facts, "md")
    assert "<script" not in markdown.replace("\\<script", "")
    for line in markdown.split("\n"):
        if line.startswith("|"):
            assert line.endswith("|")
    for task in tasks:
        assert f"zero_shot.{task.lower()}.svg" in markdown


def test_nothing_finished_yet(base, tmp_path):
    made = plan.read(str(base), ["regularizer=none,cosine", "task.languages=[de],[th]"])
    facts = results.assemble(made, {}, tmp_path)
    pages.write(facts, tmp_path)
    assert "pending" in (tmp_path / "comparison.md").read_text()
    assert "pending" in printed(facts)
    assert results.exit_code(facts) == 0


def test_averages_are_over_tasks_seed_by_seed(base):
    made = plan.read(str(base), ["task.languages=[de],[th]", "seed=1,2,3", "regularizer=none,cosine"])
    first, second = made.tasks
    rows = []
    for method, task, values in [
        ("none", first, {1: 10.0, 2: 20.0, 3: 30.0}),
        ("none", second, {1: 30.0, 2: 20.0}),
        ("cosine", first, {1: 10.0}),
    ]:
        rows.append({"method": method, "task": task, **{m: results.spread(values) for m in results.MEASURES}})
    rows.append({"method": "cosine", "task": second})
    averages = {entry["method"]: entry for entry in results._averages(made, rows)}
    assert averages["none"]["english"]["values"] == {1: 20.0, 2: 20.0}
    assert "english" not in averages["cosine"]
