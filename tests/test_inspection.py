import io
import json
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from tiny import tiny_bundle, tiny_graph, tiny_masks, tiny_model
from typer.testing import CliRunner

from xlmprune.bundle import inspect as inspection
from xlmprune.cli import app
from xlmprune.core.errors import BundleError
from xlmprune.export import graph as onnx_export
from xlmprune.export import sparse
from xlmprune.export.graph import parameter_of
from xlmprune.export.packing import pack
from xlmprune.export.quantization import quantize
from xlmprune.pruning.masks import pack_bits

QUERY = "roberta.encoder.layer.1.attention.self.query.weight"


@pytest.fixture(scope="module")
def model():
    model = tiny_model()
    return model, tiny_masks(model)


def check(facts, model, masks):
    """What a file says of the model, against the model."""
    parameters = dict(model.named_parameters())
    kept, total = (
        sum(int(mask.sum()) for mask in masks.values()),
        sum(mask.numel() for mask in masks.values()),
    )
    assert facts["prunable"] == total == 4096
    assert facts["parameters"] == sum(parameter.numel() for parameter in parameters.values())
    assert facts["encoder_density"] == pytest.approx(kept / total)
    assert facts["model_density"] == pytest.approx(1 - (total - kept) / facts["parameters"])
    assert sum(facts["bytes_by_part"].values()) == facts["bytes"]
    rows = {row["name"]: row for row in facts["matrices"]}
    assert rows.keys() == masks.keys()
    for name, mask in masks.items():
        assert rows[name]["shape"] == list(mask.shape)
        assert rows[name]["density"] == pytest.approx(mask.float().mean().item())
        assert rows[name]["norm"] == pytest.approx(parameters[name].norm().item(), rel=1e-5)
    assert [row["layer"] for row in facts["layers"]] == [0, 1]
    assert {row["module"] for row in facts["modules"]} == {
        *("attention.self.query", "attention.self.key", "attention.self.value"),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    }
    for key in ("layers", "modules"):
        assert sum(row["bytes"] for row in facts[key]) == sum(row["bytes"] for row in facts["matrices"])
        assert sum(row["norm"] ** 2 for row in facts[key]) == pytest.approx(
            sum(parameters[name].norm().item() ** 2 for name in masks)
        )


def test_safetensors_sparse_and_dense(model, tmp_path):
    model, masks = model
    sparse.save_sparse(model, masks, tmp_path / "sparse.safetensors")
    sparse.save_dense(model, tmp_path / "dense.safetensors")
    for name in ("sparse", "dense"):
        facts = inspection.inspect(tmp_path / f"{name}.safetensors")
        assert (facts["what"], facts["path"]) == ("safetensors", f"{name}.safetensors")
        check(facts, model, masks)
        assert facts["bytes"] == (tmp_path / f"{name}.safetensors").stat().st_size
        assert facts["bytes_by_part"]["embeddings"] == 4 * sum(
            parameter.numel() for key, parameter in model.named_parameters() if "embeddings" in key
        )


def test_half_precision(model, tmp_path):
    halved, masks = tiny_model(), None
    masks = tiny_masks(halved)
    halved.to(torch.bfloat16)
    sparse.save_sparse(halved, masks, tmp_path / "m.safetensors")
    rows = {row["name"]: row for row in inspection.inspect(tmp_path / "m.safetensors")["matrices"]}
    expected = halved.get_parameter(QUERY).float().norm().item()
    assert rows[QUERY]["norm"] == pytest.approx(expected, rel=1e-5)


def test_a_model_folder_and_one_in_shards(model, tmp_path, capfd):
    model, masks = model
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert (tmp_path / "many" / "model.safetensors.index.json").is_file()
    for name in ("one", "many"):
        facts = inspection.inspect(tmp_path / name)
        assert facts["what"] == "model"
        check(facts, model, masks)


def test_a_checkpoint_counts_what_its_masks_say(model, tmp_path):
    model, masks = model
    for number, density in ((1, 0.9), (2, None)):
        folder = tmp_path / "run" / "checkpoint" / f"saved-{number:06d}"
        folder.mkdir(parents=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
            folder / "model.safetensors",
        )
        packed = {name: pack_bits(torch.ones_like(mask) if density else mask) for name, mask in masks.items()}
        save_file(packed, folder / "masks.safetensors")
    (tmp_path / "run" / "recipe.yaml").write_text("name: x")
    for place in (tmp_path / "run", tmp_path / "run" / "checkpoint", folder):
        facts = inspection.inspect(place)
        assert facts["what"] == "checkpoint"
        check(facts, model, masks)
    dense = inspection.inspect(tmp_path / "run" / "checkpoint" / "saved-000001")
    assert dense["encoder_density"] == 1.0


def test_a_graph(model, tmp_path):
    model, masks = model
    onnx_export.save_onnx(tiny_graph(), tmp_path / "model.onnx", external_above=1000)
    facts = inspection.inspect(tmp_path / "model.onnx")
    rows = {row["name"]: row for row in facts["matrices"]}
    assert rows.keys() == masks.keys()
    for name, mask in masks.items():
        assert rows[name]["shape"] == list(mask.shape)
        assert rows[name]["density"] == pytest.approx(mask.float().mean().item())
        assert rows[name]["norm"] == pytest.approx(model.get_parameter(name).norm().item(), rel=1e-5)
        assert rows[name]["bytes"] == 4 * mask.numel()
    assert facts["bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert facts["bytes_by_part"]["head"] >= 4 * 16 * 19


def test_a_packed_graph_says_the_same_in_fewer_bytes(tmp_path):
    graph = tiny_graph()
    onnx_export.save_onnx(graph, tmp_path / "dense.onnx")
    onnx_export.save_onnx(pack(graph, smallest=1), tmp_path / "packed.onnx")
    dense, packed = (inspection.inspect(tmp_path / f"{name}.onnx") for name in ("dense", "packed"))
    for one, other in zip(dense["matrices"], packed["matrices"], strict=True):
        assert {**one, "bytes": 0} == {**other, "bytes": 0}
        assert other["bytes"] < one["bytes"]
    assert packed["bytes_by_part"]["embeddings"] <= dense["bytes_by_part"]["embeddings"]


@pytest.mark.slow
def test_word_embeddings_in_four_bits_count_and_weigh_what_they_stand_for(tmp_path):
    model = tiny_model(hidden=32)
    dense = onnx_export.export_onnx(model)
    onnx_export.save_onnx(dense, tmp_path / "dense.onnx")
    onnx_export.save_onnx(quantize(dense, embeddings="int4"), tmp_path / "int4.onnx")
    one, other = (
        {entry.name: entry for entry in inspection._read_onnx(tmp_path / f"{name}.onnx")}
        for name in ("dense", "int4")
    )
    table = "roberta.embeddings.word_embeddings.weight"
    assert other[table].shape == one[table].shape == model.get_parameter(table).shape
    assert other[table].norm == pytest.approx(one[table].norm, rel=0.02)
    assert other[table].bytes < one[table].bytes / 6
    facts = [inspection.inspect(tmp_path / f"{name}.onnx") for name in ("dense", "int4")]
    assert facts[0]["parameters"] == facts[1]["parameters"]


def test_a_bundle_and_its_table(model, tmp_path):
    folder = tiny_bundle(tmp_path / "bundle")
    facts = inspection.inspect(folder)
    check(facts, *model)
    assert facts["what"] == "bundle"
    assert facts["files"].keys() == {"model.onnx"}
    assert facts["files"]["model.onnx"]["encoder_density"] == pytest.approx(facts["encoder_density"])
    json.dumps(facts, allow_nan=False)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(inspection.render(facts))
    text = console.export_text()
    for word in (
        "encoder density 3",
        "attention.self.query",
        "model.safetensors",
        "model.onnx",
        "embeddings",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        (f"{QUERY}.T", QUERY),
        (f"{QUERY}.T_quantized", QUERY),
        (f"xlmprune.packed/{QUERY}.T/values", QUERY),
        ("xlmprune.packed/shape/16x16", None),
        ("roberta.embeddings.LayerNorm.bias", "roberta.embeddings.LayerNorm.bias"),
        ("classifier.bias", "classifier.bias"),
        ("classifier.out_proj.weight_scale", "classifier.out_proj.weight"),
        ("val_12", None),
    ],
)
def test_the_parameter_an_initializer_belongs_to(name, parameter):
    assert parameter_of(name) == parameter


def test_a_norm_counts_scales():
    values = np.array([[1, -2], [3, 0]], dtype=np.int8)
    assert inspection._norm(values, np.array(0.5)) == pytest.approx(0.5 * 14**0.5)
    assert inspection._norm(values, np.array([1.0, 2.0])) == pytest.approx((1 + 16 + 9) ** 0.5)


def test_weights_that_are_no_numbers_are_null_in_json(model, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in model[0].state_dict().items()}
    tensors[QUERY][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "model.safetensors"), "--json"])
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.output)["matrices"]}
    assert rows[QUERY]["norm"] is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is damaged"),
        ("{}", "weight_map"),
        ("[]", "is damaged"),
        ('{"weight_map": {"a": 1}}', "is damaged"),
        ('{"weight_map": {"a": "../other/model.safetensors"}}', "not the name of a file in the same folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "not the name of a file in the same folder"),
    ],
)
def test_a_damaged_index_of_shards_is_said(tmp_path, content, said):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(BundleError, match=said):
        inspection.inspect(tmp_path)


def test_what_cannot_be_inspected_is_said(tmp_path):
    with pytest.raises(BundleError, match="no such file or folder"):
        inspection.inspect(tmp_path / "none")
    with pytest.raises(BundleError, match=r"config\.json is missing"):
        inspection.inspect(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(BundleError, match=r"ends in \.onnx or \.safetensors"):
        inspection.inspect(tmp_path / "weights.bin")
    (tmp_path / "weights.safetensors").write_bytes(b"junk")
    with pytest.raises(BundleError, match="not a safetensors file"):
        inspection.inspect(tmp_path / "weights.safetensors")
    shutil.copy(tmp_path / "weights.bin", tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"not a graph at all")
    with pytest.raises(BundleError, match="not an ONNX file"):
        inspection.inspect(tmp_path / "m.onnx")
