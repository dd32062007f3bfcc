"""`training.report_to`: each tracker is really run where its package is installed; `events.jsonl` stays as it is."""

from __future__ import annotations

import json
import logging
from typing import ClassVar

import pytest
from golden import BASE, RUNS, write_inputs
from rich.console import Console
from typer.testing import CliRunner

from xlmprune import pipeline
from xlmprune.cli import app
from xlmprune.core.errors import MachineError
from xlmprune.core.progress import Reporter
from xlmprune.recipe.schema import Recipe
from xlmprune.training import tracking


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracking")
    write_inputs(folder)
    return folder


def recipe(workplace, *trackers):
    values = {"name": "tracked", **BASE, "task": {**RUNS["cosine"]["task"], "languages": ["de"]}}
    values |= {"model": {"name": str(workplace / "model")}, "export": {"onnx": []}}
    values["training"] = {**values["training"], "dense_epochs": 1, "report_to": list(trackers)}
    values["pruning"] = {"schedule": {"name": "geometric", "step_fraction": 0.5, "stages": 1}}
    values["task"]["path"] = str(workplace / values["task"]["path"])
    return Recipe.model_validate(values)


def events_of(run):
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def logged(run):
    """Every number of every event, with the update it belongs to: what a tracker must have."""
    updates, found = tracking.Updates([]), {}
    for event in events_of(run):
        if (
            event["event"] == "start"
        ):  # before the trackers are opened; it has the conditions of the run and no results
            continue
        facts = {key: value for key, value in event.items() if key not in ("time", "event")}
        updates.see(event["event"], facts)
        for name, value in tracking.numbers_of(event["event"], facts).items():
            found[name, updates.now] = value
    return found


def test_updates_are_counted_over_stages():
    updates = tracking.Updates([{"event": "update", "stage": 0, "number": 4, "total": 4}])
    assert updates.now == 4
    updates.see("update", {"stage": 1, "number": 2, "total": 3})
    assert updates.now == 6
    updates.see("stage", {"stage": 1})
    assert updates.now == 6


def test_the_numbers_of_an_event_have_names_with_slashes():
    facts = {
        "stage": 1,
        "number": 3,
        "loss": 0.5,
        "dev": None,
        "languages": {"de": 70, "en": 90.0},
        "fine": True,
    }
    assert tracking.numbers_of("stage", facts) == {
        "stage/loss": 0.5,
        "stage/languages/de": 70.0,
        "stage/languages/en": 90.0,
    }


def test_tensorboard_has_every_logged_value_and_the_log_is_as_without_it(workplace, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    quiet = Reporter(level="quiet")
    pipeline.run(recipe(workplace, "tensorboard"), tmp_path / "run", "cpu", reporter=quiet)
    pipeline.run(recipe(workplace), tmp_path / "plain", "cpu", reporter=quiet)
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    found = {
        (name, entry.step): entry.value for name in board.Tags()["scalars"] for entry in board.Scalars(name)
    }
    expected = logged(tmp_path / "run")
    assert found == {key: pytest.approx(value, rel=1e-6) for key, value in expected.items()}
    assert ("stage/languages/de", max(step for _, step in found)) in found
    assert [event["event"] for event in events_of(tmp_path / "run")] == [
        event["event"] for event in events_of(tmp_path / "plain")
    ]
    assert not (tmp_path / "plain" / "tensorboard").exists()
    assert (tmp_path / "run" / "bundle" / "report.json").is_file()


def test_mlflow_has_every_logged_value(workplace, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")  # not among the packages of the test extra: it brings forty others
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    pipeline.run(recipe(workplace, "mlflow"), tmp_path / "run", "cpu", reporter=Reporter(level="quiet"))
    kept = json.loads((tmp_path / "run" / ".xlmprune" / tracking.KEPT).read_text())
    client = mlflow.MlflowClient()
    made = client.get_run(kept["mlflow"])
    assert made.info.status == "FINISHED"
    assert made.data.params["pruning/criterion/name"] == "magnitude"
    found = {
        (name, entry.step): entry.value
        for name in made.data.metrics
        for entry in client.get_metric_history(kept["mlflow"], name)
    }
    assert found == {key: pytest.approx(value) for key, value in logged(tmp_path / "run").items()}


def test_wandb_runs_offline(workplace, tmp_path, monkeypatch):
    pytest.importorskip("wandb")  # not among the packages of the test extra: it starts a service of its own
    monkeypatch.setenv("WANDB_MODE", "offline")
    pipeline.run(recipe(workplace, "wandb"), tmp_path / "run", "cpu", reporter=Reporter(level="quiet"))
    (written,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    kept = json.loads((tmp_path / "run" / ".xlmprune" / tracking.KEPT).read_text())
    assert written.name == f"run-{kept['wandb']}.wandb"
    assert b"stage/languages/de" in written.read_bytes()


def test_a_missing_package_is_said_before_anything_is_read(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe(workplace, "wandb").to_yaml())
    result = CliRunner().invoke(app, ["compress", str(file), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "training.report_to: wandb needs the package wandb, which is not installed" in result.stderr
    assert "pip install 'wandb>=" in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(workplace):
    with pytest.raises(ValueError, match="report_to"):
        recipe(workplace, "tensorbord")


class Noting(tracking.Tracker):
    """Notes what it is told, and fails where it is asked to."""

    package = "json"
    told: ClassVar[list] = []
    fail_at: int | None = None

    def __init__(self, run):
        if self.fail_at == 0:
            raise ConnectionError("no server")
        self.told.append(("open", run.step, run.known_as))

    def known_as(self):
        return "its id"

    def numbers(self, values, step):
        if self.fail_at is not None and step >= self.fail_at:
            raise ConnectionError("server gone")
        self.told.append((next(iter(values)), step))

    def close(self):
        self.told.append(("close",))


@pytest.fixture
def noting(monkeypatch):
    monkeypatch.setitem(tracking.registry.TRACKERS, "tensorboard", f"{__name__}:Noting")
    monkeypatch.setattr(Noting, "told", [])
    monkeypatch.setattr(Noting, "fail_at", None)
    return Noting


class Folder:
    """What `reporting` needs of a run folder."""

    def __init__(self, path):
        from xlmprune.core.events import EventLog

        self.path = self.own = path
        self.events = EventLog(path / "events.jsonl")


def test_a_resumed_run_continues_under_its_name_and_a_new_one_does_not(noting, workplace, tmp_path):
    folder, settings = Folder(tmp_path), recipe(workplace, "tensorboard")
    with tracking.reporting(settings, folder, Reporter(level="quiet")):
        folder.events.write("update", stage=0, number=2, total=2, loss=0.5)
    assert noting.told == [("open", 0, None), ("update/loss", 2), ("close",)]
    with tracking.reporting(settings, folder, Reporter(level="quiet")):
        pass
    assert noting.told[3] == ("open", 2, None), "events without a resume are those of a new run"
    folder.events.write("resume", stage=1, update=0)
    with tracking.reporting(settings, folder, Reporter(level="quiet")):
        folder.events.write("update", stage=1, number=1, total=2, loss=0.5)
    assert noting.told[5:] == [("open", 2, "its id"), ("update/loss", 3), ("close",)]


def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(noting, workplace, tmp_path):
    noting.fail_at = 2
    folder, console = Folder(tmp_path), Console(record=True, width=200, quiet=False)
    with tracking.reporting(recipe(workplace, "tensorboard"), folder, Reporter(console)):
        for number in (1, 2, 3):
            folder.events.write("update", stage=0, number=number, total=3, loss=0.5)
    assert console.export_text().count("tensorboard gets no more values of this run: ConnectionError") == 1
    assert len(folder.events.read()) == 3


def test_a_tracker_that_cannot_be_opened_is_a_sentence(noting, workplace, tmp_path):
    noting.fail_at = 0
    with (
        pytest.raises(MachineError, match=r"tensorboard cannot be opened \(ConnectionError: no server\)"),
        tracking.reporting(recipe(workplace, "tensorboard"), Folder(tmp_path), Reporter(level="quiet")),
    ):
        pass
