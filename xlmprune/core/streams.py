"""Keep the command running when its log or its output cannot be written.

stderr is a log: what cannot be written there is dropped. stdout holds results: what cannot be written there is an error
with a sentence, which `compress` and `compare` survive, because their results are in files too.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO

from xlmprune.core.errors import MachineError


class OutputError(MachineError):
    """stdout cannot be written to; with ``reader_gone`` whoever read it has enough, as `head` does."""

    reader_gone = False


class _Log(io.TextIOWrapper):
    """Drops what cannot be written: to a full disk, to a closed file, to a pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except (OSError, ValueError):
            return


class _Output(io.TextIOWrapper):
    """Turns the first failed write into an `OutputError` and drops everything after it."""

    failed = False

    def write(self, text: str) -> int:
        return len(text) if self.failed else self._try(lambda: super(_Output, self).write(text))

    def flush(self) -> None:
        if not self.failed:
            self._try(super().flush)

    def _try(self, action):  # type: ignore[no-untyped-def]
        try:
            return action()
        except (OSError, ValueError) as error:
            self.failed = True
            failure = OutputError(f"the output cannot be written ({error}); check where stdout goes")
            failure.reader_gone = isinstance(error, BrokenPipeError)
            raise failure from error


def let_go() -> None:
    """Write what is left, silently: the exit code is decided."""
    with contextlib.suppress(OutputError):
        sys.stdout.flush()
    sys.stderr.flush()


def protect() -> None:
    """Make stdout and stderr of this process safe: no encoding, and no failure of stderr, raises an error.

    Characters that the encoding of a stream lacks are written as escapes.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # A closed stream would give its number to the next file that is opened, and prints would go into it.
            os.open(os.devnull, os.O_RDWR)
    sys.stderr = _wrap(_Log, sys.stderr, 2)
    sys.stdout = _wrap(_Output, sys.stdout, 1)


def _wrap(kind: type[io.TextIOWrapper], stream: TextIO | None, number: int) -> TextIO:
    if stream is None:
        raw = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        return kind(raw, encoding="utf-8", write_through=True)
    _WRAPPED.append(stream)  # let go, it would close the file
    line_buffering = kind is _Log or stream.isatty()
    return kind(
        stream.buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=line_buffering
    )


_WRAPPED: list[TextIO] = []
