"""The teacher in the training loop: its weights, the text the student learns from it, and when it is replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xlmprune.core.device import derive_seed
from xlmprune.data.encoding import Encoded, pad, training_order
from xlmprune.pruning.structures import layout_of
from xlmprune.recipe.schema import DistillationRecipe
from xlmprune.training.distillation import WHOLE, Share, TeacherChoice, labelled_loss, unlabelled_loss
from xlmprune.training.frozen import Keeping, call, frozen_copy

Student = Any
"""A model, or a `nesting.Prefix` of it: called with `input_ids` and `attention_mask`, it gives logits and hidden states."""


class Teaching:
    """A teacher that the student learns from, after stage 0.

    Args:
        settings: the recipe's `distillation`.
        unlabelled: text in any languages, encoded without labels; None to learn from labelled text alone.
        batch_size: unlabelled texts in an update, as many as labelled ones.
        seed: the seed of the run.
        keeping: how the teacher's weights are kept.
    """

    def __init__(
        self,
        settings: DistillationRecipe,
        unlabelled: Encoded | None,
        batch_size: int,
        seed: int,
        keeping: Keeping = "fp32",
    ) -> None:
        self.keeping: Keeping = keeping
        self.settings = settings
        self.unlabelled = unlabelled
        self.batch_size = batch_size
        self.seed = seed
        self.teacher: nn.Module | None = None
        self.choice: TeacherChoice | None = None
        self._order: tuple[int, list[np.ndarray]] = (-1, [])

    def begin(self, model: nn.Module, dev: float | None) -> None:
        """Make the dense fine-tuned network the teacher."""
        self.teacher = frozen_copy(model, self.keeping)
        self.choice = TeacherChoice(self.settings, dev if dev is not None else float("inf"))

    def consider(self, model: nn.Module, dev: float, density: float) -> None:
        """Make the student the teacher, if the recipe's policy says so."""
        if self.teacher is not None and self.choice is not None and self.choice.is_better(dev, density):
            self.teacher.load_state_dict(model.state_dict())

    def labelled_losses(
        self,
        students: Sequence[Student],
        batch: dict[str, Tensor],
        autocast: torch.autocast,
        share: Share = WHOLE,
    ) -> Iterator[Tensor]:
        """Compute the loss of every student on a labelled batch, cross-entropy included; ask the teacher once.

        Args:
            students: a model, and smaller ones with as many layers.
            share: as in `labelled_loss`.

        Yields:
            A scalar for each student, computed when it is asked for.
        """
        teacher, theirs = self._ask(students[0], batch, autocast)
        for student in students:
            logits, ours = self._answers(student, batch, autocast)
            labels, mask = batch["labels"], batch["attention_mask"]
            yield labelled_loss(self.settings, logits, teacher, labels, ours, theirs, mask, share)

    def unlabelled_losses(
        self,
        students: Sequence[Student],
        batch: dict[str, Tensor],
        autocast: torch.autocast,
        share: Share = WHOLE,
    ) -> Iterator[Tensor]:
        """Compute the loss of every student on an unlabelled batch, as `labelled_losses` does on a labelled one."""
        teacher, theirs = self._ask(students[0], batch, autocast)
        for student in students:
            logits, ours = self._answers(student, batch, autocast)
            where, mask = batch.get("where"), batch["attention_mask"]
            yield unlabelled_loss(self.settings, logits, teacher, where, ours, theirs, mask, share)

    def _answers(
        self, model: Student, batch: dict[str, Tensor], autocast: torch.autocast
    ) -> tuple[Tensor, Any]:
        with autocast:
            output = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                output_hidden_states=self.settings.hidden > 0,
            )
        # The first hidden state is the output of the embeddings, before any layer.
        return output.logits, (output.hidden_states or ())[1:]

    @torch.no_grad()
    def _ask(
        self, model: Student, batch: dict[str, Tensor], autocast: torch.autocast
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the teacher's answers, and its hidden states after the layers that the model's stand for."""
        if self.teacher is None:
            raise ValueError("there is no teacher before the end of stage 0")
        teacher = partial(call, self.teacher, batch["input_ids"].device)
        logits, states = self._answers(teacher, batch, autocast)
        return logits, followed(model, states)

    def unlabelled_batch(self, position: int, multiple: int = 1) -> dict[str, np.ndarray] | None:
        """Return the unlabelled batch of the run's ``position``-th update; None if there is no unlabelled text.

        Args:
            multiple: the number of tokens is a multiple of this.

        Returns:
            `input_ids`, `attention_mask`, and for token tasks `where`, which is true on every sub-word: unlabelled text in
            a language without spaces has no words to mark.
        """
        texts = self.unlabelled
        if texts is None:
            return None
        per_pass = -(-len(texts) // self.batch_size)
        number, index = divmod(position, per_pass)
        if self._order[0] != number:
            seed = derive_seed(self.seed, "unlabelled order")
            self._order = (number, training_order(texts, self.batch_size, seed, number))
        rows = self._order[1][index]
        batch = pad(texts, rows, multiple)
        if texts.words is not None:
            batch["where"] = batch["attention_mask"].astype(bool)
            batch["where"][:, 0] = False
            for line, row in enumerate(rows):
                batch["where"][line, len(texts.input_ids[row]) - 1] = False
        return batch

    def tensors(self) -> dict[str, Tensor]:
        """Return the teacher's weights; nothing before there is a teacher."""
        return {} if self.teacher is None else dict(self.teacher.named_parameters())

    def progress(self) -> dict[str, Any] | None:
        """Return the numbers that a checkpoint keeps beside the weights."""
        return None if self.choice is None else self.choice.progress()

    def restore(self, model: nn.Module, tensors: dict[str, Tensor], progress: dict[str, Any] | None) -> None:
        """Resume from `tensors` and `progress`; ``model`` gives the architecture."""
        if not tensors or progress is None:
            return
        self.begin(model, None)
        assert self.teacher is not None
        assert self.choice is not None
        with torch.no_grad():
            for name, parameter in self.teacher.named_parameters():
                parameter.copy_(tensors[name])
        self.choice.restore(progress)


def followed(student: nn.Module, states: Sequence[Tensor]) -> list[Tensor]:
    """Return the teacher's hidden states that the student's layers stand for: each the last of the layers it replaces."""
    if not states:
        return []
    sources = [layer.source for layer in layout_of(student).layers]
    return [states[end] for end in (*(source - 1 for source in sources[1:]), len(states) - 1)]
