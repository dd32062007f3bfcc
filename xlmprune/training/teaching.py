"""The teacher's part in the loop: whom the student learns from, on which text, and when the teacher changes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xlmprune.core.device import derive_seed
from xlmprune.data.encoding import Encoded, pad, training_order
from xlmprune.training.distillation import WHOLE, Distillation, Share, TeacherChoice


class Teaching:
    """A teacher beside the labels, from the end of stage 0 on.

    Args:
        settings: the recipe's `distillation`.
        unlabelled: text in any languages, encoded without labels; None for labelled text alone.
        batch_size: unlabelled texts an update, as many as labelled ones.
        seed: the run's.
    """

    def __init__(
        self, settings: Distillation, unlabelled: Encoded | None, batch_size: int, seed: int
    ) -> None:
        self.settings = settings
        self.unlabelled = unlabelled
        self.batch_size = batch_size
        self.seed = seed
        self.teacher: nn.Module | None = None
        self.choice: TeacherChoice | None = None
        self._order: tuple[int, list[np.ndarray]] = (-1, [])

    def begin(self, model: nn.Module, dev: float | None) -> None:
        """The dense fine-tuned network becomes the teacher."""
        self.teacher = frozen_copy(model)
        self.choice = TeacherChoice(self.settings, dev if dev is not None else float("inf"))

    def consider(self, model: nn.Module, dev: float, density: float) -> None:
        """Let the student teach from now on, if the recipe's policy says it has earned it."""
        if self.teacher is not None and self.choice is not None and self.choice.is_better(dev, density):
            self.teacher.load_state_dict(model.state_dict())

    def labelled_loss(
        self, model: nn.Module, batch: dict[str, Tensor], autocast: torch.autocast, share: Share = WHOLE
    ) -> Tensor:
        """Loss of a labelled batch, cross-entropy included: a scalar. ``share`` as in `Distillation.loss`."""
        student, ours = self._answers(model, batch, autocast)
        teacher, theirs = self._ask(batch, autocast)
        return self.settings.loss(
            student, teacher, batch["labels"], ours, theirs, batch["attention_mask"], share
        )

    def unlabelled_loss(
        self, model: nn.Module, batch: dict[str, Tensor], autocast: torch.autocast, share: Share = WHOLE
    ) -> Tensor:
        """Loss of an unlabelled batch: a scalar. ``share`` as in `Distillation.loss`."""
        student, ours = self._answers(model, batch, autocast)
        teacher, theirs = self._ask(batch, autocast)
        return self.settings.unlabelled_loss(
            student, teacher, batch.get("where"), ours, theirs, batch["attention_mask"], share
        )

    def _answers(
        self, model: nn.Module, batch: dict[str, Tensor], autocast: torch.autocast
    ) -> tuple[Tensor, Any]:
        with autocast:
            output = model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                output_hidden_states=self.settings.needs_hidden_states,
            )
        # The first hidden state is the embeddings' own; those after each layer follow.
        return output.logits, (output.hidden_states or ())[1:]

    @torch.no_grad()
    def _ask(self, batch: dict[str, Tensor], autocast: torch.autocast) -> tuple[Tensor, Any]:
        if self.teacher is None:
            raise ValueError("there is no teacher before stage 0 is over")
        return self._answers(self.teacher, batch, autocast)

    def unlabelled_batch(self, position: int) -> dict[str, np.ndarray] | None:
        """The unlabelled batch that goes with the run's ``position``-th update; None where there is no such text.

        Returns:
            `input_ids`, `attention_mask`, and for token tasks `where`, true on every sub-word: text without labels has
            no words either where a language writes no spaces.
        """
        texts = self.unlabelled
        if texts is None:
            return None
        per_pass = -(-len(texts) // self.batch_size)
        number, place = divmod(position, per_pass)
        if self._order[0] != number:
            seed = derive_seed(self.seed, "unlabelled order")
            self._order = (number, training_order(texts, self.batch_size, seed, number))
        rows = self._order[1][place]
        batch = pad(texts, rows)
        if texts.words is not None:
            batch["where"] = batch["attention_mask"].astype(bool)
            batch["where"][:, 0] = False
            for line, row in enumerate(rows):
                batch["where"][line, len(texts.input_ids[row]) - 1] = False
        return batch

    def tensors(self) -> dict[str, Tensor]:
        """The teacher's weights; nothing before there is one."""
        return {} if self.teacher is None else dict(self.teacher.named_parameters())

    def progress(self) -> dict[str, Any] | None:
        """The numbers beside them."""
        return None if self.choice is None else self.choice.progress()

    def restore(self, model: nn.Module, tensors: dict[str, Tensor], progress: dict[str, Any] | None) -> None:
        """Stand where `tensors` and `progress` were taken; ``model`` lends its shape."""
        if not tensors or progress is None:
            return
        self.begin(model, None)
        assert self.teacher is not None
        assert self.choice is not None
        with torch.no_grad():
            for name, parameter in self.teacher.named_parameters():
                parameter.copy_(tensors[name])
        self.choice.restore(progress)


def join_encoded(parts: Sequence[Encoded]) -> Encoded:
    """Several unlabelled sets as one."""
    words = [array for part in parts for array in part.words or []]
    ids = [array for part in parts for array in part.input_ids]
    return Encoded(ids, None, words or None, np.concatenate([part.truncated for part in parts]))


def frozen_copy(model: nn.Module) -> nn.Module:
    """The model as it is now, in eval mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)
