"""Learn from a teacher beside, or instead of, the labels: its answers, and what it computes on the way to them.

The teacher is the same task's dense fine-tuned network (`finetuned`), or the best pruned one so far, as PINS has it. English
answers alone hold English; what holds other languages is the teacher's answers on plain text in them (`unlabelled`), which
needs no labels but is no longer zero-shot in the strict sense, so reports say which languages gave text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from xlmprune.data.encoding import IGNORE
from xlmprune.recipe.component import STRICT

Share = tuple[float, float]
"""Of a batch that is taken in parts: this part's share of the whole batch's items, and of its tokens."""

WHOLE: Share = (1.0, 1.0)


def labelled(labels: Tensor) -> Tensor:
    """Which positions carry a label: boolean, shaped like ``labels``."""
    return labels != IGNORE


def _chosen(logits: Tensor, where: Tensor | None) -> Tensor:
    """[items, labels] in float32: every item, or those of ``where``."""
    if logits.shape[-1] < 2:
        raise ValueError(f"distillation needs at least 2 labels to choose between, {logits.shape[-1]} found")
    flat = logits.float().reshape(-1, logits.shape[-1])
    return flat if where is None else flat[where.reshape(-1)]


def _mean(values: Tensor) -> Tensor:
    """Zero, and no gradient that is not a number, where there is nothing to average."""
    return values.sum() / max(1, values.numel())


def divergence(
    student: Tensor, teacher: Tensor, temperature: float = 2.0, where: Tensor | None = None
) -> Tensor:
    """``tau^2 * KL(softmax(teacher / tau) || softmax(student / tau))``, mean over items; a scalar, 0 where both agree.

    Args:
        student: [batch, labels] or [batch, tokens, labels], logits.
        teacher: same shape; gets no gradient.
        where: boolean [batch] or [batch, tokens], the items that count; all, if None.

    Source: Hinton et al. 2015 (arXiv:1503.02531), section 2.
    """
    ours = functional.log_softmax(_chosen(student, where) / temperature, dim=-1)
    theirs = functional.log_softmax(_chosen(teacher.detach(), where) / temperature, dim=-1)
    return temperature**2 * _mean((theirs.exp() * (theirs - ours)).sum(dim=-1))


def certainty(logits: Tensor) -> Tensor:
    """``1 - H(softmax) / log C``: 1 for a sure answer, 0 for an even one; [items] from [items, labels], detached."""
    logs = functional.log_softmax(logits.detach().float(), dim=-1)
    entropy = -(logs.exp() * logs).sum(dim=-1)
    return (1 - entropy / math.log(logits.shape[-1])).clamp(0, 1)


def weighted_by_certainty(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 2.0
) -> Tensor:
    """Teacher or label, as sure as the student is: mean of ``a * soft + (1 - a) * hard`` over labelled items; a scalar.

    With a the student's `certainty`, ``soft = tau^2 * CE(softmax(teacher / tau), softmax(student / tau))`` and ``hard`` the
    cross-entropy of the label: a sure student hears the teacher, an unsure one the label.

    Args:
        student: [batch, labels] or [batch, tokens, labels], logits.
        teacher: same shape.
        labels: [batch] or [batch, tokens], IGNORE where there is none.

    Source: Ren and Zhu 2023 (PINS), self-regularization, as in the released code.
    """
    where = labelled(labels)
    ours, theirs = _chosen(student, where), _chosen(teacher.detach(), where)
    weight = certainty(ours)
    soft = -(
        functional.softmax(theirs / temperature, -1) * functional.log_softmax(ours / temperature, -1)
    ).sum(-1)
    hard = functional.cross_entropy(ours, labels[where], reduction="none")
    return _mean(weight * temperature**2 * soft + (1 - weight) * hard)


def hidden_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
    """Squared distance of hidden states, relative to the teacher's own size, summed over layers; a scalar.

    Per layer the mean of ``|student - teacher|^2 / |teacher|^2`` over tokens that are not padding: 0 where equal, 1 for a
    student of zeros.

    Args:
        student: one [batch, tokens, hidden] per layer.
        teacher: as many, same shapes; they get no gradient.
        attention_mask: [batch, tokens], 0 on padding.

    Raises:
        ValueError: differing numbers of layers.
    """
    if len(student) != len(teacher) or not student:
        raise ValueError(f"{len(student)} layers of the student for {len(teacher)} of the teacher")
    tokens = attention_mask.bool()
    total = torch.zeros((), device=attention_mask.device)
    for ours, theirs in zip(student, teacher):
        a, b = ours[tokens].float(), theirs.detach()[tokens].float()
        size = b.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        total = total + ((a - b).square().sum(-1) / size).mean()
    return total


@dataclass(config=STRICT)
class Distillation:
    """What the student learns from the teacher, and how much."""

    teacher: Literal["finetuned", "best_so_far", "best_at_current_sparsity"] = "finetuned"
    """`finetuned`: the dense network, all along. `best_so_far` (PINS): whichever weights scored best on English dev.
    `best_at_current_sparsity`: the same, starting anew whenever the density has fallen by `density_step`, since a sparser
    network seldom beats a denser one."""

    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Softens both answers; higher tells more about the labels that were not chosen."""

    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the teacher's answers in the loss on labelled text; the label has the rest."""

    hidden: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the distance between hidden states, summed over layers; 0 leaves them alone and costs nothing."""

    confidence: bool = False
    """Let the student's own certainty weigh teacher against label, example by example (PINS), in place of `weight`."""

    unlabelled: str | None = None
    """Text files, one sentence a line, with `{language}` in the name, or `task` for the task's own text: the teacher's
    answers on them are learnt too. Languages without a file do without; texts of the test sets and of English dev are left
    out, however they are spaced, cased or punctuated."""

    languages: Annotated[list[str], Field(min_length=1)] | None = None
    """Languages whose text is read; None for all that have some. The others are measured as `seen_unlabelled: no`."""

    max_texts: Annotated[int, Field(ge=1)] | None = None
    """Texts a language, the first ones; None for all."""

    unlabelled_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the teacher's answers on unlabelled text, beside the loss on labelled text."""

    density_step: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """For `best_at_current_sparsity`."""

    @field_validator("confidence")
    @classmethod
    def _instead_of_weight(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("weight", 0.5) != 0.5:
            raise ValueError("`confidence` takes the place of `weight`; give one of them")
        return value

    @field_validator("unlabelled")
    @classmethod
    def _per_language(cls, value: str | None) -> str | None:
        if value is not None and value != "task" and "{language}" not in value:
            raise ValueError(
                f"{value!r} has no {{language}} in it; expected such as text/{{language}}.txt, or task"
            )
        return value

    @field_validator("languages", "max_texts")
    @classmethod
    def _of_unlabelled(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("unlabelled") is None:
            raise ValueError("there is no unlabelled text to choose from; give distillation.unlabelled")
        return value

    @property
    def needs_hidden_states(self) -> bool:
        """Must both networks return their hidden states?"""
        return self.hidden > 0

    def loss(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        student_states: Sequence[Tensor] = (),
        teacher_states: Sequence[Tensor] = (),
        attention_mask: Tensor | None = None,
        share: Share = WHOLE,
    ) -> Tensor:
        """The loss on labelled text, cross-entropy included: a scalar, mean over labelled items.

        Args:
            student: [batch, labels] or [batch, tokens, labels], logits with their gradient.
            teacher: same shape, same inputs, dropout off.
            labels: [batch] or [batch, tokens], IGNORE where there is none.
            student_states: hidden states after each layer, [batch, tokens, hidden]; needed if `needs_hidden_states`.
            teacher_states: the teacher's.
            attention_mask: [batch, tokens]; needed with them.
            share: what to weigh a part of a batch with, so that the sum over parts is the loss of the whole.
        """
        if self.confidence:
            total = weighted_by_certainty(student, teacher, labels, self.temperature)
        else:
            where = labelled(labels)
            hard = _mean(functional.cross_entropy(_chosen(student, where), labels[where], reduction="none"))
            soft = divergence(student, teacher, self.temperature, where)
            total = (1 - self.weight) * hard + self.weight * soft
        items, tokens = share
        return items * total + tokens * self._hidden_loss(student_states, teacher_states, attention_mask)

    def unlabelled_loss(
        self,
        student: Tensor,
        teacher: Tensor,
        where: Tensor | None = None,
        student_states: Sequence[Tensor] = (),
        teacher_states: Sequence[Tensor] = (),
        attention_mask: Tensor | None = None,
        share: Share = WHOLE,
    ) -> Tensor:
        """The loss on unlabelled text, to be added to `loss`: a scalar, mean over items.

        Args:
            student: as in `loss`.
            teacher: as in `loss`.
            where: for token tasks, boolean [batch, tokens], true on every sub-word; otherwise None.
            student_states: as in `loss`.
            teacher_states: as in `loss`.
            attention_mask: as in `loss`.
            share: as in `loss`.
        """
        items, tokens = share
        total = items * divergence(student, teacher, self.temperature, where)
        total = total + tokens * self._hidden_loss(student_states, teacher_states, attention_mask)
        return self.unlabelled_weight * total

    def _hidden_loss(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None
    ) -> Tensor | float:
        if not self.needs_hidden_states:
            return 0.0
        if mask is None:
            raise ValueError("distilling hidden states needs them and the attention mask")
        return self.hidden * hidden_distance(student, teacher, mask)


class TeacherChoice:
    """Decides when the student, having done better than the teacher, becomes the teacher.

    The released code of PINS begins with a best score of -999 and so drops the dense teacher after one update; here
    the dense network defends its own score.

    Args:
        distillation: whose `teacher` and `density_step` are followed.
        score: of the dense network on English dev.
    """

    def __init__(self, distillation: Distillation, score: float) -> None:
        self._policy, self._step = distillation.teacher, distillation.density_step
        self.best, self.density = score, 1.0

    def is_better(self, score: float, density: float) -> bool:
        """Should the weights that scored ``score`` on English dev at ``density`` teach from now on?

        Remembers the answer: ask once for every measurement, and copy the weights if told so.
        """
        if self._policy == "finetuned":
            return False
        # A hundredth of the step forgives the rounding of counts: 0.9 is a step of 0.1 below 1.0.
        sparser = self._policy == "best_at_current_sparsity" and density <= self.density - 0.99 * self._step
        if not sparser and not score > self.best:
            return False
        self.best = score
        if sparser:
            self.density = density
        return True

    def progress(self) -> dict[str, Any]:
        """What a resumed run needs, as plain numbers."""
        return {"best": self.best, "density": self.density}

    def restore(self, progress: dict[str, Any]) -> None:
        """Go on from `progress`."""
        self.best, self.density = float(progress["best"]), float(progress["density"])
