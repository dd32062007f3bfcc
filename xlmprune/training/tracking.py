"""Send what a run logs to TensorBoard, MLflow or Weights & Biases, through their own packages.

Off by default; `training.report_to` names them. `events.jsonl` has every value too: a tracker listens to that log. A tracker
that fails during a run gets no more values, and the run continues.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from xlmprune.core import packages, processes
from xlmprune.core.errors import MachineError
from xlmprune.core.files import write_atomically
from xlmprune.core.progress import Reporter
from xlmprune.core.run_folder import RunFolder
from xlmprune.recipe import registry
from xlmprune.recipe.schema import Recipe

KEPT = "trackers.json"
"""In the run folder's own folder: the name that each tracker has for this run, so that a resumed run continues there."""

COUNTERS = ("stage", "number", "total")
"""Numbers of an event that say where the run stands, and are no results."""


@dataclass(frozen=True)
class RunFacts:
    """What a tracker is told about a run when it is opened."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    """The resolved recipe."""
    step: int
    """Updates made so far; what a tracker has of later ones is written again."""
    known_as: str | None
    """The tracker's own name for this run, if it has been here before."""


class Tracker:
    """Base of every tracker."""

    package: ClassVar[str]
    """The module that it needs; an extra of xlmprune has the same name."""

    def __init__(self, run: RunFacts) -> None:
        raise NotImplementedError

    def known_as(self) -> str | None:
        """Return the tracker's own name for this run; None if it needs none to continue."""
        return None

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Log values at an update, counted over all stages."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is left."""
        raise NotImplementedError


class TensorBoard(Tracker):
    """Files in the run folder; show them with: tensorboard --logdir RUN."""

    package = "tensorboard"

    def __init__(self, run: RunFacts) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step)
        if run.step == 0:
            self._writer.add_text("recipe", f"```\n{json.dumps(run.recipe, indent=1)}\n```")

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class MLflow(Tracker):
    """A run in the experiment and on the server that MLflow's environment variables name."""

    package = "mlflow"

    def __init__(self, run: RunFacts) -> None:
        import mlflow

        self._mlflow = mlflow
        nested = mlflow.active_run() is not None
        self._run = mlflow.start_run(run_id=run.known_as, run_name=run.name, nested=nested)
        if run.known_as is None:
            mlflow.log_params({name: str(value)[:500] for name, value in flat(run.recipe)})

    def known_as(self) -> str | None:
        """Return the id of the run."""
        return self._run.info.run_id

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class WandB(Tracker):
    """A run in the project `xlmprune`, or in the one that WANDB_PROJECT names."""

    package = "wandb"

    def __init__(self, run: RunFacts) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "xlmprune"),
            name=run.name,
            id=run.known_as,
            resume="allow",
            config=dict(run.recipe),
            dir=str(run.folder),
        )

    def known_as(self) -> str | None:
        """Return the id of the run."""
        return self._run.id

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Log a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


# --- what is sent ------------------------------------------------------------------------------------------------------


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (``a/b``, value) of nested mappings."""
    for key, value in values.items():
        name = f"{above}/{key}" if above else str(key)
        if isinstance(value, Mapping):
            yield from flat(value, name)
        else:
            yield name, value


def numbers_of(event: str, facts: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an event, such as ``update/loss`` and ``stage/languages/de``."""
    return {
        f"{event}/{name}": float(value)
        for name, value in flat(facts)
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in COUNTERS
    }


class Updates:
    """Counts updates over all stages, from the events of a run."""

    def __init__(self, events: Iterable[Mapping[str, Any]]) -> None:
        self._totals: dict[int, int] = {}
        self.now = 0
        for event in events:
            self.see(event["event"], event)

    def see(self, event: str, facts: Mapping[str, Any]) -> None:
        """Note an event."""
        if event == "update":
            stage = facts["stage"]
            self._totals[stage] = facts["total"]
            self.now = sum(total for past, total in self._totals.items() if past < stage) + facts["number"]


class Tracking:
    """Passes the numbers of each event on to the trackers."""

    def __init__(
        self, trackers: Mapping[str, Tracker], updates: Updates, warn: Callable[[str], None]
    ) -> None:
        self._trackers, self._updates, self._warn = dict(trackers), updates, warn

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Listen to one event."""
        self._updates.see(event, facts)
        if values := numbers_of(event, facts):
            self._each(lambda tracker: tracker.numbers(values, self._updates.now))

    def close(self) -> None:
        """Close every tracker."""
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:  # of no common type, and no reason to end a run
                del self._trackers[name]
                self._warn(f"{name} gets no more values of this run: {type(error).__name__}: {error}")


# --- opening -----------------------------------------------------------------------------------------------------------


def require_packages(names: Sequence[str]) -> None:
    """Raise MachineError if the package of a tracker is not installed."""
    for name in names:
        package = registry.load("tracker", name).package
        if find_spec(package) is None:
            raise MachineError(
                f"training.report_to: {name} needs the package {package}, which is not installed. Run: "
                f"{packages.pip_install(package)}"
            )


@contextmanager
def reporting(recipe: Recipe, folder: RunFolder, reporter: Reporter) -> Iterator[None]:
    """Send what the run logs to the trackers of `training.report_to`.

    Raises:
        MachineError: a tracker cannot be opened.
    """
    names = recipe.training.report_to
    if not names or not processes.is_first():
        yield
        return
    events = folder.events.read()
    updates = Updates(events)
    begun = any(event["event"] == "resume" for event in events)
    trackers = _open(names, recipe, folder, updates.now, _kept(folder) if begun else {})
    tracking = Tracking(trackers, updates, reporter.warn)
    folder.events.listeners.append(tracking)
    try:
        yield
    finally:
        folder.events.listeners.remove(tracking)
        tracking.close()


def _open(
    names: Sequence[str], recipe: Recipe, folder: RunFolder, step: int, kept: Mapping[str, str]
) -> dict[str, Tracker]:
    trackers: dict[str, Tracker] = {}
    for name in dict.fromkeys(names):
        run = RunFacts(recipe.name, folder.path, recipe.resolved(), step, kept.get(name))
        try:
            trackers[name] = registry.load("tracker", name)(run)
        except Exception as error:  # of no common type: no server, no account, no permission
            for opened in trackers.values():
                opened.close()
            raise MachineError(
                f"training.report_to: {name} cannot be opened ({type(error).__name__}: {' '.join(str(error).split())}). "
                "Take it out of training.report_to to run without it"
            ) from error
    known = {name: known for name, tracker in trackers.items() if (known := tracker.known_as())}
    if known:
        write_atomically(folder.own / KEPT, json.dumps(known, indent=1))
    return trackers


def _kept(folder: RunFolder) -> dict[str, str]:
    try:
        return dict(json.loads((folder.own / KEPT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
