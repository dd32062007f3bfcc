"""compare(plan): train each dense stage once, run every cell, write the table. Run again, it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from xlmprune.compare import pages, table
from xlmprune.compare.dense import dense_key, dense_recipe, is_begun, is_trained
from xlmprune.compare.local import LocalExecutor
from xlmprune.compare.plan import Plan
from xlmprune.compare.work import Executor, Outcome, Work
from xlmprune.core.errors import MachineError, RecipeError, XlmpruneError
from xlmprune.core.progress import Reporter
from xlmprune.recipe.registry import nearest
from xlmprune.training.checkpoint import open_run


def compare(
    plan: Plan,
    out: Path,
    executor: Executor | None = None,
    device: str = "auto",
    fresh: bool = False,
    reporter: Reporter | None = None,
    only: Collection[str] = (),
) -> dict[str, Any]:
    """Run every cell that is not finished, and write comparison.json, .md and .html into ``out``.

    A cell that fails is marked in the table and the others go on; `table.exit_code` says what the command ends with.
    The pages are written after every cell, so that a comparison of days can be read while it runs.

    Args:
        out: holds a run folder for each cell, and `dense/` with the stages they share.
        executor: where the cells run; one after the other on this machine, if None.
        fresh: start over in folders that hold runs.
        only: methods to run now, as their rows are called; all, if empty. The table has every row all the same.

    Returns:
        The content of comparison.json.

    Raises:
        RecipeError: ``only`` names a method that is not in the plan, or ``out`` holds runs of other recipes.
    """
    executor, reporter = executor or LocalExecutor(), reporter or Reporter()
    out = out.resolve()
    wanted = _wanted(plan, only)
    _refuse_other_recipes(plan, out, wanted if fresh else set())
    outcomes = {name: o for name, o in _finished(plan, out) if not (fresh and name in wanted)}
    works = list(_works(plan, out, device, fresh, wanted - outcomes.keys()))
    cells = {cell.name for cell in plan.cells}
    reporter.say(
        f"{plan.name}: {len(cells)} cells, {len(outcomes)} finished already, "
        f"{sum(work.kind == 'dense' for work in works)} dense stages to train for {len(works)} pieces of work in all"
    )
    with contextlib.closing(executor.run(works)) as ended:
        for number, outcome in enumerate(ended, start=1):
            how = "done" if outcome.status == "done" else f"failed: {outcome.message}"
            reporter.say(f"{number} of {len(works)}: {outcome.name} {how} ({outcome.seconds:.0f} s)")
            if outcome.name in cells:
                outcomes[outcome.name] = outcome
                pages.write(table.assemble(plan, outcomes, out, tests=False), out)
    facts = table.assemble(plan, outcomes, out)
    pages.write(facts, out)
    return facts


def _wanted(plan: Plan, only: Collection[str]) -> set[str]:
    for method in only:
        if method not in plan.methods:
            raise RecipeError(f"--only {method!r}: no such method here; {nearest(method, plan.methods)}")
    return {cell.name for cell in plan.cells if not only or cell.method in only}


def _refuse_other_recipes(plan: Plan, out: Path, replaced: Collection[str]) -> None:
    """Before a page is written: one forgotten --set would replace a good table by one of failures."""
    for cell in plan.cells:
        if cell.name not in replaced and (out / cell.name / "recipe.yaml").is_file():
            try:
                open_run(out / cell.name, cell.recipe).close()
            except RecipeError as error:
                raise RecipeError(
                    f"{error}. Nothing was written; was --set, --vary or the file another when these runs were made?"
                ) from None
            except XlmpruneError:
                continue  # busy or damaged: told when its turn comes


def _finished(plan: Plan, out: Path) -> Iterator[tuple[str, Outcome]]:
    """Cells whose bundle is there, made by the same recipe; a folder of another recipe is a failure."""
    for cell in plan.cells:
        if not (out / cell.name / "bundle" / "report.json").is_file():
            continue
        try:
            with open_run(out / cell.name, cell.recipe) as folder:
                report = folder.finished() or {}
        except XlmpruneError as error:
            yield cell.name, Outcome(cell.name, "failed", error.exit_code, str(error))
            continue
        refused = "\n".join(report.get("refused", {}).values())
        yield cell.name, Outcome(cell.name, "done", 3 if refused else 0, refused)


def _works(plan: Plan, out: Path, device: str, fresh: bool, wanted: Collection[str]) -> Iterator[Work]:
    """The cells to run; before the first of those that share a dense stage, or find one trained, that stage."""
    keys = {cell.name: dense_key(cell.recipe) for cell in plan.cells}
    shared = {
        key for key in keys.values() if list(keys.values()).count(key) > 1 or is_trained(out / "dense" / key)
    }
    here, begun = str(Path.cwd()), set()
    for cell in plan.cells:
        if cell.name not in wanted:
            continue
        key, folder = keys[cell.name], out / cell.name
        sharing = key in shared and (fresh or not is_begun(folder))
        dense = out / "dense" / key
        if sharing and key not in begun and (fresh or not is_trained(dense)):
            begun.add(key)
            text = dense_recipe(cell.recipe).to_yaml()
            yield Work(_dense_name(key), "dense", text, str(dense), None, None, device, fresh, here)
        needs = _dense_name(key) if sharing and key in begun else None
        source = str(dense) if sharing else None
        yield Work(cell.name, "cell", cell.recipe.to_yaml(), str(folder), needs, source, device, fresh, here)


def _dense_name(key: str) -> str:
    return f"dense stage {key}"


def make_executor(name: str, gpus: float | None = None, cpus: float = 1, jobs: int = 1) -> Executor:
    """``local`` or ``ray``.

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


__all__ = ["compare", "make_executor"]
