"""The loop: fine-tune dense, then stage by stage score, prune and fine-tune on.

`FinePruning.run` is a generator. It yields every update and every stage's end to whoever drives it, who logs,
measures, saves or stops; the loop knows of none of this. Whatever is random is drawn from a seed derived of
(run, purpose, stage, update), so a run taken up again from its tensors and three numbers is the same run.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xlmprune import recipe as recipes
from xlmprune.core.device import derive_seed, resolve_precision
from xlmprune.core.errors import TrainingError
from xlmprune.data.encoding import IGNORE, Encoded, pad, training_order
from xlmprune.models.loading import prunable
from xlmprune.pruning.criteria import PruningContext
from xlmprune.pruning.masks import (
    Masks,
    Scope,
    Weights,
    apply_masks,
    attainable,
    density,
    pack_bits,
    select,
    unpack_bits,
)
from xlmprune.pruning.regularizers.cosine import alignment
from xlmprune.recipe import Recipe
from xlmprune.training.distillation import Share
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
    """English dev score of the weights kept."""


class FinePruning:
    """A model on its way from pretrained to pruned.

    Args:
        recipe: training, pruning and regularizer are read.
        model: XLM-R with its head, on its device, at its pretrained weights.
        train: the encoded English training set.
        dev_score: measures the model's score on English dev, percent; None where there is no dev set.
        teaching: adds what a teacher knows to the loss; None for cross-entropy alone.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        train: Encoded,
        dev_score: Callable[[], float] | None = None,
        teaching: Teaching | None = None,
    ) -> None:
        self.recipe = recipe
        self.model = model
        self.train = train
        self.dev_score = dev_score
        self.teaching = teaching
        self.device = next(model.parameters()).device
        self.dtype = resolve_precision(recipe.training.precision, self.device)
        self.criterion = recipes.build(recipe, "criterion")
        self.regularizer = recipes.build(recipe, "regularizer")
        falling = recipes.build(recipe, "schedule").densities()
        self.densities = (1.0, *(attainable(density, recipe.pruning.pattern) for density in falling))
        if recipe.training.freeze_embeddings:
            model.get_submodule("roberta.embeddings").requires_grad_(False)
        self.weights: Weights = prunable(model)
        self.pretrained: Weights = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.finetuned: Weights = {}
        self.masks: Masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in self.weights.items()}
        self.order: tuple[int, list[Any]] = (-1, [])
        self.stage = 0
        self.update = 0
        self.position = 0
        """Updates made in all stages; where the training data stand."""
        self.begun = False
        self.optimizer: torch.optim.Optimizer | None = None
        self.losses: list[float] = []
        self.seconds = 0.0
        self.best: dict[str, Tensor] | None = None
        self.best_criterion: dict[str, Tensor] = {}
        self.best_dev: float | None = None

    # --- the story -------------------------------------------------------------------------------------------

    def run(self) -> Iterator[Step | StageEnd]:
        """Every update and stage's end, from where the state stands to the last stage.

        Raises:
            TrainingError: a loss or gradient that is not a number; the weights are those before it.
        """
        while self.stage < len(self.densities):
            started = time.perf_counter() - self.seconds
            if not self.begun:
                self._begin_stage()
            while self.update < self.updates_in_stage(self.stage):
                step = self._update()
                self._remember_best()
                self.seconds = time.perf_counter() - started
                yield step
            end = self._end_stage(started)
            yield end

    def _begin_stage(self) -> None:
        if self.stage > 0:
            self._prune()
        self.optimizer = self._new_optimizer()
        self.losses, self.best, self.best_criterion, self.best_dev = [], None, {}, None
        self.seconds = 0.0
        self.begun = True

    def _prune(self) -> None:
        criterion = self.criterion
        context = PruningContext(
            weights={name: weight.detach() for name, weight in self.weights.items()},
            masks=self.masks,
            reference=self.pretrained,
            stage=self.stage,
            seed=derive_seed(self.recipe.seed, "prune", self.stage),
            density=self.densities[self.stage],
            model=self.model,
            gradients=self._scoring_gradients,
        )
        pruning = self.recipe.pruning
        before = self.masks
        self.masks = select(
            criterion.scores(context),
            self.densities[self.stage],
            within=before,
            scope=scope_of(self.recipe, criterion),
            pattern=pruning.pattern,
        )
        if hasattr(criterion, "compensate"):
            removed = {name: before[name] & ~mask for name, mask in self.masks.items()}
            criterion.compensate(context.weights, removed)
        apply_masks(self.weights, self.masks)

    def _update(self) -> Step:
        settings, stage, total = self.recipe.training, self.stage, self.updates_in_stage(self.stage)
        assert self.optimizer is not None
        rate = self._learning_rate(total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(derive_seed(self.recipe.seed, "dropout", stage, self.update))
        self.model.train()
        if hasattr(self.criterion, "before_forward"):
            self.criterion.before_forward(self.weights, self.masks)
        loss = self._backward(self._batch())
        penalty = self._add_penalty()
        self._mask_gradients()
        norm = self._clip()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingError(
                f"the loss is {loss} and the gradient's norm {norm} at stage {stage}, update {self.update + 1}: training "
                f"has diverged. Lower training.learning_rate (now {settings.learning_rate:g}) or regularizer.strength, "
                "or set training.precision=fp32. The last checkpoint is kept; --fresh starts over"
            )
        if hasattr(self.criterion, "observe"):
            self.criterion.observe(self.weights, self.masks, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # Pruned weights stay exactly zero: their gradients are zero, and so are the moments, since every stage begins
        # with a fresh optimizer. Only a criterion that touches weights itself can bring one back.
        if stage > 0 and hasattr(self.criterion, "before_forward"):
            apply_masks(self.weights, self.masks)
        self.update += 1
        self.position += 1
        self.losses.append(loss)
        return Step(stage, self.update, total, self.densities[stage], loss, penalty, rate)

    def _end_stage(self, started: float) -> StageEnd:
        if self.best is not None:
            self.model.load_state_dict(self.best, strict=False)
            if self.best_criterion:
                self.criterion.load_state(self.best_criterion)
        if hasattr(self.criterion, "fold"):
            self.criterion.fold(self.weights, self.masks)
        apply_masks(self.weights, self.masks)
        if self.stage == 0 and self._reference_name() == "finetuned":
            self.finetuned = {name: weight.detach().clone() for name, weight in self.weights.items()}
        dev = self.best_dev
        if dev is None and self.dev_score is not None:
            dev = self.dev_score()
        if self.teaching is not None:
            if self.stage == 0:
                self.teaching.begin(self.model, dev)
            elif dev is not None:
                self.teaching.consider(self.model, dev, self.densities[self.stage])
        last = self.losses[-max(1, len(self.losses) // 10) :]
        self.seconds = time.perf_counter() - started
        end = StageEnd(self.stage, density(self.masks), sum(last) / max(1, len(last)), self.seconds, dev)
        self.stage, self.update, self.begun, self.seconds = self.stage + 1, 0, False, 0.0
        self.optimizer, self.best, self.best_dev = None, None, None
        return end

    # --- one update, piece by piece --------------------------------------------------------------------------

    def _batch(self) -> Any:
        epoch, place = divmod(self.position, self.batches_per_epoch)
        if self.order[0] != epoch:
            seed = derive_seed(self.recipe.seed, "order")
            self.order = (epoch, training_order(self.train, self.recipe.training.batch_size, seed, epoch))
        return self.order[1][place]

    def _backward(self, rows: Any) -> float:
        """Accumulate the gradients of one batch, and of the unlabelled one beside it; returns the loss."""
        batches = [pad(self.train, part) for part in _split(rows, self._parts(len(rows)))]
        total = 0.0
        for batch, share in zip(batches, _shares(batches, self._labelled_items), strict=True):
            if not share[0]:
                continue  # no word of these carries a label
            loss = self._training_loss(self.to_device(batch), share)
            loss.backward()
            total += loss.item()
        return total + self._backward_unlabelled()

    @staticmethod
    def _labelled_items(batch: dict[str, Any]) -> int:
        return int((batch["labels"] != IGNORE).sum())

    def _training_loss(self, batch: dict[str, Tensor], share: Share) -> Tensor:
        if self.teaching is None or self.stage == 0:
            return self._loss(batch) * share[0]
        return self.teaching.labelled_loss(self.model, batch, self.autocast(), share)

    def _backward_unlabelled(self) -> float:
        whole = self.teaching.unlabelled_batch(self.position) if self.teaching and self.stage > 0 else None
        if self.teaching is None or whole is None:
            return 0.0
        size, total = len(whole["input_ids"]), 0.0
        batches = [
            {key: value[rows.start : rows.stop] for key, value in whole.items()}
            for rows in _split(range(size), self._parts(size))
        ]
        for batch, share in zip(batches, _shares(batches, self._unlabelled_items), strict=True):
            loss = self.teaching.unlabelled_loss(self.model, self.to_device(batch), self.autocast(), share)
            loss.backward()
            total += loss.item()
        return total

    @staticmethod
    def _unlabelled_items(batch: dict[str, Any]) -> int:
        return int(batch["where"].sum()) if "where" in batch else len(batch["input_ids"])

    def _parts(self, rows: int) -> int:
        return min(self.recipe.training.gradient_accumulation, rows)

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        with self.autocast():
            logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return cross_entropy(logits, batch["labels"])

    def _add_penalty(self) -> float:
        reference = self.reference()
        if reference is None:
            return 0.0
        masks = self.masks if self.stage > 0 else None
        return float(self.regularizer.add_gradient(self.weights, reference, masks))

    def _mask_gradients(self) -> None:
        # Before clipping, so that weights that are gone do not count in the norm.
        if self.stage > 0:
            for name, weight in self.weights.items():
                if weight.grad is not None:
                    weight.grad.mul_(self.masks[name])

    def _clip(self) -> float:
        limit = self.recipe.training.gradient_clip
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        return float(nn.utils.clip_grad_norm_(parameters, limit if limit is not None else float("inf")))

    def _learning_rate(self, total: int) -> float:
        settings = self.recipe.training
        peak = settings.learning_rate
        if self.stage == 0 and settings.dense_learning_rate is not None:
            peak = settings.dense_learning_rate
        if self.update < settings.warmup_updates:
            return peak * (self.update + 1) / settings.warmup_updates
        if settings.lr_schedule == "constant":
            return peak
        return peak * (total - self.update) / max(1, total - settings.warmup_updates)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        decayed = set(self.weights) | {
            "classifier.weight",
            "classifier.dense.weight",
            "classifier.out_proj.weight",
        }
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups[name in decayed].append(parameter)
        decay = self.recipe.training.weight_decay
        return torch.optim.AdamW(
            [{"params": groups[True], "weight_decay": decay}, {"params": groups[False], "weight_decay": 0.0}],
            lr=self.recipe.training.learning_rate,
            betas=(0.9, 0.999),
            eps=1e-8,
            fused=True,
        )

    def _remember_best(self) -> None:
        """At the end of an epoch, and of the stage: keep the weights if English dev never scored higher."""
        total = self.updates_in_stage(self.stage)
        at_end = self.update == total or self.update % self.batches_per_epoch == 0
        if self.recipe.training.keep != "best" or self.dev_score is None or not at_end:
            return
        if total <= self.batches_per_epoch:
            return  # measured once, at the stage's end
        dev = self._measure_dev()
        if self.best_dev is None or dev > self.best_dev:
            self.best_dev = dev
            self.best = {
                name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad
            }
            if hasattr(self.criterion, "fold"):  # whose state is part of the network that was measured
                self.best_criterion = {key: t.detach().clone() for key, t in self._criterion_state().items()}

    def _measure_dev(self) -> float:
        assert self.dev_score is not None
        if not hasattr(self.criterion, "fold"):
            return self.dev_score()
        self.criterion.fold(self.weights, self.masks)
        try:
            return self.dev_score()
        finally:
            self.criterion.unfold(self.weights, self.masks)

    def _scoring_gradients(self, batches: int) -> Iterator[Weights]:
        """Cross-entropy gradients of the prunable weights on English batches, dropout off; one dict at a time."""
        seed = derive_seed(self.recipe.seed, "scoring", self.stage)
        order = training_order(self.train, self.recipe.training.batch_size, seed, 0)
        was_training = self.model.training
        self.model.eval()
        try:
            for number in range(batches):
                self.model.zero_grad(set_to_none=True)
                self._loss(self.to_device(pad(self.train, order[number % len(order)]))).backward()
                yield {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}
        finally:
            self.model.zero_grad(set_to_none=True)
            self.model.train(was_training)

    # --- facts -----------------------------------------------------------------------------------------------

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one pass over the training set."""
        return math.ceil(len(self.train) / self.recipe.training.batch_size)

    def updates_in_stage(self, stage: int) -> int:
        """Updates of the weights in ``stage``."""
        return updates_in_stage(self.recipe, self.batches_per_epoch, stage)

    def _reference_name(self) -> str:
        return getattr(self.regularizer, "reference", "pretrained")

    def reference(self) -> Weights | None:
        """What the regularizer aligns to now; None while there is nothing to align to, or it is off."""
        if not getattr(self.regularizer, "strength", 0):
            return None
        if self.stage == 0 and not self.recipe.training.regularize_dense:
            return None
        if self._reference_name() == "finetuned":
            return self.finetuned or None
        return self.pretrained

    def autocast(self) -> torch.autocast:
        """The precision of training."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def to_device(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """A padded numpy batch as tensors where the model is."""
        return {
            key: torch.from_numpy(value).to(self.device, non_blocking=True) for key, value in batch.items()
        }

    @torch.no_grad()
    def layers(self) -> list[dict[str, Any]]:
        """Density, norm and alignment to the pretrained weights of every prunable matrix."""
        return [
            {
                "name": name.removesuffix(".weight"),
                "density": float(self.masks[name].float().mean()),
                "weight_norm": float(weight.norm()),
                "alignment": float(alignment(weight, self.pretrained[name])),
            }
            for name, weight in self.weights.items()
        ]

    # --- stopping and going on -------------------------------------------------------------------------------

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything a resumed run needs, as named files of named tensors."""
        files: dict[str, dict[str, Tensor]] = {
            "model": dict(self.model.named_parameters()),
            "masks": {name: pack_bits(mask) for name, mask in self.masks.items()},
            "finetuned": self.finetuned,
            "criterion": self._criterion_state(),
            "best": self.best or {},
            "best_criterion": self.best_criterion if self.best else {},
            "optimizer": {},
            "teacher": {},
        }
        if self.optimizer is not None:
            for name, parameter in self.model.named_parameters():
                for key, value in self.optimizer.state.get(parameter, {}).items():
                    files["optimizer"][f"{key}|{name}"] = value
        if self.teaching is not None:
            files["teacher"] = self.teaching.tensors()
        return {file: tensors for file, tensors in files.items() if tensors}

    def _criterion_state(self) -> dict[str, Tensor]:
        return self.criterion.state() if hasattr(self.criterion, "state") else {}

    def progress(self) -> dict[str, Any]:
        """The numbers beside the tensors."""
        keys = ("stage", "update", "position", "begun", "losses", "seconds", "best_dev")
        numbers = {key: copy.copy(getattr(self, key)) for key in keys}
        return {**numbers, "teaching": self.teaching.progress() if self.teaching is not None else None}

    def restore(self, tensors: dict[str, dict[str, Tensor]], progress: dict[str, Any]) -> None:
        """Stand where `tensors` and `progress` were taken."""
        teaching = progress["teaching"]
        for key in progress.keys() - {"teaching"}:
            setattr(self, key, copy.copy(progress[key]))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors["model"][name])
        self.masks = {
            name: unpack_bits(tensors["masks"][name], weight.shape).to(self.device)
            for name, weight in self.weights.items()
        }
        self.finetuned = {name: t.to(self.device) for name, t in tensors.get("finetuned", {}).items()}
        self.best = {name: t.to(self.device) for name, t in tensors.get("best", {}).items()} or None
        self.best_criterion = {
            name: t.to(self.device) for name, t in tensors.get("best_criterion", {}).items()
        }
        if hasattr(self.criterion, "load_state"):
            self.criterion.load_state(
                {name: t.to(self.device) for name, t in tensors.get("criterion", {}).items()}
            )
        if self.begun:
            self.optimizer = self._new_optimizer()
            parameters = dict(self.model.named_parameters())
            for entry, value in tensors.get("optimizer", {}).items():
                key, _, name = entry.partition("|")
                self.optimizer.state[parameters[name]][key] = value.to(self.device)
        if self.teaching is not None:
            self.teaching.restore(self.model, tensors.get("teacher", {}), teaching)


def scope_of(recipe: Recipe, criterion: Any) -> Scope:
    """Where the criterion's scores are ranked: the recipe's word, else the criterion's own."""
    own: Scope = getattr(criterion, "default_scope", "layer")
    return own if recipe.pruning.scope is None else recipe.pruning.scope


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over labelled positions, in fp32.

    Args:
        logits: [batch, labels] or [batch, tokens, labels].
        labels: [batch] or [batch, tokens], IGNORE where there is none.
    """
    return nn.functional.cross_entropy(
        logits.float().reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORE
    )


def updates_in_stage(recipe: Recipe, batches_per_epoch: int, stage: int) -> int:
    """Updates that a stage makes, from its epochs and its cap."""
    settings = recipe.training
    epochs = settings.epochs_per_stage
    if stage == 0 and settings.dense_epochs is not None:
        epochs = settings.dense_epochs
    updates = max(1, round(epochs * batches_per_epoch))
    return min(updates, settings.max_updates_per_stage or updates)


def _shares(batches: Sequence[dict[str, Any]], count: Callable[[dict[str, Any]], int]) -> list[Share]:
    """What part of all items, as ``count`` finds them, and of all tokens each of the batches holds."""
    items, tokens = ([of(batch) for batch in batches] for of in (count, _tokens))
    return [(i / max(1, sum(items)), t / max(1, sum(tokens))) for i, t in zip(items, tokens, strict=True)]


def _tokens(batch: dict[str, Any]) -> int:
    return int(batch["attention_mask"].sum())


def _split(rows: Any, parts: int) -> list[Any]:
    size = math.ceil(len(rows) / parts)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


__all__ = ["FinePruning", "StageEnd", "Step", "cross_entropy", "updates_in_stage"]
