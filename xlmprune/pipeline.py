"""run(recipe): fine-prune on English, measure every language, export, report. The only module that knows every stage."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xlmprune.core.device import resolve_device
from xlmprune.core.errors import DataError, MachineError, ShortfallError
from xlmprune.core.progress import Reporter
from xlmprune.core.run_folder import (
    RunFolder,
    StopRequest,
    damaged_checkpoint,
    explain_disk,
    put_in_place,
    write_atomically,
)
from xlmprune.data.checks import warnings_about
from xlmprune.data.encoding import encode
from xlmprune.data.examples import Examples
from xlmprune.data.unlabelled import unlabelled_examples, vocabulary_texts
from xlmprune.evaluation import score_file
from xlmprune.evaluation import scores as evaluation
from xlmprune.evaluation.scores import Scores, TestSet
from xlmprune.export import forms as bundling
from xlmprune.export.forms import Form
from xlmprune.export.int8 import TextSource
from xlmprune.models import architecture, vocabulary
from xlmprune.models.loading import (
    Pretrained,
    fit_to_tokenizer,
    forward_of,
    load_pretrained,
    read_start,
    save_start,
)
from xlmprune.recipe import Recipe, VocabularyRecipe, registry
from xlmprune.recipe.schema import TASK_TEXT
from xlmprune.report import findings, results
from xlmprune.report import pages as report
from xlmprune.tasks.metrics import Logits
from xlmprune.training.loop import FinePruning, StageEnd, Step
from xlmprune.training.outcome import Datasets, Outcome
from xlmprune.training.teaching import Teaching, join_encoded

UNLABELLED = "unlabelled"


def run(
    recipe: Recipe, out: Path, device: str = "auto", fresh: bool = False, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Fine-prune on English, measure every language, export, report.

    Goes on where an earlier run in ``out`` stopped, with the result that an unbroken run gives; a finished run is
    not touched.

    Returns:
        The report, as in `bundle/report.json`.
    """
    reporter = reporter or Reporter()
    place = resolve_device(device)
    with RunFolder(out, recipe, fresh) as folder:
        finished = folder.finished()
        if finished is not None:
            reporter.say(f"{out} holds this run, finished; nothing to do (--fresh starts over)")
            return promised(finished)
        try:
            training = prepare(recipe, folder, place, reporter)
            fine_prune(training)
            pruned, logits = measure_pruned(training)
            outcome = training.outcome()
            forms = export(recipe, outcome, training.data, logits, folder, reporter)
            return publish(recipe, outcome, training.data, pruned, forms, folder)
        except torch.OutOfMemoryError as error:
            raise MachineError(
                f"the GPU's memory is full ({str(error).split(chr(10))[0]}) The last checkpoint is kept. Raise "
                "training.gradient_accumulation (the result stays that of the whole batch), or lower training.batch_size, "
                "training.max_length or evaluation.batch_size; a changed recipe starts over with --fresh"
            ) from error
        finally:
            reporter.stop()


@dataclass
class Training:
    """The loop with its data and run folder, and what was measured after each stage."""

    recipe: Recipe
    folder: RunFolder
    reporter: Reporter
    data: Datasets
    pretrained: Pretrained
    vocabulary: dict[str, Any] | None
    pruner: FinePruning
    stages: list[dict[str, Any]] = field(default_factory=list)
    dense: dict[str, np.ndarray] = field(default_factory=dict)
    """Statistics of the dense model by language, [examples, k]."""
    dense_others: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.pruner.device

    @property
    def model(self) -> Any:
        return self.pretrained.model

    def outcome(self) -> Outcome:
        """Return what training has left, as frozen facts."""
        return Outcome(
            model=self.model.eval(),
            tokenizer=self.pretrained.tokenizer,
            origin=self.pretrained.origin,
            vocabulary=self.vocabulary,
            device=self.device,
            masks=self.pruner.masks,
            layers=self.pruner.layers(),
            stages=tuple(self.stages),
            dense=self.dense,
            dense_others=self.dense_others,
        )


# --- load model and data ---------------------------------------------------------------------------------------------


def prepare(recipe: Recipe, folder: RunFolder, device: torch.device, reporter: Reporter) -> Training:
    """Model, data and the loop, standing where the last checkpoint left them."""
    task = registry.load("task", recipe.task.name)(recipe.task)
    train_language, length = recipe.task.train_language, recipe.training.max_length
    reporter.say(f"reading {recipe.task.name} in {', '.join(task.languages())}")
    examples = task.examples(train_language, "train")
    if recipe.task.max_train_examples is not None:
        examples = examples.sample(recipe.task.max_train_examples)
    if len(examples) == 0:
        raise DataError(f"{examples.origin or recipe.task.name}: no training examples in {train_language!r}")
    if examples.labels is None:
        raise DataError(f"{examples.origin}: the training examples carry no labels")
    chosen_on = read_dev(task, recipe)
    if not folder.start.is_dir():
        reporter.say(f"loading {recipe.model.name}")
        pretrained, trimming = load_model(recipe, task)
        folder.save_start(lambda place: _write_start(pretrained, trimming, place, length))
    else:
        pretrained = read_start(folder.start, task.kind)
        trimming = _read_trimming(folder.start / "vocabulary.json")
    check_length(recipe, pretrained.model.config)
    tokenizer = pretrained.tokenizer
    train = encode(tokenizer, examples, length)
    tests = evaluation.load_test_sets(task, tokenizer, length, recipe.task.max_test_examples)
    measured = {language: test.examples for language, test in tests.items()}
    evaluation.require_scorable(task, [*measured.values(), *([] if chosen_on is None else [chosen_on])])
    warnings = warnings_about(examples, chosen_on, measured)
    for warning in warnings:
        reporter.say(f"warning: {warning}")
    dev = None if chosen_on is None else TestSet(chosen_on, encode(tokenizer, chosen_on, length))
    pretrained.model.to(device)
    forward = forward_of(pretrained.model, device)

    def dev_score() -> float:
        assert dev is not None
        logits = evaluation.collect(forward, dev.encoded, recipe.evaluation.batch_size)
        return evaluation.score(logits, dev.examples, task.metrics, task.labels).value

    taught = read_unlabelled(recipe, task, measured, chosen_on)
    teaching = make_teaching(recipe, taught, tokenizer)
    pruner = FinePruning(recipe, pretrained.model, train, dev_score if dev is not None else None, teaching)
    data = Datasets(
        task=task,
        train_language=train_language,
        max_length=length,
        train=train,
        train_origin=examples.origin,
        train_notes=(*examples.notes, *warnings),
        dev=dev,
        tests=tests,
        unlabelled={language: len(part) for language, part in taught.items()},
        fingerprints=_fingerprints(examples, dev, tests, taught),
    )
    run = Training(recipe, folder, reporter, data, pretrained, trimming, pruner)
    restore(run)
    return run


def _fingerprints(
    train: Examples, dev: TestSet | None, tests: Mapping[str, TestSet], unlabelled: Mapping[str, Examples]
) -> dict[str, str]:
    sets = {"train": train, **({} if dev is None else {"dev": dev.examples})}
    sets |= {f"test {language}": test.examples for language, test in tests.items()}
    sets |= {f"{UNLABELLED} {language}": part for language, part in unlabelled.items()}
    return {name: score_file.fingerprint(examples) for name, examples in sets.items()}


def load_model(recipe: Recipe, task: Any) -> tuple[Pretrained, dict[str, Any] | None]:
    """The pretrained model with its head, its vocabulary trimmed where the recipe says so."""
    wanted = recipe.model.vocabulary
    if not isinstance(wanted, VocabularyRecipe):
        return load_pretrained(recipe.model, task.kind, task.labels, recipe.seed), None
    # Texts before the model: an error in them appears at once.
    texts = vocabulary_texts(task, wanted.files, wanted.keep_languages_of)
    vocabulary.require_texts(texts)
    pretrained = load_pretrained(recipe.model, task.kind, task.labels, recipe.seed)
    tokenizer, facts = vocabulary.trim(
        pretrained.model, pretrained.tokenizer, texts, min_count=wanted.min_count, max_size=wanted.max_size
    )
    fit_to_tokenizer(pretrained.model, tokenizer)
    return Pretrained(pretrained.model, tokenizer, pretrained.origin), facts


def read_unlabelled(
    recipe: Recipe, task: Any, tests: Mapping[str, Examples], dev: Examples | None
) -> dict[str, Examples]:
    """The text of each language that the student learns the teacher's answers on, if the recipe names any."""
    settings = recipe.distillation
    if settings is None or settings.unlabelled is None:
        return {}
    return unlabelled_examples(task, settings.unlabelled, tests, dev, settings.languages, settings.max_texts)


def make_teaching(recipe: Recipe, unlabelled: Mapping[str, Examples], tokenizer: Any) -> Teaching | None:
    """The teacher's part, if the recipe has one."""
    settings = recipe.distillation
    if settings is None:
        return None
    parts = [encode(tokenizer, part, recipe.training.max_length) for part in unlabelled.values()]
    return Teaching(settings, join_encoded(parts) if parts else None, recipe.training.batch_size, recipe.seed)


def _write_start(pretrained: Pretrained, trimming: dict[str, Any] | None, place: Path, length: int) -> None:
    save_start(pretrained, place, length)
    write_atomically(place / "vocabulary.json", json.dumps(trimming, ensure_ascii=False))


def _read_trimming(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged_checkpoint(file.parent, str(error)) from error


def check_length(recipe: Recipe, config: Any) -> None:
    """Raise DataError if the model has fewer positions than `training.max_length`."""
    positions = architecture.of(config).positions(config)
    if recipe.training.max_length > positions:
        raise DataError(
            f"training.max_length is {recipe.training.max_length}; {recipe.model.name} has {positions} positions"
        )


def read_dev(task: Any, recipe: Recipe) -> Examples | None:
    """English dev, on which alone anything is chosen; None with `training.keep: last`, which chooses nothing.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if recipe.training.keep == "last":
        return None
    try:
        examples = task.examples(recipe.task.train_language, "dev")
    except DataError as error:
        raise DataError(
            f"{error}\nThe best epoch of a stage is chosen on dev examples in {recipe.task.train_language!r}; without them "
            "set training.keep: last"
        ) from error
    return examples.sample(recipe.task.max_test_examples or len(examples))


# --- fine-tune, score, prune -----------------------------------------------------------------------------------------


def fine_prune(run: Training, until: int | None = None) -> None:
    """Drive the loop to its end, or to the end of stage ``until``: log, measure each stage, save.

    Raises:
        KeyboardInterrupt: asked to stop by Ctrl-C or SIGTERM; the run is saved as it stands.
    """
    pruner = run.pruner
    if until is not None and pruner.stage > until:
        return
    saved = time.monotonic()
    with StopRequest() as stop:
        for event in pruner.run():
            if isinstance(event, Step):
                _log(run, event, until)
                due = time.monotonic() - saved > 60 * run.recipe.training.checkpoint_minutes
                if stop.asked or (due and event.number < event.total):
                    save(run)
                    saved = time.monotonic()
                if stop.asked:
                    raise KeyboardInterrupt
            else:
                _close_stage(run, event)
                saved = time.monotonic()
                if stop.asked:
                    raise KeyboardInterrupt
                if event.stage == until:
                    return


def _log(run: Training, step: Step, until: int | None) -> None:
    last = len(run.pruner.densities) - 1 if until is None else until
    run.reporter.step(step.stage, last, step.density, step.number, step.total, step.loss)
    if step.number == step.total or step.number % 50 == 0:
        run.folder.events.write("update", **vars(step))


def _close_stage(run: Training, end: StageEnd) -> None:
    """Measure and save; the last stage is measured with the export, on its logits."""
    if end.stage < len(run.pruner.densities) - 1:
        measure_stage(run, end)
    else:
        run.stages.append(_stage_row(run, end))
    save(run)


def measure_stage(run: Training, end: StageEnd) -> None:
    """Score every language after a stage; the dense stage on every example, later ones on the recipe's share.

    Stages between those that `evaluation.stage_interval` asks for have no scores.
    """
    if end.stage % run.recipe.evaluation.stage_interval:
        row = _stage_row(run, end)
        run.stages.append(row)
        run.folder.events.write("stage", **row)
        run.reporter.say(_stage_line(run, row))
        return
    cap = None if end.stage == 0 else _stage_cap(run)
    scores: Scores = {}
    sets = {language: test.sample(cap) for language, test in run.data.tests.items()}
    for language, score, _ in evaluation.evaluate(
        _forward(run), sets, run.data.task, run.recipe.evaluation.batch_size
    ):
        scores[language] = score
    if end.stage == 0:
        run.dense = {language: score.statistics for language, score in scores.items()}
        run.dense_others = {language: score.others for language, score in scores.items()}
    row = _stage_row(run, end)
    _add_scores(run, row, scores)
    run.stages.append(row)


def _stage_cap(run: Training) -> int | None:
    """Test examples a language in the curve over stages. Groups of ranked documents are not cut: all of them."""
    grouped = any(test.examples.groups is not None for test in run.data.tests.values())
    return None if grouped else run.recipe.evaluation.max_stage_examples


def _stage_row(run: Training, end: StageEnd) -> dict[str, Any]:
    layers = run.pruner.layers()
    row: dict[str, Any] = {
        "stage": end.stage,
        "encoder_density": end.density,
        "seconds": end.seconds,
        "loss": end.loss,
        "alignment": float(np.mean([layer["alignment"] for layer in layers])),
        "dev": end.dev,
    }
    if empty := findings.collapsed(layers, end.density):
        row["collapsed"] = empty
    return row


def _add_scores(run: Training, row: dict[str, Any], scores: Scores) -> None:
    # On the same examples at every stage, though the first and the last are measured on all: a curve must not jump.
    cap, metric = _stage_cap(run), run.data.task.metrics[0]
    shown = {language: score.statistics[:cap] for language, score in scores.items()}
    values = {language: float(metric.value(part.sum(axis=0))) for language, part in shown.items()}
    row["languages"] = values
    row["zero_shot_mean"] = evaluation.zero_shot_mean(values, run.data.train_language)
    row["n"] = sum(len(part) for part in shown.values())
    run.folder.events.write("stage", **row)
    run.reporter.say(_stage_line(run, row))


def _stage_line(run: Training, row: Mapping[str, Any]) -> str:
    train_language, mean = run.data.train_language, row.get("zero_shot_mean")
    parts = [
        f"stage {row['stage']}/{len(run.pruner.densities) - 1}  {row['encoder_density']:6.1%} of the encoder"
    ]
    if "languages" in row:
        parts.append(f"{train_language} {row['languages'][train_language]:.1f}")
    if mean is not None:
        parts.append(f"zero-shot mean {mean:.1f}")
    parts += [f"alignment {row['alignment']:.4f}", f"{row['seconds']:.0f} s"]
    if empty := row.get("collapsed"):
        parts.append(f"layer collapse: {len(empty)} matrices keep less than {findings.COLLAPSE:.0%}")
    return "  ".join(parts)


def save(run: Training) -> None:
    """Write a checkpoint."""
    tensors = run.pruner.tensors()
    tensors["dense"] = {
        language: torch.from_numpy(np.ascontiguousarray(s)) for language, s in run.dense.items()
    }
    tensors = {name: entries for name, entries in tensors.items() if entries}
    state = {
        "progress": run.pruner.progress(),
        "stages": run.stages,
        "dense_others": run.dense_others,
        "data": run.data.fingerprints,
        "device": run.device.type,
    }
    run.folder.save(tensors, state)


def restore(run: Training) -> None:
    """Stand where the newest checkpoint left the run; at the beginning where there is none."""
    found = run.folder.latest()
    if found is None:
        run.folder.events.cut(0)
        run.folder.events.write("start", recipe_sha256=run.recipe.sha256(), device=run.device.type)
        return
    tensors, state = found
    try:
        _stand_at(run, tensors, state)
    except KeyError as error:
        raise damaged_checkpoint(run.folder.checkpoints, f"{error} missing") from error
    run.reporter.say(f"going on at stage {run.pruner.stage}, update {run.pruner.update}")


def _stand_at(run: Training, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> None:
    known, now = state["data"], run.data.fingerprints
    if (state["progress"]["stage"], state["progress"]["update"]) == (1, 0):
        # Stage 0 may have been trained for several runs, and reads no unlabelled text.
        now = {what: mark for what, mark in now.items() if what in known or not what.startswith(UNLABELLED)}
    changed = [what for what in known if now.get(what, known[what]) != known[what]]
    if changed or known.keys() != now.keys():
        changed += sorted(known.keys() ^ now.keys())
        raise DataError(
            f"{run.folder.path}: the data are not those the run began with ({', '.join(changed)}). Put the files back to go "
            "on, or use --fresh to start over with these"
        )
    if state["device"] != run.device.type:
        run.reporter.say(
            f"this run began on {state['device']} and goes on on {run.device.type}: not bit for bit the same"
        )
        run.folder.events.write("device", before=state["device"], now=run.device.type)
    run.pruner.restore(tensors, state["progress"])
    run.stages, run.dense_others = state["stages"], state["dense_others"]
    dense = tensors.get("dense", {})
    run.dense = {language: dense[language].numpy() for language in (run.data.tests if run.stages else dense)}


def _forward(run: Training) -> Any:
    return forward_of(run.model, run.device)


# --- measure, export, report -----------------------------------------------------------------------------------------


def measure_pruned(run: Training) -> tuple[Scores, dict[str, Logits]]:
    """Score the pruned model on every example, in fp32; its logits are what every export must reproduce."""
    scores: Scores = {}
    logits: dict[str, Logits] = {}
    batch_size = run.recipe.evaluation.batch_size
    for language, score, found in evaluation.evaluate(
        _forward(run), run.data.tests, run.data.task, batch_size
    ):
        scores[language], logits[language] = score, found
    _add_scores(run, run.stages[-1], scores)
    keep_example_scores(run, scores)
    return scores, logits


def keep_example_scores(run: Training, pruned: Scores) -> None:
    """Keep what each test example contributed, for paired tests between runs."""
    kept = score_file.ExampleScores(
        run.data.task.metrics[0].name,
        {language: score.statistics for language, score in pruned.items()},
        run.dense,
        {language: score_file.fingerprint(test.examples) for language, test in run.data.tests.items()},
    )
    with explain_disk(run.folder.path):
        score_file.write(run.folder.path / score_file.NAME, kept)


def export(
    recipe: Recipe,
    outcome: Outcome,
    data: Datasets,
    logits: Mapping[str, Logits],
    folder: RunFolder,
    reporter: Reporter,
) -> list[Form]:
    """Write the model's files where the bundle is made, measure each ONNX form and compare it with PyTorch."""
    unfinished, settings = folder.unfinished_bundle, recipe.export
    shutil.rmtree(unfinished, ignore_errors=True)
    with explain_disk(folder.path):
        unfinished.mkdir()
        bundling.write_model(outcome, data, settings.safetensors, recipe.sha256(), unfinished)
        forms: list[Form] = []
        if not settings.onnx:
            return forms
        reporter.say("exporting")
        graph = bundling.trace(outcome.model, settings.opset)
        for name in settings.onnx:
            reporter.say(f"writing and measuring {name}")
            forms.append(
                bundling.write_form(
                    name,
                    graph,
                    outcome,
                    data,
                    settings,
                    calibration_text(recipe),
                    recipe.evaluation.batch_size,
                    recipe.sha256(),
                    unfinished,
                    logits,
                )
            )
        bundling.time_forms(forms, unfinished, reporter.say)
    return forms


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
    recipe: Recipe, outcome: Outcome, data: Datasets, pruned: Scores, forms: list[Form], folder: RunFolder
) -> dict[str, Any]:
    """Report, seal and move the bundle into its place.

    Raises:
        ShortfallError: a form lost more than `export.floor` allows; the bundle is there, without it.
    """
    unfinished = folder.unfinished_bundle
    with explain_disk(folder.path):
        refused = bundling.refuse(forms, pruned, recipe.export.floor, data.train_language, unfinished)
        shipped = [form for form in forms if form.name not in refused]
        bundling.write_companions(outcome, data, shipped, recipe.name, recipe.export.triton, unfinished)
        facts = results.assemble(recipe, outcome, data, pruned, forms, refused, unfinished)
        report.write(facts, unfinished)
        bundling.seal(unfinished, outcome.device, recipe.sha256())
        put_in_place(unfinished, folder.bundle)
    folder.events.write("done", summary=facts["summary"], refused=refused)
    return promised(facts)


def promised(facts: dict[str, Any]) -> dict[str, Any]:
    """The report, if every form asked for is shipped.

    Raises:
        ShortfallError: the floor refused one.
    """
    if facts.get("refused"):
        raise ShortfallError("\n".join(facts["refused"].values()))
    return facts
