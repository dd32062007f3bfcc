"""The loop: fine-tune dense, then stage by stage score, prune and fine-tune again.

`FinePruning.run` is a generator. It yields every update and every stage's end to its caller, who logs, measures, saves or
stops. Everything random is drawn from a seed made of (run, purpose, stage, update), so a run that resumes from its
tensors and a few numbers gives the same result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from xlmprune.core.device import derive_seed
from xlmprune.core.errors import TrainingError
from xlmprune.data.encoding import Encoded
from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.masks import Masks, Weights, apply_masks, density
from xlmprune.pruning.reconstruction import Batch, Moments, input_moments, refit
from xlmprune.recipe import TrainingRecipe
from xlmprune.training.gradients import Gradients
from xlmprune.training.method import Method
from xlmprune.training.optimizer import (
    clip,
    freeze_embeddings,
    learning_rate,
    mask_gradients,
    updates_in_stage,
)
from xlmprune.training.state import TrainState
from xlmprune.training.table import compact_table
from xlmprune.training.teaching import Teaching


@dataclass(frozen=True)
class Step:
    """One update of the weights."""

    stage: int
    number: int
    """From 1, within the stage."""
    total: int
    """Updates in this stage."""
    density: float
    loss: float
    """Cross-entropy of the batch (with its distillation, where there is one)."""
    penalty: float
    """The regularizer's term."""
    learning_rate: float


@dataclass(frozen=True)
class StageEnd:
    """A stage is over and its weights are in the model; stage 0 is the dense one."""

    stage: int
    density: float
    loss: float
    """Mean over the last tenth of the stage's updates."""
    seconds: float
    dev: float | None
    """Score of the weights kept, on the train language's dev set."""


class FinePruning:
    """A model on its way from pretrained to pruned.

    Args:
        model: a network with its head, on its device, at its pretrained weights.
        train: the encoded training set.
        method: which weights remain, and what holds them.
        settings: the recipe's `training`.
        seed: the run's.
        dev_score: measures the model's score on dev, percent; None where there is no dev set.
        teaching: adds what a teacher knows to the loss; None for cross-entropy alone.
        moment_text: batches on the model's device to measure activations on, where the method reads second moments.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Encoded,
        method: Method,
        settings: TrainingRecipe,
        seed: int,
        dev_score: Callable[[], float] | None = None,
        teaching: Teaching | None = None,
        moment_text: Sequence[Batch] = (),
    ) -> None:
        self.moment_text = moment_text
        self.model, self.method, self.settings, self.seed = model, method, settings, seed
        self.dev_score, self.teaching = dev_score, teaching
        if settings.freeze_embeddings:
            freeze_embeddings(model)
        texts = [train, *([] if teaching is None or teaching.unlabelled is None else [teaching.unlabelled])]
        self.state = TrainState(model, method.criterion, teaching, compact_table(model, texts))
        self.gradients = Gradients(model, train, settings, seed, teaching)

    def run(self) -> Iterator[Step | StageEnd]:
        """Yield every update and every stage's end, from where the state stands to the last stage.

        Raises:
            TrainingError: a loss or gradient is not a number; the weights are those before it.
        """
        state = self.state
        while state.at.stage < len(self.method.densities):
            started = time.perf_counter() - state.at.seconds
            if not state.at.begun:
                if state.at.stage > 0:
                    self._prune()
                state.begin_stage(self.settings)
            total = self.updates_in_stage(state.at.stage)
            while state.at.update < total:
                step = self._update(total)
                self._remember_best(total)
                state.at.seconds = time.perf_counter() - started
                yield step
            yield self._end_stage(started)

    def updates_in_stage(self, stage: int) -> int:
        """Return the number of updates in a stage."""
        return updates_in_stage(self.settings, self.gradients.batches_per_epoch, stage)

    def reference(self) -> Weights | None:
        """Return what the regularizer compares with now; None while there is nothing, or it is off."""
        regularizer, dense = self.method.regularizer, self.state.at.stage == 0
        if not regularizer.strength or (dense and not self.settings.regularize_dense):
            return None
        return (
            (self.state.finetuned or None) if regularizer.reference == "finetuned" else self.state.pretrained
        )

    def _prune(self) -> None:
        state, stage, criterion = self.state, self.state.at.stage, self.method.criterion
        context = PruningContext(
            weights={name: weight.detach() for name, weight in state.weights.items()},
            masks=state.masks,
            reference=state.pretrained,
            stage=stage,
            seed=derive_seed(self.seed, "prune", stage),
            density=self.method.densities[stage],
            model=self.model,
            gradients=lambda batches: self.gradients.of_cross_entropy(batches, stage),
            moments=cache(self._measure_moments),
        )
        state.masks = self.method.selection.masks(criterion, context)
        self._make_up(context, {name: context.masks[name] & ~mask for name, mask in state.masks.items()})
        apply_masks(state.weights, state.masks)

    def _make_up(self, context: PruningContext, removed: Masks) -> None:
        """Adjust the remaining weights for those removed: by the criterion's own means, or by least squares."""
        criterion, settings = self.method.criterion, self.method.reconstruct
        if settings is None:
            criterion.compensate(context.weights, removed)
            return
        before = {name: weight.clone() for name, weight in context.weights.items()}
        # A criterion may hold what it needs for this until it is called.
        criterion.compensate(context.weights, removed)
        for name, weight in context.weights.items():
            weight.copy_(before[name])
        refit(context.weights, self.state.masks, context.moments(), settings.ridge)

    def _measure_moments(self) -> Moments:
        self.state.all_rows()
        self.model.eval()
        return input_moments(self.model, self.state.weights, self.moment_text)

    def _update(self, total: int) -> Step:
        state, at, criterion = self.state, self.state.at, self.method.criterion
        assert state.optimizer is not None
        rate = learning_rate(self.settings, at.stage, at.update, total)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(derive_seed(self.seed, "dropout", at.stage, at.update))
        state.train_rows()
        self.model.train()
        criterion.before_forward(state.weights, state.masks)
        loss = self.gradients.add(at.position, taught=at.stage > 0)
        penalty = self._add_penalty()
        # Masked before the norm is taken, so that pruned weights do not count in it.
        norms = mask_gradients(state.weights, state.masks if at.stage > 0 else None)
        watched = type(criterion).observe is not Criterion.observe
        norm = clip(self.model, self.settings.gradient_clip, norms, None if watched else state.optimizer)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            state.optimizer.zero_grad(set_to_none=True)
            raise _diverged(loss, norm, at.stage, at.update + 1, self.settings.learning_rate)
        criterion.observe(state.weights, state.masks, rate)
        # Pruned weights stay zero: their gradients are zero, and so are the moments, since every stage begins with a new
        # optimizer.
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        at.update += 1
        at.position += 1
        at.losses.append(loss)
        return Step(at.stage, at.update, total, self.method.densities[at.stage], loss, penalty, rate)

    def _add_penalty(self) -> float:
        reference = self.reference()
        if reference is None:
            return 0.0
        masks = self.state.masks if self.state.at.stage > 0 else None
        return float(self.method.regularizer.add_gradient(self.state.weights, reference, masks))

    def _remember_best(self, total: int) -> None:
        """Keep the weights at the end of an epoch, and of the stage, if dev never scored higher."""
        at, per_epoch = self.state.at, self.gradients.batches_per_epoch
        if self.settings.keep != "best" or self.dev_score is None or total <= per_epoch:
            return  # a stage of one epoch is measured once, at its end
        if at.update != total and at.update % per_epoch:
            return
        self.state.all_rows()
        with self.method.criterion.measured(self.state.weights, self.state.masks):
            dev = self.dev_score()
        if at.best_dev is None or dev > at.best_dev:
            self.state.remember(dev)

    def _end_stage(self, started: float) -> StageEnd:
        state, at = self.state, self.state.at
        state.return_to_best()
        state.all_rows()
        self.method.criterion.end_stage(state.weights, state.masks)
        apply_masks(state.weights, state.masks)
        if at.stage == 0 and self.method.regularizer.reference == "finetuned":
            state.finetuned = {name: weight.detach().clone() for name, weight in state.weights.items()}
        dev = at.best_dev
        if dev is None and self.dev_score is not None:
            dev = self.dev_score()
        if self.teaching is not None:
            if at.stage == 0:
                self.teaching.begin(self.model, dev)
            elif dev is not None:
                self.teaching.consider(self.model, dev, self.method.densities[at.stage])
        last = at.losses[-max(1, len(at.losses) // 10) :]
        loss, seconds = sum(last) / max(1, len(last)), time.perf_counter() - started
        state.end_stage()
        return StageEnd(at.stage, density(state.masks), loss, seconds, dev)


def _diverged(loss: float, norm: float, stage: int, update: int, rate: float) -> TrainingError:
    return TrainingError(
        f"the loss is {loss} and the gradient's norm {norm} at stage {stage}, update {update}: training has diverged. "
        f"Lower training.learning_rate (now {rate:g}) or regularizer.strength, or set training.precision=fp32. The last "
        "checkpoint is kept; --fresh starts over"
    )
