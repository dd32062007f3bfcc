"""Second moments in whole runs: which text they are measured on, what is said, and that a run resumes exactly."""

import json
import shutil

import pytest
from tiny import SENTENCES
from tiny_run import assert_same_weights, compress, report_of, write_recipe
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.training.pruner import Pruner


@pytest.mark.slow
def test_a_refitted_run_exports_reports_and_resumes_with_the_same_bits(workplace, tmp_path, monkeypatch):
    sections = {
        "distillation": {"unlabelled": str(workplace / "text" / "{language}.txt")},
        "pruning": {"criterion": "wanda"},
    }
    run = tmp_path / "whole" / "run"
    run.parent.mkdir()
    result = compress(workplace, run, **sections)
    assert result.exit_code == 0, result.output
    report = report_of(run)
    found = report["moments"]
    assert found["source"] == "distillation.unlabelled"
    assert found["uses"] == ["pruning.criterion", "pruning.reconstruct"]
    assert sum(found["texts"].values()) == 40
    assert max(found["texts"].values()) - min(found["texts"].values()) <= 1
    assert found["without"] == ["th"]
    assert "no such text in Thai" in result.stderr
    assert "no such text in Thai" in (run / "bundle" / "report.md").read_text(encoding="utf-8")
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["texts"] for event in events if event["event"] == "moments"] == [found["texts"]]
    verified = CliRunner().invoke(app, ["verify", str(run / "bundle")])
    assert verified.exit_code == 0, verified.output

    pruned, calls = Pruner._prune, []

    def interrupted(self, density, final):
        calls.append(self.state.at.stage)
        if len(calls) == 2:
            raise KeyboardInterrupt
        pruned(self, density, final)

    again = tmp_path / "again" / "run"
    again.parent.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Pruner, "_prune", interrupted)
        assert compress(workplace, again, **sections).exit_code != 0
    assert calls == [1, 2]
    assert compress(workplace, again, **sections).exit_code == 0
    assert_same_weights(run, again)


@pytest.mark.slow
def test_without_unlabelled_text_english_alone_is_measured_and_said(workplace, tmp_path):
    result = compress(workplace, tmp_path / "run", pruning={"criterion": "sparsegpt", "pattern": "2:4"})
    assert result.exit_code == 0, result.output
    found = report_of(tmp_path / "run")["moments"]
    assert found["source"] == "training text"
    assert found["texts"] == {"en": 32}
    assert set(found["without"]) == set(SENTENCES) - {"en"}
    assert "training text (English)" in result.stderr


def test_the_vocabularys_files_are_the_second_choice(workplace, tmp_path):
    shutil.copytree(workplace / "text", tmp_path / "text")
    (tmp_path / "text" / "th.txt").write_text("ปิดประตู เปิดไฟในครัว\n", encoding="utf-8")
    vocabulary = {"files": [str(tmp_path / "text" / "{language}.txt")], "min_count": 1}
    model = {"name": str(workplace / "model"), "vocabulary": vocabulary}
    recipe = write_recipe(tmp_path, model=model, pruning={"reconstruct": {"texts": 16}})
    task = f"task.path={workplace / 'data' / '{language}.{split}.tsv'}"
    result = CliRunner().invoke(app, ["compress", str(recipe), "--dry-run", "--set", task])
    assert result.exit_code == 0, result.output
    assert "model.vocabulary.files" in result.stdout.replace("\n", " ")


@pytest.mark.slow
def test_one_line_of_text_is_enough(workplace, tmp_path):
    (tmp_path / "de.txt").write_text("die Tür ist zu\n", encoding="utf-8")
    unlabelled = {"unlabelled": str(tmp_path / "{language}.txt")}
    result = compress(workplace, tmp_path / "run", distillation=unlabelled)
    assert result.exit_code == 0, result.output
    found = report_of(tmp_path / "run")["moments"]
    assert found["texts"] == {"de": 1}


def test_a_ridge_too_small_for_the_text_is_a_sentence(workplace, tmp_path):
    criterion = {"name": "sparsegpt", "ridge": 1e-30}
    result = compress(workplace, tmp_path / "run", pruning={"criterion": criterion, "reconstruct": None})
    assert result.exit_code != 0
    assert "singular" in result.output
    assert "raise the ridge" in " ".join(result.output.split())
