import io
import itertools
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from xlmprune.bundle import bench
from xlmprune.bundle.openvino import OpenVinoSession
from xlmprune.core.errors import BundleError, MachineError
from xlmprune.export import timing
from xlmprune.export.runtime import open_session


def write_model(
    path, layers=1, width=64, positions=100, rows=timing.TOKEN_IDS, names=("input_ids", "attention_mask")
):
    """Embedding, position embedding, `layers` products: enough to take time and to refuse long texts."""
    random = np.random.default_rng(0)
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names]
    weights = {
        "table": random.standard_normal((rows, width)).astype(np.float32),
        "positions": random.standard_normal((positions, width)).astype(np.float32),
        "one": np.array(1),
        "axis": np.array(1),
    }
    nodes = [
        helper.make_node("CumSum", [names[1], "axis"], ["counted"]),
        helper.make_node("Sub", ["counted", "one"], ["places"]),
        helper.make_node("Gather", ["table", names[0]], ["words"]),
        helper.make_node("Gather", ["positions", "places"], ["where"]),
        helper.make_node("Add", ["words", "where"], ["x0"]),
    ]
    for layer in range(layers):
        weights[f"w{layer}"] = random.standard_normal((width, width)).astype(np.float32) / width
        nodes.append(helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"x{layer + 1}"]))
    nodes.append(helper.make_node("Identity", [f"x{layers}"], ["logits"]))
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "model", inputs, [output], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    slow, fast = write_model(folder / "slow.onnx", 12, 256), write_model(folder / "fast.onnx", 1, 256)
    return {"slow": slow, "fast": fast}


@pytest.fixture(scope="module")
def facts(files):
    return bench.bench(files, batches=(1, 2), lengths=(8, 64), threads=(1,), repeats=8, loads=1)


def test_every_form_is_measured_for_every_batch_and_length(files, facts):
    found = [(entry["batch"], entry["tokens"], entry["form"]) for entry in facts["speed"]]
    assert found == list(itertools.product((1, 2), (8, 64), ("slow", "fast")))
    for entry in facts["speed"]:
        assert entry["rounds"] == 8
        assert 0 < entry["median_ms"] <= entry["p95_ms"]
        rounded = (
            0.001 / entry["median_ms"]
        )  # of the last digit, which counts where a call takes some microseconds
        expected = 1e3 * entry["batch"] / entry["median_ms"]
        assert entry["texts_per_second"] == pytest.approx(expected, rel=0.001 + rounded)
    for form, path in files.items():
        assert facts["files"][form]["bytes"] == path.stat().st_size
        assert 0 < facts["files"][form]["load_seconds"] < 60
    assert json.loads(json.dumps(facts)) == facts


def test_the_first_form_is_what_others_are_compared_with(facts):
    longest = {
        entry["form"]: entry for entry in facts["speed"] if (entry["batch"], entry["tokens"]) == (2, 64)
    }
    assert longest["slow"]["speedup"] == 1
    # Twelve products against one; the rest is the same. The machine may be busy, so the bound is wide.
    assert longest["fast"]["speedup"] > 1.5


class Recording:
    """Stands in for a session and writes down when it is called."""

    class Input:
        name, type = "input_ids", "tensor(int64)"

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def get_inputs(self):
        return [self.Input]

    def run(self, outputs, inputs):
        self.calls.append(self.name)


def test_forms_take_turns_in_an_order_that_reverses():
    calls = []
    sessions = {name: Recording(name, calls) for name in "abc"}
    rounds = timing.time_rounds(sessions, 1, 8, repeats=4, seconds=60)
    assert "".join(calls) == "abc" + "abc" + "abccbaabccba"  # tried, warmed up, measured
    assert all(len(taken) == 4 for taken in rounds.values())


def test_a_ratio_is_taken_within_rounds():
    # The machine slowed down tenfold half way; each round still says: twice as fast.
    slow = np.array([2.0, 2.0, 2.0, 20.0, 20.0])
    rounds = {"slow": slow, "fast": slow / 2}
    assert bench._speed("fast", rounds, 1, 8)["speedup"] == 2
    rounds = {"slow": slow, "fast": np.array([1.0, 10.0, 1.0, 10.0, 10.0])}
    assert bench._speed("fast", rounds, 1, 8)["speedup"] == 2


def test_rounds_end_with_the_time_but_there_are_five(files):
    session = open_session(files["fast"], 1)
    assert len(timing.time_rounds({"fast": session}, 1, 8, repeats=1000, seconds=0)["fast"]) == 5


def test_memory_is_what_the_file_takes_and_not_what_its_starter_took(tmp_path):
    path = write_model(tmp_path / "model.onnx", layers=10, width=1024)  # 42 MB of weights
    ballast = np.ones(60_000_000)  # 480 MB that a child would inherit as its own peak
    found = bench.load_once(path, threads=1)
    del ballast
    assert 42e6 <= found["loaded_bytes"] <= found["peak_bytes"] < 400e6


def test_nothing_is_imported_from_the_folder_one_stands_in(tmp_path, monkeypatch):
    path = write_model(tmp_path / "model.onnx")
    for name in ("onnxruntime.py", "inspect.py"):
        (tmp_path / name).write_text("raise SystemExit('a file of the bundle was imported')")
    monkeypatch.chdir(tmp_path)
    assert bench.load_once(path, threads=1)["load_seconds"] > 0


def test_quick_halves_a_text_that_is_too_long(tmp_path):
    files = {
        "a": write_model(tmp_path / "a.onnx", positions=40),
        "b": write_model(tmp_path / "b.onnx", positions=20),
    }
    found = bench.quick(files, seconds=0.05)
    assert [(facts["batch"], facts["tokens"]) for facts in found.values()] == [(1, 16), (1, 16)]
    assert found["a"]["speedup"] == 1.0
    for facts in found.values():
        assert facts["median_ms"] <= facts["p95_ms"]
        assert facts["load_seconds"] > 0
        assert set(facts) == {
            "batch", "tokens", "median_ms", "p95_ms", "texts_per_second", "speedup", "load_seconds", "peak_bytes",
            "loaded_bytes", "threads", "rounds",
        }  # fmt: skip


def test_quick_measures_under_the_conditions_asked_for(tmp_path):
    files = {"a": write_model(tmp_path / "a.onnx")}
    (found,) = bench.time_files(files, print, batch=2, tokens=32, threads=1).values()
    assert (found["batch"], found["tokens"], found["threads"]) == (2, 32, 1)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [199, 100, 5])
def test_a_small_vocabulary_is_measured_with_the_ids_it_has(tmp_path, rows):
    files = {
        "large": write_model(tmp_path / "a.onnx"),
        "small": write_model(tmp_path / "b.onnx", rows=rows),
    }
    assert bench.quick(files, seconds=0.05)["small"]["tokens"] == 64
    assert len(bench.bench(files, (1,), (8,), threads=(1,), repeats=5, loads=1)["speed"]) == 2


def test_several_numbers_of_threads_are_compared_each_with_its_own(files):
    facts = bench.bench(files, (1,), (8,), threads=(1, 2), repeats=5, loads=1)
    assert facts["threads"] == [1, 2]
    found = [(entry["threads"], entry["form"]) for entry in facts["speed"]]
    assert found == [(1, "slow"), (1, "fast"), (2, "slow"), (2, "fast")]
    assert [entry["speedup"] for entry in facts["speed"] if entry["form"] == "slow"] == [1, 1]


def test_medians_are_of_every_file(files):
    found = timing.time_in_turns(files, 1, 64, 1, seconds=0.2)
    assert found["slow"] > found["fast"] > 0


def test_what_cannot_be_measured_is_said(tmp_path, files, capfd):
    with pytest.raises(BundleError, match="does not accept texts of 128 tokens"):
        bench.bench(files, lengths=(128,), loads=1)
    with pytest.raises(BundleError, match=r"missing\.onnx is not there"):
        bench.bench({"fp32": tmp_path / "missing.onnx"})
    (tmp_path / "damaged.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"damaged\.onnx cannot be opened"):
        bench.bench({"fp32": tmp_path / "damaged.onnx"}, loads=1)
    with pytest.raises(BundleError, match=r"damaged\.onnx cannot be opened by ONNX Runtime"):
        bench.quick({"damaged": tmp_path / "damaged.onnx"})
    assert capfd.readouterr().err == ""


def test_weights_beside_the_file_count(tmp_path):
    path = write_model(tmp_path / "model.onnx")
    (tmp_path / "model.onnx.data").write_bytes(bytes(1000))
    assert bench.bytes_of(path) == path.stat().st_size + 1000


def test_other_inputs_are_filled_in(tmp_path):
    path = write_model(tmp_path / "model.onnx", names=("input_ids", "attention_mask", "token_type_ids"))
    inputs = timing.make_inputs(open_session(path, 1), 2, 8)
    assert not inputs["token_type_ids"].any()
    assert inputs["attention_mask"].all()
    assert inputs["input_ids"].shape == (2, 8)


def test_the_tables_say_it_all(facts):
    console = Console(file=io.StringIO(), width=120)
    console.print(bench.render(facts))
    text = console.file.getvalue()
    for part in (
        "slow.onnx",
        "fast.onnx",
        "2 x 64",
        "speedup over slow",
        "opened with 1 thread,",
        "threads",
        onnxruntime.__version__,
    ):
        assert part in text
    assert f"{facts['speed'][-1]['speedup']:.2f}" in text


def test_openvino_is_measured_beside(files):
    both = files | {"fast, OpenVINO": files["fast"]}
    facts = bench.bench(
        both, (2,), (8,), threads=(1,), repeats=5, loads=1, runtimes={"fast, OpenVINO": "openvino"}
    )
    assert [row["form"] for row in facts["speed"]] == ["slow", "fast", "fast, OpenVINO"]
    assert [entry["runtime"] for entry in facts["files"].values()] == ["onnxruntime"] * 2 + ["openvino"]
    assert facts["files"]["fast, OpenVINO"]["load_seconds"] > 0
    assert facts["openvino"]["precision"] in ("f32", "bf16", "f16")
    console = Console(file=io.StringIO(), width=160)
    console.print(bench.render(facts))
    assert f"OpenVINO {facts['openvino']['version']}" in console.file.getvalue()


def test_openvino_computes_what_onnx_runtime_computes(files):
    session, other = open_session(files["slow"], 1), OpenVinoSession(files["slow"], 1)
    inputs = timing.make_inputs(other, 2, 8)
    assert inputs.keys() == timing.make_inputs(session, 2, 8).keys()
    (found,) = other.run(None, inputs)
    tolerance = 1e-4 if other.precision == "f32" else 3e-2
    np.testing.assert_allclose(found, session.run(None, inputs)[0], rtol=0, atol=tolerance)


def test_what_openvino_cannot_do_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "damaged.onnx").write_bytes(b"no model")
    with pytest.raises(BundleError, match=r"damaged.onnx cannot be opened by OpenVINO \d"):
        OpenVinoSession(tmp_path / "damaged.onnx", 1)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MachineError, match=r"needs the package openvino\. Install it"):
        OpenVinoSession(tmp_path / "damaged.onnx", 1)


def test_the_table_of_a_system_that_does_not_tell_memory(facts):
    facts = json.loads(json.dumps(facts))
    for entry in facts["files"].values():
        entry["peak_bytes"] = entry["loaded_bytes"] = None
    console = Console(file=io.StringIO(), width=120)
    console.print(bench.render(facts))
    assert "–" in console.file.getvalue()
