import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from xlmprune.data.encoding import IGNORE
from xlmprune.recipe.schema import DistillationRecipe
from xlmprune.training.distillation import (
    TeacherChoice,
    certainty,
    divergence,
    hidden_distance,
    labelled,
    labelled_loss,
    unlabelled_loss,
    weighted_by_certainty,
)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(tensor):
    return float(tensor.detach())


def test_divergence_by_hand():
    # Teacher 3/4 : 1/4, student even, tau 1.
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert value(divergence(student, teacher, 1.0)) == pytest.approx(expected)
    # At tau 2 the same answers come of logits twice as far apart, and count fourfold.
    assert value(divergence(2 * student, 2 * teacher, 2.0)) == pytest.approx(4 * expected)


@given(st.integers(0, 1000), st.floats(0.5, 5), st.integers(2, 6))
def test_divergence_is_zero_between_equals_and_positive_otherwise(seed, temperature, labels):
    student, teacher = drawn(3, labels, seed=seed), drawn(3, labels, seed=seed + 1)
    assert value(divergence(teacher + 5, teacher, temperature)) == pytest.approx(
        0, abs=1e-5
    )  # a shift changes nothing
    assert value(divergence(student, teacher, temperature)) >= 0


def test_divergence_has_the_gradient_of_soft_cross_entropy():
    student, teacher = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1)
    divergence(student, teacher, 2.0).backward()
    expected = 2 * (torch.softmax(student.detach() / 2, -1) - torch.softmax(teacher / 2, -1)) / 4
    assert torch.allclose(student.grad, expected, atol=1e-6)


def test_the_teacher_gets_no_gradient():
    student, teacher = drawn(4, 3).requires_grad_(), drawn(4, 3, seed=1).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0])
    labelled_loss(DistillationRecipe(), student, teacher, labels).backward()
    labelled_loss(DistillationRecipe(confidence=True), student, teacher, labels).backward()
    unlabelled_loss(DistillationRecipe(), student, teacher).backward()
    assert teacher.grad is None


def test_only_labelled_tokens_count():
    student, teacher = drawn(2, 5, 4), drawn(2, 5, 4, seed=1)
    labels = torch.tensor([[IGNORE, 1, IGNORE, 3, IGNORE], [IGNORE, 0, 2, IGNORE, IGNORE]])
    where = labelled(labels)
    assert where.sum() == 4
    for distillation in (DistillationRecipe(), DistillationRecipe(confidence=True)):
        found = value(labelled_loss(distillation, student, teacher, labels))
        assert found == pytest.approx(
            value(labelled_loss(distillation, student[where], teacher[where], labels[where]))
        )
        noisy = torch.where(where.unsqueeze(-1), student, 1e3 * drawn(2, 5, 4, seed=2))
        assert value(labelled_loss(distillation, noisy, teacher, labels)) == pytest.approx(found)
    assert value(unlabelled_loss(DistillationRecipe(), student, teacher, where)) == pytest.approx(
        value(divergence(student[where], teacher[where]))
    )


def test_without_any_label_the_loss_is_zero_and_so_is_its_gradient():
    student, labels = drawn(2, 3, 4).requires_grad_(), torch.full((2, 3), IGNORE)
    for distillation in (DistillationRecipe(), DistillationRecipe(confidence=True)):
        student.grad = None
        loss = labelled_loss(distillation, student, drawn(2, 3, 4, seed=1), labels)
        loss.backward()
        assert value(loss) == 0
        assert (student.grad == 0).all()


def test_weight_mixes_label_and_teacher():
    student, teacher, labels = drawn(4, 3), drawn(4, 3, seed=1), torch.tensor([0, 1, 2, 0])
    hard = value(torch.nn.functional.cross_entropy(student, labels))
    soft = value(divergence(student, teacher, 3.0))
    for weight in (0.0, 0.25, 1.0):
        found = labelled_loss(DistillationRecipe(weight=weight, temperature=3.0), student, teacher, labels)
        assert value(found) == pytest.approx((1 - weight) * hard + weight * soft, rel=1e-5)


def test_certainty_is_one_for_a_sure_answer_and_zero_for_an_even_one():
    logits = torch.tensor([[80.0, 0.0, 0.0], [2.0, 2.0, 2.0], [0.0, 0.0, -80.0]], requires_grad=True)
    found = certainty(logits)
    assert found.tolist() == pytest.approx([1, 0, 1 - math.log(2) / math.log(3)], abs=1e-6)
    assert not found.requires_grad


def test_a_sure_student_hears_the_teacher_and_an_unsure_one_the_label():
    teacher, label = torch.tensor([[0.0, 9.0]]), torch.tensor([0])
    sure = torch.tensor([[60.0, 0.0]])
    soft = -(torch.softmax(teacher / 2, -1) * torch.log_softmax(sure / 2, -1)).sum() * 4
    assert value(weighted_by_certainty(sure, teacher, label)) == pytest.approx(value(soft))
    assert value(weighted_by_certainty(torch.zeros(1, 2), teacher, label)) == pytest.approx(math.log(2))


def test_weighting_by_certainty_against_a_loop():
    student, teacher, labels = drawn(5, 4), drawn(5, 4, seed=1), torch.tensor([0, 3, IGNORE, 1, 1])
    terms = []
    for z, q, y in zip(student, teacher, labels, strict=True):
        if y == IGNORE:
            continue
        p = torch.softmax(z, 0)
        a = 1 + float((p * p.log()).sum()) / math.log(4)
        soft = -4 * float((torch.softmax(q / 2, 0) * torch.log_softmax(z / 2, 0)).sum())
        terms.append(a * soft - (1 - a) * float(p[y].log()))
    assert value(weighted_by_certainty(student, teacher, labels)) == pytest.approx(sum(terms) / 4, rel=1e-5)


def test_hidden_distance_by_hand():
    # Two layers of two tokens, each against its own size; the last token is padding.
    teacher = [
        torch.tensor([[[3.0, 4.0], [0.0, 4.0], [9.0, 9.0]]]),
        torch.tensor([[[1.0, 0.0], [1.0, 0.0], [7.0, 7.0]]]),
    ]
    student = [
        torch.tensor([[[3.0, 3.0], [2.0, 4.0], [0.0, 0.0]]]),
        torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]]),
    ]
    mask = torch.tensor([[1, 1, 0]])
    assert value(hidden_distance(student, teacher, mask)) == pytest.approx((1 / 25 + 4 / 16) / 2)
    assert value(hidden_distance([torch.zeros(1, 3, 2)] * 2, teacher, mask)) == pytest.approx(2)
    assert value(hidden_distance(teacher, teacher, mask)) == 0


def test_hidden_states_are_weighed_in_and_asked_for():
    student, teacher, labels = drawn(2, 3), drawn(2, 3, seed=1), torch.tensor([0, 1])
    states, taught, mask = (
        [drawn(2, 4, 6, seed=2)],
        [drawn(2, 4, 6, seed=3)],
        torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]),
    )
    distillation = DistillationRecipe(hidden=0.7)
    plain = value(labelled_loss(DistillationRecipe(), student, teacher, labels))
    extra = 0.7 * value(hidden_distance(states, taught, mask))
    assert value(
        labelled_loss(distillation, student, teacher, labels, states, taught, mask)
    ) == pytest.approx(plain + extra)
    plain = value(unlabelled_loss(DistillationRecipe(), student, teacher))
    found = unlabelled_loss(
        DistillationRecipe(hidden=0.7, unlabelled_weight=2.0), student, teacher, None, states, taught, mask
    )
    assert value(found) == pytest.approx(2 * (plain + extra))
    with pytest.raises(ValueError, match="attention mask"):
        labelled_loss(distillation, student, teacher, labels)
    with pytest.raises(ValueError, match="student has 1 layers, the teacher 2"):
        labelled_loss(distillation, student, teacher, labels, states, taught * 2, mask)


def test_bfloat16_logits_are_compared_in_float32():
    student, teacher = drawn(8, 5).bfloat16(), drawn(8, 5, seed=1).bfloat16()
    loss = labelled_loss(DistillationRecipe(), student, teacher, torch.zeros(8, dtype=torch.long))
    assert loss.dtype == torch.float32
    assert value(loss) == pytest.approx(
        value(labelled_loss(DistillationRecipe(), student.float(), teacher.float(), torch.zeros(8).long()))
    )


def test_one_label_is_nothing_to_choose_between():
    with pytest.raises(ValueError, match="at least 2 labels"):
        divergence(torch.zeros(3, 1), torch.zeros(3, 1))


# --- the recipe's side -----------------------------------------------------------------------------------------------


def test_the_defaults_are_the_documented_ones():
    given_ = DistillationRecipe()
    assert (given_.teacher, given_.temperature, given_.weight, given_.hidden) == ("finetuned", 2.0, 0.5, 0.0)
    assert (given_.confidence, given_.unlabelled, given_.unlabelled_weight) == (False, None, 1.0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"teecher": "finetuned"}, "teecher"),
        ({"teacher": "best"}, "best_so_far"),
        ({"temperature": 0}, "greater than 0"),
        ({"weight": 1.5}, "less than or equal to 1"),
        ({"unlabelled": "text/all.txt"}, "does not contain {language}"),
        ({"confidence": True, "weight": 0.9}, "replaces `weight`"),
    ],
)
def test_faulty_parameters_are_refused(wrong, said):
    with pytest.raises(ValidationError, match=said):
        DistillationRecipe(**wrong)


def test_the_dense_teacher_stays():
    choice = TeacherChoice(DistillationRecipe(), score=80.0)
    assert not choice.is_better(99.0, 0.5)


def test_best_so_far_must_beat_every_score_before_it_the_dense_one_first():
    choice = TeacherChoice(DistillationRecipe(teacher="best_so_far"), score=80.0)
    scores = [(79.0, 0.9), (80.0, 0.9), (81.0, 0.81), (80.5, 0.73), (81.5, 0.3)]
    assert [choice.is_better(*measured) for measured in scores] == [False, False, True, False, True]


def test_best_at_current_sparsity_begins_anew_when_the_density_has_fallen():
    distillation = DistillationRecipe(teacher="best_at_current_sparsity", density_step=0.2)
    choice = TeacherChoice(distillation, score=80.0)
    scores = [(79.0, 0.9), (70.0, 0.8), (71.0, 0.8), (70.5, 0.8), (60.0, 0.65), (60.0, 0.6), (60.0, 0.6)]
    assert [choice.is_better(*measured) for measured in scores] == [
        False,
        True,
        True,
        False,
        False,
        True,
        False,
    ]


def test_a_choice_taken_up_again_answers_alike():
    distillation = DistillationRecipe(teacher="best_at_current_sparsity")
    choice = TeacherChoice(distillation, score=80.0)
    choice.is_better(75.0, 0.85)
    other = TeacherChoice(distillation, score=0.0)
    other.restore(choice.progress())
    assert [c.is_better(74.0, 0.8) for c in (choice, other)] == [False, False]
    assert [c.is_better(76.0, 0.8) for c in (choice, other)] == [True, True]
