"""run(recipe): fine-prune on the train language, measure every language, export, report. Each line names the next file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmprune.bundle import bench, golden
from xlmprune.core import hub, processes
from xlmprune.core.device import (
    describe_device,
    deterministic,
    explain_full_memory,
    fallback,
    resolve_device,
    without_cudnn_attention,
)
from xlmprune.core.errors import ShortfallError
from xlmprune.core.files import explain_disk
from xlmprune.core.progress import Reporter, silent_reporter
from xlmprune.core.run_folder import RunFolder, bundle_name, explain_report, report_file
from xlmprune.core.stopping import interruptible
from xlmprune.export import manifest, sizing, writing
from xlmprune.export.form import DENSE_MODEL, Form, form_named, form_to_serve
from xlmprune.export.triton import write_triton
from xlmprune.export.whole import written_beside
from xlmprune.export.writing import MeasuredForm
from xlmprune.pruning.structures import is_cut, whole_config
from xlmprune.recipe.loading import PATHS, load_recipe, recipe_of
from xlmprune.recipe.schema import Recipe
from xlmprune.report import pages, results
from xlmprune.training import checkpoint, dense, tracking
from xlmprune.training.conditions import conditions, require_possible
from xlmprune.training.outcome import Datasets, Outcome, Scored
from xlmprune.training.revisions import pin
from xlmprune.training.run import Training

if TYPE_CHECKING:
    import torch


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
        The report, as in `bundle/report.json`; an empty dictionary in a process that leaves the export to the first one of
        several.
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
    touched. Several processes that `torchrun` started train and measure together; the first one exports.

    Args:
        start_from: folder of a finished run with `pruning.schedule.stages: 0` and the same stage 0, which is not trained
            again.
        again: export a finished run again, with other settings; training is never resumed.
        allow_change: resume although the device, precision, threads or library versions changed.

    Returns:
        The report, as in `bundle/report.json`; an empty dictionary in a process that leaves the export to the first one of
        several.
    """
    reporter = (reporter or Reporter()) if processes.is_first() else silent_reporter()
    where = resolve_device(device)
    reporter.say(describe_device(where, recipe.training.precision))
    for warning in fallback(device, where):
        reporter.warn(warning)
    if fresh or not report_file(out).is_file():  # a finished run was possible somewhere
        require_possible(where, recipe.training)
    with (
        interruptible(),
        reporter,
        explain_full_memory(where),
        deterministic(where, recipe.training.deterministic),
        without_cudnn_attention(where),
        processes.joined(where),
        checkpoint.open_run(out, recipe := agreed(recipe, where, None if fresh else out), fresh) as folder,
    ):
        if said := hub.unreached():
            reporter.say(f"{said}. Files come from the cache, where it has them")
        finished = processes.from_first(folder.finished)
        if finished is not None and not again:
            processes.from_first(lambda: checkpoint.require_same_export(folder, recipe))
            with explain_report(report_file(out)):
                pages.results_table(finished)
            reporter.say(f"{out}: this run is finished; nothing to do (--fresh starts over)")
            return require_all_forms(finished)
        if start_from is not None and not processes.from_first(
            lambda: dense.start_from(start_from, recipe, folder)
        ):
            reporter.say(f"{out} holds this run already; the run resumes and ignores --start-from")
        names = [bundle_name(), *map(bundle_name, recipe.sizes[1:])]
        processes.from_first(lambda: folder.require_replaceable(names))
        settle = partial(sizing.settle_recipe, say=reporter.say)
        training = Training(recipe, folder, where, reporter, allow_change, settle, ended=again)
        if not again:
            folder.renew_recipe()
        with tracking.reporting(recipe, folder, reporter):
            training.run()
            made: list[Exported] = []
            with ExitStack() as held:
                for scored in training.finish():
                    if not made:
                        beside = dense_written_beside(recipe, scored.outcome, training.data, folder.own)
                        dense_file = held.enter_context(beside)
                    path = folder.begin_bundle(scored.outcome.size if made else None)
                    made.append(write_bundle(recipe, scored, training.data, path, folder, reporter))
                return publish(recipe, made, training.data, dense_file, folder, reporter) if made else {}


def agreed(recipe: Recipe, device: torch.device, out: Path | None) -> Recipe:
    """Return the first process's recipe, with what it takes from the hub pinned.

    Paths may differ, since the first process alone opens them.

    Args:
        out: the folder of a run that may have begun; None for a run that starts over.

    Raises:
        ProcessesError: the processes have other recipes, or other conditions.
    """
    if processes.count() > 1:
        paths = {"/".join(path) for path in PATHS}
        values = {key: value for key, value in tracking.flat(recipe.resolved()) if key not in paths}
        processes.require_same("recipe", values)
        processes.require_same("conditions", conditions(device, recipe.training))
    pinned, unreached = processes.from_first(lambda: (pin(recipe, out), hub.unreached()))
    if unreached is not None:
        hub.read_cache_alone(unreached)
    return pinned


def export_again(path: Path, overrides: Sequence[str] = (), device: str = "auto") -> dict[str, Any]:
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
    recipe = load_recipe(str(file), overrides, saved=True)
    checkpoint.require_only_export_changes(path, load_recipe(str(file), saved=True), recipe)
    return run(recipe, path, device, again=True)


@dataclass(frozen=True)
class Exported:
    """A model with its files, in a folder that is not in place yet."""

    path: Path
    scored: Scored
    forms: Sequence[MeasuredForm]
    """All that were measured."""
    refused: Mapping[str, str]
    """Form to the sentence that says why it is not shipped."""

    @property
    def shipped(self) -> list[Form]:
        """Forms whose files are in the folder."""
        return [entry.form for entry in self.forms if entry.form.name not in self.refused]


def write_bundle(
    recipe: Recipe, scored: Scored, data: Datasets, path: Path, folder: RunFolder, reporter: Reporter
) -> Exported:
    """Write and measure the files of one model into the empty folder ``path``; forms that lose too much are removed."""
    outcome = scored.outcome
    with explain_disk(folder.path):
        forms = writing.write_files(recipe, outcome, data, scored.logits, path, folder.own, reporter)
        refused = writing.refuse(forms, scored.scores, recipe.export.floor, data.train_language, path)
        made = Exported(path, scored, forms, refused)
        golden.write(path, *writing.golden_arrays(outcome, data.tests, made.shipped, path))
        if recipe.export.triton and made.shipped:
            served = form_named(form_to_serve(form.name for form in made.shipped))
            write_triton(path / "triton", recipe.name, path / served.file, data.task.labels, data.task.kind)
    return made


def publish(
    recipe: Recipe,
    made: Sequence[Exported],
    data: Datasets,
    dense_file: DenseFile | None,
    folder: RunFolder,
    reporter: Reporter,
) -> dict[str, Any]:
    """Time the forms, write the reports and the manifests, and put the bundles in place.

    Args:
        dense_file: of `dense_written_beside`.

    Returns:
        The report of the first bundle.

    Raises:
        ShortfallError: a form lost more than `export.floor` allows; the bundle is written without it.
    """
    with explain_disk(folder.path):
        speeds = time_forms(made, dense_file, reporter)
        reports = [
            results.assemble(recipe, one.scored, data, one.forms, one.refused, speed, one.path)
            for one, speed in zip(made, speeds, strict=True)
        ]
        if recipe.sizes:
            results.add_sizes(reports, [one.path.name for one in made])
        for one, report in zip(made, reports, strict=True):
            pages.write(report, one.path)
            manifest.write(one.path, report["environment"], recipe.sha256())
        folder.renew_recipe()
        folder.ship()
    first = reports[0]
    folder.events.write("done", summary=first["summary"], refused=first.get("refused", {}))
    return require_all_forms(first)


DenseFile = Callable[[int], Path]
"""Returns the fp32 graph of the whole dense model with this version of the operators."""


@contextmanager
def dense_written_beside(
    recipe: Recipe, outcome: Outcome, data: Datasets, temporary: Path
) -> Iterator[DenseFile | None]:
    """Begin to write the dense model, with which a model without some of its structures is compared; None for others.

    Args:
        temporary: where the file is, as long as it is used.
    """
    if not recipe.export.onnx or not is_cut(outcome.model):
        yield None
        return
    opset = None if recipe.export.opset == "auto" else recipe.export.opset
    config = whole_config(outcome.model, outcome.whole.layout)
    with written_beside(config, data.task.kind, opset, temporary) as file:
        yield file


def time_forms(
    made: Sequence[Exported], dense_file: DenseFile | None, reporter: Reporter
) -> list[dict[str, dict[str, Any]]]:
    """Time the shipped files of all bundles in turns, beside the dense model where structures were removed.

    Args:
        dense_file: of `dense_written_beside`.

    Returns:
        For every bundle what was measured, by file.
    """
    files = {str(one.path / form.file): one.path / form.file for one in made for form in one.shipped}
    conditions = _conditions_of(made[0].scored.outcome.budget)
    what = "the files" if dense_file is None else "the files and the dense model"
    with reporter.busy(f"timing {what}"):
        timing = dict(files)
        if files and dense_file is not None:
            timing = {DENSE_MODEL: dense_file(made[0].forms[0].opset), **files}
        timed = bench.time_files(timing, reporter.say, **conditions)
    dense = {DENSE_MODEL: timed[DENSE_MODEL]} if DENSE_MODEL in timed else {}
    return [
        dense
        | {path.name: timed[key] for key, path in files.items() if path.parent == one.path and key in timed}
        for one in made
    ]


def _conditions_of(budget: Mapping[str, Any] | None) -> dict[str, int]:
    """Return the conditions that a budget's speed was predicted for, so that the measured speed is comparable."""
    if budget is None or budget["predicted"]["latency_ms"] is None:
        return {}
    return {key: budget["asked"][key] for key in ("batch", "tokens", "threads")}


def require_all_forms(report: dict[str, Any]) -> dict[str, Any]:
    """Return the report, if every form asked for is shipped.

    Raises:
        ShortfallError: the floor refused one.
    """
    if report.get("refused"):
        raise ShortfallError("\n".join(report["refused"].values()))
    return report
