"""Every form that a run ships or unpacks, opened as a server opens it: with onnxruntime, tokenizers and numpy alone."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from test_pipeline import report_of, write_data, write_recipe
from tiny import SENTENCES, tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.models.loading import save_tokenizer

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
    "packed": {"onnx_layout": "packed", "embeddings": "int8"},
    "dense": {"onnx_layout": "dense", "embeddings": "int8"},
    "four bits": {"onnx_layout": "packed", "embeddings": "int4"},
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
        recipe = write_recipe(folder, name="forms", export={"onnx": ["fp32", "int8"], **export})
        out = folder / layout.replace(" ", "-")
        result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(out)])
        assert result.exit_code == 0, result.output
        result = CliRunner().invoke(app, ["unpack", str(out / "bundle"), "--out", str(out / "plain")])
        assert result.exit_code == 0, result.output
        found[layout] = out
    return found


@pytest.mark.parametrize("place", ["bundle", "plain"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_form_opens_with_onnxruntime_tokenizers_and_numpy(runs, layout, place):
    folder = runs[layout] / place
    texts = [text for sentences in SENTENCES.values() for text in sentences]
    forms = sorted(folder.rglob("*.onnx"))
    assert {"model.onnx", "model.int8.onnx"} <= {file.name for file in forms}
    assert place == "plain" or folder / "triton" / "forms" / "1" / "model.onnx" in forms
    for file in forms:
        form = "int8" if "int8" in file.name else "fp32"
        asked = CliRunner().invoke(app, ["predict", str(runs[layout] / "bundle"), "--form", form, *texts])
        expected = [json.loads(line)["label"] for line in asked.stdout.splitlines()]
        command = [sys.executable, "-c", SERVER, str(folder), str(file), json.dumps(texts)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        # One batch here, several by length there: INT8 has one scale for a batch, and a near tie may fall either way.
        same = sum(a == b for a, b in zip(found, expected, strict=True))
        assert same == len(texts) if form == "fp32" else same >= len(texts) - 2, file
        assert len(set(found)) > 1


def test_the_way_to_quantise_is_chosen_on_dev_and_unlabelled_text(runs):
    for layout, out in runs.items():
        facts = report_of(out)["quantization"]
        assert facts["reference"]["agreement"] == 100
        assert facts["chosen"] in [entry["name"] for entry in facts["tried"]], layout
        assert set(facts["tried"][0]) == {"name", "bytes", "dev", "agreement"}
        assert "How INT8 was chosen" in (out / "bundle" / "report.md").read_text(encoding="utf-8")


def test_four_bit_embeddings_are_in_the_file_and_in_the_report(runs):
    def word_embeddings(out: Path) -> set[str]:
        proto = onnx.load(out / "plain" / "model.int8.onnx")
        return {tensor.name for tensor in proto.graph.initializer if "word_embeddings" in tensor.name}

    assert any(name.endswith("/int4") for name in word_embeddings(runs["four bits"]))
    assert not any(name.endswith("/int4") for name in word_embeddings(runs["packed"]))
    tried = {layout: report_of(out)["quantization"]["tried"][0]["bytes"] for layout, out in runs.items()}
    assert tried["four bits"] < tried["packed"] == tried["dense"]
