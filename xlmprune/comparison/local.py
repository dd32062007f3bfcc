"""Executors on this machine: one piece of work after the other."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
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
    """Do one piece of work in a Python process of its own, which inherits stderr."""
    command = [sys.executable, "-m", "xlmprune.comparison.work"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(dataclasses.asdict(work)).encode() + b"\n")
            process.stdin.flush()
            # stdin stays open: its end tells the process that we are gone.
            answer = process.stdout.read()
            code = process.wait()
        except BrokenPipeError:
            answer, code = b"", process.wait()
        except KeyboardInterrupt:
            # A terminal's Ctrl-C has reached the process as well; wherever it came from, both end.
            process.terminate()
            raise
    if code == 0 and answer:
        return Outcome(**json.loads(answer))
    if code in (-signal.SIGINT, 130):
        raise KeyboardInterrupt
    return Outcome(work.name, "failed", 1, _describe_end(code))


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
