"""Every published formula at small numbers that can be checked with a pencil: value, paper, equation.

Properties and edges of the same formulas stand in test_criteria, test_regularizers, test_reconstruction, test_schedules,
test_metrics and test_evaluation. No number here comes from the code.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from xlmprune.data.examples import Examples
from xlmprune.evaluation import intervals
from xlmprune.evaluation.significance import holm
from xlmprune.pruning.criteria.eq6 import agreement
from xlmprune.pruning.criteria.gradient import accumulated, taylor
from xlmprune.pruning.criteria.hard_concrete import probability_open
from xlmprune.pruning.criteria.lamp import layer_adaptive
from xlmprune.pruning.criteria.lookahead import lookahead
from xlmprune.pruning.criteria.movement import movement_slope, soft_penalty
from xlmprune.pruning.criteria.obert import add_sample, compensation, initial_inverse, saliency
from xlmprune.pruning.criteria.pins import step_aware
from xlmprune.pruning.criteria.smoothing import Smoothed
from xlmprune.pruning.criteria.sparsegpt import sparsegpt_scores
from xlmprune.pruning.criteria.wanda import wanda
from xlmprune.pruning.reconstruction import descend
from xlmprune.pruning.regularizers.cosine import Cosine
from xlmprune.pruning.regularizers.frobenius import Frobenius
from xlmprune.pruning.schedules import Cubic
from xlmprune.recipe.schema import DistillationRecipe
from xlmprune.tasks.metrics import Accuracy, TagRuns, ndcg
from xlmprune.training.distillation import labelled_loss


def tensor(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def gradient_of(regularizer, weight: Tensor, reference: Tensor, mask: Tensor) -> list[float]:
    leaf = {"w": weight.clone().requires_grad_()}
    regularizer.add_gradient({"w": leaf["w"]}, {"w": reference}, {"w": mask})
    assert leaf["w"].grad is not None
    return (leaf["w"].grad * mask).flatten().tolist()


WEIGHT, REFERENCE = tensor([2.0, 0.0, 1.0]), tensor([1.0, 2.0, 2.0])


def test_cosine_alignment():
    """O'Neill et al. 2022 (arXiv:2204.01385), Eqs. 2 and 3; the gradient is that of Eq. 2, not the printed Eq. 5.

    rho = 4 / (3 sqrt 5) = 0.5962848; d rho/dV = R / (3 sqrt 5) - rho V / 5.
    """
    found = gradient_of(Cosine(strength=1.0), WEIGHT, REFERENCE, torch.ones(1, 3, dtype=torch.bool))
    assert found == pytest.approx([0.0894427, -0.2981424, -0.1788855], abs=1e-6)


def test_frobenius_alignment():
    """O'Neill et al. 2022, Eq. 6 with lambda 1: |P - M W|^2 = 1 + 4 + 1, gradient 2 M (W - P)."""
    mask = torch.tensor([[True, False, True]])
    assert gradient_of(Frobenius(strength=1.0), WEIGHT, REFERENCE, mask) == [2.0, 0.0, -2.0]
    assert float(Frobenius(strength=1.0)({"w": WEIGHT}, {"w": REFERENCE}, {"w": mask})) == 6.0


def test_eq6_as_a_criterion():
    """O'Neill et al. 2022, Eq. 6, entry by entry: (1 - lambda) w^2 + 2 lambda p w with lambda 5e-4."""
    found = agreement(tensor([2.0, -1.0]), tensor([1.0, 3.0]), 5e-4)
    assert found.flatten().tolist() == pytest.approx([3.998 + 0.002, 0.9995 - 0.003])


def test_lamp():
    """Lee et al. 2021 (arXiv:2010.07611), Eq. 1: 9/9, 1/(1 + 4 + 9), 4/(4 + 9)."""
    scores = layer_adaptive(torch.tensor([3.0, -1.0, 2.0]), torch.ones(3, dtype=torch.bool))
    assert scores.tolist() == pytest.approx([1.0, 0.0714286, 0.3076923], abs=1e-6)


def test_lookahead():
    """Park et al. 2020 (arXiv:2002.04809), Eq. 4: |w_ij| times the norms of row j before and column i after."""
    found = lookahead(
        tensor([1.0, -2.0], [3.0, 0.5]), torch.tensor([3.0, 2.0]).double(), torch.tensor([1.0, 5.0]).double()
    )
    assert found.tolist() == [[3.0, 4.0], [45.0, 5.0]]


def test_hard_concrete():
    """Louizos et al. 2018 (arXiv:1712.01312), Eq. 12: sigmoid(alpha - 2/3 log(0.1/1.1)), alpha 0.7 and -2.5."""
    assert probability_open(torch.tensor([0.7, -2.5])).tolist() == pytest.approx(
        [0.908761, 0.288762], abs=1e-5
    )


def test_gradient_and_snip():
    """SNIP (Lee et al. 2019, arXiv:1810.02340), Eq. 4: |w g|; the gradient alone is AlignReg's L2-Gradient-MBP."""
    batches = [{"w": tensor([1.0, -2.0])}, {"w": tensor([-4.0, -1.0])}]
    assert accumulated(batches)["w"].flatten().tolist() == [3.0, 3.0]
    assert taylor({"w": tensor([2.0, -0.5])}, batches)["w"].flatten().tolist() == [6.0, 1.5]


def test_movement_step():
    """Sanh et al. 2020 (arXiv:2005.07683), Eq. 3, dL/dS = dL/dW W; soft: lambda times the mean of sigmoid(S)."""
    assert movement_slope(tensor([2.0, -3.0]), tensor([0.5, 1.0])).flatten().tolist() == [1.0, -3.0]
    assert soft_penalty(tensor([0.0, 0.0]), 400.0).flatten().tolist() == [50.0, 50.0]


def test_pins_importance():
    """Ren and Zhu 2023, the 0-1 program: eta g^2 - w g; with eta 0.1: 0.9 + 6, 1.6 - 4."""
    assert step_aware(tensor([2.0, -1.0]), tensor([-3.0, -4.0]), 0.1).flatten().tolist() == pytest.approx(
        [6.9, -2.4]
    )


def test_pins_teacher():
    """Ren and Zhu 2023, self-regularization, temperature 1: a CE(q, p) + (1 - a) CE(y, p), a = 1 - H(p)/log 2.

    p = (3/4, 1/4), q = (1/4, 3/4), y = 0: H(p) 0.562335, a 0.188722, CE(q, p) 1.111641, CE(y, p) 0.287682.
    """
    student, teacher = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, math.log(3)]])
    settings = DistillationRecipe(confidence=True, temperature=1.0)
    found = float(labelled_loss(settings, student, teacher, torch.tensor([0])))
    assert found == pytest.approx(0.188722 * 1.111641 + 0.811278 * 0.287682, abs=1e-5)


def test_platon_smoothing():
    """Zhang et al. 2022 (arXiv:2206.12562), Eqs. 6 to 8, beta 0.85 and 0.95, one window of importances 2 and 4.

    Its mean is 3: I = 0.15 x 3 = 0.45, U = 0.05 x |3 - 0.45| = 0.1275.
    """
    smoothed = Smoothed(window=2, beta1=0.85, beta2=0.95)
    for importance in (2.0, 4.0):
        smoothed.add({"w": tensor([importance])})
    found = smoothed.current("w")
    assert found is not None
    assert [float(part) for part in found] == pytest.approx([0.45, 0.1275])


def test_obert():
    """Kurtic et al. 2022 (arXiv:2203.07259), Eqs. 4, 5 and 9, one gradient (1, 2), damping 0.1, weights (3, 1).

    F = [[1.1, 2], [2, 4.1]], F^-1 = [[4.1, -2], [-2, 1.1]] / 0.51. Without the second weight the first grows by 2 / 1.1.
    """
    inverse = initial_inverse(2, 2, 0.1, tensor([0.0]))
    add_sample(inverse, tensor([1.0, 2.0]), samples=1)
    assert inverse.flatten().tolist() == pytest.approx([8.039216, -3.921569, -3.921569, 2.156863], abs=1e-5)
    weight = tensor([3.0, 1.0])
    assert saliency(weight, inverse).flatten().tolist() == pytest.approx([0.559756, 0.231818], abs=1e-5)
    change = compensation(weight, inverse, torch.tensor([[False, True]]))
    assert change.flatten().tolist() == pytest.approx([1.818182, -1.0], abs=1e-5)


def test_wanda():
    """Sun et al. 2023 (arXiv:2306.11695), Eq. 1: |w| times the root of the input's second moment, (4, 9)."""
    found = wanda(tensor([1.0, -2.0]), tensor([4.0, 5.0], [5.0, 9.0]))
    assert found.flatten().tolist() == [2.0, 6.0]


def test_sparsegpt():
    """Frantar and Alistarh 2023 (arXiv:2301.00774), Eq. 3, H = [[2, 1], [1, 2]], weights (3, 1).

    H^-1 = [[2, -1], [-1, 2]] / 3: scores w / sqrt(2/3). Without the first weight the second becomes 1 + 3 x 1/2.
    """
    moment, weight = tensor([2.0, 1.0], [1.0, 2.0]), tensor([3.0, 1.0])
    found = sparsegpt_scores({"w": weight}, {"w": moment}, 1e-9)["w"]
    assert found.flatten().tolist() == pytest.approx([3.674235, 1.224745], abs=1e-5)
    mask = torch.tensor([[False, True]])
    found = descend(weight, weight * mask, mask, moment, steps=1)
    assert found.flatten().tolist() == pytest.approx([0.0, 2.5], abs=1e-5)


def test_cubic_schedule():
    """Zhu and Gupta 2017 (arXiv:1710.01878), Eq. 1, four steps to density 0.2: 0.2 + 0.8 (1 - j/4)^3."""
    assert Cubic(stages=4, final_density=0.2).per_stage() == pytest.approx([0.5375, 0.3, 0.2125, 0.2])


def test_ndcg():
    """XGLUE's script (sklearn's ndcg_score: linear gain, ties averaged); gold 4 2 0 1 3 by predictions 3 3 0 0 3."""
    assert ndcg(np.array([4.0, 2, 0, 1, 3]), np.array([3.0, 3, 0, 0, 3])) == pytest.approx(
        0.9287343, abs=1e-7
    )


def test_xglues_number_for_parts_of_speech():
    """XGLUE's script: precision of runs of one tag. NOUN NOUN VERB against NOUN VERB VERB has none in common."""
    labels = ("NOUN", "VERB")
    gold = Examples("en", "test", [["a", "b", "c"]], labels=[[0, 0, 1]])
    found = TagRuns().statistics([np.eye(2)[[0, 1, 1]]], gold, labels)
    assert float(TagRuns().value(found.sum(axis=0))) == 0.0


def test_mcnemar():
    """McNemar 1947, exact: 1 gained, 9 lost; 2 x (1 + 10) / 2^10."""
    before, after = np.array([[1.0, 1]] * 9 + [[0.0, 1]]), np.array([[0.0, 1]] * 9 + [[1.0, 1]])
    assert intervals.paired(before, after, Accuracy())["p_value"] == pytest.approx(0.021484, abs=1e-6)


def test_wilson():
    """Wilson 1927: 8 of 10 right, z 1.959964; (0.8 + z^2/20 -+ z sqrt(0.016 + z^2/400)) / (1 + z^2/10)."""
    statistics = np.array([[1.0, 1]] * 8 + [[0.0, 1]] * 2)
    assert intervals.interval(statistics, Accuracy()) == pytest.approx((49.0162, 94.3318), abs=1e-3)


def test_holm():
    """Holm 1979: 4 x 0.005, 3 x 0.01, 2 x 0.03, then no smaller than the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
