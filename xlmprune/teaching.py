"""The teacher's part in the loop: whom the student learns from, on which text, and when the teacher changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xlmprune.data import Encoded, Examples, pad, training_order
from xlmprune.distillation import Distillation, TeacherChoice
from xlmprune.errors import DataError
from xlmprune.runtime import derive_seed
from xlmprune.sources.files import read_lines


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

    def labelled_loss(self, model: nn.Module, batch: dict[str, Tensor], autocast: torch.autocast) -> Tensor:
        """Loss of a labelled batch, cross-entropy included: a scalar."""
        student, ours = self._answers(model, batch, autocast)
        teacher, theirs = self._ask(batch, autocast)
        return self.settings.loss(student, teacher, batch["labels"], ours, theirs, batch["attention_mask"])

    def unlabelled_loss(self, model: nn.Module, batch: dict[str, Tensor], autocast: torch.autocast) -> Tensor:
        """Loss of an unlabelled batch: a scalar."""
        student, ours = self._answers(model, batch, autocast)
        teacher, theirs = self._ask(batch, autocast)
        return self.settings.unlabelled_loss(
            student, teacher, batch.get("where"), ours, theirs, batch["attention_mask"]
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


def unlabelled_examples(
    task: Any,
    pattern: str,
    tests: Mapping[str, Examples],
    languages: Sequence[str] | None = None,
    max_texts: int | None = None,
) -> dict[str, Examples]:
    """Unlabelled text of every language of the task that has some.

    Args:
        pattern: a file name with ``{language}``, one text a line; or `task`, for the task's own. A pair is two texts
            with a tab between; where a line has none, it is paired with the next. Words of a tagging task are what
            spaces separate.
        tests: the test sets, whose texts are left out.
        languages: read these only; None for every language of ``tests``.
        max_texts: at most so many of a language, the first ones.

    Returns:
        language to examples without labels; languages without text are absent.

    Raises:
        DataError: no language has any text, or one of ``languages`` is not measured.
    """
    strangers = sorted(set(languages or ()) - set(tests))
    if strangers:
        raise DataError(
            f"distillation.languages: {', '.join(strangers)} not among the languages measured, {', '.join(tests)}"
        )
    found: dict[str, Examples] = {}
    for language, test in tests.items():
        if languages is not None and language not in languages:
            continue
        lines = _lines(task, pattern, language)
        tested = {_joined(test, row) for row in range(len(test))}
        rows: list[Any] = _paired(lines) if task.kind == "pair" else lines
        rows = [row for row in rows if ("\t".join(row) if task.kind == "pair" else row) not in tested]
        rows = rows[:max_texts]
        if not rows:
            continue
        if task.kind == "pair":
            first, second = [row[0] for row in rows], [row[1] for row in rows]
            found[language] = Examples(language, "unlabelled", first, second)
        else:
            texts = [row.split() for row in rows] if task.kind == "tokens" else rows
            found[language] = Examples(language, "unlabelled", texts)
    if not found:
        raise DataError(f"distillation.unlabelled: no text found for {', '.join(tests)} at {pattern!r}")
    return found


def _lines(task: Any, pattern: str, language: str) -> list[str]:
    if pattern == "task":
        return task.unlabelled(language)
    path = Path(pattern.replace("{language}", language))
    return [line for line in read_lines(path) if line.strip()] if path.is_file() else []


def _joined(examples: Examples, row: int) -> str:
    text = examples.first[row]
    first = text if isinstance(text, str) else " ".join(text)
    return first if examples.second is None else f"{first}\t{examples.second[row]}"


def _paired(lines: list[str]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    waiting: str | None = None
    for line in lines:
        first, tab, second = line.partition("\t")
        if tab:
            pairs.append((first, second))
        elif waiting is None:
            waiting = line
        else:
            pairs.append((waiting, line))
            waiting = None
    return pairs


def join_encoded(parts: Sequence[Encoded]) -> Encoded:
    """Several unlabelled sets as one."""
    words = [array for part in parts for array in part.words or []]
    ids = [array for part in parts for array in part.input_ids]
    return Encoded(ids, None, words or None, np.concatenate([part.truncated for part in parts]))


def frozen_copy(model: nn.Module) -> nn.Module:
    """The model as it is now, in eval mode, without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)
