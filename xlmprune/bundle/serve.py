"""Answer requests over HTTP with a bundle, without PyTorch.

POST /predict  {"texts": ["first text", "second text"]}  ->  {"answers": [{"label": …, "probability": …}, …]}
GET /          what the server has: labels, kind of text, form
GET /health    200 as soon as requests are answered

HEAD is answered where GET is. An error is {"error": "a sentence"}, also of what is no request that the server knows.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from xlmprune.bundle.predictor import Predictor
from xlmprune.core.errors import DataError, MachineError
from xlmprune.core.files import keys_once, whole_number
from xlmprune.core.formatting import shorten

MAX_BYTES = 16 * 2**20
"""Longest body of a request. A client that has more texts sends several requests."""
MAX_TEXTS = 1024
"""Texts in a request. One request with more would hold a processor for minutes."""
SILENCE = 5.0
"""Seconds after which a client that sends nothing is disconnected."""
ARRIVAL = 30.0
"""Seconds in which the whole body of a request must arrive."""
PATIENCE = 30.0
"""Seconds that a request waits for its turn to compute."""
GRACE = 8.0
"""Seconds that requests have to end when the server stops. `docker stop` kills after 10."""
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

    daemon_threads = True  # `stop` waits for requests that are being answered, and no longer than `GRACE`
    request_queue_size = 128

    def __init__(self, predictor: Predictor, host: str, port: int, at_a_time: int) -> None:
        self.predictor = predictor
        self.turns = threading.BoundedSemaphore(at_a_time)
        self._changed = threading.Condition()
        self._answering = 0
        if ":" in host:
            self.address_family = socket.AF_INET6
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
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(host), str(host))
        return f"http://{f'[{here}]' if ':' in here else here}:{port}"

    def example(self) -> str:
        """Return the body of a request, as JSON."""
        return json.dumps({"texts": EXAMPLES[self.predictor.kind]})

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a request, and count it."""
        self._count(1)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._count(-1)  # there is no thread
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a request in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._changed:
            self._answering += change
            self._changed.notify_all()

    def serve_until_stopped(self) -> int:
        """Answer requests until SIGTERM or Ctrl-C; requests that have begun have `GRACE` seconds to end, or until a second
        signal.

        Returns:
            How many had not ended.

        Raises:
            KeyboardInterrupt: it was Ctrl-C.
        """
        received: list[int] = []

        def end() -> None:
            self.shutdown()
            self._count(0)  # whoever waits for requests looks at the signals again

        def stop(number: int, _: object) -> None:
            received.append(number)
            # It waits for the loop, which this thread is in. An exception would be caught by whatever the loop does now.
            threading.Thread(target=end).start()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with self:
                self.serve_forever()
            with self._changed:
                self._changed.wait_for(lambda: not self._answering or len(received) > 1, GRACE)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if signal.SIGINT in received and not self._answering:
            raise KeyboardInterrupt
        return self._answering


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

    def do_HEAD(self) -> None:
        self.do_GET()

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
            if not self.server.turns.acquire(timeout=PATIENCE):
                raise _Refused(
                    HTTPStatus.SERVICE_UNAVAILABLE, "the server is busy with other requests; try again"
                )
            try:
                answers = self.server.predictor(texts)
            finally:
                self.server.turns.release()
        except _Refused as refused:
            self._answer(refused.status, {"error": str(refused)})
        except ConnectionError as error:  # the client has gone
            self.log_message("not read: %s", error.strerror or error)
        except DataError as error:
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except Exception:
            self.server.handle_error(self.request, self.client_address)  # prints the traceback
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "internal error; see the server's log"})
        else:
            self._answer(HTTPStatus.OK, {"answers": [asdict(answer) for answer in answers]})

    def _texts(self) -> list[Any]:
        """Read the texts of the request."""
        if self.path.split("?")[0] != "/predict":
            raise _Refused(HTTPStatus.NOT_FOUND, self._not_found())
        length = self.headers.get("Content-Length", "").strip()
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the header Content-Length is missing or not a number")
        if int(length) > MAX_BYTES:
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the request has {length} bytes, at most {MAX_BYTES} are read; send several requests",
            )
        content = self._body(int(length))
        try:
            body = json.loads(content, object_pairs_hook=keys_once, parse_int=whole_number)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            raise self._wrong("no JSON" if content else "an empty body") from None
        except ValueError as error:  # of the two functions above
            raise self._wrong(f"JSON in which {shorten(str(error), MOST_SHOWN)}") from None
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
        if len(texts) > MAX_TEXTS:
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the request has {len(texts)} texts, at most {MAX_TEXTS} are answered; send several requests",
            )
        return texts

    def _body(self, length: int) -> bytes:
        """Read the body of a request, which must be whole and arrive in time."""
        content, until = bytearray(), time.monotonic() + ARRIVAL
        while len(content) < length:
            late = time.monotonic() > until
            try:
                part = b"" if late else self.rfile.read1(min(length - len(content), 2**16))
            except TimeoutError:
                late, part = True, b""
            if not part:
                raise _Refused(
                    HTTPStatus.REQUEST_TIMEOUT if late else HTTPStatus.BAD_REQUEST,
                    f"Content-Length is {length}, and {'in time ' if late else ''}{len(content)} bytes arrived",
                )
            content += part
        return bytes(content)

    def _not_found(self) -> str:
        return f"expected {REQUESTS}, found {self.command} {shorten(self.path, MOST_SHOWN)}"

    def _wrong(self, found: str) -> _Refused:
        """Return the exception for a request whose body is not what it should be."""
        return _Refused(HTTPStatus.BAD_REQUEST, f"expected JSON like {self.server.example()}, found {found}")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no request that the server knows, such as another method."""
        status = HTTPStatus(code)
        self.log_error("code %d, message %s", code, message or status.phrase)
        self.close_connection = True
        self._answer(status, {"error": message or status.phrase})

    def _answer(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        content = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
        except OSError as error:  # the client has gone
            self.log_message("not answered: %s", error.strerror or error)
