"""When masks change: before a stage, or every few updates within a continuous one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from xlmprune.core import processes
from xlmprune.core.device import derive_seed
from xlmprune.models import architecture
from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.masks import Masks, Scores, apply_masks, full_masks
from xlmprune.pruning.moments import Batch, Moments, input_moments
from xlmprune.pruning.reconstruction import reconstruct, refit
from xlmprune.training.gradients import Gradients
from xlmprune.training.method import Method
from xlmprune.training.shrinking import Shrinker, copy_of_layers, require_pattern, require_refittable
from xlmprune.training.state import TrainState


class Pruner:
    """Chooses masks and keeps the weights under them.

    Args:
        state: masks and weights change in it.
        method: criterion, schedule and selection.
        gradients: for criteria that need data when they score.
        seed: the run's.
        moment_text: batches on the model's device to measure activations on, where the method reads second moments.
        temperature: the teacher's.
    """

    def __init__(
        self,
        state: TrainState,
        method: Method,
        gradients: Gradients,
        seed: int,
        moment_text: Sequence[Batch] = (),
        temperature: float = 1.0,
    ) -> None:
        self.state, self.method, self.gradients, self.seed = state, method, gradients, seed
        self.moment_text = moment_text
        require_refittable(state.model, method.reconstruct)
        require_pattern(state.model, method.selection.pattern, method.structure)
        self.shrinker: Shrinker | None = None
        if method.structure is not None:
            self.shrinker = Shrinker(
                state,
                method.structure,
                method.reconstruct,
                gradients,
                seed,
                self._scores,
                moment_text,
                temperature,
            )

    def before_stage(self, total: int) -> None:
        """Remove the structures of a stage, or choose its first masks; those of a continuous stage mostly wait for updates.

        Args:
            total: updates in this stage.
        """
        stage = self.state.at.stage
        if self.shrinker is not None and 0 < stage <= self.method.rounds:
            self.shrinker.shrink(stage)
        elif stage > 0 and self.method.continuous is None:
            self._prune(self.method.densities[stage], final=True)
        else:
            self._prune_if_due(total)

    def after_update(self, total: int) -> None:
        """Prune within a continuous stage where its schedule says so.

        Args:
            total: updates in this stage.
        """
        if self.method.continuous is None or self.state.at.stage == 0:
            return  # masks are fixed, and gradients and moments of pruned weights are zero
        if not self._prune_if_due(total) and not self.may_return(total):
            # A weight that was pruned within the stage has moments in the optimizer.
            apply_masks(self.state.weights, self.state.masks)

    def _prune_if_due(self, total: int) -> bool:
        at, continuous = self.state.at, self.method.continuous
        if continuous is None or at.stage == 0:
            return False
        due = continuous.is_due(at.update, total, self.gradients.batches_per_epoch)
        if due:
            density = continuous.density(at.update, total)
            self._prune(self.method.selection.density(density), final=self.is_final(total))
        return due

    def is_final(self, total: int) -> bool:
        """Return whether the masks will not change in this stage any more."""
        continuous = self.method.continuous
        return continuous is None or self.state.at.stage == 0 or self.state.at.update >= continuous.end(total)

    def may_return(self, total: int) -> bool:
        """Return whether pruned weights are trained now and may come back."""
        return self.method.regrow and not self.is_final(total)

    def density(self, total: int) -> float:
        """Return the density that the schedule asks for now."""
        at, continuous = self.state.at, self.method.continuous
        if continuous is None or at.stage == 0:
            return self.method.densities[at.stage]
        last = continuous.last_due(at.update, total, self.gradients.batches_per_epoch)
        return self.method.selection.density(continuous.density(last, total))

    @contextmanager
    def masked(self, total: int) -> Iterator[None]:
        """Set pruned weights to zero inside the ``with``, where they have values of their own."""
        if not self.may_return(total):
            yield
            return
        before: dict[str, Tensor] = {n: w.detach().clone() for n, w in self.state.weights.items()}
        apply_masks(self.state.weights, self.state.masks)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in self.state.weights.items():
                    weight.copy_(before[name])

    def _prune(self, density: float, final: bool) -> None:
        """Choose the next masks.

        Args:
            final: whether pruned weights lose their values, though the criterion keeps them while they may return.
        """
        state, before, context = self.state, self.state.masks, self._context(density)
        chosen = self.method.selection.masks(self.method.criterion, context)
        state.masks = processes.from_first(lambda: chosen)
        self._make_up(context, {name: before[name] & ~mask for name, mask in state.masks.items()})
        if final or not (self.method.regrow and self.method.criterion.keeps_pruned_values):
            apply_masks(state.weights, state.masks)
        self._require_same()

    def _require_same(self) -> None:
        """Raise ProcessesError unless all processes hold the same masks and weights."""
        if processes.count() > 1:
            masks = {f"mask of {name}": mask for name, mask in self.state.masks.items()}
            held = {**dict(self.state.model.named_parameters()), **masks}
            sums = dict(zip(held, processes.checksums(held.values()), strict=True))
            processes.require_same(f"weights at stage {self.state.at.stage} (checksums)", sums)

    def _context(self, density: float) -> PruningContext:
        state, stage, update = self.state, self.state.at.stage, self.state.at.update
        # Within a stage, each pruning draws for itself.
        moment = (stage, update) if self.method.continuous is not None else (stage,)
        return PruningContext(
            weights={name: weight.detach() for name, weight in state.weights.items()},
            masks=full_masks(state.weights) if self.method.regrow else state.masks,
            reference=state.pretrained,
            stage=stage,
            seed=derive_seed(self.seed, "prune", *moment),
            density=density,
            final_density=self.method.densities[-1],
            model=state.model,
            gradients=lambda batches: self.gradients.of_cross_entropy(batches, *moment),
            moments=cache(self._measure_moments),
        )

    def _scores(self) -> Scores:
        """Score single weights, for structures that own them."""
        context = self._context(self.method.densities[-1])
        scores = self.method.criterion.scores(context)
        return {name: scores[name].where(mask, 0.0) for name, mask in context.masks.items()}

    def _make_up(self, context: PruningContext, removed: Masks) -> None:
        """Adjust the remaining weights for those removed: by the criterion's own means, or by least squares."""
        self._make_up_here(context, removed)
        settings = self.method.reconstruct
        compensates = type(self.method.criterion).compensate is not Criterion.compensate
        if settings is not None and settings.correct_drift:  # biases changed too
            processes.copy_from_first(self.state.model.parameters())
        elif compensates or settings is not None:
            processes.copy_from_first(context.weights.values())

    def _make_up_here(self, context: PruningContext, removed: Masks) -> None:
        criterion, settings = self.method.criterion, self.method.reconstruct
        if settings is None:
            criterion.compensate(context.weights, removed)
            return
        before = {name: weight.clone() for name, weight in context.weights.items()}
        model = self.state.model
        whole = copy_of_layers(model) if settings.correct_drift else None
        # A criterion may hold what it needs for this until it is called.
        criterion.compensate(context.weights, removed)
        for name, weight in context.weights.items():
            weight.copy_(before[name])
        refit(context.weights, self.state.masks, context.moments(), settings.ridge)
        if whole is not None:
            layers = range(len(architecture.of(model).layers(model)))
            reconstruct(whole, model, self.moment_text, layers, settings.ridge, masks=self.state.masks)

    def _measure_moments(self) -> Moments:
        self.state.all_rows()
        self.state.model.eval()
        return processes.from_first(
            lambda: input_moments(self.state.model, self.state.weights, self.moment_text)
        )
