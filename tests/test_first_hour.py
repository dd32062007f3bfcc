"""Check what a new user meets in the terminal: a model that learned nothing, too little training, what to do next."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import golden
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.core.progress import Reporter
from xlmprune.data.examples import Examples
from xlmprune.data.lengths import share_cut
from xlmprune.report import findings, results
from xlmprune.training import planning, shortening
from xlmprune.training.material import cut_texts

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    golden.write_inputs(folder)
    return folder


def write_recipe(folder: Path, name: str, **training: object) -> Path:
    recipe = {
        "name": name,
        **golden.BASE,
        "task": golden.TEXT,
        "model": {"name": "./model"},
        "training": {**golden.BASE["training"], **training},
        "export": {"onnx": ["fp32"]},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder / f"{name}.yaml"


def compress(workplace, monkeypatch, name, *options, **training):
    monkeypatch.chdir(workplace)
    write_recipe(workplace, name, **training)
    result = CliRunner().invoke(app, ["compress", f"{name}.yaml", *options])
    assert result.exit_code == 0, result.output
    return result, workplace / "runs" / name / "bundle"


@pytest.mark.slow
def test_a_model_that_learned_nothing_is_a_warning_before_anything_else(workplace, monkeypatch):
    result, bundle = compress(workplace, monkeypatch, "nothing", learning_rate=1e-9)
    told = result.stderr
    assert "warning: the model has not learned the task" in told
    assert "English dev" in told
    assert "guessing 25.0" in told
    assert told.index("warning:") < told.index("stage 1/3")
    assert result.stdout.startswith("Warning: the model has not learned the task")
    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    assert len(report["warnings"]) == 1
    for row in report["languages"].values():
        assert (row["majority"], row["chance"]) == (25, 25)
    for name in ("report.md", "report.html"):
        text = (bundle / name).read_text(encoding="utf-8")
        assert 0 < text.index("has not learned the task") < text.index("of them remain")
        assert "Baseline (the higher score" in text


def test_a_model_that_learned_is_not_warned_about_and_the_end_says_what_to_type(workplace, monkeypatch):
    counted, counting = [], Reporter.counting
    monkeypatch.setattr(
        Reporter, "counting", lambda self, what, total: counted.append(what) or counting(self, what, total)
    )
    result, bundle = compress(workplace, monkeypatch, "learned", dense_epochs=12)
    assert "has not learned" not in result.stderr
    line = r"stage 0/3  density 100\.0%  en [\d.]+  zero-shot [\d.]+  training took \d+ s, measuring \d+ s\n"
    assert re.search(line, result.stderr)
    assert re.search(r"stage 3/3 .* pruning and training took \d+ s, measuring \d+ s\n", result.stderr)
    assert counted.count("measuring texts of all languages") == 4, (
        "once a stage; how classes separate needs no pass of its own"
    )
    assert result.stderr.count("pruning removes weights, so each stage begins with a larger loss") == 1
    assert "teacher" not in result.stderr
    last = result.stderr.splitlines()[-4:]
    assert last[0].split() == ["report:", "runs/learned/bundle/report.html"]
    assert last[1].startswith("predict:  xlmprune predict runs/learned/bundle ")
    assert last[2].split(maxsplit=1)[1] == "xlmprune verify runs/learned/bundle"
    assert CliRunner().invoke(app, last[2].split()[2:]).exit_code == 0
    assert last[3].split() == ["serve:", "xlmprune", "serve", "runs/learned/bundle"]
    assert (bundle / "report.html").is_file()
    again = CliRunner().invoke(app, ["compress", "learned.yaml", "--quiet"])
    assert again.exit_code == 0
    assert again.stderr == ""
    assert "English" in again.stdout


def report_of_languages(**deltas: float) -> dict:
    languages = {
        code: {"n": 100, "metric": "accuracy", "dense": 50.0, "pruned": 50.0 + delta, "delta": delta}
        for code, delta in deltas.items()
    }
    return {"languages": languages, "summary": results.summary(languages, "en")}


def test_no_language_lost_is_said_so_and_none_is_marked_as_the_worst():
    said = findings.describe_scores(report_of_languages(en=1.0, ru=5.0, de=-0.01))
    assert "No zero-shot language lost accuracy." in said
    assert "worst" not in said
    assert {row.style for row in findings.rows(report_of_languages(en=1.0, ru=5.0))} == {"train", "other"}
    said = findings.describe_scores(report_of_languages(en=1.0, ru=5.0, de=-2.0))
    assert "The worst zero-shot language, German: 50.0 → 48.0 (−2.0 points)." in said
    assert "No zero-shot" not in said
    assert "No zero-shot" not in findings.describe_scores(report_of_languages(en=1.0))


def test_curves_over_fewer_examples_than_the_table_say_so():
    report = report_of_languages(en=0.0, de=0.0)
    assert findings.describe_curve(report) == ""
    report["recipe"] = {"evaluation": {"max_stage_examples": 42}}
    assert "sample of 42 test examples" in findings.describe_curve(report)
    report["recipe"]["evaluation"]["max_stage_examples"] = 100
    assert findings.describe_curve(report) == ""


def test_verbose_names_every_language_of_a_stage_and_excludes_quiet(workplace, monkeypatch):
    result, _ = compress(workplace, monkeypatch, "verbose", "--verbose")
    assert any(
        all(f"{language} " in line for language in golden.SENTENCES) for line in result.stderr.splitlines()
    )
    both = CliRunner().invoke(app, ["compress", "verbose.yaml", "--quiet", "--verbose", "--out", "other"])
    assert both.exit_code == 2
    assert "exclude each other" in both.stderr


def test_a_plan_warns_of_too_little_training(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    write_recipe(workplace, "slow", learning_rate=5e-6)
    few = CliRunner().invoke(app, ["compress", "slow.yaml", "--dry-run", "--json"])
    (warning,) = [text for text in json.loads(few.stdout)["warnings"] if "updates" in text]
    assert "9 updates with a learning rate of 5e-06" in warning
    assert "training.learning_rate" in warning
    shown = CliRunner().invoke(app, ["compress", "slow.yaml", "--dry-run"]).stdout
    assert "warning: stage 0 has 9 updates" in shown
    write_recipe(workplace, "fast", learning_rate=5e-3)
    plan = CliRunner().invoke(app, ["compress", "fast.yaml", "--dry-run", "--json"])
    assert not [text for text in json.loads(plan.stdout)["warnings"] if "updates" in text]


def test_a_plan_names_the_recipe_says_what_it_does_and_how_to_shorten_a_long_run(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    write_recipe(workplace, "mine", learning_rate=5e-3)
    command = ["compress", "mine.yaml", "--dry-run"]
    found = CliRunner().invoke(app, command)
    assert found.stdout.startswith("Plan of mine.yaml: model ")
    assert "planning mine.yaml" in found.stderr
    assert "timing a few updates with random weights" in found.stderr
    assert "time, at the speed measured now: about" in found.stdout
    assert "to shorten this" not in found.stdout
    assert CliRunner().invoke(app, [*command, "--quiet"]).stderr == ""
    monkeypatch.setattr(shortening, "LONG", 0.0)
    monkeypatch.setattr(shortening, "SHORT", 1e-3)
    said = " ".join(CliRunner().invoke(app, command).stdout.split())
    assert re.search(r"to shorten this to about 0:0\d, add: --set training\.\w+=\S+ ", said)


def test_predict_on_a_terminal_without_text_prints_how_to_use_it(workplace):
    """A pseudo-terminal stands in for the user's keyboard."""
    controller, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "xlmprune", "predict", "bundle"],
            stdin=terminal,
            cwd=workplace,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(terminal)
        os.close(controller)
    assert done.returncode == 2
    assert 'Try: xlmprune predict bundle "your text"' in done.stderr


def test_texts_that_are_cut_are_a_warning():
    def test_set(cut):
        return SimpleNamespace(encoded=SimpleNamespace(truncated=np.arange(100) < cut))

    data = SimpleNamespace(max_length=32, tests={"en": test_set(2), "de": test_set(12), "zh": test_set(0)})
    (warning,) = cut_texts(data)
    assert warning.startswith("training.max_length 32 cuts test texts: German 12%. ")
    data.tests.pop("de")
    assert cut_texts(data) == []


def test_a_plan_estimates_which_texts_are_cut(tmp_path, monkeypatch):
    """Without the tokenizer, which may be on the hub."""
    monkeypatch.setattr(planning, "estimate_duration", lambda *_, **__: None)
    for language, words in (("en", 6), ("de", 200)):
        rows = [f"{'word ' * words}{number}\t{'ab'[number % 2]}" for number in range(12)]
        for split in ("train", "dev", "test") if language == "en" else ("test",):
            (tmp_path / f"{language}.{split}.tsv").write_text("\n".join(["text\tlabel", *rows]))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "base: quickstart\nmodel: {vocabulary: keep}\ndistillation: null\n"
        "pruning: {reconstruct: null, structure: {heads: 0.5, importance: magnitude}}\n"
        "task: {name: classification, source: files, path: '{language}.{split}.tsv', languages: [en, de]}\n"
    )
    plan = xlmprune_plan(recipe, "training.max_length=64")
    cut = [said for said in plan["warnings"] if "cuts test texts" in said]
    assert [said.partition(". ")[0] for said in cut] == [
        "training.max_length 64 cuts test texts: German about 100%"
    ]
    assert not any("cuts" in said for said in xlmprune_plan(recipe, "training.max_length=500")["warnings"])


def xlmprune_plan(recipe, *overrides):
    options = [part for override in overrides for part in ("--set", override)]
    done = CliRunner().invoke(app, ["compress", str(recipe), "--dry-run", "--json", *options])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("kind", "first", "second", "share"),
    [
        ("text", ["a" * 35, "a" * 36, "中" * 14, "中" * 15], None, 0.5),  # 10 tokens are left beside 2
        ("pair", ["a" * 20, "a" * 20], ["a" * 7, "a" * 8], 0.5),  # 8 tokens
        ("tokens", [["a" * 17, "b" * 17], ["a" * 18, "b" * 17]], None, 0.5),
        ("text", [], None, 0.0),
    ],
)
def test_the_share_that_is_cut(kind, first, second, share):
    examples = Examples("en", "test", first, second)
    assert not first or examples.kind == kind
    assert share_cut(examples, 12) == share
