"""Distillation losses: learn a teacher's answers and hidden states, beside the labels or in place of them.

The teacher is the dense fine-tuned network of the same run (`finetuned`), or the best pruned network so far, as in PINS.
Its answers on English text preserve English only. Its answers on plain text in other languages (`unlabelled`) preserve
those languages. This needs no labels, but it is not zero-shot in the strict sense, so reports name the languages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from xlmprune.data.encoding import IGNORE
from xlmprune.recipe.schema import DistillationRecipe

Share = tuple[float, float]
"""A part's share of the whole batch's items, and of its tokens, where a batch is computed in parts."""

WHOLE: Share = (1.0, 1.0)


def labelled(labels: Tensor) -> Tensor:
    """Mark the positions that have a label: boolean, shaped like ``labels``."""
    return labels != IGNORE


def _flat(logits: Tensor) -> Tensor:
    """Flatten logits to [items, labels] in float32."""
    if logits.shape[-1] < 2:
        raise ValueError(f"distillation needs at least 2 labels to choose between, {logits.shape[-1]} found")
    return logits.float().reshape(-1, logits.shape[-1])


def _mean(values: Tensor, where: Tensor | None) -> Tensor:
    """Average the items of ``where``, or all; zero, with a gradient of zero, where there is none.

    Items are weighted and not picked out: a GPU would have to tell the processor how many there are, and to wait.
    """
    if where is None:
        return values.sum() / max(1, values.numel())
    counted = where.reshape(-1)
    return (values * counted).sum() / counted.sum().clamp_min(1)


def divergence(
    student: Tensor, teacher: Tensor, temperature: float = 2.0, where: Tensor | None = None
) -> Tensor:
    """Compute ``tau^2 * KL(softmax(teacher / tau) || softmax(student / tau))``, mean over items; a scalar, 0 if both agree.

    Args:
        student: [batch, labels] or [batch, tokens, labels], logits.
        teacher: same shape; gets no gradient.
        where: boolean [batch] or [batch, tokens], the items that count; all, if None.

    Source: Hinton et al. 2015 (arXiv:1503.02531), section 2.
    """
    ours = functional.log_softmax(_flat(student) / temperature, dim=-1)
    theirs = functional.log_softmax(_flat(teacher.detach()) / temperature, dim=-1)
    return temperature**2 * _mean((theirs.exp() * (theirs - ours)).sum(dim=-1), where)


def certainty(logits: Tensor) -> Tensor:
    """Compute ``1 - H(softmax) / log C``, [items] from [items, labels], detached: 1 if certain, 0 if uniform."""
    logs = functional.log_softmax(logits.detach().float(), dim=-1)
    entropy = -(logs.exp() * logs).sum(dim=-1)
    return (1 - entropy / math.log(logits.shape[-1])).clamp(0, 1)


def weighted_by_certainty(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 2.0
) -> Tensor:
    """Weigh teacher against label: mean of ``a * soft + (1 - a) * hard`` over labelled items; a scalar.

    ``a`` is the student's `certainty`, ``soft = tau^2 * CE(softmax(teacher / tau), softmax(student / tau))``, and ``hard``
    is the cross-entropy of the label. A certain student learns from the teacher, an uncertain one from the label.

    Args:
        student: [batch, labels] or [batch, tokens, labels], logits.
        teacher: same shape.
        labels: [batch] or [batch, tokens], IGNORE where there is none.

    Source: Ren and Zhu 2023 (PINS), self-regularization, as in the released code.
    """
    ours, theirs = _flat(student), _flat(teacher.detach())
    weight = certainty(ours)
    soft = -(
        functional.softmax(theirs / temperature, -1) * functional.log_softmax(ours / temperature, -1)
    ).sum(-1)
    values = weight * temperature**2 * soft + (1 - weight) * _hard(ours, labels)
    return _mean(values, labelled(labels))


def _hard(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of every item, zero where it has no label; ``logits`` are flat."""
    return functional.cross_entropy(logits, labels.reshape(-1), reduction="none", ignore_index=IGNORE)


def hidden_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
    """Compute the squared distance of hidden states, relative to the teacher's, summed over layers; a scalar.

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
        raise ValueError(f"the student has {len(student)} layers, the teacher {len(teacher)}")
    tokens = attention_mask.bool()
    total = torch.zeros((), device=attention_mask.device)
    for ours, theirs in zip(student, teacher):
        a, b = ours.float(), theirs.detach().float()
        size = b.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        total = total + _mean(((a - b).square().sum(-1) / size).reshape(-1), tokens)
    return total


def labelled_loss(
    settings: DistillationRecipe,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    student_states: Sequence[Tensor] = (),
    teacher_states: Sequence[Tensor] = (),
    attention_mask: Tensor | None = None,
    share: Share = WHOLE,
) -> Tensor:
    """Compute the loss on labelled text, cross-entropy included: a scalar, mean over labelled items.

    Args:
        settings: the recipe's `distillation`.
        student: [batch, labels] or [batch, tokens, labels], logits with their gradient.
        teacher: same shape, same inputs, dropout off.
        labels: [batch] or [batch, tokens], IGNORE where there is none.
        student_states: hidden states after each layer, [batch, tokens, hidden]; needed if ``settings.hidden`` > 0.
        teacher_states: the teacher's.
        attention_mask: [batch, tokens]; needed with them.
        share: weight of a part of a batch, so that the sum over parts is the loss of the whole batch.
    """
    if settings.confidence:
        total = weighted_by_certainty(student, teacher, labels, settings.temperature)
    else:
        where = labelled(labels)
        hard = _mean(_hard(_flat(student), labels), where)
        soft = divergence(student, teacher, settings.temperature, where)
        total = (1 - settings.weight) * hard + settings.weight * soft
    items, tokens = share
    return items * total + tokens * _hidden_loss(settings, student_states, teacher_states, attention_mask)


def unlabelled_loss(
    settings: DistillationRecipe,
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None = None,
    student_states: Sequence[Tensor] = (),
    teacher_states: Sequence[Tensor] = (),
    attention_mask: Tensor | None = None,
    share: Share = WHOLE,
) -> Tensor:
    """Compute the loss on unlabelled text, which is added to `labelled_loss`: a scalar, mean over items.

    Args are those of `labelled_loss`, and:
        where: for token tasks, boolean [batch, tokens], true on every sub-word; otherwise None.
    """
    items, tokens = share
    total = items * divergence(student, teacher, settings.temperature, where)
    total = total + tokens * _hidden_loss(settings, student_states, teacher_states, attention_mask)
    return settings.unlabelled_weight * total


def _hidden_loss(
    settings: DistillationRecipe, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None
) -> Tensor | float:
    if settings.hidden == 0:
        return 0.0
    if mask is None:
        raise ValueError("distilling hidden states needs them and the attention mask")
    return settings.hidden * hidden_distance(student, teacher, mask)


class TeacherChoice:
    """Decides when a student that beats the teacher becomes the teacher.

    The released code of PINS starts from a best score of -999, so it replaces the dense teacher after one update; that is
    ``dense_defends: false``. Otherwise the student must beat the score of the dense network.

    Args:
        settings: the recipe's `distillation`; only `teacher`, `dense_defends` and `density_step` are used.
        score: of the dense network on English dev.
    """

    def __init__(self, settings: DistillationRecipe, score: float) -> None:
        self._policy, self._step = settings.teacher, settings.density_step
        self.best, self.density = score if settings.dense_defends else float("-inf"), 1.0

    def is_better(self, score: float, density: float) -> bool:
        """Decide whether the weights that scored ``score`` on English dev at ``density`` become the teacher.

        This remembers the answer: call it once for every measurement, and copy the weights if it returns True.
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

    def progress(self) -> dict[str, float]:
        """Return what a resumed run needs, as plain numbers."""
        return {"best": self.best, "density": self.density}

    def restore(self, progress: Mapping[str, float]) -> None:
        """Resume from `progress`."""
        self.best, self.density = float(progress["best"]), float(progress["density"])
