import os

import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tiny import tiny_graph

from xlmprune.core.errors import RecipeError
from xlmprune.export import graph, triton

LABELS = ("entailment", "neutral", "contradiction")


def model_config():
    """The part of Triton's ModelConfig (model_config.proto) that we write; an unknown field does not parse."""
    file = descriptor_pb2.FileDescriptorProto(name="triton.proto", package="inference", syntax="proto3")
    kind = descriptor_pb2.FieldDescriptorProto
    dtype = file.enum_type.add(name="DataType")
    for number, name in enumerate(["TYPE_INVALID", "TYPE_BOOL", "TYPE_INT64", "TYPE_FP32"]):
        dtype.value.add(name=name, number=number)

    def message(name, *fields):
        added = file.message_type.add(name=name)
        for number, (field, field_type, label, of) in enumerate(fields, 1):
            added.field.add(
                name=field, number=number, type=field_type, label=label, type_name=of and f".inference.{of}"
            )

    one, many = kind.LABEL_OPTIONAL, kind.LABEL_REPEATED
    tensor = [
        ("name", kind.TYPE_STRING, one, None),
        ("data_type", kind.TYPE_ENUM, one, "DataType"),
        ("dims", kind.TYPE_INT64, many, None),
    ]
    message("ModelInput", *tensor)
    message("ModelOutput", *tensor, ("label_filename", kind.TYPE_STRING, one, None))
    message("Batching", ("max_queue_delay_microseconds", kind.TYPE_UINT64, one, None))
    message(
        "ModelConfig",
        ("name", kind.TYPE_STRING, one, None),
        ("backend", kind.TYPE_STRING, one, None),
        ("max_batch_size", kind.TYPE_INT32, one, None),
        ("input", kind.TYPE_MESSAGE, many, "ModelInput"),
        ("output", kind.TYPE_MESSAGE, many, "ModelOutput"),
        ("dynamic_batching", kind.TYPE_MESSAGE, one, "Batching"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()


@pytest.mark.parametrize(("kind", "dims"), [("text", [3]), ("pair", [3]), ("tokens", [-1, 3])])
def test_the_repository_is_what_triton_reads(tmp_path, kind, dims):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    written = triton.write_triton(tmp_path / "triton", "xnli_cosine", tmp_path / "model.onnx", LABELS, kind)
    folder = tmp_path / "triton" / "xnli_cosine"
    assert all(path.is_file() for path in written)
    assert (folder / "1" / "model.onnx").read_bytes() == b"graph"
    text = (folder / "config.pbtxt").read_text()
    assert text.startswith("# 1/model.onnx is model.onnx of the bundle.\n")
    config = text_format.Parse(text, model_config())
    assert (config.name, config.backend) == ("xnli_cosine", "onnxruntime")
    assert config.max_batch_size > 1
    assert [(entry.name, entry.data_type, list(entry.dims)) for entry in config.input] == [
        ("input_ids", 2, [-1]),
        ("attention_mask", 2, [-1]),
    ]
    assert [(entry.name, entry.data_type, list(entry.dims)) for entry in config.output] == [
        ("logits", 3, dims)
    ]
    assert config.HasField("dynamic_batching")
    labels = folder / "labels.txt"
    assert labels.exists() == (kind != "tokens") == bool(config.output[0].label_filename)
    if labels.exists():
        assert labels.read_text().split() == list(LABELS)


def test_the_model_is_linked_and_otherwise_copied(tmp_path, monkeypatch):
    model, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    model.write_bytes(b"graph")
    data.write_bytes(b"weights")
    for _ in range(2):  # writing again replaces
        triton.write_triton(tmp_path / "linked", "m", model, LABELS, "text")
    version = tmp_path / "linked" / "m" / "1"
    assert (version / "model.onnx").samefile(model)
    assert (version / "model.onnx.data").read_bytes() == b"weights"
    assert data.stat().st_nlink == 1

    def refuse(*_):
        raise OSError(18, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    triton.write_triton(tmp_path / "copied", "m", model, LABELS, "text")
    version = tmp_path / "copied" / "m" / "1"
    assert not (version / "model.onnx").samefile(model)
    assert (version / "model.onnx.data").read_bytes() == b"weights"


def test_the_onnx_package_reads_a_model_above_2_gb_beside_its_repository(tmp_path):
    """It refuses external data with several hard links, in its loader and in its checker."""
    graph.save_onnx(tiny_graph(), tmp_path / "model.onnx", external_above=1000)
    triton.write_triton(tmp_path / "triton", "m", tmp_path / "model.onnx", LABELS, "text")
    for file in (tmp_path / "model.onnx", tmp_path / "triton" / "m" / "1" / "model.onnx"):
        assert graph.load_onnx(file).graph.initializer
        onnx.checker.check_model(str(file))


def test_a_name_triton_cannot_serve_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="a/b"):
        triton.write_triton(tmp_path, "a/b", tmp_path / "model.onnx", LABELS, "text")
