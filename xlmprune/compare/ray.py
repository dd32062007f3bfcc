"""Run pieces of work as Ray tasks, on one machine or a cluster (extra `ray`).

Each task asks for its share of a GPU and runs the same command as everywhere. On a cluster every node needs xlmprune,
the recipe's data and the output folder at the same paths, as on a shared disk.
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from xlmprune.compare.work import INTERRUPTED, Outcome, Process, Work
from xlmprune.core.errors import MachineError, first_line
from xlmprune.core.packages import pip_install

STOPPING_SECONDS = 60
"""How long interrupted tasks may take to save their runs."""


def perform(work: Work) -> Outcome:
    """Run one piece of work inside a Ray task; a cancelled task lets it save first."""
    process = Process(work)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.interrupt()
        process.process.wait(STOPPING_SECONDS)
        return Outcome(work.name, INTERRUPTED, "interrupted")


class RayExecutor:
    """Ray tasks, as many at once as the cluster has room for: that of RAY_ADDRESS, or one that starts here.

    Args:
        gpus: share of a GPU for each piece of work; None is a whole one where Ray finds any, else none.
        cpus: cores for each; also the threads it computes with.

    Raises:
        MachineError: Ray is not installed.
    """

    def __init__(self, gpus: float | None = None, cpus: float = 1) -> None:
        try:
            import ray
        except ImportError:
            raise MachineError(
                f"--executor ray needs Ray, which is not installed: {pip_install('ray')}. --executor local, the "
                "default, needs no further package"
            ) from None
        self.ray: Any = ray
        self.gpus, self.cpus = gpus, cpus
        self._running: list[Any] = []

    def __enter__(self) -> RayExecutor:
        """Connect to the cluster.

        Raises:
            MachineError: it cannot be reached, or has less than one piece of work asks for.
        """
        self._ours = not self.ray.is_initialized()
        if self._ours:
            try:
                self.ray.init(include_dashboard=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                address = os.environ.get("RAY_ADDRESS") or "this machine"
                raise MachineError(f"no Ray cluster at {address}: {error}") from error
        try:
            self._remote = self._declare()
        except BaseException:
            self._leave()
            raise
        return self

    def _declare(self) -> Any:
        resources = self.ray.cluster_resources()
        found, cores = resources.get("GPU", 0.0), resources.get("CPU", 0.0)
        if self.gpus is None:
            self.gpus = 1.0 if found else 0.0
        if self.gpus > found or self.cpus > cores:
            raise MachineError(
                f"each piece of work asks for {self.gpus:g} GPUs and {self.cpus:g} cores; the Ray cluster has {found:g} "
                f"and {cores:g}"
            )
        # Checkpoints make a second try after the loss of a node cheap.
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_calls": 1, "max_retries": 2}
        return self.ray.remote(**options)(perform)

    def submit(self, work: Work) -> Future[Outcome]:
        """Hand one piece of work to the cluster.

        Raises:
            MachineError: it needs a GPU, and tasks have none.
        """
        if work.device.startswith("cuda") and not self.gpus:
            raise MachineError(
                "--device cuda with no GPU for each piece of work: give a share of one, such as --gpus 0.5"
            )
        reference = self._remote.remote(work)
        self._running.append(reference)
        answer: Future[Outcome] = Future()
        reference.future().add_done_callback(lambda found: answer.set_result(self._outcome(work.name, found)))
        return answer

    def _outcome(self, name: str, found: Future[Outcome]) -> Outcome:
        try:
            return found.result()
        except self.ray.exceptions.RayError as error:
            return Outcome(name, 1, f"its Ray task died: {first_line(error)}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After an exception, let the running pieces save and end first."""
        try:
            if kind is not None and self._running:
                for reference in self._running:
                    self.ray.cancel(reference)
                self.ray.wait(self._running, num_returns=len(self._running), timeout=STOPPING_SECONDS)
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._ours:
            self.ray.shutdown()
