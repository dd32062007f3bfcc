"""All eight tasks of the paper from recipe to report and back through the bundle, on made files in the official layout."""

import json

import numpy as np
import pytest
import yaml
from test_tasks import LANGUAGES, PAPER, SAMPLE
from tiny import tiny_model, tiny_tokenizer
from tiny_run import report_of
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.models.loading import save_tokenizer

TRAINING = {"epochs_per_stage": 1, "batch_size": 4, "learning_rate": 1e-3, "max_length": 48}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model(labels=("a", "b"), layers=1).roberta.save_pretrained(folder)
    save_tokenizer(tiny_tokenizer(), folder, 64)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_from_recipe_to_report_and_predictions(name, model, tmp_path):
    languages = [
        language for language in LANGUAGES[name] if (name, language) != ("qam", "fr")
    ]  # made without labels
    recipe = {
        "name": name,
        "model": {"name": str(model)},
        "task": {"name": name, "source": "xglue", "path": str(SAMPLE), "languages": languages},
        "training": TRAINING,
        "pruning": {"schedule": {"name": "geometric", "stages": 1}},
        "export": {"onnx": ["fp32"]},
    }
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    result = CliRunner().invoke(app, ["compress", str(file), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    report, bundle = report_of(tmp_path / "run"), tmp_path / "run" / "bundle"
    assert list(report["languages"]) == languages
    for row in report["languages"].values():
        assert row["n"] > 0
        assert 0 <= row["pruned"] <= 100
        assert row["onnx_fp32"] == pytest.approx(row["pruned"])
    if name in ("pos", "wpr"):
        assert report["other_metrics"], "both of the task's metrics are told"
    here = ["--set", f"task.path={SAMPLE}", "--predictions", str(tmp_path / "predicted"), "--json"]
    again = CliRunner().invoke(app, ["evaluate", str(bundle), *here])
    assert again.exit_code == 0, again.output
    for language, row in json.loads(again.stdout)["languages"].items():
        assert row["score"] == pytest.approx(report["languages"][language]["onnx_fp32"])
        predicted = tmp_path / "predicted" / name.upper() / f"{language}.prediction"
        assert np.isin(predicted.read_text(encoding="utf-8").split(), report["task"]["labels"]).all()
    assert CliRunner().invoke(app, ["verify", str(bundle)]).exit_code == 0
