"""run(recipe): fine-prune on the train language, measure every language, export, report. Each line names the next file."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from xlmprune import recipe as recipes
from xlmprune.bundle import bench, golden, manifest
from xlmprune.core.device import resolve_device
from xlmprune.core.errors import MachineError, RecipeError, ShortfallError
from xlmprune.core.files import explain_disk, temporary_folder, write_atomically
from xlmprune.core.languages import language_name
from xlmprune.core.progress import Reporter
from xlmprune.core.run_folder import RunFolder, start_damage
from xlmprune.core.stopping import StopRequest, interruptible
from xlmprune.data.examples import Kind
from xlmprune.data.unlabelled import vocabulary_texts
from xlmprune.evaluation import baselines, score_file
from xlmprune.evaluation import scores as evaluation
from xlmprune.evaluation.scores import Scores
from xlmprune.export import sizing, writing
from xlmprune.export.form import Material, TextSource, form_named
from xlmprune.export.triton import write_triton
from xlmprune.export.writing import MeasuredForm
from xlmprune.models import vocabulary
from xlmprune.models.loading import (
    Pretrained,
    fit_to_tokenizer,
    forward_of,
    load_config,
    load_pretrained,
    read_start,
    save_start,
)
from xlmprune.pruning.structures import is_cut
from xlmprune.recipe import Recipe, VocabularyRecipe, registry
from xlmprune.recipe.schema import TASK_TEXT
from xlmprune.report import pages as report
from xlmprune.report import results
from xlmprune.tasks.metrics import Logits
from xlmprune.training import checkpoint, conditions, dense, moments, planning
from xlmprune.training.datasets import check_length, encode_texts, encode_unlabelled, read_texts
from xlmprune.training.loop import FinePruning, StageEnd, Step
from xlmprune.training.method import build_method
from xlmprune.training.moments import choose_moment_text
from xlmprune.training.outcome import Datasets, Outcome
from xlmprune.training.stages import StageScores
from xlmprune.training.teaching import Teaching


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
    options = [f"{key}={json.dumps(value)}" for key, value in _flat(overrides)]
    if isinstance(recipe, Mapping):
        values = {"name": "recipe", **json.loads(json.dumps(dict(recipe)))}
        resolved = recipes.validate(values, "recipe", None, recipes.apply_overrides(values, options))
    else:
        resolved = recipes.load(str(recipe), options)
    return run(resolved, Path(out or Path("runs") / resolved.name), device, fresh, reporter)


def _flat(overrides: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield ``("training.seed", 1)`` for ``{"training": {"seed": 1}}``; a mapping with a name is one value."""
    for key, value in overrides.items():
        if isinstance(value, Mapping) and "name" not in value:
            yield from ((f"{key}.{inner}", entry) for inner, entry in _flat(value))
        else:
            yield key, value


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
    with interruptible(), checkpoint.open_run(out, recipe, fresh) as folder:
        finished = folder.finished()
        if finished is not None and not again:
            checkpoint.require_same_export(folder, recipe)
            reporter.say(f"{out} holds this run, finished; nothing to do (--fresh starts over)")
            return require_all_forms(finished)
        if start_from is not None and not dense.start_from(start_from, recipe, folder):
            reporter.say(f"{out} holds this run already; it resumes, and --start-from is not read")
        try:
            training = Training(recipe, folder, where, reporter, allow_change)
            if again:
                training.require_end()
            else:
                folder.renew_recipe()
            training.run()
            outcome, pruned, logits = training.finish()
            forms = export(recipe, outcome, training.data, logits, folder, reporter)
            return publish(recipe, outcome, training.data, pruned, forms, folder, reporter)
        except torch.OutOfMemoryError as error:
            raise MachineError(
                f"the GPU's memory is full ({str(error).split(chr(10))[0]}) The last checkpoint is kept. Raise "
                "training.gradient_accumulation (the result stays that of the whole batch), or lower training.batch_size, "
                "training.max_length or evaluation.batch_size; a changed recipe starts over with --fresh"
            ) from error
        finally:
            reporter.stop()


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
    file = path / "recipe.yaml"
    if not file.is_file():
        raise RecipeError(f"{path}: is not a run folder; it has no recipe.yaml")
    before, recipe = recipes.load(str(file)), recipes.load(str(file), overrides)
    for key in recipes.differences(before.resolved(), recipe.resolved()):
        if key.effect not in recipes.MAY_CHANGE:
            name = ".".join(map(str, key.path))
            raise RecipeError(
                f"{path}: {name} changes {key.effect}; in a finished run only export settings can change"
            )
    return run(recipe, path, device, reporter=reporter, again=True)


class Training:
    """The loop with its data in a run folder: it logs, measures each stage, and saves.

    Args:
        recipe: what to run.
        folder: where checkpoints are; training stands where the newest one left it.
        device: where to train.
        reporter: says what happens.
        allow_change: resume although conditions changed that alter results.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        device: torch.device,
        reporter: Reporter,
        allow_change: bool = False,
    ) -> None:
        self.settings, self.folder, self.reporter = recipe.training, folder, reporter
        distillation = recipe.distillation
        task = registry.load("task", recipe.task.name)(recipe.task)
        reporter.say(f"reading {recipe.task.name} in {', '.join(task.languages())}")
        texts = read_texts(task, recipe.task, recipe.training.keep, distillation)
        for warning in texts.warnings:
            reporter.say(f"warning: {warning}")
        method = build_method(recipe.pruning, recipe.regularizer)
        measured_on = choose_moment_text(recipe, texts, method)
        self.pretrained, self.vocabulary = _start(recipe, task, folder, reporter)
        model, tokenizer = self.pretrained.model, self.pretrained.tokenizer
        length, batch_size = recipe.training.max_length, recipe.evaluation.batch_size
        check_length(recipe.model.name, model.config, length)
        self.settled = settle_budget(recipe, model.config, task.kind, reporter.say, folder)
        if self.settled is not None and method.structure is not None:
            method = replace(method, structure=self.settled.applied(method.structure))
        self.data = encode_texts(texts, tokenizer, recipe.task.train_language, length)
        if measured_on is not None:
            marks = {**self.data.fingerprints, **measured_on.fingerprints(self.data.fingerprints)}
            self.data = replace(self.data, moments=measured_on.record(), fingerprints=marks)
        model.to(device)
        self.forward = forward_of(model, device)
        teaching = None
        if distillation is not None:
            text = encode_unlabelled(texts, tokenizer, length)
            teaching = Teaching(distillation, text, recipe.training.batch_size, recipe.seed)

        def dev_score() -> float:
            assert self.data.dev is not None
            logits = evaluation.collect(self.forward, self.data.dev.encoded, batch_size)
            return evaluation.score(logits, self.data.dev.examples, task.metrics, task.labels).value

        self.last = len(method.densities) - 1
        self.pruner = FinePruning(
            model,
            self.data.train,
            method,
            recipe.training,
            recipe.seed,
            None if self.data.dev is None else dev_score,
            teaching,
            start=lambda: read_start(folder.start, task.kind).model.state_dict(),
            moment_text=() if measured_on is None else measured_on.batches(tokenizer, length, str(device)),
        )
        self.scores = StageScores(self.data, recipe.evaluation, reporter.track)
        self.conditions = conditions.conditions(device, recipe.training.precision)
        self.changes: list[dict[str, Any]] = []
        self._restore(recipe.sha256(), allow_change)
        self._tell_moments()

    def run(self, until: int | None = None) -> None:
        """Drive the loop to its end, or to the end of stage ``until``.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM asked to stop; the run is saved as it stands.
        """
        if until is not None and self.pruner.state.at.stage > until:
            return
        saved = time.monotonic()
        with StopRequest() as stop:
            for event in self.pruner.run():
                due = time.monotonic() - saved > 60 * self.settings.checkpoint_minutes
                if isinstance(event, StageEnd):
                    self._close_stage(event)
                    due = True
                else:
                    self._log(event)
                    due = stop.asked or (due and event.number < event.total)
                if due:
                    self._save()
                    saved = time.monotonic()
                if stop.asked:
                    raise KeyboardInterrupt
                if isinstance(event, StageEnd) and event.stage == until:
                    return

    def require_end(self) -> None:
        """Raise RecipeError if training has not ended."""
        if self.pruner.state.at.stage <= self.last:
            raise RecipeError(
                f"{self.folder.path}: training has not ended (stage {self.pruner.state.at.stage} of {self.last}); resume it "
                "with xlmprune compress"
            )

    def finish(self) -> tuple[Outcome, Scores, dict[str, Logits]]:
        """Score the pruned model on every example, in fp32; its logits are what every export must reproduce."""
        scores, logits = self.scores.measure_all(self.forward)
        self._report_stage()
        if self.last == 0:
            self._save()  # with its scores, for runs that start from it
        kept = score_file.ExampleScores(
            self.data.task.metrics[0].name,
            {language: score.statistics for language, score in scores.items()},
            self.scores.dense,
            {language: score_file.fingerprint(test.examples) for language, test in self.data.tests.items()},
        )
        with explain_disk(self.folder.path):
            score_file.write(self.folder.path / score_file.NAME, kept)
        return self._outcome(), scores, logits

    def _outcome(self) -> Outcome:
        state = self.pruner.state
        return Outcome(
            model=state.model.eval(),
            tokenizer=self.pretrained.tokenizer,
            origin=self.pretrained.origin,
            vocabulary=self.vocabulary,
            device=state.device,
            masks=state.nonzero_masks(),
            whole=state.whole,
            layers=state.layers(),
            stages=tuple(self.scores.rows),
            dense=self.scores.dense,
            dense_others=self.scores.dense_others,
            changes=tuple(self.changes),
            budget=None if self.settled is None else self.settled.facts(),
        )

    def _log(self, step: Step) -> None:
        self.reporter.step(step.stage, self.last, step.density, step.number, step.total, step.loss)
        if step.number == step.total or step.number % 50 == 0:
            self.folder.events.write("update", **vars(step))

    def _close_stage(self, end: StageEnd) -> None:
        """Measure a stage where the recipe asks for it; the last one is measured by `finish`, for its logits."""
        self.scores.add_row(end, self.pruner.state.layers())
        if end.stage < self.last:
            if self.scores.is_due(end.stage):
                self.scores.measure(self.forward, end.stage)
            self._report_stage()
        if end.stage == 0:
            self._warn_if_nothing_learned()

    def _report_stage(self) -> None:
        row = self.scores.rows[-1]
        self.folder.events.write("stage", **row)
        self.reporter.say(self.scores.line(row, self.last))
        if scored := row.get("languages"):
            self.reporter.detail("  ".join(f"{code} {value:.1f}" for code, value in scored.items()))

    def _warn_if_nothing_learned(self) -> None:
        """Compare the dense model with its baselines on dev; a model at chance makes every later score meaningless."""
        test, task = self.data.dev or self.data.tests[self.data.train_language], self.data.task
        baseline = baselines.baselines(test.examples, task.metrics[0], task.labels)
        logits = evaluation.collect(self.forward, test.encoded, self.scores.settings.batch_size)
        score = evaluation.score(logits, test.examples, task.metrics, task.labels)
        if baseline is not None and baselines.learned_nothing(score.statistics, task.metrics[0], baseline):
            where = f"{language_name(self.data.train_language)} {'test' if self.data.dev is None else 'dev'}"
            self.reporter.warn(baselines.describe(score.value, baseline, where))

    def _tell_moments(self) -> None:
        """Say on which text activations are measured, and log it once."""
        record = self.data.moments
        if record is None:
            return
        for sentence in moments.describe(record):
            self.reporter.say(sentence)
        if not any(event["event"] == "moments" for event in self.folder.events.read()):
            self.folder.events.write("moments", **record)

    def _save(self) -> None:
        checkpoint.save(self.folder, self.pruner.state, self.scores, self.conditions, self.changes)

    def _restore(self, recipe_sha256: str, allow_change: bool) -> None:
        events, warn = self.folder.events, self.reporter.warn
        numbers = checkpoint.restore(self.folder, self.pruner.state, self.scores, self.settings, warn)
        if numbers is None:
            events.cut(0)
            events.write("start", recipe_sha256=recipe_sha256, conditions=self.conditions)
            self._write_repairs()
            return
        at, changed = self.pruner.state.at, conditions.changes(numbers["conditions"], self.conditions)
        self.changes = numbers["changes"]
        if changed and at.stage <= self.last:  # with all stages trained, only measuring and export are left
            conditions.require_allowed(changed, allow_change, self.folder.path)
            self.changes.append({"stage": at.stage, "update": at.update, "changed": changed})
            self.reporter.warn(
                f"resuming under other conditions, so results may differ: {conditions.describe(changed)}"
            )
        events.write("resume", stage=at.stage, update=at.update, conditions=self.conditions, changed=changed)
        self._write_repairs()
        self.reporter.say(f"resuming at stage {at.stage}, update {at.update}")

    def _write_repairs(self) -> None:
        for repair in self.folder.repairs:
            self.folder.events.write("damaged", **repair)


def settle_budget(
    recipe: Recipe, config: Any, kind: Kind, say: Callable[[str], None], folder: RunFolder | None = None
) -> sizing.Settled | None:
    """Choose the sizes that meet `pruning.structure.budget`; a run folder keeps them. None where there is no budget.

    Args:
        config: of the model as training begins.
    """
    structure = recipe.pruning.structure
    if structure is None or structure.budget is None:
        return None
    budget, source = structure.budget, sizing.Source(recipe.model.name, config, kind)
    exporting = sizing.Exporting(budget.form, recipe.export.opset, recipe.export.embeddings)
    settle = partial(sizing.settle, structure, budget, source, exporting, bench.medians, say)
    settled = settle() if folder is None else sizing.settle_once(folder.budget, settle)
    say(settled.sentence())
    return settled


def plan(
    recipe: Recipe, device: str = "auto", say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Plan a run, as `training.planning.plan` does, with what a budget resolves to.

    Args:
        say: told what is measured.
    """
    structure = recipe.pruning.structure
    if structure is None or structure.budget is None:
        return planning.plan(recipe, device)
    task = registry.load("task", recipe.task.name)(recipe.task)
    trimmed = structure.budget.bytes is not None and recipe.model.vocabulary != "keep"
    config = _load_model(recipe, task)[0].model.config if trimmed else load_config(recipe.model, task.labels)
    settled = settle_budget(recipe, config, task.kind, say)
    assert settled is not None
    pruning = recipe.pruning.model_copy(update={"structure": settled.applied(structure)})
    found = planning.plan(recipe.model_copy(update={"pruning": pruning}), device)
    return {**found, "budget": {**settled.facts(), "sentence": settled.sentence()}}


def model_to_size(
    name: str, form: str, overrides: Sequence[str] = ()
) -> tuple[sizing.Source, sizing.Exporting]:
    """Return the model of a bundle or recipe and how its files are written, for a table of what its sizes cost.

    Args:
        name: folder of a bundle, or a recipe as `xlmprune compress` takes it.
        overrides: of a recipe, ``a.b=value`` each.
    """
    form_named(form)
    if Path(name).is_dir():
        return sizing.source_of_bundle(Path(name)), sizing.exporting_of_bundle(Path(name), form)
    recipe = recipes.load(name, overrides)
    task = registry.load("task", recipe.task.name)(recipe.task)
    source = sizing.Source(recipe.model.name, load_config(recipe.model, task.labels), task.kind)
    return source, sizing.Exporting(form, recipe.export.opset, recipe.export.embeddings)


VOCABULARY_FILE = "vocabulary.json"


def _start(
    recipe: Recipe, task: Any, folder: RunFolder, reporter: Reporter
) -> tuple[Pretrained, dict[str, Any] | None]:
    """Return the model as the run began, and facts about its trimmed vocabulary; load and keep it the first time.

    A damaged one is loaded again from where it came.

    Raises:
        ModelError: it is damaged, and loading it again gives another model.
    """
    expected = folder.expected_start()
    if folder.start.is_dir():
        damage = start_damage(folder.path, expected)
        if damage is None:
            facts = json.loads((folder.start / VOCABULARY_FILE).read_text(encoding="utf-8"))
            return read_start(folder.start, task.kind), facts
        reporter.warn(f"{folder.start} is damaged ({damage}); it is made again")
        folder.repairs.append({"what": folder.start.name, "cause": damage})
    reporter.say(f"loading {recipe.model.name}")
    pretrained, facts = _load_model(recipe, task)
    for note in pretrained.notes:
        reporter.say(note)

    def write(target: Path) -> None:
        save_start(pretrained, target, recipe.training.max_length)
        write_atomically(target / VOCABULARY_FILE, json.dumps(facts, ensure_ascii=False))

    folder.save_start(write, expected)
    return pretrained, facts


def _load_model(recipe: Recipe, task: Any) -> tuple[Pretrained, dict[str, Any] | None]:
    """Load the pretrained model with its head, and trim its vocabulary where the recipe says so."""
    wanted = recipe.model.vocabulary
    if not isinstance(wanted, VocabularyRecipe):
        return load_pretrained(recipe.model, task.kind, task.labels, recipe.seed), None
    # Before the model, so that missing text is reported at once.
    texts = vocabulary_texts(task, wanted.files, wanted.keep_languages_of)
    vocabulary.require_texts(texts)
    pretrained = load_pretrained(recipe.model, task.kind, task.labels, recipe.seed)
    tokenizer, facts = vocabulary.trim(
        pretrained.model, pretrained.tokenizer, texts, min_count=wanted.min_count, max_size=wanted.max_size
    )
    fit_to_tokenizer(pretrained.model, tokenizer)
    return replace(pretrained, tokenizer=tokenizer), facts


def export(
    recipe: Recipe,
    outcome: Outcome,
    data: Datasets,
    logits: Mapping[str, Logits],
    folder: RunFolder,
    reporter: Reporter,
) -> list[MeasuredForm]:
    """Write the model's files into the unfinished bundle, measure each ONNX form and compare it with PyTorch."""
    unfinished, settings = folder.unfinished_bundle, recipe.export
    shutil.rmtree(unfinished, ignore_errors=True)
    with explain_disk(folder.path):
        unfinished.mkdir()
        writing.write_model(outcome, data, settings.safetensors, recipe.sha256(), unfinished)
        if not settings.onnx:
            return []
        material = Material(
            data,
            outcome.tokenizer,
            calibration_text(recipe),
            settings.embeddings,
            recipe.evaluation.batch_size,
            folder.path,
        )
        return list(
            writing.write_forms(
                outcome, material, settings, logits, recipe.sha256(), unfinished, reporter.say
            )
        )


def calibration_text(recipe: Recipe) -> TextSource:
    """Name the unlabelled text for INT8 calibration; without any, English training text must do.

    It is what the recipe asks for, else the teacher's text, else the vocabulary's files. The task's own text of other
    languages is read only if the recipe names it somewhere.
    """
    distillation, wanted = recipe.distillation, recipe.model.vocabulary
    files = (wanted.files or []) if isinstance(wanted, VocabularyRecipe) else []
    patterns = [recipe.export.calibration, distillation and distillation.unlabelled, *files]
    named = next((pattern for pattern in patterns if pattern), None)
    # Forty-eight texts of each language are enough: no reason to read translations of a whole training set.
    pattern = "task" if named in TASK_TEXT else named
    return TextSource(
        pattern, distillation.languages if distillation and not recipe.export.calibration else None
    )


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
        golden.write(unfinished, writing.golden_arrays(outcome, data.tests, shipped, unfinished))
        if recipe.export.triton and shipped:
            first = unfinished / shipped[0].file
            write_triton(unfinished / "triton", recipe.name, first, data.task.labels, data.task.kind)
        speed = time_forms(outcome, {form.file: unfinished / form.file for form in shipped}, recipe, reporter)
        facts = results.assemble(recipe, outcome, data, pruned, forms, refused, speed, unfinished)
        report.write(facts, unfinished)
        manifest.write(unfinished, facts["environment"], recipe.sha256())
        folder.renew_recipe()
        folder.ship()
    folder.events.write("done", summary=facts["summary"], refused=refused)
    return require_all_forms(facts)


DENSE_MODEL = "dense fp32"
"""What the report calls the model before structures were removed, among the files that were timed."""


def time_forms(
    outcome: Outcome, files: Mapping[str, Path], recipe: Recipe, reporter: Reporter
) -> dict[str, dict[str, Any]]:
    """Time the shipped files, beside the dense model where structures were removed."""
    if not files or not is_cut(outcome.model):
        return bench.time_files(files, reporter.say)
    with temporary_folder() as folder:
        dense_file = writing.write_whole(outcome, recipe.export.opset, folder)
        return bench.time_files({DENSE_MODEL: dense_file, **files}, reporter.say)


def require_all_forms(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the report, if every form asked for is shipped.

    Raises:
        ShortfallError: the floor refused one.
    """
    if facts.get("refused"):
        raise ShortfallError("\n".join(facts["refused"].values()))
    return facts
