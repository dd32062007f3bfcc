"""One piece of work of a comparison: an `xlmprune` process, whose exit code and last message are its outcome."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from xlmprune.core import own_process

INTERRUPTED = 130


@dataclass(frozen=True)
class Work:
    """A dense stage to train, or a cell to run. Plain values, so that it can be sent anywhere."""

    name: str
    arguments: tuple[str, ...]
    """Arguments of the command `xlmprune`."""
    directory: str
    """The current folder of the process: relative paths of the recipe start there."""
    needs: str | None = None
    """Name of the dense stage that must end before this cell begins."""
    device: str = "auto"


@dataclass(frozen=True)
class Outcome:
    """How a piece of work ended."""

    name: str
    exit_code: int = 0
    """As the command line has it: 2 user error, 1 internal error, 3 a check failed."""
    message: str = ""
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return self.exit_code not in (0, 3)


class Executor(AbstractContextManager["Executor"], Protocol):
    """Runs pieces of work somewhere. Left by an exception, it ends the pieces that are running."""

    def submit(self, work: Work) -> Future[Outcome]:
        """Run one piece of work as soon as there is room for it."""


class Process:
    """A piece of work that runs, in a process group of its own: Ctrl-C at a terminal reaches it only through us.

    Args:
        variables: added to its environment.
        prefix: begins every line that it writes.
    """

    def __init__(self, work: Work, variables: Mapping[str, str] | None = None, prefix: str = "") -> None:
        self.work, self.prefix = work, prefix
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            own_process.command("xlmprune", *work.arguments),
            cwd=work.directory,
            stdin=subprocess.PIPE,  # stays open as long as we live; see `own_process.end_with_parent`
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**own_process.environment(), own_process.END_WITH_STDIN: "1", **(variables or {})},
            process_group=0 if os.name == "posix" else None,
        )

    def wait(self) -> Outcome:
        """Pass on what it writes until it ends."""
        last: deque[str] = deque(maxlen=100)
        with self.process as process:
            for raw in process.stderr or ():
                line = raw.decode(errors="replace").rstrip()
                last.append(line)
                # One write a line, so that those of several processes do not mix.
                sys.stderr.write(f"{self.prefix}{line}\n")
        code = process.returncode
        seconds = time.perf_counter() - self.started
        if code in (-signal.SIGINT, INTERRUPTED):
            return Outcome(self.work.name, INTERRUPTED, "interrupted", seconds)
        if code < 0:
            return Outcome(self.work.name, 1, _describe_signal(-code), seconds)
        message = last_sentence(last) or f"its process ended with exit code {code} and no message"
        return Outcome(self.work.name, code, message if code else "", seconds)

    def interrupt(self) -> None:
        """Ask it to save and end."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()


MARK = "xlmprune: "
"""Begins every line of a message of the command."""


def last_sentence(lines: Iterable[str]) -> str:
    """Return the last message among the lines that the command wrote; the last line of all, where it gave none."""
    message: list[str] = []
    last, inside = "", False
    for line in lines:
        if line.startswith(MARK):
            message = [*message, line.removeprefix(MARK)] if inside else [line.removeprefix(MARK)]
        inside = line.startswith(MARK)
        last = line.strip() or last
    return "\n".join(message) or last


def _describe_signal(number: int) -> str:
    if number == signal.SIGKILL:
        return (
            "its process was killed (signal 9), as Linux does when memory runs out; `xlmprune compress --dry-run` "
            "estimates what a run needs. The same command resumes from the last checkpoint"
        )
    return f"its process was ended by signal {number}. The same command resumes from the last checkpoint"
