"""`export.opset: auto` takes the version of the operators whose file is faster."""

import json

import onnx
import pytest
import yaml
from golden import BASE, RUNS, write_inputs
from tiny import tiny_model

import xlmprune
from xlmprune.export import opsets
from xlmprune.export.form import form_named
from xlmprune.export.graph import export_onnx, opset_of
from xlmprune.export.opsets import CANDIDATES, graph_of_opset
from xlmprune.recipe.loading import recipe_of


@pytest.fixture(scope="module")
def graphs():
    model = tiny_model()
    return {opset: export_onnx(model, opset=opset) for opset in CANDIDATES}


def choose(graphs, wanted, milliseconds, monkeypatch):
    said = []

    def time_in_turns(files, batch, tokens, threads, seconds):
        assert (batch, tokens, threads) == (1, 16, 1)
        assert [opset_of(onnx.load(path)) for path in files.values()] == list(CANDIDATES)
        return dict(zip(files, milliseconds, strict=True))

    monkeypatch.setattr(opsets, "time_in_turns", time_in_turns)
    graph = graph_of_opset(wanted, graphs.__getitem__, form_named("int8"), "int8", 16, said.append)
    return opset_of(graph), said


@pytest.mark.parametrize(
    ("milliseconds", "chosen"),
    [((2.0, 1.5), 23), ((1.5, 2.0), 20), ((2.0, 2.0), 20), ((2.0, 1.99), 20)],
    ids=["newer is faster", "older is faster", "equal", "hardly faster"],
)
def test_the_faster_is_taken_and_the_older_where_they_are_alike(graphs, milliseconds, chosen, monkeypatch):
    found, said = choose(graphs, "auto", milliseconds, monkeypatch)
    assert found == chosen
    old, new = (f"{value:.2f} ms" for value in milliseconds)
    assert said == [
        f"export.opset auto chose {chosen}: one text of 16 tokens takes {old} with 20, {new} with 23 (int8, one thread)"
    ]


def test_a_number_is_not_measured(graphs, monkeypatch):
    assert choose(graphs, 23, (), monkeypatch) == (23, [])


def test_the_files_are_really_timed(graphs):
    graph = graph_of_opset("auto", graphs.__getitem__, form_named("fp32"), "int8", 16, seconds=0.1)
    assert opset_of(graph) in CANDIDATES


def test_the_recipe_takes_a_number_or_auto():
    task = {
        "name": "classification",
        "source": "files",
        "path": "{language}.{split}.tsv",
        "languages": ["de"],
    }
    for opset in ("auto", 18, 25):
        assert recipe_of({"name": "x", "task": task, "export": {"opset": opset}}, {}).export.opset == opset


@pytest.mark.slow
def test_a_run_chooses_and_its_report_card_and_file_agree(tmp_path, monkeypatch):
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    recipe = {
        **BASE,
        **RUNS["cosine"],
        "name": "auto",
        "model": {"name": "model"},
        "export": {"opset": "auto"},
    }
    report = xlmprune.compress(recipe, "auto", device="cpu")
    bundle = tmp_path / "auto" / "bundle"
    assert report["opset"] == opset_of(onnx.load(bundle / "model.int8.onnx")) in CANDIDATES
    assert f"have opset {report['opset']}" in (bundle / "README.md").read_text(encoding="utf-8")
    assert json.loads((bundle / "report.json").read_text(encoding="utf-8"))["opset"] == report["opset"]
    assert yaml.safe_load((tmp_path / "auto" / "recipe.yaml").read_text())["export"]["opset"] == "auto"
