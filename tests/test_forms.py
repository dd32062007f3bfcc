"""Every form that a run ships or unpacks, opened as a server opens it: with onnxruntime, tokenizers and numpy alone."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tiny import SENTENCES, tiny_model, tiny_tokenizer
from tiny_run import report_of, write_data, write_recipe
from typer.testing import CliRunner

from xlmprune.bundle.verify import verify
from xlmprune.cli import app
from xlmprune.export.form import all_forms, form_named, form_to_serve
from xlmprune.export.fp16 import HALF, halve
from xlmprune.export.runtime import open_session
from xlmprune.models.loading import save_tokenizer

PACKAGE = Path(__file__).parents[1] / "xlmprune"

SERVER = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"xlmprune", "torch", "transformers", "onnx", "safetensors", "datasets", "huggingface_hub"}:
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

bundle, file, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
labels = json.load(open(bundle + "/config.json", encoding="utf-8"))["id2label"]
tokenizer = Tokenizer.from_file(bundle + "/tokenizer.json")
tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
session = onnxruntime.InferenceSession(file)
rows = tokenizer.encode_batch(texts)
ids = np.array([row.ids for row in rows], dtype=np.int64)
mask = np.array([row.attention_mask for row in rows], dtype=np.int64)
(logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
print(json.dumps([labels[str(row.argmax())] for row in logits]))
"""

LAYOUTS = {
    "packed": {"onnx_layout": "packed", "embeddings": "int8", "onnx": ["fp32", "fp16", "int8"]},
    "dense": {"onnx_layout": "dense", "embeddings": "int8", "onnx": ["fp32", "fp16", "int8"]},
    "four bits": {"onnx_layout": "packed", "embeddings": "int4", "onnx": ["fp32", "int8"]},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run for every layout, and its unpacked bundle."""
    folder = tmp_path_factory.mktemp("forms")
    tiny_model(labels=("a", "b"), hidden=32).roberta.save_pretrained(folder / "model")
    save_tokenizer(tiny_tokenizer(), folder / "model", 64)
    write_data(folder / "data")
    found = {}
    for layout, export in LAYOUTS.items():
        recipe = write_recipe(folder, name="forms", export=export)
        out = folder / layout.replace(" ", "-")
        result = CliRunner().invoke(
            app, ["compress", str(recipe), "--out", str(out), "--set", "training.regularize_dense=true"]
        )
        assert result.exit_code == 0, result.output
        result = CliRunner().invoke(app, ["unpack", str(out / "bundle"), "--out", str(out / "plain")])
        assert result.exit_code == 0, result.output
        found[layout] = out
    return found


@pytest.mark.slow
@pytest.mark.parametrize("place", ["bundle", "plain"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_form_opens_with_onnxruntime_tokenizers_and_numpy(runs, layout, place):
    folder = runs[layout] / place
    texts = [text for sentences in SENTENCES.values() for text in sentences]
    forms = sorted(folder.rglob("*.onnx"))
    assert {file.name for file in folder.glob("*.onnx")} == {
        form_named(name).file for name in LAYOUTS[layout]["onnx"]
    }
    assert place == "plain" or folder / "triton" / "forms" / "1" / "model.onnx" in forms
    for file in forms:
        form = next((name for name in ("int8", "fp16") if name in file.name), "fp32")
        if "triton" in file.parts:
            form = form_to_serve(LAYOUTS[layout]["onnx"])
        asked = CliRunner().invoke(app, ["predict", str(runs[layout] / "bundle"), "--form", form, *texts])
        expected = [json.loads(line)["label"] for line in asked.stdout.splitlines()]
        command = [sys.executable, "-c", SERVER, str(folder), str(file), json.dumps(texts)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        # One batch here, several by length there: INT8 has one scale for a batch, and a near tie may fall either way.
        same = sum(a == b for a, b in zip(found, expected, strict=True))
        assert same == len(texts) if form != "int8" else same >= len(texts) - 2, file
        assert len(set(found)) > 1


@pytest.mark.slow
def test_half_precision_goes_all_the_way(runs):
    """Recipe, parity, report, card, verify, bench and evaluate know the form from its file and its line alone."""
    for out in (runs["packed"], runs["dense"]):
        bundle, report = out / "bundle", report_of(out)
        assert report["parity"]["onnx_fp16"]["relative_diff"] < form_named("fp16").parity.difference
        assert report["dense_bytes"]["onnx_fp16"] < 0.6 * report["dense_bytes"]["onnx_fp32"]
        assert report["summary"]["zero_shot_mean"].keys() >= {
            *("dense", "pruned", "onnx_fp32", "onnx_fp16", "onnx_int8")
        }
        assert report["speed"].keys() == {"model.onnx", "model.fp16.onnx", "model.int8.onnx"}
        assert report["files"]["model.fp16.onnx"]["bytes"] < 0.7 * report["files"]["model.onnx"]["bytes"]
        for page in ("report.md", "report.html"):
            assert "ONNX fp16" in (bundle / page).read_text(encoding="utf-8")
        checks = {check.name: check for check in verify(bundle, threads=1)}
        assert checks["model.fp16.onnx: golden logits"].passed
    data = runs["packed"].parent / "data" / "{language}.{split}.tsv"
    command = [
        "evaluate",
        str(runs["packed"] / "bundle"),
        "--form",
        "fp16",
        "--set",
        f"task.path='{data}'",
        "--json",
    ]
    asked = CliRunner().invoke(app, command)
    assert asked.exit_code == 0, asked.output
    scores = {language: row["score"] for language, row in json.loads(asked.stdout)["languages"].items()}
    assert scores == {
        language: row["onnx_fp16"] for language, row in report_of(runs["packed"])["languages"].items()
    }
    command = [
        "bench",
        str(runs["packed"] / "bundle"),
        *["--batches", "1", "--lengths", "8", "--seconds", "0.1"],
        "--json",
    ]
    asked = CliRunner().invoke(app, command)
    assert json.loads(asked.stdout)["files"].keys() - {"fp32 dense"} == {"fp32", "fp16", "int8"}
    asked = CliRunner().invoke(app, [*command, "--runtime", "openvino"])
    measured = json.loads(asked.stdout)["files"]
    assert {form for form in measured if measured[form]["runtime"] == "openvino"} == {
        "fp32, OpenVINO",
        "fp16, OpenVINO",
        "int8, OpenVINO",
    }
    for wrong in (["--runtime", "tensorrt"], ["--runtime", "openvino", "--latency-table", "x.json"]):
        assert CliRunner().invoke(app, [*command, *wrong]).exit_code == 2


@pytest.mark.slow
def test_the_runtime_restores_half_precision_once(runs):
    path = runs["packed"] / "bundle" / "model.fp16.onnx"
    session = open_session(path, profile=runs["packed"] / "profile")
    ids = np.array([[0, 5, 6, 2]])
    session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    ran = {event["name"] for event in events if event.get("cat") == "Node"}
    stored = [
        tensor.name for tensor in onnx.load(runs["dense"] / "bundle" / "model.fp16.onnx").graph.initializer
    ]
    halves = [name.removesuffix(HALF) for name in stored if name.endswith(HALF)]
    assert len(halves) > 10
    assert not any(f"{name}/cast" in node for node in ran for name in halves)


def test_half_precision_changes_values_as_little_as_its_module_says():
    """Relative above 6.1e-5, where numbers have eleven bits; absolute below."""
    random = np.random.default_rng(0)
    values = (random.uniform(1, 2, (64, 64)) * 2.0 ** random.integers(-30, 15, (64, 64))).astype(np.float32)
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(values, "w")])
    (stored,) = halve(helper.make_model(graph)).graph.initializer
    change = np.abs(numpy_helper.to_array(stored).astype(np.float64) - values)
    normal = values >= 6.1036e-5
    assert (change[normal] <= 0.0005 * values[normal]).all()
    assert (change[~normal] <= 3.0e-8).all()
    assert (change[~normal] > 0.5 * values[~normal]).any()


def test_values_that_do_not_fit_half_precision_stay():
    large = np.full((32, 64), 70000.0, np.float32)
    tensors = {"large": large, "small": large / 70000, "vector": large[0] / 70000}
    graph = helper.make_graph(
        [], "g", [], [], [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    )
    halved = halve(helper.make_model(graph))
    found = {tensor.name: numpy_helper.to_array(tensor).dtype for tensor in halved.graph.initializer}
    assert found == {"large": np.float32, "small" + HALF: np.float16, "vector": np.float32}


# `training.precision` and `export.embeddings` have values that happen to be spelt like forms.
ALLOWED = {("core", "fp32"), ("recipe", "fp32"), ("training", "fp32"), ("recipe", "int8")}


def test_forms_are_named_only_where_they_live():
    """A form is one file and one line: nothing else in the package knows a form by its name, key, file or title."""
    words = {word for form in all_forms().values() for word in (form.name, form.key, form.file, form.title)}
    found = set()
    for file in PACKAGE.rglob("*.py"):
        name = file.relative_to(PACKAGE).as_posix()
        if not name.startswith("export/") and name != "recipe/registry.py":
            strings = {
                node.value
                for node in ast.walk(ast.parse(file.read_text("utf-8")))
                if type(node) is ast.Constant
            }
            found |= {(name.partition("/")[0], word) for word in words & strings}
    for file in PACKAGE.rglob("*.j2"):
        text = file.read_text(encoding="utf-8")
        found |= {(file.name, word) for word in words if re.search(rf"(?<![/\w]){re.escape(word)}\b", text)}
    assert found <= ALLOWED


@pytest.mark.slow
def test_the_way_to_quantise_is_chosen_on_dev_and_unlabelled_text(runs):
    for layout, out in runs.items():
        facts = report_of(out)["quantization"]
        assert facts["form"] == "INT8"
        assert facts["reference"]["agreement"] == 100
        assert facts["chosen"] in [entry["name"] for entry in facts["tried"]], layout
        assert set(facts["tried"][0]) == {"name", "bytes", "dev", "agreement"}
        assert "How INT8 was chosen" in (out / "bundle" / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_four_bit_embeddings_are_in_the_file_and_in_the_report(runs):
    def word_embeddings(out: Path) -> set[str]:
        proto = onnx.load(out / "plain" / "model.int8.onnx")
        return {tensor.name for tensor in proto.graph.initializer if "word_embeddings" in tensor.name}

    assert any(name.endswith("/int4") for name in word_embeddings(runs["four bits"]))
    assert not any(name.endswith("/int4") for name in word_embeddings(runs["packed"]))
    tried = {layout: report_of(out)["quantization"]["tried"][0]["bytes"] for layout, out in runs.items()}
    assert tried["four bits"] < tried["packed"] == tried["dense"]
