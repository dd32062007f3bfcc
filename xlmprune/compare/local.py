"""Executors on this machine: a process for each piece of work, one or several at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence

from xlmprune.compare.work import Outcome, Work, perform
from xlmprune.core import own_process
from xlmprune.core.errors import MachineError


class LocalExecutor:
    """A process for each piece of work, so that memory is given back after it and a crash takes nothing else along.

    Args:
        jobs: how many run at once. They share out the cores, take GPUs in turn where there are several, and begin
            every line they print with the name of their piece.

    Raises:
        MachineError: ``jobs`` is below 1.
    """

    def __init__(self, jobs: int = 1) -> None:
        if jobs < 1:
            raise MachineError(f"--jobs {jobs}: expected 1 or more")
        self.jobs = jobs

    def run(self, works: Sequence[Work]) -> Generator[Outcome, None, None]:
        """The outcome of every piece, as they end; they begin in their order, each when what it needs has ended.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; the processes have saved what they had and ended.
        """
        jobs = min(self.jobs, len(works))
        free = list(range(jobs))
        waiting, ended = list(works), dict[str, Outcome]()
        running: dict[str, tuple[int, _Process]] = {}
        answers: queue.SimpleQueue[tuple[str, Outcome | None]] = queue.SimpleQueue()
        with _terminated_as_interrupted():
            try:
                while waiting or running:
                    work = _next_ready(waiting, running) if free else None
                    if work is None:
                        name, outcome = answers.get()
                        free.append(running.pop(name)[0])
                        if outcome is None:
                            raise KeyboardInterrupt
                    elif _failed(needed := ended.get(work.needs or "")):
                        name, outcome = work.name, perform(work, needed)
                    else:
                        slot = free.pop(0)
                        variables = share(slot, jobs, work.device)
                        running[work.name] = slot, _Process(work, variables, jobs > 1, answers)
                        continue
                    ended[name] = outcome
                    yield outcome
            finally:
                _end([process for _, process in running.values()])


def _next_ready(waiting: list[Work], running: Mapping[str, object]) -> Work | None:
    """Take the first piece that waits for no other."""
    unfinished = {work.name for work in waiting} | running.keys()
    work = next((work for work in waiting if work.needs not in unfinished), None)
    if work is not None:
        waiting.remove(work)
    return work


def _failed(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.status == "failed"


def share(slot: int, jobs: int, device: str) -> dict[str, str]:
    """Environment variables that give one of several processes its share of the machine.

    Args:
        slot: which of them, from 0.
        jobs: how many run at once; a single one gets no variables.
        device: as the option --device has it; GPUs are dealt out only where none is named.
    """
    if jobs == 1:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // jobs)))}
    gpus = _visible_gpus() if device in ("auto", "cuda") else []
    if len(gpus) > 1:
        found["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return found


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


class _Process:
    """A Python process at one piece of work, in a process group of its own: a terminal's Ctrl-C reaches it from us alone.

    Args:
        variables: added to its environment.
        named: begin its lines on stderr with the name of the piece; otherwise it has our stderr, and may draw on it.
        answers: gets the name of the piece and its outcome when it has ended; None if it was interrupted.
    """

    def __init__(
        self,
        work: Work,
        variables: Mapping[str, str],
        named: bool,
        answers: queue.SimpleQueue[tuple[str, Outcome | None]],
    ) -> None:
        self.work, self.answers = work, answers
        self.process = subprocess.Popen(
            own_process.command("xlmprune.compare.work"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if named else None,
            env={**own_process.environment(), **variables},
            process_group=0 if os.name == "posix" else None,
        )
        self.relay = threading.Thread(target=self._relay, daemon=True)
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.relay.start()
        self.listener.start()

    def _listen(self) -> None:
        answer = b""
        with self.process as process, contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(dataclasses.asdict(self.work)).encode() + b"\n")
                process.stdin.flush()
            # stdin stays open: its end would tell the process that we are gone.
            answer = process.stdout.read()
            process.wait()
            self.relay.join()
        self.answers.put((self.work.name, self._outcome(process.returncode, answer)))

    def _outcome(self, code: int, answer: bytes) -> Outcome | None:
        if code in (-signal.SIGINT, 130):
            return None
        if code == 0:
            with contextlib.suppress(ValueError, TypeError):
                return Outcome(**json.loads(answer))
        return Outcome(self.work.name, "failed", 1, _describe_end(code))

    def _relay(self) -> None:
        for line in self.process.stderr or ():
            # One write a line, so that those of several processes do not mix.
            sys.stderr.write(f"{self.work.name}: {line.decode(errors='replace').rstrip()}\n")

    def interrupt(self) -> None:
        """Ask it to save and end."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it as it stands."""
        self.process.kill()

    def join(self) -> None:
        """Wait until it has ended and its last line is out."""
        self.listener.join()


def _end(processes: Sequence[_Process]) -> None:
    """Let them save and end; at once, if we are interrupted again."""
    for process in processes:
        process.interrupt()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        for process in processes:
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

    def run(self, works: Sequence[Work]) -> Generator[Outcome, None, None]:
        """The outcome of every piece, in their order."""
        ended: dict[str, Outcome] = {}
        for work in works:
            ended[work.name] = perform(work, ended.get(work.needs or ""))
            yield ended[work.name]


__all__ = ["InProcessExecutor", "LocalExecutor", "share"]
