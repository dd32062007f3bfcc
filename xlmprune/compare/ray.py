"""An executor that makes every piece of work a Ray task, on one machine or a cluster (extra `ray`).

Each task asks for its share of a GPU and runs in a process of its own. On a cluster every node needs xlmprune, the
recipe's data and the output folder at the same paths, as on a shared disk.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

from xlmprune.compare.work import Outcome, Work, perform
from xlmprune.core.errors import MachineError


class RayExecutor:
    """Ray tasks.

    Args:
        gpus: share of a GPU for each piece of work; None is a whole one where Ray finds any, else none.
        cpus: cores for each; also the threads it computes with.
        address: of a running cluster, ``auto`` for the one on this machine; None starts one, or follows RAY_ADDRESS.

    Raises:
        MachineError: Ray is not installed.
    """

    def __init__(self, gpus: float | None = None, cpus: float = 1, address: str | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise MachineError(
                "--executor ray needs Ray, which is not installed: pip install 'xlmprune[ray]'. --executor local, the "
                "default, needs nothing more"
            ) from None
        self.ray: Any = ray
        self.gpus, self.cpus, self.address = gpus, cpus, address

    def run(self, works: Sequence[Work]) -> Generator[Outcome, None, None]:
        """The outcome of every piece, as they end; many at a time.

        Raises:
            MachineError: the cluster cannot be reached, or has less than one piece of work asks for.
        """
        ours = not self.ray.is_initialized()
        if ours:
            try:
                self.ray.init(address=self.address, include_dashboard=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise MachineError(f"no Ray cluster at {self.address or 'this machine'}: {error}") from error
        try:
            yield from self._run(works)
        finally:
            if ours:
                self.ray.shutdown()

    def _run(self, works: Sequence[Work]) -> Iterator[Outcome]:
        remote = self._remote(works)
        references: dict[str, Any] = {}
        for work in works:
            # Ray itself holds a cell back until the dense stage it is handed has ended.
            references[work.name] = remote.remote(work, references.get(work.needs or ""))
        waiting = {reference: name for name, reference in references.items()}
        try:
            while waiting:
                (reference, *_), _ = self.ray.wait(list(waiting), num_returns=1)
                yield self._outcome(waiting.pop(reference), reference)
        except BaseException:
            for reference in waiting:
                self.ray.cancel(reference, force=True)
            raise

    def _remote(self, works: Sequence[Work]) -> Any:
        resources = self.ray.cluster_resources()
        found = resources.get("GPU", 0.0)
        gpus = self.gpus if self.gpus is not None else (1.0 if found else 0.0)
        if gpus > found or self.cpus > resources.get("CPU", 0.0):
            raise MachineError(
                f"each piece of work asks for {gpus:g} GPUs and {self.cpus:g} cores; the Ray cluster has {found:g} and "
                f"{resources.get('CPU', 0.0):g}"
            )
        if any(work.device.startswith("cuda") for work in works) and not gpus:
            raise MachineError(
                "--device cuda with no GPU for each piece of work: give a share of one, such as 0.5"
            )
        # A process serves one piece and ends, which alone gives all memory of a GPU back. Checkpoints make a second
        # try after the loss of a node cheap.
        options = {"num_cpus": self.cpus, "num_gpus": gpus, "max_calls": 1, "max_retries": 2}
        return self.ray.remote(**options)(perform)

    def _outcome(self, name: str, reference: Any) -> Outcome:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            first = str(error).strip().split("\n")[0]
            return Outcome(name, "failed", 1, f"its Ray task died: {first}")


__all__ = ["RayExecutor"]
