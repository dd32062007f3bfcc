"""A run's training: the loop with its data in a run folder. It logs, measures each stage, and saves."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from xlmprune.core import processes
from xlmprune.core.errors import RecipeError
from xlmprune.core.files import explain_disk
from xlmprune.core.languages import language_name
from xlmprune.core.progress import Reporter
from xlmprune.core.run_folder import RunFolder, report_file
from xlmprune.core.stopping import Stopped, StopRequest
from xlmprune.data.examples import Kind
from xlmprune.evaluation import baselines, score_file
from xlmprune.evaluation import scores as evaluation
from xlmprune.evaluation.scores import Forward, Score, Scores, TestSet
from xlmprune.models.loading import forward_of, logits_and_vectors_of, read_start
from xlmprune.pruning.budget import Settled
from xlmprune.pruning.moments import to_device
from xlmprune.recipe.schema import Recipe
from xlmprune.training import checkpoint, conditions, moments
from xlmprune.training.loop import FinePruning, StageEnd, Step
from xlmprune.training.material import read_material
from xlmprune.training.method import build_method
from xlmprune.training.outcome import Outcome, Scored
from xlmprune.training.planning import slow_on_cpu
from xlmprune.training.remaining import remaining, shares_left
from xlmprune.training.sizes import at_size
from xlmprune.training.stages import Forwards, Row, StageScores, size_row
from xlmprune.training.teaching import Teaching


class Training:
    """The loop with its data in a run folder: it logs, measures each stage, and saves.

    Args:
        recipe: what to run.
        folder: where checkpoints are; training stands where the newest one left it.
        device: where to train.
        reporter: says what happens.
        allow_change: resume although conditions changed that alter results.
        settle: chooses the sizes that meet the recipe's budget, for a model of this config and kind; None: there is none.
        ended: nothing is to be trained; a run that is not at its end is refused and left as it is.

    Raises:
        RecipeError: the run is not at its end.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        device: torch.device,
        reporter: Reporter,
        allow_change: bool = False,
        settle: Callable[[Recipe, Any, Kind], Settled | None] = lambda recipe, config, kind: None,
        ended: bool = False,
    ) -> None:
        self.settings, self.folder, self.reporter = recipe.training, folder, reporter
        given = processes.from_first(lambda: read_material(recipe, folder, reporter, settle))
        self.pretrained, self.vocabulary, self.settled = given.pretrained, given.vocabulary, given.settled
        self.data, kind = given.data, given.data.task.kind
        method = build_method(recipe.pruning, recipe.regularizer)
        if self.settled is not None and method.structure is not None:
            method = replace(method, structure=self.settled.applied(method.structure))
        shares = shares_left(self.pretrained.model.config, kind, method)
        model = self.pretrained.model.to(device)
        self.stop = StopRequest()
        self.forwards = Forwards(
            self.stop.guard(forward_of(model, device)), self.stop.guard(logits_and_vectors_of(model, device))
        )
        rough = recipe.evaluation.stage_precision == "bf16"
        self.forward_between = self.stop.guard(forward_of(model, device, rough))
        teaching = None
        if recipe.distillation is not None:
            batch_size = recipe.training.batch_size
            keeping = recipe.training.frozen_weights
            teaching = Teaching(recipe.distillation, given.unlabelled, batch_size, recipe.seed, keeping)
        self.sizes = recipe.sizes
        self.last = len(method.densities) - 1
        self.pruner = FinePruning(
            model,
            self.data.train,
            method,
            recipe.training,
            recipe.seed,
            None if self.data.dev is None else self._dev_score,
            teaching,
            start=lambda: processes.from_first(lambda: read_start(folder.start, kind).model.state_dict()),
            moment_text=[to_device(batch, device) for batch in given.moment_text],
        )
        self.scores = StageScores(self.data, recipe.evaluation, reporter.counting)
        counts = [self.pruner.updates_in_stage(stage) for stage in range(self.last + 1)]
        tests = [test.encoded for test in self.data.tests.values()]
        self.remaining = remaining(recipe, shares, counts, self.data.train, given.unlabelled, tests)
        self.conditions = conditions.conditions(device, recipe.training)
        self.changes: list[dict[str, Any]] = []
        for warning in slow_on_cpu(recipe, model, sum(counts), device):
            reporter.warn(warning)
        self._restore(recipe.sha256(), allow_change, ended)
        self._tell_moments()

    def run(self, until: int | None = None) -> None:
        """Drive the loop to its end, or to the end of stage ``until``.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM asked to stop, in any of the processes; the run is saved as it stands.
        """
        with self.stop as stop:
            self._measure_again()
            if self.settings.compile and self.pruner.state.at.stage <= self.last:
                self.reporter.say("the first updates compile the encoder's layers, which takes minutes")
            if until is not None and self.pruner.state.at.stage > until:
                return
            saved = time.monotonic()
            for event in self._events():
                due = time.monotonic() - saved > 60 * self.settings.checkpoint_minutes
                if isinstance(event, StageEnd):
                    self._close_stage(event)
                    due = True
                else:
                    self._log(event)
                    due = due and event.number < event.total
                due, stopping = processes.either(due, stop.asked)
                if due or stopping:
                    self._save()
                    saved = time.monotonic()
                if stopping:
                    processes.wait()  # whoever ends first makes torchrun end the others
                    raise KeyboardInterrupt
                if isinstance(event, StageEnd) and event.stage == until:
                    return

    def _events(self) -> Iterator[Step | StageEnd]:
        """Yield the loop's events; say that it is at work before a stage's first update, where pruning can take minutes."""
        events, begins = self.pruner.run(), True
        while True:
            stage = self.pruner.state.at.stage
            prunes = begins and 0 < stage <= self.last
            if stage == 1 and prunes and not self.pruner.state.at.begun:
                self._explain_loss()
            with self.reporter.busy(f"pruning for stage {stage}") if prunes else nullcontext():
                event = next(events, None)
            if event is None:
                return
            begins = isinstance(event, StageEnd)
            yield event

    def _explain_loss(self) -> None:
        """Say why the loss will be larger than in stage 0."""
        if not any(self.remaining.counts[1:]):
            return
        said = "pruning removes weights, so each stage begins with a larger loss"
        if self.pruner.teaching is not None and self.pruner.teaching.settings.teaches:
            said += ". From now on the loss also contains the distance to the teacher"
        self.reporter.say(said)

    def finish(self) -> Iterator[Scored]:
        """Score the trained model on every example, in fp32; where sizes are exported, each of them, the first one first.

        Several processes measure the first one together; then all but the first process are done.
        """
        for number, outcome in enumerate(self._outcomes()):
            row = self.scores.rows[-1]
            if outcome.size not in (None, 1):
                row = size_row(row, outcome)
            model, device = outcome.model, outcome.device
            forwards = Forwards(forward_of(model, device), logits_and_vectors_of(model, device))
            scores, logits = self.scores.measure_all(forwards, row)
            processes.leave()
            if not processes.is_first():
                return
            self._report_stage(row, outcome.size)
            if number == 0:
                self._keep_scores(scores)
            yield Scored(self._measured(outcome, row), scores, logits)

    def _measured(self, outcome: Outcome, row: Row) -> Outcome:
        """Add what was measured; in a run that does not prune, the last stage is the dense one."""
        return replace(
            outcome,
            stages=(*self.scores.rows[:-1], row),
            dense=self.scores.dense,
            dense_others=self.scores.dense_others,
            dense_observed=self.scores.dense_observed,
            observed=self.scores.observed,
        )

    def _keep_scores(self, scores: Scores) -> None:
        """Keep the score of every example, for comparisons of runs."""
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

    def _outcomes(self) -> Iterator[Outcome]:
        trained, nest = self._outcome(), self.pruner.nest
        if nest is None:
            yield trained
            return
        known: dict[Any, float] = {}
        for size in self.sizes:
            if (twin := known.setdefault(nest.at(size), size)) != size:
                self.reporter.warn(
                    f"sizes {twin:g} and {size:g} have the same attention heads and FFN neurons, so their bundles hold the "
                    "same model"
                )
            yield at_size(trained, size, nest.multiple, self.pruner.state.pretrained)

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
            changes=tuple(self.changes),
            budget=None if self.settled is None else self.settled.facts(),
        )

    def _dev_score(self) -> float:
        assert self.data.dev is not None
        forwards = [forward_of(model, self.pruner.state.device) for model in self.pruner.measured()]
        return fmean(self._score(self.data.dev, forward).value for forward in forwards)

    def _score(self, test: TestSet, forward: Forward) -> Score:
        with self.reporter.counting("measuring dev texts", len(test.encoded)) as advance:
            counted = evaluation.counted(forward, advance)
            logits = evaluation.collect(counted, test.encoded, self.scores.settings.batch_size)
        return evaluation.score(logits, test.examples, self.data.task.metrics, self.data.task.labels)

    def _log(self, step: Step) -> None:
        state = self.pruner.state
        held = sum(weight.numel() for weight in state.weights.values())
        density = (
            step.density * held / state.whole.prunable
        )  # of the encoder as it was before structures were removed
        later = self.remaining.after(step.stage)
        self.reporter.step(step.stage, self.last, density, step.number, step.total, step.loss, later)
        if step.number == step.total or step.number % 50 == 0:
            self.folder.events.write("update", **vars(step))

    def _close_stage(self, end: StageEnd) -> None:
        """Measure a stage where the recipe asks for it; the last one is measured by `finish`, for its logits."""
        self.scores.add_row(end, self.pruner.state.layers())
        self._measure_stage(end.stage)

    def _measure_stage(self, stage: int) -> None:
        try:
            if stage < self.last:
                if self.scores.is_due(stage):
                    if stage == 0:
                        self.scores.measure_all(self.forwards, self.scores.rows[-1])
                    else:
                        self.scores.measure(self.forward_between)
                self._report_stage(self.scores.rows[-1])
            if stage == 0:
                self._warn_if_nothing_learned()
        except Stopped:
            self._save()  # without this stage's scores, which the resumed run measures first
            raise

    def _measure_again(self) -> None:
        """Measure the last stage if the run was stopped while it was measured."""
        if not self.scores.rows or "languages" in (row := self.scores.rows[-1]):
            return
        if row["stage"] < self.last and self.scores.is_due(row["stage"]):
            self._measure_stage(row["stage"])
            self._save()

    def _report_stage(self, row: Row, size: float | None = None) -> None:
        self.folder.events.write("stage", **row, **({} if size is None else {"size": size}))
        named = "" if size is None else f"size {size:g}  "
        self.reporter.say(named + self.scores.line(row, self.last))
        self.reporter.detail(f"mean |cosine| with the pretrained weights: {row['alignment']:.3f}")
        if scored := row.get("languages"):
            self.reporter.detail("  ".join(f"{code} {value:.1f}" for code, value in scored.items()))

    def _warn_if_nothing_learned(self) -> None:
        """Compare the dense model with its baselines on dev; a model at chance makes every later score meaningless."""
        test, task = self.data.dev or self.data.tests[self.data.train_language], self.data.task
        baseline = baselines.baselines(test.examples, task.metrics[0], task.labels)
        score = self._score(test, self.forwards.logits)
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

    def _restore(self, recipe_sha256: str, allow_change: bool, ended: bool) -> None:
        events, warn = self.folder.events, self.reporter.warn
        numbers = checkpoint.restore(self.folder, self.pruner.state, self.scores, self.settings, warn)
        if ended:
            self._require_end()
        if numbers is None:
            self.folder.go_back_to(None)
            events.write("start", recipe_sha256=recipe_sha256, conditions=self.conditions)
            self._write_repairs()
            return
        at, changed = self.pruner.state.at, conditions.changes(numbers["conditions"], self.conditions)
        self.changes = numbers["changes"]
        if changed and at.stage <= self.last:  # with all stages trained, only measuring and export are left
            path = self.folder.path
            processes.from_first(lambda: conditions.require_allowed(changed, allow_change, path))
            self.changes.append({"stage": at.stage, "update": at.update, "changed": changed})
            self.reporter.warn(
                f"resuming under other conditions, so results may differ: {conditions.describe(changed)}"
            )
        self.folder.go_back_to(numbers)
        events.write("resume", stage=at.stage, update=at.update, conditions=self.conditions, changed=changed)
        self._write_repairs()
        self.reporter.say(f"resuming at stage {at.stage}, update {at.update}")

    def _require_end(self) -> None:
        stage, path = self.pruner.state.at.stage, self.folder.path
        if stage > self.last:
            return
        command = shlex.join(["xlmprune", "compress", str(path / "recipe.yaml"), "--out", str(path)])
        if not report_file(path).is_file():
            raise RecipeError(
                f"{path}: training has not ended (stage {stage} of {self.last}); resume it with: {command}"
            )
        raise RecipeError(
            f"{path}: the checkpoint of the end of the training is damaged or gone, so stage {stage} of {self.last} would "
            f"be trained again. The finished bundle is as it was. To train and export again, move {self.folder.bundle} to "
            f"another place, then: {command}"
        )

    def _write_repairs(self) -> None:
        for repair in self.folder.repairs:
            self.folder.events.write("damaged", **repair)
