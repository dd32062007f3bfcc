"""Files made to cost much: each is refused with a sentence and exit code 2, before memory or time is spent on it."""

import gzip
import json
import os
import shutil
import time

import onnx
import pytest
from tiny import tiny_bundle
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.export import manifest

SECONDS = 30.0
"""Of the processor; a bundle of some kB takes a fraction of one."""


def refused(*arguments):
    """Run a command that must end with exit code 2, and return what it said."""
    started = time.process_time()
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert time.process_time() - started < SECONDS
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("whole") / "bundle")


@pytest.fixture
def bundle(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "bundle")


def set_config(bundle, **changes):
    path = bundle / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 100_000}, "num_hidden_layers: 100000; expected a whole number from 1 to 512"),
        ({"num_hidden_layers": 400}, "num_hidden_layers is 400, and model.safetensors holds"),
        ({"hidden_size": 10**9}, "hidden_size: 1000000000"),
        ({"hidden_size": 1e9}, "hidden_size: 1000000000.0"),
        ({"num_labels": 10**9}, "num_labels: 1000000000"),
        ({"pad_token_id": None}, "pad_token_id: null; expected a token's id"),
        ({"max_position_embeddings": -5}, "max_position_embeddings: -5"),
        ({"vocab_size": int("9" * 4000)}, "vocab_size: a number of many digits"),
        ({"architectures": "XLMRobertaForSequenceClassification"}, "architecture None found"),
    ],
)
def test_a_configuration_of_no_model(bundle, tmp_path, changes, said):
    set_config(bundle, **changes)
    manifest.write(bundle, {}, "0" * 64)
    assert said in refused("unpack", bundle, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "report.json"])
@pytest.mark.parametrize(
    "text",
    ["[" * 100_000 + "]" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": 1, "a": 2}', "[]", ""],
    ids=["deep", "digits", "twice", "list", "empty"],
)
def test_json_that_readers_stumble_over(bundle, name, text):
    (bundle / name).write_text(text)
    if name != "manifest.json":
        manifest.write(bundle, {}, "0" * 64)
    assert f"{name}" in refused("evaluate", bundle)
    if name != "report.json":
        assert f"{name} is damaged" in refused("predict", bundle, "text")
        assert f"{name} is damaged" in refused("inspect", bundle)


@pytest.mark.parametrize("recipe", ["x", [], {}, None, {"task": "x"}, 10**9])
def test_a_report_without_a_task(bundle, recipe):
    (bundle / "report.json").write_text(json.dumps({"recipe": recipe}))
    manifest.write(bundle, {}, "0" * 64)
    assert "`recipe` has no `task`" in refused("evaluate", bundle)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda matrix: matrix.update(shape=[100_000, 100_000]), "which no pruned model does"),
        (lambda matrix: matrix.update(shape=[-16, -16]), "description of its pruned matrices is damaged"),
        (lambda matrix: matrix.update(shape=[10**4000, 1]), "description of its pruned matrices is damaged"),
        (lambda matrix: matrix.update(kept=-1), "description of its pruned matrices is damaged"),
    ],
)
def test_a_small_file_that_claims_a_large_matrix(bundle, tmp_path, change, said):
    path = bundle / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["xlmprune"])
    change(facts["matrices"]["roberta.encoder.layer.0.output.dense.weight"])
    header["__metadata__"]["xlmprune"] = json.dumps(facts)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    manifest.write(bundle, {}, "0" * 64)
    assert said in refused("unpack", bundle, "--out", tmp_path / "out")
    assert said in refused("inspect", bundle)


@pytest.mark.parametrize("length", [2**40, 2**63])
def test_a_header_that_claims_to_be_long(bundle, length):
    path = bundle / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert "is cut short" in refused("inspect", bundle, "--no-verify")


@pytest.mark.parametrize(
    ("name", "predicting", "inspecting"),
    [
        ("config.json", "config.json is a pipe", "config.json is a pipe"),
        ("manifest.json", "manifest.json is a pipe", "manifest.json is a pipe"),
        ("tokenizer.json", "tokenizer.json is missing", None),
        ("model.onnx", "has no ONNX file", "model.onnx is a pipe"),
    ],
)
def test_a_pipe_is_not_waited_for(bundle, name, predicting, inspecting):
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    assert predicting in refused("predict", bundle, "text")
    if inspecting:
        assert inspecting in refused("inspect", bundle)


@pytest.mark.parametrize(
    "wrong", [onnx.TensorProto.INT8, onnx.TensorProto.DOUBLE, 99], ids=["int8", "double", "none"]
)
def test_a_tensor_of_another_type_than_its_values(bundle, wrong, tmp_path):
    path = bundle / "model.onnx"
    proto = onnx.load(path)
    tensor = next(
        tensor for tensor in proto.graph.initializer if tensor.name.endswith("word_embeddings.weight")
    )
    tensor.data_type = wrong
    path.write_bytes(proto.SerializeToString())
    manifest.write(bundle, {}, "0" * 64)
    said = "does not hold what its type and shape say"
    assert said in refused("inspect", bundle)
    assert said in refused("unpack", bundle, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda proto: proto.graph.node[3].output[0],
        lambda proto: proto.graph.node[3].op_type,
        lambda proto: proto.graph.output[0].name,
        lambda proto: proto.opset_import[0].domain,
        lambda proto: proto.producer_name,
    ],
    ids=["output of a node", "operator", "output of the graph", "domain", "producer"],
)
def test_a_text_of_a_graph_that_is_not_utf_8(bundle, spoil, tmp_path):
    path = bundle / "model.onnx"
    proto = onnx.load(path)
    if spoil(proto) == "":
        proto.opset_import[0].domain = "ai.onnx"
    text = spoil(proto).encode()
    path.write_bytes(proto.SerializeToString().replace(text, b"\xff" + text[1:]))
    manifest.write(bundle, {}, "0" * 64)
    assert "is not UTF-8" in refused("inspect", bundle)
    assert "is not UTF-8" in refused("unpack", bundle, "--out", tmp_path / "out")


def test_a_tokenizer_whose_template_names_an_unknown_token(bundle):
    path = bundle / "tokenizer.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    assert facts["post_processor"]["special_tokens"]
    facts["post_processor"]["special_tokens"] = {}
    path.write_text(json.dumps(facts), encoding="utf-8")
    manifest.write(bundle, {}, "0" * 64)
    assert "the tokenizer is damaged" in refused("predict", bundle, "text")
    result = CliRunner().invoke(app, ["verify", str(bundle)])
    assert result.exit_code == 3
    assert "the tokenizer is damaged" in " ".join(result.output.split())


def recipe_in(folder, text):
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def test_a_gzipped_file_of_millions_of_rows(tmp_path):
    rows = b"turn on the light\tlight\n" * 2_000_000
    packed = gzip.compress(rows, 1)
    assert len(packed) < 500_000
    for split in ("train", "dev", "test"):
        (tmp_path / f"en.{split}.tsv.gz").write_bytes(packed)
    task = '{name: classification, source: files, path: "{language}.{split}.tsv.gz", languages: [en]}'
    said = refused("compress", recipe_in(tmp_path, f"name: x\ntask: {task}\n"), "--dry-run")
    assert "expand to more than" in said
    assert "gunzip" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 500, "nested more than 20 levels deep"),
        (
            "name: x\ntask: {name: quickstart}\npruning: {schedule: {name: geometric, stages: 100000000}}",
            "stages",
        ),
    ],
)
def test_recipes(tmp_path, text, said):
    assert said in refused("recipes", "validate", recipe_in(tmp_path, text))
