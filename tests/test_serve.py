"""Test `xlmprune serve` as its clients see it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny import tiny_bundle
from typer.testing import CliRunner

from xlmprune.bundle import serve
from xlmprune.bundle.predictor import Predictor
from xlmprune.cli import app
from xlmprune.core.errors import MachineError

ROOT = Path(__file__).parent.parent
TEXTS = ["schalte das Licht ein", "allume la lumière du salon, s'il te plaît", "불 켜 줘", "a\nb"]
EXPECTED = 'expected JSON like {"texts": ["first text", "second text"]}'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A bundle for one text."""
    folder = tmp_path_factory.mktemp("serve") / "bundle"
    tiny_bundle(folder, forms=("fp32", "int8"))
    return folder


@pytest.fixture(scope="module")
def predictor(bundle) -> Predictor:
    return Predictor(bundle, threads=1)


@contextmanager
def served(predictor: Predictor, at_a_time: int = 2) -> Iterator[serve.Server]:
    """Run a server in a thread of this process."""
    server = serve.Server(predictor, "127.0.0.1", 0, at_a_time)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server(predictor) -> Iterator[serve.Server]:
    with served(predictor) as server:
        yield server


def post(url: str, body: bytes) -> tuple[int, dict]:
    """Return status and answer of a request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/predict", body), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def get(url: str) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_answers_are_those_of_the_predictor(server, predictor):
    status, answer = post(server.url, json.dumps({"texts": TEXTS}).encode())
    assert status == 200
    expected = predictor(TEXTS)
    assert [one["label"] for one in answer["answers"]] == [one.label for one in expected]
    for found, one in zip(answer["answers"], expected, strict=True):
        assert found.keys() == asdict(one).keys()
        assert found["probabilities"] == pytest.approx(one.probabilities, abs=1e-6)


def test_what_the_server_has(server, predictor):
    assert get(server.url) == (200, {"labels": list(predictor.labels), "kind": "text", "form": "int8"})
    assert get(f"{server.url}/health?from=probe") == (200, {"status": "ok"})
    assert get(f"{server.url}/favicon.ico")[0] == 404


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", "an empty body"),
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[]", "a list"),
        (b'["x"]', "a list"),
        (b'"x"', "a string"),
        (b"7", "a number"),
        (b"null", "null"),
        (b"{}", 'no key "texts" (keys: none)'),
        (b'{"text": "x", "f\xc3\xbcr": 1}', 'no key "texts" (keys: "text", "für")'),
        (b'{"texts": "one string"}', 'a string as "texts"'),
        (b'{"texts": {"a": "b"}}', 'an object as "texts"'),
        (b'{"texts": true}', 'true as "texts"'),
        (b'{"texts": []}', 'an empty list as "texts"'),
        (b"[" * 100_000, "no JSON"),
        (
            b'{"texts": [' + b"9" * 10_000 + b"]}",
            "JSON in which a whole number has 10,000 digits, which is too many",
        ),
        (b'{"texts": ["x"], "texts": ["y"]}', "JSON in which the key 'texts' is given twice"),
        (b'{"texts": [{"a": 1, "a": 2}]}', "JSON in which the key 'a' is given twice"),
    ],
    ids=range(18),
)
def test_a_wrong_request_gets_an_example_and_what_was_found(server, body, found):
    assert post(server.url, body) == (400, {"error": f"{EXPECTED}, found {found}"})


def test_what_a_message_repeats_of_a_request_is_short(server):
    status, answer = post(server.url, json.dumps({"k" * 5000: 1}).encode())
    assert status == 400
    assert len(answer["error"]) < 300
    status, answer = get(f"{server.url}/favicon.ico")
    assert status == 404
    assert answer["error"].endswith("found GET /favicon.ico")


def test_a_text_of_another_kind_is_named(server):
    wrong = post(server.url, b'{"texts": ["x", 7]}')
    assert wrong == (400, {"error": "text 2: this bundle takes one text, found int"})
    status, answer = post(server.url, b'{"texts": ["x", "cut \\ud83d"]}')
    assert status == 400
    assert answer["error"].startswith("text 2: \\ud83d is one half of a character")


def raw(server: serve.Server, *lines: str) -> int:
    """Send a request by hand and return the status."""
    with socket.create_connection(server.server_address[:2], timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status


def test_requests_without_a_length_and_with_too_much(server, monkeypatch):
    assert raw(server, "POST /predict HTTP/1.1") == 411
    assert raw(server, "POST /predict HTTP/1.1", "Content-Length: -5") == 411
    assert raw(server, "POST /predict HTTP/1.1", f"Content-Length: {10**30}") == 411
    assert raw(server, "POST /predict HTTP/1.1", f"Content-Length: {serve.MAX_BYTES + 1}") == 413
    assert raw(server, "POST /elsewhere HTTP/1.1", "Content-Length: 0") == 404
    assert raw(server, "DELETE / HTTP/1.1") == 501


def test_a_client_that_leaves_or_is_silent_stops_nobody(server, monkeypatch):
    monkeypatch.setattr(serve._Handler, "timeout", 0.1)
    gone = socket.create_connection(server.server_address[:2])
    gone.sendall(b"POST /predict HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    silent = socket.create_connection(server.server_address[:2])
    gone.close()
    assert post(server.url, b'{"texts": ["x"]}')[0] == 200
    assert silent.recv(1) == b""  # disconnected
    silent.close()


def test_a_body_that_does_not_arrive_is_named(server, monkeypatch, capsys):
    monkeypatch.setattr(serve._Handler, "timeout", 0.2)
    body = b'{"texts": ["x"]}'

    def answer(length, ended):
        with socket.create_connection(server.server_address[:2], timeout=30) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % length + body)
            if ended:
                connection.shutdown(socket.SHUT_WR)
            found = http.client.HTTPResponse(connection)
            found.begin()
            return found.status, json.load(found)["error"]

    assert answer(99, ended=True) == (400, f"Content-Length is 99, and {len(body)} bytes arrived")
    assert answer(99, ended=False) == (408, f"Content-Length is 99, and in time {len(body)} bytes arrived")
    monkeypatch.setattr(serve, "ARRIVAL", -1.0)
    assert answer(len(body), ended=False)[0] == 408
    monkeypatch.undo()
    reset = socket.create_connection(server.server_address[:2])
    reset.sendall(b"POST /predict HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    time.sleep(0.1)
    reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    reset.close()
    assert post(server.url, body)[0] == 200
    assert "Traceback" not in capsys.readouterr().err


def test_too_many_texts_and_a_busy_server(server, monkeypatch):
    monkeypatch.setattr(serve, "MAX_TEXTS", 2)
    status, answer = post(server.url, b'{"texts": ["a", "b", "c"]}')
    assert (status, answer["error"][:22]) == (413, "the request has 3 text")
    monkeypatch.setattr(serve, "PATIENCE", 0.05)
    with server.turns, server.turns:
        assert post(server.url, b'{"texts": ["a"]}') == (
            503,
            {"error": "the server is busy with other requests; try again"},
        )
    assert post(server.url, b'{"texts": ["a"]}')[0] == 200


def test_other_methods_are_answered_in_json_and_head_without_a_body(server):
    for method, path, status in [("HEAD", "/health", 200), ("HEAD", "/no", 404), ("DELETE", "/", 501)]:
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)
        connection.request(method, path)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == status
        assert answer.headers["Content-Type"].startswith("application/json")
        assert (content == b"") == (method == "HEAD")
        if content:
            assert "error" in json.loads(content)
        connection.close()


def test_a_server_may_listen_on_ipv6(predictor):
    try:
        server = serve.Server(predictor, "::1", 0, 1)
    except MachineError:
        assert not Path("/proc/net/if_inet6").exists() or not Path("/proc/net/if_inet6").read_text()
        return
    with server:
        assert server.url == f"http://[::1]:{server.server_address[1]}"


def test_at_most_so_many_requests_compute_at_a_time(bundle):
    class Counting(Predictor):
        most = now = 0
        lock = threading.Lock()

        def __call__(self, texts):
            with self.lock:
                Counting.now += 1
                Counting.most = max(Counting.most, Counting.now)
            time.sleep(0.05)
            with self.lock:
                Counting.now -= 1
            return super().__call__(texts)

    with served(Counting(bundle, threads=1), at_a_time=2) as server, ThreadPoolExecutor(8) as clients:
        statuses = [status for status, _ in clients.map(post, [server.url] * 8, [b'{"texts": ["x"]}'] * 8)]
    assert statuses == [200] * 8
    assert Counting.most == 2


def test_an_internal_error_is_logged_and_the_server_goes_on(server, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "__call__", lambda *_: 1 / 0)
        assert post(server.url, b'{"texts": ["x"]}') == (
            500,
            {"error": "internal error; see the server's log"},
        )
    assert post(server.url, b'{"texts": ["x"]}')[0] == 200
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pair", "tokens"])
def test_the_example_of_each_kind_is_answered(tmp_path, kind):
    tiny_bundle(tmp_path / "bundle", kind=kind)
    with served(Predictor(tmp_path / "bundle")) as server:
        status, answer = post(server.url, server.example().encode())
        assert status == 200
        assert len(answer["answers"]) == len(json.loads(server.example())["texts"])


def test_an_address_that_cannot_be_used(predictor, server):
    port = server.server_address[1]
    with pytest.raises(MachineError, match=rf"cannot listen on 127.0.0.1, port {port}: .*--port"):
        serve.Server(predictor, "127.0.0.1", port, 1)
    with pytest.raises(MachineError, match="port 70000"):
        serve.Server(predictor, "127.0.0.1", 70000, 1)
    with pytest.raises(MachineError, match=r"cannot listen on no\.such\.host\.invalid"):
        serve.Server(predictor, "no.such.host.invalid", 0, 1)


def test_a_damaged_bundle_is_not_served(tmp_path):
    tiny_bundle(tmp_path / "bundle")
    with (tmp_path / "bundle" / "model.onnx").open("r+b") as file:
        file.seek(2000)
        file.write(b"\x00\x01\x02")
    result = CliRunner().invoke(app, ["serve", str(tmp_path / "bundle"), "--port", "0"])
    assert result.exit_code == 2
    assert "model.onnx" in result.output


@contextmanager
def command(bundle: Path, *lines: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run the command after ``lines`` of Python; yield the process and the server's URL."""
    start = "from xlmprune.cli import main"
    code = "\n".join(
        ["import sys", start, *lines, f"sys.argv[1:] = ['serve', {str(bundle)!r}, '--port', '0']", "main()"]
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield (
            process,
            next(line for line in process.stderr if "curl -s" in line).split()[2].removesuffix("/predict"),
        )
    finally:
        process.kill()
        process.communicate()


def test_one_signal_stops_a_server_that_is_busy_accepting(bundle):
    with command(bundle) as (process, url):
        done = threading.Event()

        def ask():
            while not done.is_set():
                with suppress(OSError):
                    get(f"{url}/health")

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        drained = threading.Thread(target=process.stderr.read)
        drained.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=30) == 0
        finally:
            done.set()
            for client in clients:
                client.join()


@pytest.mark.parametrize(("grace", "signals"), [(0.5, 1), (600, 2)])
def test_requests_that_do_not_end_hold_a_stopping_server_for_a_while_only(bundle, grace, signals):
    """Or until a second signal."""
    slow = f"from xlmprune.bundle import predictor, serve; import time; serve.GRACE = {grace}"
    call = "usual = predictor.Predictor.__call__"
    hang = "(print('begun', flush=True), time.sleep(60))"
    wait = f"predictor.Predictor.__call__ = lambda *g: {hang} if g[1] == ['slow'] else usual(*g)"
    with command(bundle, slow, call, wait) as (process, url):

        def ask():
            with suppress(OSError, http.client.HTTPException):
                post(url, b'{"texts": ["slow"]}')

        asked = threading.Thread(target=ask)
        asked.start()
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        for _ in range(20 if signals > 1 else 0):  # a busy process may see two signals as one
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
                break
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 1
        assert "stopped; 1 request had no answer yet" in process.stderr.read()
        asked.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_command(bundle, number):
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "xlmprune", "serve", str(bundle), "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first, tried = process.stderr.readline(), process.stderr.readline()
    assert f"{bundle} (int8) is served on http://127.0.0.1:" in first
    assert tried.startswith("curl -s http://127.0.0.1:")
    url = tried.split()[2].removesuffix("/predict")
    body = tried.split(" -d ", 1)[1].strip().strip("'")
    status, answer = post(url, body.encode())
    assert (status, len(answer["answers"])) == (200, 2)
    process.send_signal(number)
    try:
        told, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == (0 if number == signal.SIGTERM else 130), errors
    assert told == ""
    assert "Traceback" not in errors
