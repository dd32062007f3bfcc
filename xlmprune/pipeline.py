"""run(recipe): fine-prune on the train language, measure every language, export, report. Each line names the next file."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from xlmprune.bundle import bench, golden
from xlmprune.core.device import resolve_device
from xlmprune.core.errors import MachineError, ShortfallError
from xlmprune.core.files import explain_disk, put_in_place, write_atomically
from xlmprune.core.progress import Reporter
from xlmprune.core.run_folder import RunFolder, StopRequest, damaged_checkpoint
from xlmprune.data.unlabelled import vocabulary_texts
from xlmprune.evaluation import score_file
from xlmprune.evaluation import scores as evaluation
from xlmprune.evaluation.scores import Scores
from xlmprune.export import manifest, writing
from xlmprune.export.form import Material, TextSource
from xlmprune.export.triton import write_triton
from xlmprune.export.writing import MeasuredForm
from xlmprune.models import vocabulary
from xlmprune.models.loading import (
    Pretrained,
    fit_to_tokenizer,
    forward_of,
    load_pretrained,
    read_start,
    save_start,
)
from xlmprune.recipe import Recipe, VocabularyRecipe, registry
from xlmprune.report import pages as report
from xlmprune.report import results
from xlmprune.tasks.metrics import Logits
from xlmprune.training import checkpoint, dense
from xlmprune.training.datasets import check_length, encode_texts, encode_unlabelled, read_texts
from xlmprune.training.loop import FinePruning, StageEnd, Step
from xlmprune.training.method import build_method
from xlmprune.training.outcome import Datasets, Outcome
from xlmprune.training.stages import StageScores
from xlmprune.training.teaching import Teaching


def run(
    recipe: Recipe,
    out: Path,
    device: str = "auto",
    fresh: bool = False,
    reporter: Reporter | None = None,
    start_from: Path | None = None,
) -> dict[str, Any]:
    """Fine-prune on the train language, measure every language, export, report.

    Resumes where an earlier run in ``out`` stopped, with the result of an uninterrupted run. A finished run is not
    touched.

    Args:
        start_from: folder of a finished run with `pruning.schedule.stages: 0` and the same stage 0, which is not trained
            again.

    Returns:
        The report, as in `bundle/report.json`.
    """
    reporter = reporter or Reporter()
    where = resolve_device(device)
    with checkpoint.open_run(out, recipe, fresh) as folder:
        finished = folder.finished()
        if finished is not None:
            reporter.say(f"{out} holds this run, finished; nothing to do (--fresh starts over)")
            return require_all_forms(finished)
        if start_from is not None and not dense.start_from(start_from, recipe, folder):
            reporter.say(f"{out} holds this run already; it resumes, and --start-from is not read")
        try:
            training = Training(recipe, folder, where, reporter)
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


class Training:
    """The loop with its data in a run folder: it logs, measures each stage, and saves.

    Args:
        recipe: what to run.
        folder: where checkpoints are; training stands where the newest one left it.
        device: where to train.
        reporter: says what happens.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, device: torch.device, reporter: Reporter) -> None:
        self.settings, self.folder, self.reporter = recipe.training, folder, reporter
        distillation = recipe.distillation
        task = registry.load("task", recipe.task.name)(recipe.task)
        reporter.say(f"reading {recipe.task.name} in {', '.join(task.languages())}")
        texts = read_texts(task, recipe.task, recipe.training.keep, distillation)
        self.pretrained, self.vocabulary = _start(recipe, task, folder, reporter)
        model, tokenizer = self.pretrained.model, self.pretrained.tokenizer
        length, batch_size = recipe.training.max_length, recipe.evaluation.batch_size
        check_length(recipe.model.name, model.config, length)
        self.data = encode_texts(texts, tokenizer, recipe.task.train_language, length)
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

        method = build_method(recipe.pruning, recipe.regularizer)
        self.last = len(method.densities) - 1
        self.pruner = FinePruning(
            model,
            self.data.train,
            method,
            recipe.training,
            recipe.seed,
            None if self.data.dev is None else dev_score,
            teaching,
        )
        self.scores = StageScores(self.data, recipe.evaluation)
        self._restore(recipe.sha256(), device)

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
            masks=state.masks,
            layers=state.layers(),
            stages=tuple(self.scores.rows),
            dense=self.scores.dense,
            dense_others=self.scores.dense_others,
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

    def _report_stage(self) -> None:
        row = self.scores.rows[-1]
        self.folder.events.write("stage", **row)
        self.reporter.say(self.scores.line(row, self.last))

    def _save(self) -> None:
        checkpoint.save(self.folder, self.pruner.state, self.scores)

    def _restore(self, recipe_sha256: str, device: torch.device) -> None:
        events = self.folder.events
        numbers = checkpoint.restore(self.folder, self.pruner.state, self.scores, self.settings)
        if numbers is None:
            events.cut(0)
            events.write("start", recipe_sha256=recipe_sha256, device=device.type)
            return
        if numbers["device"] != device.type:
            before = numbers["device"]
            self.reporter.say(f"started on {before}, resumed on {device.type}; results may differ slightly")
            events.write("device", before=before, now=device.type)
        at = self.pruner.state.at
        self.reporter.say(f"resuming at stage {at.stage}, update {at.update}")


def _start(
    recipe: Recipe, task: Any, folder: RunFolder, reporter: Reporter
) -> tuple[Pretrained, dict[str, Any] | None]:
    """Return the model as the run began, and facts about its trimmed vocabulary; load and keep it the first time."""
    facts_file = "vocabulary.json"
    if folder.start.is_dir():
        try:
            facts = json.loads((folder.start / facts_file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise damaged_checkpoint(folder.start, str(error)) from error
        return read_start(folder.start, task.kind), facts
    reporter.say(f"loading {recipe.model.name}")
    pretrained, facts = _load_model(recipe, task)

    def write(target: Path) -> None:
        save_start(pretrained, target, recipe.training.max_length)
        write_atomically(target / facts_file, json.dumps(facts, ensure_ascii=False))

    folder.save_start(write)
    return pretrained, facts


def _load_model(recipe: Recipe, task: Any) -> tuple[Pretrained, dict[str, Any] | None]:
    """Load the pretrained model with its head, and trim its vocabulary where the recipe says so."""
    wanted = recipe.model.vocabulary
    if not isinstance(wanted, VocabularyRecipe):
        return load_pretrained(recipe.model, task.kind, task.labels, recipe.seed), None
    texts = vocabulary_texts(task, wanted.files)  # before the model, so that missing text is reported at once
    vocabulary.require_texts(texts)
    pretrained = load_pretrained(recipe.model, task.kind, task.labels, recipe.seed)
    tokenizer, facts = vocabulary.trim(
        pretrained.model, pretrained.tokenizer, texts, min_count=wanted.min_count, max_size=wanted.max_size
    )
    fit_to_tokenizer(pretrained.model, tokenizer)
    return Pretrained(pretrained.model, tokenizer, pretrained.origin), facts


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
    """Name the unlabelled text for INT8 calibration: the teacher's, else the vocabulary's, else the task's own."""
    distillation = recipe.distillation
    patterns = [] if distillation is None or distillation.unlabelled is None else [distillation.unlabelled]
    if isinstance(recipe.model.vocabulary, VocabularyRecipe):
        patterns += recipe.model.vocabulary.files or []
    return TextSource([*patterns, "task"][0], None if distillation is None else distillation.languages)


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
        speed = bench.time_files([unfinished / form.file for form in shipped], reporter.say)
        facts = results.assemble(recipe, outcome, data, pruned, forms, refused, speed, unfinished)
        report.write(facts, unfinished)
        manifest.write(unfinished, facts["environment"], recipe.sha256())
        put_in_place(unfinished, folder.bundle)
    folder.events.write("done", summary=facts["summary"], refused=refused)
    return require_all_forms(facts)


def require_all_forms(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the report, if every form asked for is shipped.

    Raises:
        ShortfallError: the floor refused one.
    """
    if facts.get("refused"):
        raise ShortfallError("\n".join(facts["refused"].values()))
    return facts
