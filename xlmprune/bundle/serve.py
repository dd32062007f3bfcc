"""Answer requests over HTTP with a bundle, without PyTorch.

POST /predict  {"texts": ["first text", "second text"]}  ->  {"answers": [{"label": …, "probability": …}, …]}
GET /          what the server has: labels, kind of text, form
GET /health    200 as soon as requests are answered

An error is {"error": "a sentence"} with status 400, 404, 411, 413 or 500.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from xlmprune.bundle.predictor import Predictor
from xlmprune.core.errors import DataError, MachineError
from xlmprune.core.formatting import shorten

MAX_BYTES = 16 * 2**20
"""Longest body of a request. A client that has more texts sends several requests."""
SILENCE = 5.0
"""Seconds after which a client that sends nothing is disconnected. `docker stop` kills after 10."""
REQUESTS = "POST /predict, GET / or GET /health"
EXAMPLES: dict[str, list[Any]] = {
    "text": ["first text", "second text"],
    "pair": [["first text", "second text"]],
    "tokens": [["first", "word"], "another sentence"],
}
"""What `texts` may be, by the bundle's kind."""
MOST_SHOWN = 80
"""Characters of a request that an error message shows."""


class Server(ThreadingHTTPServer):
    """An HTTP server for one bundle. Each request has its own thread.

    Args:
        predictor: labels the texts.
        host: the address to listen on.
        port: the port; 0 takes any free one.
        at_a_time: how many requests compute at the same time. The others wait.

    Raises:
        MachineError: the address cannot be used.
    """

    daemon_threads = False  # so that `server_close` waits for requests that are being answered

    def __init__(self, predictor: Predictor, host: str, port: int, at_a_time: int) -> None:
        self.predictor = predictor
        self.turns = threading.BoundedSemaphore(at_a_time)
        predictor(EXAMPLES[predictor.kind])  # the first call is slow: ONNX Runtime plans its memory
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise MachineError(
                f"cannot listen on {host}, port {port}: {reason}. Choose others with --host and --port"
            ) from error

    @property
    def url(self) -> str:
        """Address of the server, as a client on this machine types it."""
        host, port = self.server_address[:2]
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host!s}:{port}"

    def example(self) -> str:
        """Return the body of a request, as JSON."""
        return json.dumps({"texts": EXAMPLES[self.predictor.kind]})

    def serve_until_stopped(self) -> None:
        """Answer requests until SIGTERM or Ctrl-C; requests that have begun are answered."""
        with self, _terminated():
            self.serve_forever()


@contextmanager
def _terminated() -> Iterator[None]:
    """Make SIGTERM end the block without an error. Process 1 of a container ignores it by default."""

    class Terminated(Exception):
        pass

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Terminated:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def _json_name(value: Any) -> str:
    """Name what a JSON value is."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else "a number"


class _Refused(Exception):
    """A request that cannot be answered, with the status and the sentence for the client."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server
    server_version = "xlmprune"
    timeout = SILENCE

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/":
            predictor = self.server.predictor
            self._answer(
                HTTPStatus.OK,
                {"labels": predictor.labels, "kind": predictor.kind, "form": predictor.form},
            )
        elif path == "/health":
            self._answer(HTTPStatus.OK, {"status": "ok"})
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": self._not_found()})

    def do_POST(self) -> None:
        try:
            texts = self._texts()
            with self.server.turns:
                answers = self.server.predictor(texts)
        except _Refused as refused:
            self._answer(refused.status, {"error": str(refused)})
        except DataError as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except Exception:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "internal error; see the server's log"})
            raise  # socketserver prints the traceback and goes on
        else:
            self._answer(HTTPStatus.OK, {"answers": [asdict(answer) for answer in answers]})

    def _texts(self) -> list[Any]:
        """Read the texts of the request."""
        if self.path.split("?")[0] != "/predict":
            raise _Refused(HTTPStatus.NOT_FOUND, self._not_found())
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the header Content-Length is missing or not a number")
        if int(length) > MAX_BYTES:
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the request has {length} bytes, at most {MAX_BYTES} are read; send several requests",
            )
        content = self.rfile.read(int(length))
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            raise self._wrong("no JSON" if content else "an empty body") from None
        if not isinstance(body, dict):
            raise self._wrong(_json_name(body))
        if "texts" not in body:
            keys = shorten(", ".join(json.dumps(key, ensure_ascii=False) for key in body), MOST_SHOWN)
            raise self._wrong(f'no key "texts" (keys: {keys or "none"})')
        texts = body["texts"]
        if not isinstance(texts, list):
            raise self._wrong(f'{_json_name(texts)} as "texts"')
        if not texts:
            raise self._wrong('an empty list as "texts"')
        return texts

    def _not_found(self) -> str:
        return f"expected {REQUESTS}, found {self.command} {shorten(self.path, MOST_SHOWN)}"

    def _wrong(self, found: str) -> _Refused:
        """Return the exception for a request whose body is not what it should be."""
        return _Refused(HTTPStatus.BAD_REQUEST, f"expected JSON like {self.server.example()}, found {found}")

    def _answer(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        content = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError as error:  # the client has gone
            self.log_message("not answered: %s", error.strerror or error)
