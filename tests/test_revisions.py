"""The commits of models and data sets of the hub: resolved once, kept by the run, reported."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from golden import BASE, RUNS, write_inputs
from huggingface_hub import constants
from sample_report import sample_report
from typer.testing import CliRunner

from xlmprune import pipeline
from xlmprune.cli import app
from xlmprune.core.errors import DataError
from xlmprune.core.hub import commit_of
from xlmprune.recipe import registry
from xlmprune.recipe.schema import Recipe
from xlmprune.report.model_card import render as model_card
from xlmprune.tasks import CorpusTask
from xlmprune.training import revisions

COMMIT, LATER = "a" * 40, "b" * 40


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine that knows one commit of everything, and which paths it was asked for."""
    asked, sent = [], {"sha": COMMIT}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            found = sent["sha"] is not None
            content = json.dumps(
                {"id": "a/b", **sent} if found else {"error": "Repository not found"}
            ).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield asked, sent
    server.shutdown()
    server.server_close()
    thread.join()


def xnli(**changes):
    values = {"name": "pinned", "task": {"name": "xnli"}, "model": {"name": "some/model"}}
    return Recipe.model_validate({**values, **changes})


def test_the_hub_names_the_commit_and_the_cache_does_where_it_cannot(hub, tmp_path):
    asked, sent = hub
    assert commit_of("some/model", "model") == COMMIT
    assert commit_of("some/data", "dataset", "2.17") == COMMIT
    assert [path.partition("?")[0] for path in asked] == [
        "/api/models/some/model",
        "/api/datasets/some/data/revision/2.17",
    ]
    sent["sha"] = None
    assert commit_of("other/model", "model") is None
    assert commit_of("some/data", "dataset", "2.17") == COMMIT, "the hub's last answer"
    (tmp_path / "cache" / "models--some--model" / "refs" / "main").write_text(LATER)
    assert commit_of("some/model", "model") == LATER


@pytest.mark.parametrize("name", ["my model", "model/", "ü/x", "\n"])
def test_a_name_that_no_model_can_have_is_a_sentence(hub, tmp_path, name):
    asked, _ = hub
    assert commit_of(name, "model") is None
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"task": {"name": "quickstart"}, "model": {"name": name}}))
    result = CliRunner().invoke(app, ["compress", str(file), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2, result.output
    assert "could not be loaded" in result.output
    assert not asked


def test_what_a_recipe_leaves_open_is_pinned(hub):
    asked, _ = hub
    pinned = revisions.pin(xnli())
    assert (pinned.model.revision, pinned.task.revision) == (COMMIT, COMMIT)
    assert Recipe.model_validate(pinned.resolved()) == pinned, "the resolved recipe repeats the run"
    own = xnli(model={"name": "some/model", "revision": "v1"}, task={"name": "xnli", "revision": "v2"})
    assert revisions.pin(own) == own, "what the recipe says stays"
    del asked[:]
    local = xnli(model={"name": "./model"}, task={"name": "classification", "source": "files", "path": "a"})
    assert revisions.pin(local) == local
    assert (
        revisions.pin(xnli(task={"name": "quickstart"}, model={"name": "quickstart"})).model.revision is None
    )
    assert asked == []


def test_a_run_keeps_the_commits_it_began_with(hub, tmp_path):
    _, sent = hub
    begun = revisions.pin(xnli(), tmp_path)
    (tmp_path / "recipe.yaml").write_text(begun.to_yaml())
    sent["sha"] = LATER
    assert revisions.pin(xnli(), tmp_path) == begun
    assert revisions.pin(xnli(), None).model.revision == LATER, "--fresh takes what is newest"
    (tmp_path / "recipe.yaml").write_text(xnli().to_yaml())
    assert revisions.pin(xnli(), tmp_path) == xnli(), "a run of an older version stays unpinned, and resumes"


def test_a_runs_resolved_recipe_report_and_reader_have_the_commit(hub, tmp_path, monkeypatch):
    """The data set is a table here; that the hub's own loader gets the revision is tested with the reader."""
    write_inputs(tmp_path)
    values = {"name": "pinned", **BASE, "task": {**RUNS["cosine"]["task"], "languages": ["de"]}}
    values |= {"model": {"name": str(tmp_path / "model")}, "export": {"onnx": []}}
    values["training"] = {**values["training"], "dense_epochs": 1}
    values["pruning"] = {"schedule": {"name": "geometric", "step_fraction": 0.5, "stages": 1}}
    values["task"]["path"] = str(tmp_path / values["task"]["path"])
    recipe = Recipe.model_validate(values)
    monkeypatch.setattr(revisions, "_hub_set", lambda _: ("some/data", "dataset", None))
    report = pipeline.run(recipe, tmp_path / "run", "cpu")
    kept = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (
        kept["task"]["revision"]
        == report["recipe"]["task"]["revision"]
        == report["task"]["revision"]
        == COMMIT
    )
    assert f"(revision `{COMMIT}`)" in (tmp_path / "run" / "bundle" / "README.md").read_text()
    hub[1]["sha"] = LATER
    assert pipeline.run(recipe, tmp_path / "run", "cpu") == report, "a later start is the same run"


def test_the_hubs_loader_is_asked_for_the_pinned_revision(monkeypatch):
    asked = []

    def load(name, config, split, revision):
        asked.append((name, revision))
        raise ValueError("enough")

    monkeypatch.setattr("datasets.load_dataset", load)
    task = registry.load("task", "xnli")(xnli(task={"name": "xnli", "revision": COMMIT}).task)
    assert isinstance(task, CorpusTask)
    with pytest.raises(DataError, match="enough"):
        task.examples("de", "test")
    assert set(asked) == {(type(task).hub.id, COMMIT)}


def test_the_card_names_both_revisions():
    report = sample_report()
    report["model"]["revision"], report["task"]["revision"] = COMMIT, LATER
    card = model_card(report)
    assert f"at revision `{COMMIT}`" in card
    assert f"(revision `{LATER}`)" in card
