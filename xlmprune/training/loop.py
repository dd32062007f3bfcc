"""The loop: fine-tune dense, then stage by stage score, prune and fine-tune again.

`FinePruning.run` is a generator. It yields every update and every stage's end to its caller, who logs, measures, saves or
stops. Everything random is drawn from a seed made of (run, purpose, stage, update), so a run that resumes from its
tensors and a few numbers gives the same result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xlmprune.core import processes
from xlmprune.core.device import derive_seed
from xlmprune.core.errors import TrainingError
from xlmprune.data.encoding import Encoded
from xlmprune.pruning.criteria import Criterion
from xlmprune.pruning.masks import Masks, Weights, apply_masks
from xlmprune.pruning.moments import Batch
from xlmprune.pruning.nesting import Nest
from xlmprune.recipe.schema import TrainingRecipe
from xlmprune.training.frozen import beside
from xlmprune.training.gradients import Gradients
from xlmprune.training.method import Method
from xlmprune.training.optimizer import (
    clip,
    freeze_embeddings,
    gradient_norm,
    learning_rate,
    mask_gradients,
    step_if_finite,
    updates_in_stage,
)
from xlmprune.training.pruner import Pruner
from xlmprune.training.reading import Reading
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
    loss: float | None
    """Mean over the last tenth of the stage's updates; None if it had no update."""
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
        dev_score: measures the score of `measured` on dev, percent; None where there is no dev set.
        teaching: adds what a teacher knows to the loss; None for cross-entropy alone.
        start: returns the pretrained parameters, for a schedule that begins anew from them.
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
        start: Callable[[], Mapping[str, Tensor]] | None = None,
        moment_text: Sequence[Batch] = (),
    ) -> None:
        self.model, self.method, self.settings, self.seed = model, method, settings, seed
        self.dev_score, self.teaching, self.start = dev_score, teaching, start
        if settings.freeze_embeddings:
            freeze_embeddings(model)
        texts = [train, *([] if teaching is None or teaching.unlabelled is None else [teaching.unlabelled])]
        table = compact_table(model, texts)
        self.state = TrainState(model, method.criterion, teaching, table, settings.frozen_weights)
        self.gradients = Gradients(model, train, settings, seed, teaching)
        structure = method.structure
        self.nest: Nest | None = None
        if structure is not None and structure.smallest is not None:
            self.nest = Nest(model, structure.smallest, structure.multiple, seed)
        temperature = 1.0 if teaching is None else teaching.settings.temperature
        self.pruner = Pruner(self.state, method, self.gradients, seed, moment_text, temperature)

    def run(self) -> Iterator[Step | StageEnd]:
        """Yield every update and every stage's end, from where the state stands to the last stage.

        Raises:
            TrainingError: a loss or gradient is not a number; the weights are those before it.
        """
        state = self.state
        while state.at.stage < len(self.method.densities):
            started = time.perf_counter() - state.at.seconds
            if not state.at.begun:
                self._begin_stage()
            total = self.updates_in_stage(state.at.stage)
            while state.at.update < total:
                step = self._update(total)
                self._measure(total)
                state.at.seconds = time.perf_counter() - started
                yield step
            yield self._end_stage(started)

    def updates_in_stage(self, stage: int) -> int:
        """Return the number of updates in a stage."""
        last = len(self.method.densities) - 1
        return updates_in_stage(self.settings, self.gradients.batches_per_epoch, stage, last)

    def reference(self) -> Weights | None:
        """Return what the regularizer compares with now, as it is kept; None while there is nothing, or it is off."""
        regularizer, dense = self.method.regularizer, self.state.at.stage == 0
        if not regularizer.strength or (dense and not self.settings.regularize_dense):
            return None
        return (
            (self.state.finetuned or None) if regularizer.reference == "finetuned" else self.state.pretrained
        )

    def measured(self) -> list[nn.Module]:
        """Return the models whose mean score on dev decides: the largest and the smallest, where sizes are trained."""
        sizes = self.nest if self.state.at.stage > 0 else None
        return [self.model, *([] if sizes is None else [sizes.at(sizes.smallest).model])]

    def _learners(self) -> list[Any]:
        """Return the models that learn in this update."""
        at = self.state.at
        return [self.model] if self.nest is None or at.stage == 0 else self.nest.learners(at.stage, at.update)

    def _begin_stage(self) -> None:
        continuous = self.method.continuous
        if continuous is not None and continuous.restart and self.state.at.stage == 1:
            if self.start is None:
                raise ValueError("the schedule begins from the pretrained parameters, and there are none")
            self.state.restart(self.start())
        self.pruner.before_stage(self.updates_in_stage(self.state.at.stage))
        self.state.begin_stage(self.settings)

    def _update(self, total: int) -> Step:
        state, at = self.state, self.state.at
        assert state.optimizer is not None
        rate = learning_rate(self.settings, at.stage, at.update, total)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        regularizer_decay = self.method.regularizer.decay if self.reference() is not None else 0.0
        state.optimizer.param_groups[0]["weight_decay"] = self.settings.weight_decay + regularizer_decay
        torch.manual_seed(derive_seed(self.seed, "dropout", at.stage, at.update))
        state.train_rows()
        if not self.model.training:
            self.model.train()
        measured = self._backward(rate, total)
        state.optimizer.step()  # nothing, where a number is not finite
        state.optimizer.zero_grad(set_to_none=True)
        loss, penalty, norm = measured.read()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.method.criterion.put_back(state.weights)
            raise _diverged(loss, norm, at.stage, at.update + 1, self.settings.learning_rate)
        at.update += 1
        at.position += 1
        at.losses.append(loss)
        self.pruner.after_update(total)
        return Step(at.stage, at.update, total, self.pruner.density(total), loss, penalty, rate)

    def _backward(self, rate: float, total: int) -> Reading:
        """Leave the gradients of an update, clipped or to be clipped by the optimizer; return loss, penalty and norm."""
        state, criterion = self.state, self.method.criterion
        may_return = self.pruner.may_return(total)
        hidden = may_return and criterion.keeps_pruned_values
        masks = None if state.at.stage == 0 or may_return else state.masks
        criterion.before_forward(state.weights, state.masks)
        self._draw_apart()
        with self.pruner.masked(total) if hidden else nullcontext():
            summed = self.gradients.add(state.at.position, state.at.stage > 0, self._learners())
        # Stage 0 is the same bit for bit with every criterion that does not act on it, so that runs can share it.
        watching = state.at.stage > 0 or self.method.acts_on_dense
        observes = type(criterion).observe is not Criterion.observe and watching
        # Criteria see the clipped gradient, as published: early, where another gradient moves the weights, one with the
        # regularizer's in it or without those of hidden weights.
        early = observes and (hidden or (self._adds_gradient() and not self.method.observe_regularizer))
        if early:
            self._observe_early(rate, masks, hidden)
        # The regularizer holds the weights that the forward pass sees.
        with self.pruner.masked(total) if hidden else nullcontext():
            added = self._add_penalty()
        # Masked before the norm is taken, so that pruned weights do not count in it.
        norms = mask_gradients(state.weights, state.masks if hidden else masks)
        late = observes and not early
        norm = gradient_norm(self.model, norms).double()
        found = torch.stack([summed.double(), added.double(), norm])
        assert state.optimizer is not None
        step_if_finite(state.optimizer, found)
        clip(self.model, self.settings.gradient_clip, norm, state.optimizer, now=late)
        if late and bool(norm.isfinite()):
            criterion.observe(state.weights, state.masks, rate)
        return Reading(found)

    def _observe_early(self, rate: float, masks: Masks | None, hidden: bool) -> None:
        """Show the criterion the gradient without the regularizer's, clipped as it would be without a regularizer."""
        state, limit = self.state, self.settings.gradient_clip
        norms = mask_gradients(state.weights, masks)
        if limit is None:
            self.method.criterion.observe(state.weights, state.masks, rate)
            return
        if hidden:  # their gradients count in scores, not in the norm
            norms = {
                name: torch.linalg.vector_norm(weight.grad * state.masks[name])
                for name, weight in state.weights.items()
                if weight.grad is not None
            }
        # On the device, since every read waits for it; 1 where nothing is clipped, so that no bit changes then.
        factor = (limit / (gradient_norm(self.model, norms) + 1e-6)).clamp_max(1.0)
        gradients = [weight.grad for weight in state.weights.values() if weight.grad is not None]
        with torch.no_grad():
            torch._foreach_mul_(gradients, factor)
            self.method.criterion.observe(state.weights, state.masks, rate)
            torch._foreach_div_(gradients, factor)

    def _adds_gradient(self) -> bool:
        """Return whether the regularizer has a gradient in this update."""
        return self.reference() is not None and self.method.regularizer.adds_gradient

    def _draw_apart(self) -> None:
        """Let every process draw dropout of its own. What a criterion drew before is the same in all of them."""
        if processes.count() > 1 and not processes.is_first():
            seed = derive_seed(
                self.seed, "dropout", self.state.at.stage, self.state.at.update, processes.rank()
            )
            torch.manual_seed(seed)

    def _add_penalty(self) -> Tensor:
        reference = self.reference()
        if reference is None or not self._adds_gradient():
            return torch.zeros((), device=self.state.device)
        masks = self.state.masks if self.state.at.stage > 0 else None
        return self.method.regularizer.add_gradient(
            self.state.weights, beside(self.state.weights, reference), masks
        )

    def _measure(self, total: int) -> None:
        """Score dev where the teacher or the choice of the best weights needs it; let both take these weights."""
        best, teacher = self._may_be_best(total), self._may_teach()
        if self.dev_score is None or not (best or teacher):
            return
        state = self.state
        state.all_rows()
        with self.pruner.masked(total), self.method.criterion.measured(state.weights, state.masks):
            dev = self.dev_score()
            if teacher and self.teaching is not None:
                self.teaching.consider(self.model, dev, self.pruner.density(total))
        if best and self._is_best(dev):
            state.remember(dev)

    def _is_best(self, dev: float) -> bool:
        """Return whether these weights are the best of the stage so far; of equal scores, those trained longest.

        A dev score at its ceiling says nothing more, and the learning rate falls until the stage ends.
        """
        best = self.state.at.best_dev
        return best is None or dev >= best

    def _may_be_best(self, total: int) -> bool:
        """Return whether to choose among these weights: at the end of an epoch and of the stage, at its final density."""
        at, per_epoch = self.state.at, self.gradients.batches_per_epoch
        if self.settings.keep != "best" or total <= per_epoch:
            return False  # a stage of one epoch is measured once, at its end
        return (at.update == total or at.update % per_epoch == 0) and self.pruner.is_final(total)

    def _may_teach(self) -> bool:
        if self.teaching is None or self.state.at.stage == 0:
            return False
        every = self.teaching.settings.ask_every
        return every is not None and self.state.at.update % every == 0

    def _end_stage(self, started: float) -> StageEnd:
        state, at = self.state, self.state.at
        state.return_to_best()
        state.all_rows()
        self.method.criterion.end_stage(state.weights, state.masks)
        apply_masks(state.weights, state.masks)
        if at.stage == 0 and self.method.regularizer.reference == "finetuned":
            state.keep_finetuned()
        dev = at.best_dev
        if dev is None and self.dev_score is not None:
            dev = self.dev_score()
        if self.teaching is not None:
            if at.stage == 0:
                self.teaching.begin(self.model, dev)
            elif dev is not None:
                self.teaching.consider(self.model, dev, self.method.densities[at.stage])
        last = at.losses[-max(1, len(at.losses) // 10) :]
        loss = sum(last) / len(last) if last else None
        seconds = time.perf_counter() - started
        stage = at.stage
        state.end_stage()
        return StageEnd(stage, state.density(), loss, seconds, dev)


def _diverged(loss: float, norm: float, stage: int, update: int, rate: float) -> TrainingError:
    return TrainingError(
        f"the loss is {loss} and the gradient's norm {norm} at stage {stage}, update {update}: training has diverged. "
        f"Lower training.learning_rate (now {rate:g}) or regularizer.strength, or set training.precision=fp32. The last "
        "checkpoint is kept; --fresh starts over"
    )
