"""Run pieces of work on this machine, one or several at a time."""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from xlmprune.compare.work import Outcome, Process, Work
from xlmprune.core.errors import MachineError
from xlmprune.core.machine import chosen_threads, processors
from xlmprune.core.stopping import interruptible


class LocalExecutor:
    """A process for each piece of work, so that its memory is given back and a crash takes nothing else with it.

    Args:
        jobs: how many run at once. They share the cores, take GPUs in turn where there are several, and begin every
            line that they write with the name of their piece.

    Raises:
        MachineError: ``jobs`` is below 1.
    """

    def __init__(self, jobs: int = 1) -> None:
        if jobs < 1:
            raise MachineError(f"--jobs {jobs}: expected 1 or more")
        self.jobs = jobs
        self._pool = ThreadPoolExecutor(jobs)
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(jobs):
            self._slots.put(slot)
        self._running: set[Process] = set()
        self._stopping = False
        self._signals = interruptible()

    def submit(self, work: Work) -> Future[Outcome]:
        """Run one piece of work when one of the jobs is free."""
        return self._pool.submit(self._run, work)

    def _run(self, work: Work) -> Outcome:
        slot = self._slots.get()
        try:
            prefix = f"{work.name}: " if self.jobs > 1 else ""
            process = Process(work, share(slot, self.jobs, work.device), prefix)
            self._running.add(process)
            if self._stopping:
                process.interrupt()
            outcome = process.wait()
            self._running.discard(process)
            return outcome
        finally:
            self._slots.put(slot)

    def __enter__(self) -> LocalExecutor:
        self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what runs; after an exception, ask it to save and end first. A second Ctrl-C kills it."""
        if kind is not None:
            self._stopping = True
            for process in list(self._running):
                process.interrupt()
        try:
            self._pool.shutdown(cancel_futures=kind is not None)
        except KeyboardInterrupt:
            for process in list(self._running):
                process.kill()
            raise
        finally:
            self._signals.__exit__(None, None, None)


def share(slot: int, jobs: int, device: str) -> Mapping[str, str]:
    """Environment variables that give one of several processes its share of the machine.

    Args:
        slot: which of them, from 0.
        jobs: how many run at once; a single one gets no variables.
        device: as the option --device has it; GPUs are assigned only if it names none.
    """
    if jobs == 1:
        return {}
    found = {"OMP_NUM_THREADS": str(chosen_threads() or max(1, processors() // jobs))}
    gpus = _visible_gpus() if device in ("auto", "cuda") else []
    if len(gpus) > 1:
        found["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return found


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    from xlmprune.core import gpu

    return [str(number) for number in range(gpu.count())]
