"""compare(plan): train each dense stage once, run every cell, write the table. Run again, it resumes."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from xlmprune.compare import pages, results
from xlmprune.compare.local import LocalExecutor
from xlmprune.compare.plan import Plan
from xlmprune.compare.work import INTERRUPTED, Executor, Outcome, Work
from xlmprune.core.errors import MachineError, RecipeError, XlmpruneError
from xlmprune.core.files import explain_disk, write_atomically
from xlmprune.core.progress import Reporter
from xlmprune.core.run_folder import report_file
from xlmprune.recipe.registry import nearest
from xlmprune.recipe.schema import Recipe
from xlmprune.training.checkpoint import open_run
from xlmprune.training.dense import dense_recipe

PAGES_PACE = 10
"""The pages are written again after as many times the seconds that writing them took."""


def compare(
    plan: Plan,
    out: Path,
    executor: Executor | None = None,
    device: str = "auto",
    fresh: bool = False,
    reporter: Reporter | None = None,
    only: Collection[str] = (),
    allow_change: bool = False,
) -> dict[str, Any]:
    """Run every cell that is not finished, and write comparison.json, .md and .html into ``out``.

    A cell that fails is marked in the table and the others continue; `results.exit_code` is what the command ends with.
    The pages are written as cells end, so that a comparison of days can be read while it runs; where cells end quickly, not
    after every one of them.

    Args:
        out: holds a run folder for each cell, `dense/` with the stages they share, and `recipes/` with their recipes.
        executor: where the cells run; by default one after the other on this machine.
        fresh: start over in folders that hold runs.
        only: methods to run now, as their rows are called; all, if empty. The table has every row in either case.
        allow_change: let runs resume although the device, precision, threads or library versions changed.

    Returns:
        The content of comparison.json.

    Raises:
        RecipeError: ``only`` names a method that is not in the plan, or ``out`` holds runs of other recipes.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the runs saved what they had and ended.
    """
    executor, reporter = executor or LocalExecutor(), reporter or Reporter()
    out = out.resolve()
    wanted = chosen_cells(plan, only)
    _refuse_other_recipes(plan, out, wanted if fresh else set())
    outcomes = {name: o for name, o in _finished(plan, out) if not (fresh and name in wanted)}
    options = (["--fresh"] if fresh else []) + (["--allow-change"] if allow_change else [])
    works = list(_works(plan, out, device, options, wanted - outcomes.keys()))
    cells = {cell.name for cell in plan.cells}
    reporter.say(
        f"{plan.name}: {len(cells)} cells, {len(outcomes)} finished already, {len(works)} processes to run"
    )
    written = took = 0.0
    with contextlib.closing(perform(works, executor)) as ended:
        for number, outcome in enumerate(ended, start=1):
            how = f"failed: {outcome.message}" if outcome.failed else "done"
            reporter.say(f"{number} of {len(works)}: {outcome.name} {how} ({outcome.seconds:.0f} s)")
            if outcome.name in cells:
                outcomes[outcome.name] = outcome
                begun = time.monotonic()
                if begun - written > PAGES_PACE * took:
                    pages.write(results.assemble(plan, outcomes, out, tests=False), out)
                    written = time.monotonic()
                    took = written - begun
    with reporter.busy("testing the methods against each other"):  # minutes, for hundreds of pairs
        facts = results.assemble(plan, outcomes, out)
    pages.write(facts, out)
    return facts


def perform(works: Sequence[Work], executor: Executor) -> Generator[Outcome, None, None]:
    """Yield the outcome of every piece of work as they end; a piece whose `needs` failed fails with it.

    Raises:
        KeyboardInterrupt: we were interrupted, or one of the pieces was.
    """
    waiting, ended = list(works), dict[str, Outcome]()
    running: set[Future[Outcome]] = set()
    with executor:
        while waiting or running:
            ready = [work for work in waiting if work.needs is None or work.needs in ended]
            waiting = [work for work in waiting if work not in ready]
            found = []
            for work in ready:
                needed = ended.get(work.needs or "")
                if needed is not None and needed.failed:
                    found.append(
                        Outcome(work.name, needed.exit_code, f"its dense stage failed: {needed.message}")
                    )
                else:
                    running.add(executor.submit(work))
            if not found:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                found = [future.result() for future in done]
            for outcome in found:
                if outcome.exit_code == INTERRUPTED:
                    raise KeyboardInterrupt
                ended[outcome.name] = outcome
                yield outcome


def chosen_cells(plan: Plan, only: Collection[str]) -> set[str]:
    """Return the names of the cells of some methods; of all, if ``only`` is empty.

    Raises:
        RecipeError: the plan has no method of that name.
    """
    for method in only:
        if method not in plan.methods:
            raise RecipeError(f"--only {method!r}: no such method here; {nearest(method, plan.methods)}")
    return {cell.name for cell in plan.cells if not only or cell.method in only}


def _refuse_other_recipes(plan: Plan, out: Path, replaced: Collection[str]) -> None:
    """Check before a page is written: one forgotten --set would replace a good table by one of failures."""
    for cell in plan.cells:
        if cell.name not in replaced and (out / cell.name / "recipe.yaml").is_file():
            try:
                open_run(out / cell.name, cell.recipe).close()
            except RecipeError as error:
                raise RecipeError(
                    f"{error}. Nothing was written; did --set, --vary or the file change since these runs were made?"
                ) from None
            except XlmpruneError:
                continue  # in use or damaged: its own process says so


def _finished(plan: Plan, out: Path) -> Iterator[tuple[str, Outcome]]:
    """Yield the cells whose bundle exists, made by the same recipe."""
    for cell in plan.cells:
        if not report_file(out / cell.name).is_file():
            continue
        try:
            with open_run(out / cell.name, cell.recipe) as folder:
                report = folder.finished() or {}
        except XlmpruneError as error:
            yield cell.name, Outcome(cell.name, error.exit_code, str(error))
            continue
        refused = "\n".join(report.get("refused", {}).values())
        yield cell.name, Outcome(cell.name, 3 if refused else 0, refused)


def _works(
    plan: Plan, out: Path, device: str, options: Sequence[str], wanted: Collection[str]
) -> Iterator[Work]:
    """Yield the cells to run, and before the first of those that share a dense stage that stage."""
    fresh = "--fresh" in options
    cells_of = Counter(cell.dense_key for cell in plan.cells)
    started: set[str] = set()
    for cell in plan.cells:
        if cell.name not in wanted:
            continue
        key = cell.dense_key
        name, dense = f"dense stage {key}", out / "dense" / key
        trained = report_file(dense).is_file() and not (fresh and key not in started)
        shared = cells_of[key] > 1 or trained
        if shared and not trained and key not in started:
            started.add(key)
            yield _work(name, dense_recipe(cell.recipe), dense, out, device, options)
        more = [*options, *(["--start-from", str(dense)] if shared else [])]
        needs = name if key in started else None
        yield _work(cell.name, cell.recipe, out / cell.name, out, device, more, needs)


def _work(
    name: str,
    recipe: Recipe,
    folder: Path,
    out: Path,
    device: str,
    options: Sequence[str],
    needs: str | None = None,
) -> Work:
    """Return the command that runs a recipe in a folder; the recipe is written where the command can read it."""
    file = out / "recipes" / f"{folder.name}.yaml"
    with explain_disk(out):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, recipe.to_yaml())
    arguments = ("compress", str(file), "--out", str(folder), "--device", device, *options)
    return Work(name, arguments, str(Path.cwd()), needs, device)


def make_executor(name: str, gpus: float | None = None, cpus: float = 1, jobs: int = 1) -> Executor:
    """Make the executor called ``local`` or ``ray``.

    Args:
        jobs: for local, how many runs at once.
        gpus: for Ray, the share of a GPU that each run gets; None is a whole one where there are any.
        cpus: for Ray, the cores of each run.

    Raises:
        MachineError: no such executor, or Ray is not installed.
    """
    if name == "local":
        return LocalExecutor(jobs)
    if name == "ray":
        if jobs != 1:
            raise MachineError(
                "--jobs is for --executor local; Ray runs as many as --cpus and --gpus leave room for"
            )
        from xlmprune.compare.ray import RayExecutor

        return RayExecutor(gpus, cpus)
    raise MachineError(f"--executor {name}: expected local or ray")
