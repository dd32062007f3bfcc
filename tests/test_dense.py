"""The dense stage: what it reads, and that a run which starts from it is the run that trains it itself."""

import json

import pytest
import torch
from rich.console import Console
from slow import slow_after
from tiny_run import report_of, write_recipe, write_workplace
from typer.testing import CliRunner

from xlmprune import pipeline
from xlmprune.cli import app
from xlmprune.core.device import resolve_device
from xlmprune.core.errors import ModelError, RecipeError
from xlmprune.core.progress import Reporter
from xlmprune.core.run_folder import start_damage
from xlmprune.recipe.loading import load_recipe
from xlmprune.recipe.schema import Recipe
from xlmprune.training import dense, shortening
from xlmprune.training.checkpoint import open_run
from xlmprune.training.run import Training

QUIET = Reporter(Console(quiet=True))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return write_workplace(tmp_path_factory.mktemp("work"), repeat=2)


@pytest.fixture
def base(workplace):
    training = {
        "epochs_per_stage": 2,
        "dense_epochs": 2,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "max_length": 32,
    }
    schedule = {"name": "geometric", "step_fraction": 0.5, "stages": 2}
    return write_recipe(workplace, training=training, pruning={"schedule": schedule})


def load(base, *overrides):
    return load_recipe(str(base), list(overrides))


@pytest.mark.parametrize(
    "override",
    [
        "seed=5",
        "model.revision=abc",
        "task.max_train_examples=8",
        "task.languages=[de]",
        "training.dense_epochs=1",
        "training.learning_rate=1e-3",
        "training.weight_decay=0.1",
        "training.freeze_embeddings=true",
        "training.keep=last",
        "training.precision=fp32",
        "evaluation.batch_size=3",
        "evaluation.max_stage_examples=3",
        "regularizer.strength=3",
        "regularizer=none",
        "pruning.criterion=movement",
        "pruning.criterion=platon",
        "pruning.criterion=pins",
    ],
)
def test_what_the_dense_stage_reads(base, override):
    regularized = "training.regularize_dense=true"
    assert dense.dense_key(load(base, regularized)) != dense.dense_key(load(base, regularized, override))


@pytest.mark.parametrize(
    "overrides",
    [
        ["name=other"],
        ["pruning.criterion=lamp"],
        ["pruning.criterion=l0"],
        ["pruning.criterion=gradient", "pruning.scope=global"],
        ["pruning.pattern='2:4'", "pruning.schedule={name: cubic, stages: 2, final_density: 0.4}"],
        ["pruning.schedule.stages=5"],
        ["training.dense_learning_rate=1e-2", "training.learning_rate=1e-3"],
        ["training.epochs_per_stage=7"],
        ["training.epochs_per_stage=0.5"],
        ["distillation={teacher: finetuned}"],
        ["regularizer=none"],
        ["regularizer={name: l2, decoupled: true, strength: 0.01}"],
        ["pruning.criterion=pins", "pruning.schedule={name: continuous, restart: true}"],
        ["training.warmup_updates=3", "training.dense_warmup_updates=0"],
        ["export.triton=false"],
        ["training.report_to=[tensorboard]"],
        ["evaluation.sample_errors=0"],
        ["task.title=Topics", "task.licence=MIT"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_what_it_does_not_read(base, overrides):
    assert dense.dense_key(load(base)) == dense.dense_key(load(base, *overrides))


def test_the_key_of_a_dense_stage_outlives_new_keys_of_recipes(base):
    """It is made of what differs from the defaults, so that a newer version finds what an older one trained."""
    recipe = load(base)
    wider = type("Wider", (Recipe,), {"__annotations__": {"new_key": int}, "new_key": 3})
    values = {key: getattr(recipe, key) for key in type(recipe).model_fields}
    assert dense.dense_key(wider.model_construct(**values)) == dense.dense_key(recipe)


def test_regularizers_that_do_not_act_on_it(base):
    free = "training.regularize_dense=false"
    keys = {
        dense.dense_key(load(base, *overrides))
        for overrides in (
            ["regularizer=none"],
            ["regularizer.strength=0"],
            ["regularizer={name: frobenius, reference: finetuned}"],
            [free],
            ["regularizer=frobenius", free],
        )
    }
    assert len(keys) == 1


def run_stages(recipe, folder, start_from=None):
    """Run without exports; return (tensors of the last checkpoint, state, events)."""
    with open_run(folder, recipe) as run:
        if start_from is not None:
            assert dense.start_from(start_from, recipe, run)
            assert not dense.start_from(start_from, recipe, run), "a run that has begun is left as it is"
        Training(recipe, run, resolve_device("cpu"), QUIET).run()
        tensors, state = run.latest(print)
        return tensors, state, run.events.read()


@pytest.fixture(scope="module")
def trained():
    """Return dense runs by key, trained once for the tests of this file."""
    return {}


@pytest.mark.parametrize(
    "overrides",
    slow_after(
        3,
        [
            ["regularizer=cosine", "pruning.scope=global"],
            ["pruning.criterion=l0", "evaluation.max_stage_examples=3"],
            ["pruning.criterion=pins"],
            ["method=pins", "pruning.schedule.every=1", "distillation.ask_every=2"],
            ["method=l2"],
            ["distillation={teacher: best_so_far, unlabelled: TEXT}"],
            ["distillation={teacher: finetuned}", "regularizer={name: frobenius, reference: finetuned}"],
        ],
    ),
    ids=lambda overrides: " ".join(overrides),
)
def test_a_run_started_from_a_dense_run_is_the_run_alone(base, tmp_path, trained, overrides, workplace):
    overrides = [text.replace("TEXT", f"'{workplace}/text/{{language}}.txt'") for text in overrides]
    recipe = load(base, "training.regularize_dense=false", *overrides)
    key = dense.dense_key(recipe)
    if key not in trained:
        trained[key] = workplace / "dense" / key
        pipeline.run(dense.dense_recipe(recipe), trained[key], "cpu", reporter=QUIET)
    before = {file: file.stat().st_mtime_ns for file in trained[key].rglob("*") if file.is_file()}
    tensors, state, events = run_stages(recipe, tmp_path / "shared", trained[key])
    alone, state_alone, events_alone = run_stages(recipe, tmp_path / "alone")
    assert tensors.keys() == alone.keys()
    for file, entries in alone.items():
        assert entries.keys() == tensors[file].keys()
        for name, tensor in entries.items():
            assert torch.equal(tensor, tensors[file][name]), f"{file}: {name}"
    for one, other in zip(state["stages"], state_alone["stages"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    for numbers in (state["progress"], state_alone["progress"]):
        numbers.pop("seconds")
    assert state["progress"] == state_alone["progress"]
    assert [event["event"] for event in events][:3] == ["start", "dense_shared", "stage"]
    assert start_damage(tmp_path / "shared", state["start"]) is None
    assert start_damage(tmp_path / "shared") is None
    assert events_alone[0]["recipe_sha256"] == events[0]["recipe_sha256"]
    assert before == {file: file.stat().st_mtime_ns for file in trained[key].rglob("*") if file.is_file()}


def compress(recipe, out, *options):
    return CliRunner().invoke(app, ["compress", str(recipe), "--out", str(out), *options])


def test_the_command_starts_from_a_dense_run_and_refuses_another(base, tmp_path):
    weights_only = ["--set", "export.onnx=[]"]
    done = compress(base, tmp_path / "dense", *weights_only, "--set", "pruning.schedule.stages=0")
    assert done.exit_code == 0, done.output
    report = report_of(tmp_path / "dense")
    assert [stage["encoder_density"] for stage in report["stages"]] == [1.0]
    assert report["languages"]["de"]["dense"] == report["languages"]["de"]["pruned"]
    start = ["--start-from", str(tmp_path / "dense")]
    other = compress(base, tmp_path / "other", *weights_only, *start, "--set", "training.dense_epochs=1")
    assert other.exit_code == 2
    assert (
        "its stage 0 differs from the stage 0 of this recipe (training.dense_epochs is 2.0 there and 1.0 here)"
        in other.stderr
    )
    pruned = compress(base, tmp_path / "run", *weights_only, *start)
    assert pruned.exit_code == 0, pruned.output
    assert "stage 0/" not in pruned.stderr
    assert report_of(tmp_path / "run")["stages"][0] == report["stages"][0]
    again = compress(base, tmp_path / "run", *weights_only, *start)
    assert "nothing to do" in again.stderr


def test_a_plan_with_a_dense_run_is_that_of_the_run(base, tmp_path, monkeypatch):
    """Its stage 0 is checked as the run checks it, and is neither trained nor scored again."""
    monkeypatch.setattr(shortening, "LONG", 0.0)
    monkeypatch.setattr(shortening, "SHORT", 1e-3)
    weights_only = ["--set", "export.onnx=[]"]
    missing = compress(
        base, tmp_path / "run", *weights_only, "--dry-run", "--start-from", str(tmp_path / "none")
    )
    assert missing.exit_code == 2
    assert "none: is not a run folder; it has no recipe.yaml" in missing.stderr
    done = compress(base, tmp_path / "dense", *weights_only, "--set", "pruning.schedule.stages=0")
    assert done.exit_code == 0, done.output
    start = ["--dry-run", "--start-from", str(tmp_path / "dense")]
    other = compress(base, tmp_path / "run", *weights_only, *start, "--set", "training.dense_epochs=1")
    assert other.exit_code == 2
    assert "its stage 0 differs from the stage 0 of this recipe" in other.stderr
    alone = json.loads(compress(base, tmp_path / "run", *weights_only, "--dry-run", "--json").stdout)
    shared = json.loads(compress(base, tmp_path / "run", *weights_only, *start, "--json").stdout)
    counts = [stage["updates"] for stage in alone["stages"]]
    assert [stage["updates"] for stage in shared["stages"]] == [0, *counts[1:]]
    assert shared["updates"] == sum(counts[1:]) < alone["updates"]
    updates = shared["seconds"]["update"]
    assert shared["seconds"]["training"] == pytest.approx(sum(s * n for s, n in zip(updates[1:], counts[1:])))
    shown = " ".join(compress(base, tmp_path / "run", *weights_only, *start).stdout.split())
    assert f"stage 0 comes from {tmp_path}/dense and is not trained".replace(" ", "") in shown.replace(
        " ", ""
    )
    assert "before pruning" not in shown
    assert "to shorten this" not in shown, "another number of updates or test texts would be refused"
    assert "shorter" in alone["seconds"]
    assert not (tmp_path / "run").exists()


def test_what_is_no_finished_dense_run_is_refused(base, tmp_path):
    recipe = load(base)
    with open_run(tmp_path / "cell", recipe) as run:
        with pytest.raises(ModelError, match=r"has no recipe\.yaml"):
            dense.start_from(tmp_path / "none", recipe, run)
        with open_run(tmp_path / "d", dense.dense_recipe(recipe)):
            pass
        with pytest.raises(ModelError, match="has no finished dense run"):
            dense.start_from(tmp_path / "d", recipe, run)
        with open_run(tmp_path / "seed", dense.dense_recipe(load(base, "seed=5"))):
            pass
        with pytest.raises(RecipeError, match="seed is 5 there and 42 here"):
            dense.start_from(tmp_path / "seed", recipe, run)
