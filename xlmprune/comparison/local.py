"""Executors on this machine: one piece of work after the other."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from xlmprune.comparison.work import Outcome, Work, perform


class LocalExecutor:
    """A process for each piece of work, so that memory is given back after it and a crash takes nothing else along."""

    def run(self, works: Sequence[Work]) -> Iterator[Outcome]:
        """The outcome of every piece, in their order."""
        ended: dict[str, Outcome] = {}
        for work in works:
            needed = ended.get(work.needs or "")
            failed = needed is not None and needed.status == "failed"
            ended[work.name] = perform(work, needed) if failed else in_a_process(work)
            yield ended[work.name]


def in_a_process(work: Work) -> Outcome:
    """Do one piece of work in a Python process of its own, which inherits stderr.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the process has saved what it had and ended.
    """
    command = [sys.executable, "-m", "xlmprune.comparison.work"]
    # In a process group of its own, so that a terminal's Ctrl-C reaches it once, from us: a second does not save.
    with (
        _terminated_as_interrupted(),
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0 if os.name == "posix" else None,
        ) as process,
    ):
        try:
            answer = _hand_over(process, json.dumps(dataclasses.asdict(work)).encode() + b"\n")
        except KeyboardInterrupt:
            _end(process)
            raise
    code = process.returncode
    if code == 0 and answer:
        return Outcome(**json.loads(answer))
    if code in (-signal.SIGINT, 130):
        raise KeyboardInterrupt
    return Outcome(work.name, "failed", 1, _describe_end(code))


def _hand_over(process: subprocess.Popen[bytes], line: bytes) -> bytes:
    """What the process answers when it is done."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line)
        process.stdin.flush()
    # stdin stays open: its end would tell the process that we are gone.
    answer = process.stdout.read()
    process.wait()
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let it save and end; at once, if we are interrupted again."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait()
    except KeyboardInterrupt:
        process.kill()


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, as `docker stop` sends it, ends us as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _describe_end(code: int) -> str:
    if code == -signal.SIGKILL:
        return (
            "its process was killed (signal 9), as Linux does when memory runs out; `xlmprune compress --dry-run` "
            "estimates what a run needs. The same command goes on from its last checkpoint"
        )
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return f"its process ended {how}; what it said stands above. The same command goes on from its last checkpoint"


class InProcessExecutor:
    """Everything in this process: for tests, and for debuggers."""

    def run(self, works: Sequence[Work]) -> Iterator[Outcome]:
        """The outcome of every piece, in their order."""
        ended: dict[str, Outcome] = {}
        for work in works:
            ended[work.name] = perform(work, ended.get(work.needs or ""))
            yield ended[work.name]


__all__ = ["InProcessExecutor", "LocalExecutor", "in_a_process"]
