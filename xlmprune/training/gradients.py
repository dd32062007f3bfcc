"""Gradients of one batch: split into micro-batches, with the teacher's part and unlabelled text beside the labels.

Several processes compute some of the micro-batches each, and get the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xlmprune.core import processes
from xlmprune.core.device import derive_seed, resolve_precision
from xlmprune.data.encoding import IGNORE, Encoded, pad, training_order
from xlmprune.models.loading import prunable
from xlmprune.pruning.masks import Weights
from xlmprune.recipe.schema import TrainingRecipe
from xlmprune.training import graphs
from xlmprune.training.compiling import CompiledLayers
from xlmprune.training.distillation import Share, divergence, labelled
from xlmprune.training.dropout import FastDropout
from xlmprune.training.graphs import BatchGraphs
from xlmprune.training.recomputing import recomputed_layers
from xlmprune.training.teaching import Student, Teaching

Batch = dict[str, np.ndarray]


class Gradients:
    """Adds the gradients of training batches to a model's parameters.

    Args:
        model: the student, on its device.
        train: the encoded training set.
        settings: batch size, micro-batches, precision and whether to compile are read.
        seed: the run's.
        teaching: adds what a teacher knows to the loss, from stage 1 on; None for cross-entropy alone.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Encoded,
        settings: TrainingRecipe,
        seed: int,
        teaching: Teaching | None = None,
    ) -> None:
        self.model, self.train, self.seed, self.teaching = model, train, seed, teaching
        self.batch_size, self.accumulation = settings.batch_size, settings.gradient_accumulation
        self.device = next(model.parameters()).device
        self.dtype = resolve_precision(settings.precision, self.device)
        self.compiled = CompiledLayers() if settings.compile else None
        self.recomputes = settings.gradient_checkpointing
        self.drops_fast = settings.fast_dropout
        self.graphs = BatchGraphs(self.device) if settings.cuda_graphs else None
        self.multiple = 1 if self.graphs is None else graphs.MULTIPLE
        self._order: tuple[int, list[Any]] = (-1, [])

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one pass over the training set."""
        return math.ceil(len(self.train) / self.batch_size)

    def add(self, position: int, taught: bool, students: Sequence[Student] = ()) -> Tensor:
        """Add the gradients of one training batch, and of the unlabelled batch beside it, in every process.

        Args:
            position: updates made so far, in all stages; decides which batch comes.
            taught: whether the teacher takes part.
            students: the model, and sizes of it that learn beside it; their losses are averaged. The model alone, if
                empty.

        Returns:
            The loss, a float64 scalar on the model's device: whoever reads it waits for the device.

        Raises:
            MachineError: the recipe asks for compiled layers, and they cannot be compiled here.
        """
        teaching, students = self.teaching if taught else None, students or [self.model]
        rows = self._rows(position)
        batches = [pad(self.train, part, self.multiple) for part in _split(rows, self._parts(len(rows)))]

        def losses(batch: dict[str, Tensor], share: Share) -> Iterator[Tensor]:
            if teaching is None:
                return self._losses(students, batch, share)
            return teaching.labelled_losses(students, batch, self._autocast(), share)

        total = self._backward(batches, _labelled_items, losses, students, teaching)
        if teaching is None or (unlabelled := teaching.unlabelled_batch(position, self.multiple)) is None:
            return self._sum(total)

        def unlabelled_losses(batch: dict[str, Tensor], share: Share) -> Iterator[Tensor]:
            return teaching.unlabelled_losses(students, batch, self._autocast(), share)

        size = len(unlabelled["input_ids"])
        parts = [
            {key: value[rows.start : rows.stop] for key, value in unlabelled.items()}
            for rows in _split(range(size), self._parts(size))
        ]
        added = self._backward(parts, _unlabelled_items, unlabelled_losses, students, teaching)
        return self._sum(total + added)

    def _models(self, teaching: Teaching | None) -> list[nn.Module]:
        """Return the models that a pass reads."""
        teacher = None if teaching is None else teaching.teacher
        return [self.model] if teacher is None else [self.model, teacher]

    def _layers_in_use(self, teaching: Teaching | None) -> AbstractContextManager[None]:
        if self.recomputes:
            return recomputed_layers(self.model, self._dropout)
        return nullcontext() if self.compiled is None else self.compiled.used(self._models(teaching))

    def _dropout(self) -> AbstractContextManager[Any]:
        return FastDropout() if self.drops_fast else nullcontext()

    def of_cross_entropy(self, batches: int, *moment: int) -> Iterator[Weights]:
        """Yield the prunable weights' gradients of the cross-entropy on training batches, dropout off.

        Args:
            moment: numbers that tell this pruning from others; they decide which batches come.
        """
        weights = prunable(self.model)
        was_training = self.model.training
        self.model.eval()
        try:
            for rows in self._scoring_rows(batches, *moment):
                self.model.zero_grad(set_to_none=True)
                parts = [pad(self.train, part) for part in _split(rows, processes.count())]
                losses = partial(self._losses, [self.model])
                loss = self._backward(parts, _labelled_items, losses, [self.model], plain=True)
                processes.sum_gradients(weights.values(), loss)
                yield {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        finally:
            self.model.zero_grad(set_to_none=True)
            self.model.train(was_training)

    def labelled(self, batches: int, *moment: int) -> Iterator[dict[str, Tensor]]:
        """Yield training batches on the model's device, from the first again where there are not so many."""
        for rows in self._scoring_rows(batches, *moment):
            yield self._to_device(pad(self.train, rows))

    def _scoring_rows(self, batches: int, *moment: int) -> Iterator[np.ndarray]:
        order = training_order(self.train, self.batch_size, derive_seed(self.seed, "scoring", *moment), 0)
        for number in range(batches):
            yield order[number % len(order)]

    def _rows(self, position: int) -> Any:
        epoch, number = divmod(position, self.batches_per_epoch)
        if self._order[0] != epoch:
            seed = derive_seed(self.seed, "order")
            self._order = (epoch, training_order(self.train, self.batch_size, seed, epoch))
        return self._order[1][number]

    def _parts(self, rows: int) -> int:
        """Return how many micro-batches all processes compute, each of them equally many."""
        each = math.ceil(self.accumulation / processes.count())
        return min(each * processes.count(), rows)

    def _sum(self, loss: Tensor) -> Tensor:
        return processes.sum_gradients(self.model.parameters(), loss)

    def _backward(
        self,
        batches: Sequence[Batch],
        count: Callable[[Batch], int],
        losses_of: Callable[[dict[str, Tensor], Share], Iterator[Tensor]],
        students: Sequence[Student],
        teaching: Teaching | None = None,
        plain: bool = False,
    ) -> Tensor:
        """Add the gradients of some batches, and return the sum of their losses.

        Args:
            plain: without compiled layers and recorded passes, though the recipe asks for them.
        """

        def backward(batch: dict[str, Tensor], share: Share) -> Tensor:
            total = torch.zeros((), dtype=torch.float64, device=self.device)
            with (
                nullcontext() if plain else self._layers_in_use(teaching),
                self._dropout(),
            ):
                for loss in losses_of(batch, share):
                    mean = loss / len(students)
                    mean.backward()  # before the next student's loss is computed, so that one graph is held
                    total += mean.detach()
            return total

        total = torch.zeros((), dtype=torch.float64, device=self.device)
        parts = list(zip(batches, _shares(batches, count), strict=True))
        for batch, share in processes.own(parts):
            if not share[0]:
                continue  # no item of this part counts
            if self.graphs is None or plain:
                total += backward(self._to_device(batch), share)
            else:
                # One process and no micro-batches, so the part is the whole batch, and a graph may keep its share.
                kind, whole = (count, teaching is None), partial(backward, share=share)
                total += self.graphs.add(kind, self._models(teaching), batch, whole)
        return total

    def _losses(
        self, students: Sequence[Student], batch: dict[str, Tensor], share: Share
    ) -> Iterator[Tensor]:
        """Yield the cross-entropy of the model; its sizes learn its answers."""
        logits = self._logits(students[0], batch)
        yield cross_entropy(logits, batch["labels"]) * share[0]
        answers, where = logits.detach(), labelled(batch["labels"])
        for student in students[1:]:
            yield divergence(self._logits(student, batch), answers, 1.0, where) * share[0]

    def _logits(self, student: Student, batch: dict[str, Tensor]) -> Tensor:
        with self._autocast():
            return student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def _to_device(self, batch: Batch) -> dict[str, Tensor]:
        return {
            key: torch.from_numpy(value).to(self.device, non_blocking=True) for key, value in batch.items()
        }


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over labelled positions, in fp32.

    Args:
        logits: [batch, labels] or [batch, tokens, labels].
        labels: [batch] or [batch, tokens], IGNORE where there is none.
    """
    return nn.functional.cross_entropy(
        logits.float().reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORE
    )


def _labelled_items(batch: Batch) -> int:
    return int((batch["labels"] != IGNORE).sum())


def _unlabelled_items(batch: Batch) -> int:
    return int(batch["where"].sum()) if "where" in batch else len(batch["input_ids"])


def _tokens(batch: Batch) -> int:
    return int(batch["attention_mask"].sum())


def _shares(batches: Sequence[Batch], count: Callable[[Batch], int]) -> list[Share]:
    """Return each batch's share of all items, as ``count`` finds them, and of all tokens."""
    items, tokens = ([of(batch) for batch in batches] for of in (count, _tokens))
    return [(i / max(1, sum(items)), t / max(1, sum(tokens))) for i, t in zip(items, tokens, strict=True)]


def _split(rows: Any, parts: int) -> list[Any]:
    size = math.ceil(len(rows) / parts)
    return [rows[start : start + size] for start in range(0, len(rows), size)]
