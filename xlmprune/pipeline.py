"""run(recipe): fine-prune on the train language, measure every language, export, report. Each line names the next file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from xlmprune.bundle import bench, golden
from xlmprune.core.device import explain_full_gpu, resolve_device
from xlmprune.core.errors import ShortfallError
from xlmprune.core.files import explain_disk, temporary_folder
from xlmprune.core.progress import Reporter
from xlmprune.core.run_folder import RunFolder
from xlmprune.core.stopping import interruptible
from xlmprune.evaluation.scores import Scores
from xlmprune.export import manifest, sizing, writing
from xlmprune.export.triton import write_triton
from xlmprune.export.writing import MeasuredForm
from xlmprune.pruning.structures import is_cut
from xlmprune.recipe.loading import load_recipe, recipe_of
from xlmprune.recipe.schema import Recipe
from xlmprune.report import pages, results
from xlmprune.training import checkpoint, dense, tracking
from xlmprune.training.outcome import Datasets, Outcome
from xlmprune.training.pins import pin
from xlmprune.training.run import Training


def compress(
    recipe: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    device: str = "auto",
    fresh: bool = False,
    reporter: Reporter | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Fine-tune and prune on English, measure every language, export and report, as `xlmprune compress` does.

    Args:
        recipe: a recipe file, the name of a shipped recipe, or the recipe's keys as a mapping.
        out: the run folder; by default runs/<recipe name>. A stopped run in it is resumed.
        device: auto, cpu, cuda or cuda:n.
        fresh: discard a run in the folder.
        reporter: shows progress; by default on stderr. ``Reporter(level="quiet")`` shows warnings only.
        overrides: values of the recipe: ``seed=1``, ``training={"learning_rate": 2e-5}``. A mapping changes only the keys
            that it has.

    Returns:
        The report, as in `bundle/report.json`.
    """
    resolved = recipe_of(recipe, overrides)
    return run(resolved, Path(out or Path("runs") / resolved.name), device, fresh, reporter)


def run(
    recipe: Recipe,
    out: Path,
    device: str = "auto",
    fresh: bool = False,
    reporter: Reporter | None = None,
    start_from: Path | None = None,
    again: bool = False,
    allow_change: bool = False,
) -> dict[str, Any]:
    """Fine-prune on the train language, measure every language, export, report.

    Resumes where an earlier run in ``out`` stopped, with the result of an uninterrupted run. A finished run is not
    touched.

    Args:
        start_from: folder of a finished run with `pruning.schedule.stages: 0` and the same stage 0, which is not trained
            again.
        again: export a finished run again, with other settings; training is never resumed.
        allow_change: resume although the device, precision, threads or library versions changed.

    Returns:
        The report, as in `bundle/report.json`.
    """
    reporter = reporter or Reporter()
    where = resolve_device(device)
    tracking.require_packages(recipe.training.report_to)
    recipe = pin(recipe, None if fresh else out)
    with (
        interruptible(),
        reporter,
        explain_full_gpu(),
        checkpoint.open_run(out, recipe, fresh) as folder,
    ):
        finished = folder.finished()
        if finished is not None and not again:
            checkpoint.require_same_export(folder, recipe)
            reporter.say(f"{out} holds this run, finished; nothing to do (--fresh starts over)")
            return require_all_forms(finished)
        if start_from is not None and not dense.start_from(start_from, recipe, folder):
            reporter.say(f"{out} holds this run already; it resumes, and --start-from is not read")
        settle = partial(sizing.settle_recipe, timer=bench.medians, say=reporter.say)
        training = Training(recipe, folder, where, reporter, allow_change, settle)
        if again:
            training.require_end()
        else:
            folder.renew_recipe()
        with tracking.reporting(recipe, folder, reporter):
            training.run()
            outcome, pruned, logits = training.finish()
            forms = writing.write_files(recipe, outcome, training.data, logits, folder, reporter)
            return publish(recipe, outcome, training.data, pruned, forms, folder, reporter)


def export_again(
    path: Path, overrides: Sequence[str] = (), device: str = "auto", reporter: Reporter | None = None
) -> dict[str, Any]:
    """Make the bundle of a finished run again, with other export settings; train nothing.

    Args:
        path: the run folder.
        overrides: ``export.a=value`` each.

    Returns:
        The new report.

    Raises:
        RecipeError: no finished run, or an override of a key that changes more than the export.
    """
    file = checkpoint.recipe_file(path)
    recipe = load_recipe(str(file), overrides)
    checkpoint.require_only_export_changes(path, load_recipe(str(file)), recipe)
    return run(recipe, path, device, reporter=reporter, again=True)


def publish(
    recipe: Recipe,
    outcome: Outcome,
    data: Datasets,
    pruned: Scores,
    forms: Sequence[MeasuredForm],
    folder: RunFolder,
    reporter: Reporter,
) -> dict[str, Any]:
    """Time the forms, write the report and the manifest, and put the bundle in place.

    Raises:
        ShortfallError: a form lost more than `export.floor` allows; the bundle is written without it.
    """
    unfinished = folder.unfinished_bundle
    with explain_disk(folder.path):
        refused = writing.refuse(forms, pruned, recipe.export.floor, data.train_language, unfinished)
        shipped = [entry.form for entry in forms if entry.form.name not in refused]
        golden.write(unfinished, *writing.golden_arrays(outcome, data.tests, shipped, unfinished))
        if recipe.export.triton and shipped:
            first = unfinished / shipped[0].file
            write_triton(unfinished / "triton", recipe.name, first, data.task.labels, data.task.kind)
        speed = time_forms(outcome, {form.file: unfinished / form.file for form in shipped}, recipe, reporter)
        report = results.assemble(recipe, outcome, data, pruned, forms, refused, speed, unfinished)
        pages.write(report, unfinished)
        manifest.write(unfinished, report["environment"], recipe.sha256())
        folder.renew_recipe()
        folder.ship()
    folder.events.write("done", summary=report["summary"], refused=refused)
    return require_all_forms(report)


DENSE_MODEL = "dense fp32"
"""What the report calls the model before structures were removed, among the files that were timed."""


def time_forms(
    outcome: Outcome, files: Mapping[str, Path], recipe: Recipe, reporter: Reporter
) -> dict[str, dict[str, Any]]:
    """Time the shipped files, beside the dense model where structures were removed."""
    if not files or not is_cut(outcome.model):
        with reporter.busy("timing the files"):
            return bench.time_files(files, reporter.say)
    with temporary_folder() as folder, reporter.busy("timing the files and the dense model"):
        dense_file = writing.write_whole(outcome, recipe.export.opset, folder)
        return bench.time_files({DENSE_MODEL: dense_file, **files}, reporter.say)


def require_all_forms(report: dict[str, Any]) -> dict[str, Any]:
    """Return the report, if every form asked for is shipped.

    Raises:
        ShortfallError: the floor refused one.
    """
    if report.get("refused"):
        raise ShortfallError("\n".join(report["refused"].values()))
    return report
