"""Check the Python API, and run docs/python.md as one script."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import golden
import numpy as np
import pytest
import yaml
from slow import slow_but
from tiny import SENTENCES, tiny_bundle, tiny_texts

import xlmprune
from xlmprune.bundle import session
from xlmprune.core.errors import BundleError, DataError, RecipeError

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


def test_every_public_name_is_listed_and_found_without_heavy_imports():
    names = {"compress", "evaluate", "load", "Predictor", "Prediction", "Tagged", "XlmpruneError"}
    assert names < set(dir(xlmprune))
    assert all(getattr(xlmprune, name).__doc__ for name in names)
    code = (
        "import sys, xlmprune; xlmprune.Predictor; xlmprune.XlmpruneError; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'predictor'"):
        _ = xlmprune.predictor


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The output of the page's code, run from top to bottom, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("python")
    golden.write_inputs(folder)
    recipe = {"name": "my_intents", **golden.BASE, "task": golden.TEXT, "model": {"name": "./model"}}
    (folder / "my_intents.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    code = "".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/python.md", "exec"), {"__name__": "__main__"})
    return printed.getvalue().splitlines(), folder / "runs" / "my_intents"


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(followed):
    lines, run = followed
    report = json.loads((run / "bundle" / "report.json").read_text(encoding="utf-8"))
    summary = report["summary"]
    assert lines[0] == f"{summary['english']['pruned']} {summary['zero_shot_mean']['pruned']}"
    assert {line.split()[0] for line in lines[1:3]} <= set(golden.LABELS)
    for line, language in zip(lines[3:5], ("en", "de"), strict=True):
        code, n, score = line.split()[:3]
        assert (code, int(n)) == (language, 24)
        assert float(score) == pytest.approx(report["languages"][language]["onnx_int8"])
    assert lines[5].startswith("XLMRobertaForSequenceClassification ")
    assert "no_such_run" in lines[6]


@pytest.mark.slow
def test_overrides_change_the_keys_that_they_have(followed):
    _, run = followed
    resolved = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    assert resolved["seed"] == 1
    assert resolved["training"]["learning_rate"] == 5e-5
    assert resolved["training"]["batch_size"] == golden.BASE["training"]["batch_size"]


def test_a_misspelt_override_and_a_wrong_mapping_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="learning_rate"):
        xlmprune.compress("quickstart", tmp_path, training={"learningrate": 1})
    with pytest.raises(RecipeError, match="task"):
        xlmprune.compress({"name": "mine"}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", slow_but(["text"], ["text", "pair", "tokens"]))
def test_a_predictor_answers_as_predict_does_in_the_order_of_the_texts(kind, tmp_path):
    labels = ("O", "B-X", "I-X") if kind == "tokens" else ("no", "maybe", "yes")
    bundle = tiny_bundle(tmp_path / "bundle", kind, labels)
    texts = tiny_texts(kind) * 3
    expected = list(session.predict(session.Bundle(bundle), texts, batch_size=1))
    predictor = xlmprune.Predictor(bundle, threads=1, batch_size=4)
    assert (predictor.kind, predictor.labels) == (kind, labels)
    answers = predictor(iter(texts))
    assert len(answers) == len(texts)
    for answer, wanted in zip(answers, expected, strict=True):
        if kind == "tokens":
            assert isinstance(answer, xlmprune.Tagged)
            assert (answer.words, answer.tags) == (wanted["words"], wanted["tags"])
            np.testing.assert_allclose(answer.probabilities, wanted["probabilities"], atol=1e-5)
        else:
            assert isinstance(answer, xlmprune.Prediction)
            assert answer.label == wanted["label"]
            assert answer.probability == pytest.approx(max(wanted["probabilities"].values()), abs=1e-5)
            assert answer.probabilities == pytest.approx(wanted["probabilities"], abs=1e-5)
        assert answer.truncated == wanted["truncated"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        answers[0].truncated = True


def test_texts_of_one_length_share_a_batch(tmp_path, monkeypatch):
    predictor = xlmprune.Predictor(tiny_bundle(tmp_path / "bundle"), batch_size=8)
    shapes = []
    forward = predictor._bundle.forward("fp32")

    def watched(ids, mask):
        shapes.append(ids.shape)
        return forward(ids, mask)

    monkeypatch.setattr(predictor._bundle, "forward", lambda form: watched)
    short, long = SENTENCES["zh"][0], " ".join(SENTENCES["en"])
    predictor([short, long] * 8)
    assert len(shapes) == 2
    assert len({length for _, length in shapes}) == 2, "short texts are not padded to the long ones"


def test_a_stream_takes_texts_as_they_are_needed(tmp_path):
    predictor = xlmprune.Predictor(tiny_bundle(tmp_path / "bundle"), batch_size=1)
    taken = []

    def texts():
        for number in range(10**9):
            taken.append(number)
            yield "turn on the light"

    answers = predictor.stream(texts())
    next(answers)
    next(answers)
    assert len(taken) < 100


def test_what_cannot_be_predicted_is_said(tmp_path):
    bundle = tiny_bundle(tmp_path / "bundle")
    with pytest.raises(DataError, match="text 2: this bundle takes one text"):
        xlmprune.Predictor(bundle)(["a", ("b", "c")])
    with pytest.raises(BundleError, match="int4"):
        xlmprune.Predictor(bundle, form="int4")
    assert xlmprune.Predictor(bundle)([]) == []
