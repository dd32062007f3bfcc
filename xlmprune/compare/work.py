"""One piece of work of a comparison, done in whatever process an executor chose.

Run as a program it reads one piece as a line of JSON from stdin, does it, and writes the outcome as JSON to stdout.
It ends when stdin closes, so that it never outlives whoever started it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from xlmprune import recipe as recipes
from xlmprune.core.errors import ShortfallError, XlmpruneError


@dataclass(frozen=True)
class Work:
    """A dense stage to train, or a cell to run. Plain values, so that it can be sent anywhere."""

    name: str
    kind: Literal["dense", "cell"]
    recipe: str
    """Resolved, as YAML."""
    folder: str
    """Absolute."""
    needs: str | None = None
    """Name of the dense stage that this cell begins from; it is done earlier."""
    dense: str | None = None
    """Its folder."""
    device: str = "auto"
    fresh: bool = False
    directory: str = ""
    """Where relative paths of the recipe are seen from."""


@dataclass(frozen=True)
class Outcome:
    """How a piece of work ended."""

    name: str
    status: Literal["done", "failed"]
    exit_code: int = 0
    """As the command line has it: 2 the user can mend it, 1 a fault of ours, 3 done but less than promised."""
    message: str = ""
    seconds: float = 0.0


class Executor(Protocol):
    """Does pieces of work somewhere."""

    def run(self, works: Sequence[Work]) -> Generator[Outcome, None, None]:
        """The outcome of every piece, as they end. A piece whose `needs` failed fails with it.

        Closed before its end, it ends the pieces under way.
        """


def perform(work: Work, needed: Outcome | None = None) -> Outcome:
    """Do one piece of work in this process; whatever goes wrong becomes an outcome.

    Args:
        needed: how the dense stage ended that it `needs`.
    """
    started = time.perf_counter()
    try:
        refuse_after(work, needed)
        # Libraries print where they like; stdout belongs to the table.
        with contextlib.redirect_stdout(sys.stderr), _inside(work.directory):
            _do(work)
    except ShortfallError as error:
        return Outcome(work.name, "done", error.exit_code, str(error), time.perf_counter() - started)
    except XlmpruneError as error:
        return Outcome(work.name, "failed", error.exit_code, str(error), time.perf_counter() - started)
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        return Outcome(work.name, "failed", 1, message, time.perf_counter() - started)
    return Outcome(work.name, "done", 0, "", time.perf_counter() - started)


class NeededError(XlmpruneError):
    """What this piece of work begins from could not be made."""


def refuse_after(work: Work, needed: Outcome | None) -> None:
    """Raise what stopped the dense stage, with its exit code, if it failed.

    Raises:
        NeededError: it did.
    """
    if needed is not None and needed.status == "failed":
        error = NeededError(f"its dense stage failed: {needed.message}")
        error.exit_code = needed.exit_code
        raise error


def _do(work: Work) -> None:
    from xlmprune import pipeline
    from xlmprune.compare import dense
    from xlmprune.core.progress import Reporter

    values, _ = recipes.parse_yaml(work.recipe, work.name)
    recipe = recipes.validate(values, work.name)
    folder = Path(work.folder)
    if work.kind == "dense":
        dense.train_dense(recipe, folder, work.device, Reporter(), work.fresh)
        return
    fresh = work.fresh
    if work.dense is not None and dense.plant_dense(Path(work.dense), recipe, folder, fresh):
        fresh = False
    pipeline.run(recipe, folder, work.device, fresh)


@contextlib.contextmanager
def _inside(directory: str) -> Iterator[None]:
    before = Path.cwd()
    if directory:
        os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def main() -> None:
    """Do the piece of work that stdin names."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    work = Work(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcome = perform(work)
    except KeyboardInterrupt:
        sys.exit(130)
    with channel:
        channel.write(json.dumps(dataclasses.asdict(outcome)))


def _end_with_parent() -> None:
    # Not through sys.stdin, whose lock the interpreter wants when it ends.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
