import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import traced
from tiny import tiny_graph, tiny_masks, tiny_model

from xlmprune.core.errors import BundleError
from xlmprune.export import graph as exporter
from xlmprune.export.form import form_named
from xlmprune.export.graph import lowest_ir_version
from xlmprune.export.runtime import OLDEST_RUNTIME, onnx_files

pytestmark = pytest.mark.usefixtures("traced_anew")


def batch(rows, length, seed=0):
    """Random ids, every row padded to another length."""
    random = np.random.default_rng(seed)
    ids = random.integers(4, 200, (rows, length))
    for row in range(rows):
        ids[row, length - row % length :] = 1
    return {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64)}


def torch_logits(model, feed):
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in feed.items()}).logits.numpy()


@pytest.fixture(scope="module")
def exported(traced_anew):
    model = tiny_model()
    tiny_masks(model)
    proto = exporter.export_onnx(model)
    onnx.helper.set_model_props(proto, {"task": "xnli"})
    return model, proto


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 7), (3, 12), (16, 64)])
def test_every_batch_and_length_gives_the_logits_of_pytorch(exported, rows, length):
    model, proto = exported
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    feed = batch(rows, length)
    found = session.run(["logits"], feed)[0]
    assert found.shape == (rows, 3)
    assert np.abs(found - torch_logits(model, feed)).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
def test_token_tasks_and_other_opsets(tmp_path, opset):
    model = tiny_model("tokens", labels=[f"T{i}" for i in range(7)], layers=1)
    proto = exporter.export_onnx(model, tmp_path / "model.onnx", opset=opset)
    assert [entry.version for entry in proto.opset_import if entry.domain == ""] == [opset]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    feed = batch(3, 9)
    found = session.run(["logits"], feed)[0]
    assert found.shape == (3, 9, 7)
    assert np.abs(found - torch_logits(model, feed)).max() < 1e-5
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


def test_what_a_row_is_padded_to_does_not_matter(exported):
    _, proto = exported
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    ids = np.array([[0, 9, 17, 30, 2]])
    longer = np.concatenate([ids, np.ones((1, 20), dtype=np.int64)], axis=1)
    alone = session.run(None, {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64)})[0]
    padded = session.run(None, {"input_ids": longer, "attention_mask": (longer != 1).astype(np.int64)})[0]
    assert np.abs(alone - padded).max() < 1e-5


def test_matrices_carry_the_names_of_their_parameters(exported):
    model, proto = exported
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for name, module in model.named_modules():
        if name.startswith("roberta.encoder") and isinstance(module, torch.nn.Linear):
            assert np.array_equal(found[f"{name}.weight.T"].T, module.weight.detach().numpy())


def test_the_file_speaks_of_the_model_and_not_of_the_machine(exported):
    _, proto = exported
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    assert session.get_modelmeta().custom_metadata_map == {"task": "xnli"}
    assert not proto.graph.value_info
    text = proto.SerializeToString()
    for trace in (b"/home", b"/tmp", b"site-packages", b".py", str(exporter.__file__).encode()[:6]):
        assert trace not in text
    inputs = {
        value.name: [d.dim_param for d in value.type.tensor_type.shape.dim] for value in proto.graph.input
    }
    assert inputs == {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"]}


@pytest.mark.slow
def test_two_exports_are_the_same_bytes_and_say_nothing(exported, capfd):
    model, proto = exported
    again = exporter.export_onnx(model)
    onnx.helper.set_model_props(again, {"task": "xnli"})
    assert again.SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_trace_that_other_tests_share_gives_the_same_bytes(monkeypatch):
    model, other = tiny_model(layers=1), tiny_model(layers=1)
    for made, seed in ((model, 1), (other, 2)):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_(generator=generator)
    traced_anew = exporter.export_onnx(model)
    monkeypatch.setattr(torch.onnx, "export", traced.export)
    exporter.export_onnx(other)
    monkeypatch.setattr(traced, "EXPORT", None)
    shared = exporter.export_onnx(model)
    assert shared.SerializeToString(deterministic=True) == traced_anew.SerializeToString(deterministic=True)


def test_a_large_model_has_its_weights_beside_it(tmp_path, exported):
    model, proto = exported
    before = proto.SerializeToString(deterministic=True)
    files = exporter.save_onnx(proto, tmp_path / "model.onnx", external_above=1000)
    assert [file.name for file in files] == ["model.onnx", "model.onnx.data"]
    assert files == onnx_files(tmp_path / "model.onnx")
    assert proto.SerializeToString(deterministic=True) == before
    assert files[0].stat().st_size < len(before) / 2
    session = onnxruntime.InferenceSession(files[0])
    feed = batch(2, 5)
    assert np.abs(session.run(None, feed)[0] - torch_logits(model, feed)).max() < 1e-5
    onnx.checker.check_model(files[0])
    again = exporter.load_onnx(files[0])
    for one, other in zip(proto.graph.initializer, again.graph.initializer, strict=True):
        assert np.array_equal(onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other))
    files[1].unlink()
    with pytest.raises(BundleError, match="missing"):
        exporter.load_onnx(files[0])
    exporter.save_onnx(proto, tmp_path / "model.onnx")
    assert onnx_files(tmp_path / "model.onnx") == [tmp_path / "model.onnx"]


def test_what_cannot_be_exported_or_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match="training mode"):
        exporter.export_onnx(tiny_model().train())
    with pytest.raises(ValueError, match="fp32"):
        exporter.export_onnx(tiny_model().half())
    (tmp_path / "m.onnx").write_bytes(b"not a graph at all")
    with pytest.raises(BundleError, match="not an ONNX file"):
        exporter.load_onnx(tmp_path / "m.onnx")
    with pytest.raises(BundleError, match="missing"):
        exporter.load_onnx(tmp_path / "none.onnx")


@pytest.mark.slow
def test_equal_weights_count_each_though_the_graph_holds_one():
    model = tiny_model()
    with torch.no_grad():
        for layer in model.roberta.encoder.layer:
            layer.output.dense.weight.zero_()
    graph = exporter.export_onnx(model)
    merged = form_named("fp32").merged_bytes(model, graph)
    assert merged
    counted = exporter.weight_bytes(graph) + merged
    dense = sum(4 * parameter.numel() for parameter in model.parameters())
    assert dense <= counted < dense + 1000


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "ir_version"), [(18, 8), (20, 9), (21, 10), (23, 11)])
def test_the_format_is_no_newer_than_the_operators_need(opset, ir_version):
    """Runtimes refuse a file of a newer format even where they have every operator of it."""
    graph = tiny_graph()
    graph.opset_import[0].version = opset
    assert lowest_ir_version(graph) == ir_version
    assert opset in OLDEST_RUNTIME


@pytest.mark.slow
def test_the_exported_file_has_that_format():
    graph = tiny_graph()
    assert (graph.opset_import[0].version, graph.ir_version) == (20, 9)
