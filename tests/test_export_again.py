"""What may change when a run is resumed, and a bundle made again from a finished run."""

import hashlib
import json
import shlex
import shutil

import pytest
import torch
from tiny_run import report_of, write_data, write_model, write_recipe
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.compare import results
from xlmprune.core.errors import ModelError
from xlmprune.core.progress import Reporter
from xlmprune.recipe.loading import load_recipe
from xlmprune.training.checkpoint import open_run
from xlmprune.training.run import Training

SHORT = {"training": {"dense_epochs": 1, "epochs_per_stage": 1}, "export": {"onnx": []}}


def xlmprune(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(recipe file, run folder) of a finished run that wrote no ONNX file."""
    folder = tmp_path_factory.mktemp("work")
    write_model(folder / "model")
    write_data(folder / "data")
    recipe = write_recipe(folder, **SHORT)
    result = xlmprune("compress", recipe, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    return recipe, folder / "run"


def updates(run):
    return sum(
        json.loads(line)["event"] == "update" for line in (run / "events.jsonl").read_text().splitlines()
    )


@pytest.mark.slow
def test_a_bundle_is_made_again_without_training(finished):
    recipe, run = finished
    before, trained = report_of(run), updates(run)
    result = xlmprune(
        "export",
        run,
        "--set",
        "export.onnx=[fp32]",
        "--set",
        "export.safetensors=dense",
        "--set",
        "name=other",
        "--set",
        "evaluation.sample_errors=0",
    )
    assert result.exit_code == 0, result.output
    after = report_of(run)
    assert updates(run) == trained > 0
    assert (run / "bundle" / "model.onnx").is_file()
    assert not list(run.glob(".bundle*"))
    assert after["name"] == "other"
    assert after["answers"] == before["answers"], "the dense model's answers were kept"
    assert sum(len(entry["shown"]) for entry in before["errors"].values()) > 0
    assert sum(len(entry["shown"]) for entry in after["errors"].values()) == 0
    assert after["parity"]["onnx_fp32"]["agreement"] == 1
    for language, row in before["languages"].items():
        assert {key: after["languages"][language][key] for key in ("n", "dense", "pruned")} == {
            key: row[key] for key in ("n", "dense", "pruned")
        }
    settings = load_recipe(str(run / "recipe.yaml"))
    assert (settings.export.onnx, settings.export.safetensors, settings.name) == (["fp32"], "dense", "other")
    assert after["recipe_sha256"] == settings.sha256()

    other = xlmprune("compress", recipe, "--out", run)
    assert other.exit_code == 2
    assert "this run is finished, and its bundle has other settings (name is" in other.stderr
    assert "xlmprune export" in other.stderr
    advised = other.stderr.partition("--set ")[2]
    assert "export.onnx=[]" in advised
    same = xlmprune("compress", run / "recipe.yaml", "--out", run)
    assert same.exit_code == 0, same.output
    assert "nothing to do" in same.stderr


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "training.batch_size=4",
            "training.batch_size changes training; in a finished run only export settings can change",
        ),
        ("evaluation.stage_interval=2", "evaluation.stage_interval changes measuring"),
        ("export.opsett=18", "did you mean 'opset'"),
    ],
)
def test_only_the_export_can_change(finished, override, said):
    _, run = finished
    sums = {file: hashlib.sha256(file.read_bytes()).digest() for file in run.rglob("*") if file.is_file()}
    result = xlmprune("export", run, "--set", override)
    assert result.exit_code == 2
    assert said in result.stderr
    assert {file: hashlib.sha256(file.read_bytes()).digest() for file in sums} == sums


def test_only_a_finished_run_is_exported_again(finished, tmp_path):
    recipe, _ = finished
    missing = xlmprune("export", tmp_path)
    assert missing.exit_code == 2
    assert "is not a run folder" in missing.stderr
    interrupted(load_recipe(str(recipe)), tmp_path / "run")
    result = xlmprune("export", tmp_path / "run")
    assert result.exit_code == 2
    assert "training has not ended (stage 2 of 3)" in result.stderr
    assert shlex.join(["xlmprune", "compress", str(tmp_path / "run/recipe.yaml")]) in result.stderr


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def contents(run):
    """Everything in a run folder but what locks it."""
    files = [file for file in run.rglob("*") if file.is_file() and ".xlmprune" not in file.parts]
    return {file.relative_to(run): file.read_bytes() for file in files}


@pytest.mark.parametrize("loss", ["damaged", "gone"])
def test_an_end_that_is_lost_is_never_trained_again_by_an_export(finished, tmp_path, loss):
    """The run stays as it is, and the message leads out."""
    run = shutil.copytree(finished[1], tmp_path / "run")
    newest = max((run / "checkpoint").glob("saved-*"))
    if loss == "damaged":
        flip(newest / "model.safetensors")
    else:
        shutil.rmtree(run / "checkpoint")
    before = contents(run)
    result = xlmprune("export", run)
    assert result.exit_code == 2
    assert "the checkpoint of the end of the training is damaged or gone" in result.stderr
    assert "--allow-change" not in result.stderr
    after = contents(run)
    start = "checkpoint/start"
    assert {file: after.get(file) for file in before} == before
    assert all(file.is_relative_to(start) for file in after.keys() - before.keys()), "the model as it began"
    if loss == "damaged":
        (run / "bundle").rename(tmp_path / "aside")
        command = shlex.split(result.stderr.replace("\n", " ").split(", then: ")[1])
        again = xlmprune(*command[1:])
        assert again.exit_code == 0, again.output
        assert (run / "bundle/model.safetensors").read_bytes() == (
            tmp_path / "aside/model.safetensors"
        ).read_bytes()


def test_conditions_are_compared_before_anything_is_dropped(finished, tmp_path, monkeypatch):
    recipe, run = finished
    run = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(run / "bundle")
    flip(max((run / "checkpoint").glob("saved-*")) / "model.safetensors")
    before = contents(run)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        result = xlmprune("compress", recipe, "--out", run)
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 2
    assert "--allow-change" in result.stderr
    assert contents(run) == before


def interrupted(recipe, run):
    """Stop a run after stage 1."""
    with open_run(run, recipe) as folder:
        Training(recipe, folder, torch.device("cpu"), Reporter()).run(until=1)


def test_what_does_not_alter_training_may_change_on_resume(finished, tmp_path):
    recipe, run = finished
    interrupted(load_recipe(str(recipe)), tmp_path / "run")
    options = [
        "training.checkpoint_minutes=3",
        "evaluation.batch_size=7",
        "export.triton=false",
        "export.onnx=[]",
    ]
    command = [
        "compress",
        recipe,
        "--out",
        tmp_path / "run",
        *(part for option in options for part in ("--set", option)),
    ]
    refused = xlmprune(*command, "--set", "regularizer.strength=3")
    assert refused.exit_code == 2
    assert "regularizer.strength is" in refused.stderr
    result = xlmprune(*command)
    assert result.exit_code == 0, result.output
    resumed = load_recipe(str(tmp_path / "run" / "recipe.yaml"))
    assert (resumed.training.checkpoint_minutes, resumed.evaluation.batch_size) == (3, 7)
    assert not (tmp_path / "run" / "bundle" / "triton").exists()
    ours, whole = report_of(tmp_path / "run"), report_of(run)
    assert {code: row["pruned"] for code, row in ours["languages"].items()} == {
        code: row["pruned"] for code, row in whole["languages"].items()
    }
    assert [row["loss"] for row in ours["stages"]] == [row["loss"] for row in whole["stages"]]


@pytest.mark.slow
def test_a_bundle_in_its_run_folder_is_evaluated_without_naming_the_data(finished, tmp_path):
    """The report has no path of this machine; the run folder's recipe has."""
    recipe, _ = finished
    options = [
        "--set",
        "export.onnx=fp32",
        "--set",
        "export.triton=false",
        "--set",
        "pruning.schedule.stages=1",
    ]
    run = xlmprune("compress", recipe, "--out", tmp_path / "run", *options)
    assert run.exit_code == 0, run.output
    found = xlmprune("evaluate", tmp_path / "run" / "bundle", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["languages"].keys() == report_of(tmp_path / "run")["languages"].keys()
    (tmp_path / "run" / "bundle").rename(tmp_path / "alone")
    moved = xlmprune("evaluate", tmp_path / "alone")
    assert moved.exit_code == 2
    assert "--set task.path" in moved.stderr


def test_a_report_that_was_edited_is_explained_and_made_again(finished):
    recipe, run = finished
    file, whole = run / "bundle" / "report.json", report_of(run)
    whole["files"]["config.json"].pop("bytes")
    file.write_text(json.dumps(whole), encoding="utf-8")
    refused = xlmprune("compress", recipe, "--out", run)
    assert refused.exit_code == 2, refused.output
    assert f"{file}: the key 'bytes' is missing" in refused.stderr
    file.write_text(json.dumps({**whole, "files": []}), encoding="utf-8")
    assert f"{file}: 'list' object has no attribute" in xlmprune("compress", recipe, "--out", run).stderr
    command = refused.stderr.partition("Make it again from the run: xlmprune ")[2].split()
    assert xlmprune(*command).exit_code == 0
    again = xlmprune("compress", recipe, "--out", run)
    assert again.exit_code == 0, again.output


def test_a_comparison_names_a_report_that_lacks_something(tmp_path):
    file = tmp_path / "cell" / "bundle" / "report.json"
    file.parent.mkdir(parents=True)
    for text, said in (('{"summary": {}}', "the key 'stages' is missing"), ("{", "JSONDecodeError")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ModelError, match=said):
            results._read(file, len(text))
