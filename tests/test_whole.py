"""The whole model's graph, with which the time of a smaller one is compared: written here, or in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import onnx
import pytest
import transformers
from test_modernbert import modernbert
from tiny import tiny_model

from xlmprune.core import own_process
from xlmprune.export import whole
from xlmprune.export.graph import opset_of
from xlmprune.export.whole import config_of, model_without_meaning, values_of, write_whole, written_beside


@pytest.fixture
def started(monkeypatch):
    """Every process that `written_beside` starts; tiny models have one too."""
    processes, start = [], subprocess.Popen

    def popen(*given, **named):
        assert named["env"][own_process.END_WITH_STDIN] == "1"
        processes.append(start(*given, **named))
        return processes[-1]

    monkeypatch.setattr(whole.subprocess, "Popen", popen)
    monkeypatch.setattr(whole.machine, "processors", lambda: 2)
    monkeypatch.setattr(whole, "LAYERS", 2)
    return processes


def instead(monkeypatch, code):
    """Start Python code in place of the process."""
    monkeypatch.setattr(own_process, "command", lambda *given: [sys.executable, "-c", code])


def contents(path):
    graph = onnx.load(path).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return shapes, [node.op_type for node in graph.node]


def test_the_process_writes_the_graph_that_would_be_written_here(tmp_path, started):
    config = tiny_model("tokens", labels=("O", "A", "B", "C", "D")).config
    with written_beside(config, "tokens", 23, tmp_path) as file:
        beside = file(23)
        assert [process.returncode for process in started] == [0]
        assert contents(beside) == contents(write_whole(config, "tokens", 23, tmp_path / "here.onnx"))
        assert opset_of(onnx.load(beside)) == 23
    assert not beside.exists()


@pytest.mark.parametrize("model", [tiny_model(labels="abcd"), modernbert()], ids=["xlmr", "modernbert"])
def test_a_configuration_reaches_the_process_whole(model):
    model.config._attn_implementation = "eager"
    found = config_of(json.loads(json.dumps(values_of(model.config))))
    assert found._attn_implementation == "eager"
    again = model_without_meaning(found, "text").state_dict()
    assert {name: value.shape for name, value in again.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


def test_a_file_that_the_process_failed_to_write_is_written_here(tmp_path, started, monkeypatch):
    config = tiny_model().config
    instead(monkeypatch, "exit(3)")
    with written_beside(config, "text", 20, tmp_path) as file:
        assert opset_of(onnx.load(file(20))) == 20
    assert [process.returncode for process in started] == [3]


def test_a_system_that_allows_no_process_is_no_fault(tmp_path, started, monkeypatch):
    monkeypatch.setattr(own_process, "command", lambda *given: [str(tmp_path / "missing")])
    with written_beside(tiny_model().config, "text", 20, tmp_path) as file:
        assert opset_of(onnx.load(file(20))) == 20
    assert started == []


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_process_ends_with_the_work_beside_it(error, tmp_path, started, monkeypatch):
    instead(monkeypatch, "import time; time.sleep(600)")
    try:
        with written_beside(tiny_model().config, "text", 20, tmp_path):
            assert started[0].poll() is None
            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass
    assert started[0].poll() is not None


def test_no_process_starts_where_it_saves_no_time(tmp_path, started, monkeypatch):
    tiny, few = tiny_model().config, tiny_model(layers=1).config
    large = transformers.XLMRobertaConfig(
        vocab_size=250_002, num_hidden_layers=24, hidden_size=1024, num_attention_heads=16
    )
    for config, opset in ((few, 20), (large, 20), (tiny, None)):
        with written_beside(config, "text", opset, tmp_path):
            pass
    monkeypatch.setattr(whole.machine, "processors", lambda: 1)
    with written_beside(tiny, "text", 20, tmp_path) as file:
        assert opset_of(onnx.load(file(20))) == 20
    assert started == []
