"""Threads: as many as the container's quota allows, and they do not spin."""

import os

import numpy as np
import onnx
import pytest

from xlmprune.core import machine
from xlmprune.export import runtime


def groups(folder, own, **files):
    """Write control groups below ``folder``; a file is named as in ``a__cpu_max``. Returns the arguments that read them."""
    for name, text in files.items():
        path = folder.joinpath(
            "groups", *name.replace("_max", ".max").replace("cpu_cfs", "cpu.cfs").split("__")
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(own)
    return folder / "groups", folder / "own"


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu_max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu_max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a__cpu_max": "200000 100000\n", "a__b__cpu_max": "max 100000\n"}, 2.0),
        ("0::/a/b\n", {"a__cpu_max": "200000 100000\n", "a__b__cpu_max": "50000 100000\n"}, 0.5),
        ("0::/\n", {"cpu_max": "nonsense\n"}, None),
        ("0::/\n", {"cpu_max": "100000\n"}, None),
        (
            "3:cpuset:/x\n2:cpu,cpuacct:/docker\n",
            {
                "cpu,cpuacct__docker__cpu_cfs_quota_us": "300000\n",
                "cpu,cpuacct__docker__cpu_cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            "2:cpu,cpuacct:/\n",
            {"cpu,cpuacct__cpu_cfs_quota_us": "-1\n", "cpu,cpuacct__cpu_cfs_period_us": "100000\n"},
            None,
        ),
    ],
)
def test_the_quota_of_a_container(tmp_path, own, files, quota):
    assert machine.processor_quota(*groups(tmp_path, own, **files)) == quota


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert machine.processor_quota(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(("quota", "processors"), [(None, 8), (1.5, 2), (0.1, 1), (8.0, 8), (64.0, 8)])
def test_processors_are_those_that_may_be_used(monkeypatch, quota, processors):
    monkeypatch.setattr(machine, "allowed_processors", lambda: 8)
    monkeypatch.setattr(machine, "processor_quota", lambda: quota)
    assert machine.processors() == processors


@pytest.mark.parametrize(
    ("quota", "given", "threads", "policy", "spins"),
    [
        (None, {}, None, "PASSIVE", "4000"),
        (2.0, {}, "2", "PASSIVE", "4000"),
        (2.0, {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE"}, "3", "ACTIVE", None),
        (2.0, {"OMP_NUM_THREADS": ""}, "2", "PASSIVE", "4000"),
        (2.0, {"OMP_NUM_THREADS": "0"}, "2", "PASSIVE", "4000"),
        (2.0, {"OMP_WAIT_POLICY": "PASSIVE"}, "2", "PASSIVE", None),
        (None, {"GOMP_SPINCOUNT": "7"}, None, "PASSIVE", "7"),
    ],
)
def test_the_command_sets_what_the_user_has_not_set(monkeypatch, quota, given, threads, policy, spins):
    environment = dict(given)
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(machine, "allowed_processors", lambda: 8)
    monkeypatch.setattr(machine, "processor_quota", lambda: quota)
    machine.limit_threads()
    assert (environment.get("OMP_NUM_THREADS"), environment["OMP_WAIT_POLICY"]) == (threads, policy)
    assert environment.get("GOMP_SPINCOUNT") == spins


@pytest.mark.parametrize(
    ("quota", "allowed", "given", "wanted", "threads"),
    [
        (None, 8, None, 0, 0),
        (2.0, 8, None, 0, 2),
        (2.0, 8, None, 3, 3),
        (None, 8, None, 1, 1),
        (None, 3, None, 0, 3),
        (None, 8, "1", 0, 1),
        (None, 8, "5,2", 0, 5),
        (2.0, 8, "5,2", 0, 2),
        (None, 8, "1000000", 0, 8),
        (None, 8, "9" * 5000, 0, 0),
        (None, 8, "1", 4, 4),
        (2.0, 8, "many", 0, 2),
        (2.0, 8, "0", 0, 2),
    ],
)
def test_onnx_runtime_keeps_to_its_share(monkeypatch, tmp_path, quota, allowed, given, wanted, threads):
    """`compare --jobs` gives each run its share by OMP_NUM_THREADS, which ONNX Runtime does not read."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [value], [output])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "model.onnx")
    monkeypatch.setattr(machine, "allowed_processors", lambda: allowed)
    monkeypatch.setattr(machine, "processor_quota", lambda: quota)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    session = runtime.open_session(tmp_path / "model.onnx", wanted)
    assert session.get_session_options().intra_op_num_threads == threads
    assert session.run(None, {"x": np.ones(1, np.float32)})[0] == 1
