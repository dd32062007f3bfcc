"""Run the programs of docs/serving.md as their reader would."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_bundle

from xlmprune.bundle.session import Bundle

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
TEXTS = ["schalte das Licht ein", "allume la lumière du salon, s'il te plaît"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the bundle of the page, and its programs."""
    folder = tmp_path_factory.mktemp("serving")
    bundle = folder / "runs" / "quickstart" / "bundle"
    tiny_bundle(bundle, forms=("fp32", "int8"))
    for program in PROGRAMS:
        if match := re.match(r"# (\w+\.py): ", program):
            (folder / match[1]).write_text(program, encoding="utf-8")
    return folder


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_lines_for_python(folder):
    (code,) = [program for program in PROGRAMS if program.startswith("import xlmprune")]
    process = start(folder, "-c", code)
    told, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    lines = told.splitlines()
    assert len(lines) == 2
    assert {line.split()[0] for line in lines} <= set(Bundle(folder / "runs/quickstart/bundle").labels)


class Triton(http.server.BaseHTTPRequestHandler):
    """The part of Triton's HTTP protocol (KServe v2) that the client uses, over the repository's own model file."""

    repository: Path

    def do_POST(self) -> None:
        import onnxruntime

        name = re.fullmatch(r"/v2/models/(.+)/infer", self.path)[1]
        config = (self.repository / name / "config.pbtxt").read_text(encoding="utf-8")
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        feed = {}
        for entry in asked["inputs"]:
            assert f'name: "{entry["name"]}"' in config
            feed[entry["name"]] = np.array(entry["data"], dtype=np.int64).reshape(entry["shape"])
        session = onnxruntime.InferenceSession(self.repository / name / "1" / "model.onnx")
        (logits,) = session.run(["logits"], feed)
        output = {
            "name": "logits",
            "datatype": "FP32",
            "shape": logits.shape,
            "data": logits.ravel().tolist(),
        }
        content = json.dumps({"model_name": name, "outputs": [output]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def test_the_triton_client_speaks_to_the_model_repository(folder):
    bundle = folder / "runs" / "quickstart" / "bundle"
    handler = type("Handler", (Triton,), {"repository": bundle / "triton"})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        process = start(folder, "client.py", str(bundle), f"127.0.0.1:{server.server_port}", *TEXTS)
        told, errors = process.communicate(timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    assert process.returncode == 0, errors
    expected = [
        answer["label"]
        for answer in map(
            json.loads,
            subprocess.run(
                [sys.executable, "-m", "xlmprune", "predict", str(bundle), *TEXTS],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout.splitlines(),
        )
    ]
    assert told.splitlines() == [f"{text}\t{label}" for text, label in zip(TEXTS, expected, strict=True)]


def test_every_program_of_the_page_is_run():
    assert len(PROGRAMS) == 2
