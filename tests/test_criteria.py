"""Every criterion by hand, by brute force, and in the loop's own order of calls."""

import itertools
import math
from typing import ClassVar

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load, save
from slow import slow_after
from tiny import follows
from torch import nn

from xlmprune.core.errors import ModelError
from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.criteria.adam import Adam
from xlmprune.pruning.criteria.eq6 import agreement
from xlmprune.pruning.criteria.gradient import Gradient, absolute, accumulated, taylor
from xlmprune.pruning.criteria.hard_concrete import (
    SHIFT,
    evaluation_gate,
    gate,
    gate_slope,
    probability_open,
    probability_open_slope,
    sample,
)
from xlmprune.pruning.criteria.l0 import L0
from xlmprune.pruning.criteria.lamp import Lamp, layer_adaptive
from xlmprune.pruning.criteria.lookahead import (
    Lookahead,
    block_factors,
    lookahead,
    residual_factors,
    through_residual,
)
from xlmprune.pruning.criteria.magnitude import Magnitude, magnitude
from xlmprune.pruning.criteria.movement import Movement, movement_slope, soft_penalty
from xlmprune.pruning.criteria.obert import (
    Obert,
    add_sample,
    compensation,
    in_blocks,
    initial_inverse,
    saliency,
)
from xlmprune.pruning.criteria.pins import Pins, step_aware
from xlmprune.pruning.criteria.platon import Platon, sensitivity
from xlmprune.pruning.criteria.random import Random
from xlmprune.pruning.criteria.smoothing import Smoothed, confidence
from xlmprune.pruning.criteria.ties import break_ties
from xlmprune.pruning.importance import pool
from xlmprune.pruning.masks import apply_masks, density, full_masks, keep_top, select
from xlmprune.pruning.moments import input_moments
from xlmprune.recipe.registry import CRITERIA
from xlmprune.recipe.registry import load as load_component


def context(weights, masks=None, gradients=(), **given_):
    """A moment of pruning without a model: ``gradients`` is a list of dictionaries to draw from."""
    settings = {
        "reference": weights,
        "stage": 1,
        "seed": 0,
        "density": 0.5,
        "final_density": 0.5,
        "model": None,
    }
    return PruningContext(
        weights=weights,
        masks=full_masks(weights) if masks is None else masks,
        gradients=lambda batches: iter(list(gradients)[:batches]),
        moments=dict,
        **{**settings, **given_},
    )


# --- ties ------------------------------------------------------------------------------------------------------------

floats = st.floats(-(2.0**99), 2.0**99, width=32)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([-2.0, -0.0, 0.0, 1e-40, 0.5, 1e30]), st.sampled_from([0.0, -1.0, 2.0, 3.0])
        ),
        min_size=2,
    )
)
def test_broken_ties_order_by_score_and_then_by_magnitude(pairs):
    scores, weights = torch.tensor(pairs).T
    ranks = break_ties(scores, weights)
    assert ranks.isfinite().all()
    for i, j in itertools.combinations(range(len(pairs)), 2):
        first, second = ((float(scores[k]), abs(float(weights[k]))) for k in (i, j))
        assert (ranks[i] > ranks[j]) == (first > second)


@given(st.lists(floats, min_size=2, max_size=20))
def test_broken_ties_never_turn_scores_around(values):
    scores = torch.tensor(values)
    ranks = break_ties(scores, torch.randn(len(values)))
    assert ((scores.unsqueeze(0) < scores.unsqueeze(1)) <= (ranks.unsqueeze(0) < ranks.unsqueeze(1))).all()


# --- without data ----------------------------------------------------------------------------------------------------


def test_magnitude():
    assert magnitude(torch.tensor([[-3.0, 2.0]])).tolist() == [[3.0, 2.0]]


def test_random_is_repeatable_uniform_and_another_draw_for_every_seed_and_matrix():
    weights = {"a": torch.ones(100, 100), "b": torch.ones(100, 100)}
    scores = Random().scores(context(weights, seed=5))
    assert torch.equal(scores["a"], Random().scores(context(weights, seed=5))["a"])
    assert not torch.equal(scores["a"], scores["b"])
    assert not torch.equal(scores["a"], Random().scores(context(weights, seed=6))["a"])
    assert abs(float(scores["a"].mean()) - 0.5) < 0.02
    kept = select(scores, 0.3, full_masks(weights), "global")
    assert all(abs(float(mask.float().mean()) - 0.3) < 0.02 for mask in kept.values())


def test_lamp_by_hand():
    scores = layer_adaptive(torch.tensor([3.0, -1.0, 2.0]), torch.ones(3, dtype=torch.bool))
    assert scores.tolist() == pytest.approx([1, 1 / 14, 4 / 13])


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_lamp_by_its_definition(values, alive):
    weight, mask = torch.tensor(values).float(), torch.tensor(alive[: len(values)])
    scores = layer_adaptive(weight, mask)
    for i in range(len(values)):
        if not mask[i]:
            assert scores[i] == 0
            continue
        # v >= u: those of larger square, and of the equal ones those of lower index, and itself.
        above = sum(
            float(weight[j]) ** 2
            for j in range(len(values))
            if mask[j] and (weight[j] ** 2 > weight[i] ** 2 or (weight[j] ** 2 == weight[i] ** 2 and j <= i))
        )
        assert float(scores[i]) == pytest.approx(float(weight[i]) ** 2 / above if above else 0)


def test_lamp_orders_a_matrix_by_magnitude_and_empties_none():
    torch.manual_seed(0)
    weights = {"small": torch.randn(40, 50) * 1e-3, "large": torch.randn(40, 50)}
    scores = Lamp().scores(context(weights))
    for name, weight in weights.items():
        for keep in (1, 700, 1900):
            everything = torch.ones_like(weight, dtype=torch.bool)
            assert torch.equal(
                keep_top(scores[name], keep, everything), keep_top(weight.abs(), keep, everything)
            )
        assert float(scores[name].max()) == 1
    masks = select(scores, 2 / 4000, full_masks(weights), Lamp.default_scope)
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1]
    assert (
        int(
            select({n: w.abs() for n, w in weights.items()}, 0.3, full_masks(weights), "global")[
                "small"
            ].sum()
        )
        == 0
    )


def test_lamp_sums_do_not_lose_the_small_weights():
    weight = torch.cat([torch.full((100_000,), 1.0), torch.full((1000,), 1e-4)])
    scores = layer_adaptive(weight, torch.ones_like(weight, dtype=torch.bool))
    assert float(scores[-1]) == pytest.approx(1e-8 / (100_000 + 1000 * 1e-8), rel=1e-6)


@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(0, 6))
def test_eq6_finds_the_best_masks(seed, strength, keep):
    generator = torch.Generator().manual_seed(seed)
    w, p = torch.randn(2, 6, generator=generator, dtype=torch.float64)

    def objective(mask):
        return float(((w - mask * w) ** 2).sum() + strength * ((p - mask * w) ** 2).sum())

    best = min(
        objective(torch.tensor([float(i in chosen) for i in range(6)]))
        for chosen in itertools.combinations(range(6), keep)
    )
    mask = keep_top(agreement(w, p, strength), keep, torch.ones(6, dtype=torch.bool))
    assert objective(mask.double()) == pytest.approx(best, abs=1e-9)


def test_eq6_is_magnitude_at_zero_and_agreement_at_one():
    w, p = torch.tensor([[-2.0, 1.0]]), torch.tensor([[1.0, 3.0]])
    assert agreement(w, p, 0.0).tolist() == [[4.0, 1.0]]
    assert agreement(w, p, 1.0).tolist() == [[-4.0, 6.0]]


# --- lookahead -------------------------------------------------------------------------------------------------------


def block(seed, hidden=4, inner=6):
    generator = torch.Generator().manual_seed(seed)
    shapes = dict.fromkeys(("query", "key", "value", "attention_output"), (hidden, hidden)) | {
        "ffn_in": (inner, hidden),
        "ffn_out": (hidden, inner),
    }
    return {
        role: torch.randn(shape, generator=generator, dtype=torch.float64) for role, shape in shapes.items()
    }


def test_lookahead_by_hand():
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    assert lookahead(weight, torch.tensor([10.0, 1.0]), torch.tensor([1.0, 5.0])).tolist() == [
        [10.0, 2.0],
        [150.0, 0.0],
    ]
    assert lookahead(weight, None, None).tolist() == [[1.0, 2.0], [3.0, 0.0]]


@pytest.mark.parametrize(
    ("role", "product"),
    [
        ("query", lambda w: w["query"].T @ w["key"]),
        ("key", lambda w: w["query"].T @ w["key"]),
        ("value", lambda w: w["attention_output"] @ w["value"]),
        ("attention_output", lambda w: w["attention_output"] @ w["value"]),
        ("ffn_in", lambda w: w["ffn_out"] @ w["ffn_in"]),
        ("ffn_out", lambda w: w["ffn_out"] @ w["ffn_in"]),
    ],
)
def test_lookahead_is_how_much_the_product_with_the_neighbour_changes(role, product):
    require_change(block(0), role, product)


@pytest.mark.parametrize("role", ["ffn_in", "ffn_gate", "ffn_out"])
def test_lookahead_knows_that_a_gate_multiplies(role):
    layer = block(0) | {"ffn_gate": block(1)["ffn_in"]}
    require_change(
        layer, role, lambda w: torch.einsum("on,ni,nj->oij", w["ffn_out"], w["ffn_in"], w["ffn_gate"])
    )


def require_change(layer, role, product):
    """Require that a score is the norm of what the product changes by when its weight goes."""
    scores = lookahead(layer[role], *block_factors(layer)[role])
    before = product(layer)
    for i, j in itertools.product(*map(range, layer[role].shape)):
        without = {name: weight.clone() for name, weight in layer.items()}
        without[role][i, j] = 0
        assert float(scores[i, j]) == pytest.approx(float((product(without) - before).norm()))


def test_residual_neighbours_follow_the_stream():
    layers = [block(1), block(2)]
    gains = [(torch.full((4,), 2.0).double(), torch.full((4,), -3.0).double())] * 2
    first, second = residual_factors(layers, gains, torch.full((4,), 0.5).double())
    rows, columns = (lambda w: w.norm(dim=1)), (lambda w: w.norm(dim=0))
    assert torch.allclose(first["query"][0], torch.full((4,), 0.5).double())
    assert torch.allclose(second["key"][0], 3 * (1 + rows(layers[0]["ffn_out"]) ** 2).sqrt())
    assert torch.allclose(first["ffn_in"][0], 2 * (1 + rows(layers[0]["attention_output"]) ** 2).sqrt())
    assert torch.allclose(first["attention_output"][1], 2 * (1 + columns(layers[0]["ffn_in"]) ** 2).sqrt())
    readers = sum(columns(layers[1][role]) ** 2 for role in ("query", "key", "value"))
    assert torch.allclose(first["ffn_out"][1], 3 * (1 + readers).sqrt())
    assert torch.allclose(second["ffn_out"][1], torch.full((4,), 3.0).double())
    for factors, layer in ((first, layers[0]), (second, layers[1])):
        plain = block_factors(layer)
        assert torch.equal(factors["query"][1], plain["query"][1])
        assert torch.equal(factors["value"][1], plain["value"][1])
        assert torch.equal(factors["attention_output"][0], plain["attention_output"][0])
        assert torch.equal(factors["ffn_in"][1], plain["ffn_in"][1])
        assert torch.equal(factors["ffn_out"][0], plain["ffn_out"][0])


def test_through_residual_by_hand():
    norms = torch.tensor([2.0, 0.0]), torch.tensor([2.0, 0.0])
    assert through_residual(torch.tensor([-1.0, 5.0]), *norms).tolist() == [3.0, 5.0]


def test_lookahead_says_which_weight_it_does_not_know():
    with pytest.raises(ValueError, match=r"not of classifier\.dense\.weight"):
        Lookahead().scores(context({"classifier.dense.weight": torch.ones(2, 2)}))
    with pytest.raises(ValueError, match="layer 0 has no query, value"):
        Lookahead().scores(context({"roberta.encoder.layer.0.attention.self.key.weight": torch.ones(2, 2)}))


# --- gradients -------------------------------------------------------------------------------------------------------

GRADIENTS = [{"w": torch.tensor([[1.0, -2.0, 0.0]])}, {"w": torch.tensor([[-1.0, -1.0, 3.0]])}]
WEIGHTS = {"w": torch.tensor([[5.0, -2.0, 0.5]])}


def test_gradient_scores_by_hand():
    assert accumulated(GRADIENTS)["w"].tolist() == [[0.0, 3.0, 3.0]]
    assert absolute(GRADIENTS)["w"].tolist() == [[2.0, 3.0, 3.0]]
    assert taylor(WEIGHTS, GRADIENTS)["w"].tolist() == [[0.0, 6.0, 1.5]]


@pytest.mark.parametrize(
    ("mode", "batches", "expected"),
    [
        ("sum", 1, [1.0, 2.0, 0.0]),
        ("sum", 2, [0.0, 3.0, 3.0]),
        ("abs_mean", 2, [1.0, 1.5, 1.5]),
        ("taylor", 2, [0.0, 6.0, 1.5]),
    ],
)
def test_gradient_asks_for_as_many_batches_as_told(mode, batches, expected):
    scores = Gradient(batches=batches, mode=mode).scores(context(WEIGHTS, gradients=GRADIENTS))
    assert scores["w"].tolist() == [expected]


def test_taylor_is_the_first_order_change_of_the_loss():
    torch.manual_seed(0)
    weight, x, y = (
        torch.randn(1, 5).double().requires_grad_(),
        torch.randn(8, 5).double(),
        torch.randn(8, 1).double(),
    )

    def loss(w):
        return ((x @ w.T - y) ** 2).mean()

    loss(weight).backward()
    scores = taylor({"w": weight}, [{"w": weight.grad}])["w"]
    for i in range(5):
        nearly = weight.detach().clone()
        nearly[0, i] *= 1 - 1e-6
        change = abs(float(loss(nearly) - loss(weight.detach()))) / 1e-6
        assert float(scores[0, i]) == pytest.approx(change, rel=1e-3, abs=1e-6)


def test_each_gradient_may_be_overwritten_by_the_next():
    buffer = {"w": torch.zeros(1, 3)}

    def stream():
        for gradients in GRADIENTS:
            buffer["w"].copy_(gradients["w"])
            yield buffer

    assert accumulated(stream())["w"].tolist() == [[0.0, 3.0, 3.0]]
    assert absolute(stream())["w"].tolist() == [[2.0, 3.0, 3.0]]


# --- hard concrete and l0 --------------------------------------------------------------------------------------------


def test_hard_concrete_constants():
    assert pytest.approx(1.5985968, abs=1e-7) == SHIFT
    alpha = torch.tensor([0.7, 2.197]).double()
    assert probability_open(alpha).tolist() == pytest.approx([0.908761, 0.978], abs=5e-4)
    assert float(probability_open(alpha)[0]) == pytest.approx(0.908761, abs=1e-6)
    assert float(torch.sigmoid(alpha[0] - SHIFT)) == pytest.approx(0.289339, abs=1e-6)


def test_sampled_gates_are_open_and_shut_as_often_as_they_should_be():
    torch.manual_seed(0)
    z = gate(sample(torch.full((400_000,), 0.7)))
    assert float((z > 0).float().mean()) == pytest.approx(0.908761, abs=2e-3)
    assert float((z == 1).float().mean()) == pytest.approx(0.289339, abs=2e-3)
    assert float(z.min()) == 0


def test_the_evaluation_gate_is_exactly_zero_or_one_beyond_its_edges():
    alpha = torch.tensor([-2.3980, -2.3978, 0.0, 2.3978, 2.3980]).double()
    z = evaluation_gate(alpha)
    assert z[0] == 0 < z[1]
    assert float(z[2]) == pytest.approx(0.5)
    assert z[3] < 1 == z[4]


def test_gate_slopes_are_those_of_autograd():
    torch.manual_seed(0)
    alpha = torch.randn(1000).double().requires_grad_()
    noise = torch.rand(1000).double().logit()
    s = torch.sigmoid((noise + alpha) / (2 / 3))
    (s * 1.2 - 0.1).clamp(0, 1).sum().backward()
    assert torch.allclose(gate_slope(s.detach()), alpha.grad, atol=1e-12)
    alpha.grad = None
    torch.sigmoid(alpha + SHIFT).sum().backward()
    assert torch.allclose(probability_open_slope(alpha.detach()), alpha.grad, atol=1e-12)


def test_l0_turns_the_gradient_of_gated_weights_into_that_of_weights_and_gates():
    torch.manual_seed(1)
    names, masks = ("a", "b"), {"a": torch.tensor([[True, True, False]]), "b": torch.tensor([[True, True]])}
    weights = {"a": torch.tensor([[0.5, -2.0, 0.0]]), "b": torch.tensor([[1.0, 3.0]])}
    parameters = {name: nn.Parameter(weight.clone()) for name, weight in weights.items()}
    gates = L0(strength=0.3, learning_rate=0.1)
    gates.before_forward(parameters, masks)
    drawn = {name: gates._drawn[name].clone() for name in names}
    for name in names:
        assert torch.allclose(parameters[name].detach(), weights[name] * gate(drawn[name]))
    (parameters["a"].square().sum() * 2 + parameters["b"].sin().sum()).backward()
    for name in names:
        parameters[name].grad.mul_(masks[name])
    gates.observe(parameters, masks, 1e-3)

    # The same through autograd, with the noise that was drawn; Adam's first step is -lr * sign.
    alpha = {name: torch.full_like(weights[name], 2.197).requires_grad_() for name in names}
    plain = {name: weights[name].clone().requires_grad_() for name in names}
    s = {n: torch.sigmoid((torch.logit(drawn[n]) * (2 / 3) - 2.197 + alpha[n]) / (2 / 3)) for n in names}
    v = {n: plain[n] * (s[n] * 1.2 - 0.1).clamp(0, 1) for n in names}
    loss = v["a"].square().sum() * 2 + v["b"].sin().sum()
    loss = loss + 0.3 / 2 * sum(torch.sigmoid(alpha[n] + SHIFT).mean() for n in names)
    loss.backward()
    for name in names:
        assert torch.equal(parameters[name].detach(), weights[name])
        assert torch.allclose(parameters[name].grad, plain[name].grad * masks[name], atol=1e-6)
        expected = alpha[name].grad * masks[name]
        assert torch.allclose(gates._adam._first[name], 0.1 * expected, atol=1e-6)
        step = gates._alpha[name] - 2.197
        assert torch.allclose(step, -0.1 * expected / (expected.abs() + 1e-8), atol=1e-4)


def test_l0_steps_like_torchs_adam():
    torch.manual_seed(0)
    own, parameter = Adam(0.05), nn.Parameter(torch.full((4, 4), 2.197))
    value = parameter.detach().clone()
    adam = torch.optim.Adam([parameter], lr=0.05)
    for _ in range(5):
        parameter.grad = torch.randn(4, 4)
        own.updates += 1
        own.step("w", value, parameter.grad)
        adam.step()
        assert torch.allclose(value, parameter.detach(), atol=1e-6)


def test_l0_leaves_the_dense_stage_alone_and_then_prunes_by_magnitude():
    weights = {"w": torch.tensor([[0.5, -3.0, 1.0, 2.0]])}
    gates = L0()
    gates.before_forward(weights, full_masks(weights))
    gates.observe(weights, full_masks(weights), 1e-3)
    gates.end_stage(weights, full_masks(weights))
    assert weights["w"].tolist() == [[0.5, -3.0, 1.0, 2.0]]
    masks = select(gates.ranking(context(weights)), 0.5, full_masks(weights))
    assert masks["w"].tolist() == [[False, True, False, True]]


def test_l0_multiplies_gates_in_for_a_measurement_and_for_good_at_the_end_of_a_stage():
    weights = {"w": torch.tensor([[1.0, 2.0, 3.0, 4.0]])}
    masks = {"w": torch.tensor([[True, True, True, False]])}
    apply_masks(weights, masks)
    gates = L0()
    gates.before_forward(weights, masks)
    weights["w"].grad = torch.zeros(1, 4)
    gates.observe(weights, masks, 1e-3)
    gates._alpha["w"] = torch.tensor([[-1.0, 0.0, 5.0, 0.0]])
    shut = torch.sigmoid(torch.tensor(-1.0)).item() * 1.2 - 0.1
    with gates.measured(weights, masks):
        assert weights["w"][0].tolist() == pytest.approx([shut, 1.0, 3.0, 0.0])
    assert weights["w"].tolist() == [[1.0, 2.0, 3.0, 0.0]]
    for _ in range(2):
        gates.end_stage(weights, masks)
        assert weights["w"][0].tolist() == pytest.approx([shut, 1.0, 3.0, 0.0])
    # A stage's masks are chosen when the gates are in the weights: by openness, whatever the product is.
    fewer = select(gates.ranking(context(weights, masks)), 0.5, masks)
    assert fewer["w"].tolist() == [[False, True, True, False]]
    apply_masks(weights, fewer)
    gates.before_forward(weights, fewer)
    weights["w"].grad = torch.zeros(1, 4)
    gates.observe(weights, fewer, 1e-3)
    assert weights["w"].tolist() == [[0.0, 1.0, 3.0, 0.0]]
    assert gates._alpha["w"][0, 2] < 3, "the next stage begins with new gates"


def test_l0_never_closes_the_gate_of_a_kept_weight():
    """A strong penalty and no gradient of the task: all gates would close."""
    torch.manual_seed(0)
    weights = {"w": torch.randn(8, 8)}
    masks = {"w": torch.rand(8, 8) < 0.5}
    apply_masks(weights, masks)
    gates = L0(strength=1e4, learning_rate=0.5)
    for _ in range(50):
        gates.before_forward(weights, masks)
        weights["w"].grad = torch.zeros(8, 8)
        gates.observe(weights, masks, 1e-3)
    gates.end_stage(weights, masks)
    assert torch.equal(weights["w"] != 0, masks["w"])


# --- movement --------------------------------------------------------------------------------------------------------


def test_movement_by_hand():
    # Rows: moves away from zero, toward zero, stays.
    weight, gradient = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([-3.0, -3.0, 0.0])
    assert movement_slope(weight, gradient).tolist() == [-3.0, 3.0, 0.0]


def test_movement_collects_over_updates_and_falls_back_on_magnitude_before_any():
    weights = {"w": torch.tensor([[1.0, -1.0, 2.0]])}
    criterion = Movement(learning_rate=0.1)
    assert criterion.ranking(context(weights))["w"].argsort(descending=True).tolist() == [[2, 0, 1]]
    expected = nn.Parameter(torch.zeros(1, 3))
    adam = torch.optim.Adam([expected], lr=0.1)
    for gradient in ([-3.0, -3.0, 0.0], [1.0, 1.0, 1.0]):
        weights["w"].grad = torch.tensor([gradient])
        criterion.observe(weights, full_masks(weights), 1.0)
        expected.grad = movement_slope(weights["w"], weights["w"].grad)
        adam.step()
    assert torch.allclose(criterion.state()["scores|w"], expected.detach(), atol=1e-6)
    assert (
        expected.detach().argsort(descending=True).tolist()
        == criterion.ranking(context(weights))["w"].argsort(descending=True).tolist()
    )


def test_soft_movement_adds_the_slope_of_its_penalty():
    scores = torch.tensor([[0.3, -2.0], [0.0, 5.0]], dtype=torch.float64, requires_grad=True)
    (7.0 * torch.sigmoid(scores).mean()).backward()
    assert torch.allclose(soft_penalty(scores.detach(), 7.0), scores.grad, atol=1e-14)

    weights = {"a": torch.zeros(2, 2), "b": torch.zeros(1, 4)}
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    masks = {"a": torch.tensor([[True, False], [True, True]]), "b": torch.ones(1, 4, dtype=torch.bool)}
    criterion = Movement(mode="soft", learning_rate=0.5, strength=8.0)
    criterion.observe(weights, masks, 1.0)
    assert not criterion.state()["scores|a"].any(), "no penalty before the first pruning"
    criterion.ranking(context(weights, masks, density=0.75, final_density=0.5))
    criterion.observe(weights, masks, 1.0)
    # sigmoid'(0) = 1/4; half of strength 8, over two matrices of four entries each: a slope of 1/8. It is the second
    # update, so that the first moment is 0.1 / 8 of a weight of 0.19, the second 0.001 / 64 of 0.001999.
    step = 0.5 * (0.1 / 0.19) / math.sqrt(0.001 / 0.001999)
    assert criterion.state()["scores|a"].flatten().tolist() == pytest.approx([-step] * 4, rel=1e-5)
    assert (criterion.default_scope, Movement().default_scope) == ("global", "layer")


# --- platon and pins -------------------------------------------------------------------------------------------------


def test_sensitivity_and_step_aware_importance_by_hand():
    weight, gradient = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([-3.0, -4.0, 5.0])
    assert sensitivity(weight, gradient).tolist() == [6.0, 4.0, 0.0]
    assert step_aware(weight, gradient, 0.1).tolist() == pytest.approx([6.9, -2.4, 2.5])
    assert torch.equal(step_aware(weight, gradient, 0.0).abs(), sensitivity(weight, gradient))


@given(st.integers(0, 10_000), st.integers(0, 6), st.floats(0, 2))
def test_keeping_the_highest_step_aware_scores_solves_the_program(seed, keep, rate):
    generator = torch.Generator().manual_seed(seed)
    w, g = torch.randn(2, 6, generator=generator, dtype=torch.float64)

    def first_order_change(mask):
        return float((g * (mask * (w - rate * g) - w)).sum())

    best = min(
        first_order_change(torch.tensor([float(i in chosen) for i in range(6)]))
        for chosen in itertools.combinations(range(6), keep)
    )
    mask = keep_top(step_aware(w, g, rate), keep, torch.ones(6, dtype=torch.bool))
    assert first_order_change(mask.double()) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("beta2", [0.0, 0.9])
def test_windows_and_moving_averages_by_hand(beta2):
    """Importance of one weight over seven updates in windows of three: 1 2 3 | 4 5 6 | 7."""
    smoothed = Smoothed(window=3, beta1=0.8, beta2=beta2)
    for value in range(1, 8):
        smoothed.add({"w": torch.tensor([float(value)], dtype=torch.float64)})
    first = 0.2 * 2.0
    first_uncertainty = (1 - beta2) * abs(2.0 - first)
    second = 0.8 * first + 0.2 * 5.0
    second_uncertainty = beta2 * first_uncertainty + (1 - beta2) * abs(5.0 - second)
    if beta2 == 0:
        # As in the released code: how far the open window strays from what the closed ones give.
        expected = (second, abs(7.0 - second))
    else:
        third = 0.8 * second + 0.2 * 7.0
        expected = (third, beta2 * second_uncertainty + (1 - beta2) * abs(7.0 - third))
    importance, uncertainty = smoothed.current("w")
    assert (float(importance), float(uncertainty)) == pytest.approx(expected)
    assert float(confidence(importance, uncertainty)) == pytest.approx(expected[0] * expected[1])


def test_before_the_first_window_closes_it_counts_as_far_as_it_goes():
    smoothed = Smoothed(window=10, beta1=0.5, beta2=0.5)
    assert smoothed.current("w") is None
    smoothed.add({"w": torch.tensor([2.0])})
    smoothed.add({"w": torch.tensor([4.0])})
    importance, uncertainty = smoothed.current("w")
    assert (float(importance), float(uncertainty)) == (1.5, 0.75)


@pytest.mark.parametrize("criterion", [Platon(), Pins(), Pins(score="signed")], ids=repr)
def test_smoothed_criteria_fall_back_on_magnitude_before_anything_is_observed(criterion):
    weights = {"w": torch.tensor([[1.0, -3.0, 2.0]])}
    assert criterion.ranking(context(weights))["w"].argsort(descending=True).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize(
    ("criterion", "order"),
    [(Platon(), [1, 0, 2]), (Pins(), [0, 1, 2]), (Pins(score="signed"), [0, 2, 1])],
    ids=repr,
)
def test_smoothed_criteria_rank_by_what_they_measure(criterion, order):
    # |w g|: 2, 4, 0; -w g + lr g^2: 6, -3, 1.
    weights = {"w": torch.tensor([[1.0, -4.0, 0.0]])}
    weights["w"].grad = torch.tensor([[-2.0, -1.0, -1.0]])
    for _ in range(3):
        criterion.observe(weights, full_masks(weights), 1.0)
    assert criterion.ranking(context(weights))["w"].argsort(descending=True).tolist() == [order]


# --- obert -----------------------------------------------------------------------------------------------------------


def test_the_inverse_fisher_matrix_is_the_inverse():
    torch.manual_seed(0)
    samples, block_size, size, damping = 7, 4, 10, 0.05
    gradients = torch.randn(samples, size, dtype=torch.float64)
    inverse = initial_inverse(size, block_size, damping, gradients)
    for gradient in gradients:
        add_sample(inverse, in_blocks(gradient, block_size), samples)
    padded = torch.nn.functional.pad(gradients, (0, 2))
    for number in range(3):
        part = padded[:, number * block_size : (number + 1) * block_size]
        fisher = damping * torch.eye(block_size).double() + part.T @ part / samples
        assert torch.allclose(inverse[number], torch.linalg.inv(fisher), atol=1e-10)


def test_saliency_and_compensation_are_the_best_for_a_quadratic_loss():
    """Minimise 1/2 d^T F d with d_q = -w_q, for every q: the surgeon's own problem, by solving for the others."""
    torch.manual_seed(0)
    root = torch.randn(4, 4, dtype=torch.float64)
    fisher, weight = root @ root.T + 0.1 * torch.eye(4), torch.randn(1, 4, dtype=torch.float64)
    inverse = torch.linalg.inv(fisher).unsqueeze(0)
    scores = saliency(weight, inverse)
    for q in range(4):
        others = [i for i in range(4) if i != q]
        change = torch.zeros(4, dtype=torch.float64)
        change[q] = -weight[0, q]
        change[others] = torch.linalg.solve(fisher[others][:, others], -fisher[others, q] * change[q])
        assert float(scores[0, q]) == pytest.approx(float(change @ fisher @ change / 2))
        removed = torch.zeros(1, 4, dtype=torch.bool)
        removed[0, q] = True
        assert torch.allclose(compensation(weight, inverse, removed)[0], change, atol=1e-10)


def test_obert_in_blocks_of_one_is_the_diagonal_and_compensates_nothing():
    torch.manual_seed(0)
    weights = {"w": torch.randn(3, 5)}
    gradients = [{"w": torch.randn(3, 5)} for _ in range(6)]
    criterion = Obert(block=1, batches=6, damping=0.01)
    scores = criterion.ranking(context(weights, gradients=gradients))
    diagonal = 0.01 + sum(g["w"].square() for g in gradients) / 6
    assert torch.allclose(scores["w"], weights["w"].square() * diagonal / 2, rtol=1e-4)
    before, removed = weights["w"].clone(), {"w": torch.rand(3, 5) < 0.4}
    criterion.compensate(weights, removed)
    assert torch.allclose(weights["w"], before * ~removed["w"])


def test_obert_leaves_pruned_weights_out_and_gives_the_rest_their_share():
    torch.manual_seed(0)
    masks = {"w": torch.tensor([[True, False, True, True]])}
    weights = {"w": torch.tensor([[1.0, 0.0, 2.0, -1.0]])}
    gradients = [{"w": torch.randn(1, 4)} for _ in range(8)]
    criterion = Obert(block=4, batches=8, damping=0.01)
    criterion.ranking(context(weights, masks, gradients))
    part = torch.stack([g["w"][0] * masks["w"][0] for g in gradients])
    inverse = torch.linalg.inv(0.01 * torch.eye(4) + part.T @ part / 8)
    expected = weights["w"][0] - inverse[:, 0] * weights["w"][0, 0] / inverse[0, 0]
    criterion.compensate(weights, {"w": torch.tensor([[True, False, False, False]])})
    assert weights["w"][0, :2].tolist() == [0.0, 0.0]
    assert torch.allclose(weights["w"][0, 2:], expected[2:], atol=1e-4)
    assert not criterion._inverse


def test_obert_refuses_gradients_that_float32_cannot_invert():
    torch.manual_seed(0)
    weights = {"w": torch.randn(4, 16)}
    gradients = [{"w": 10 * torch.randn(4, 16)} for _ in range(64)]
    with pytest.raises(ModelError, match=r"Fisher matrix of w cannot be inverted .* damping of 1e-07"):
        Obert(block=16, batches=64).ranking(context(weights, gradients=gradients))
    found = Obert(block=16, batches=64, damping=1e-2).ranking(context(weights, gradients=gradients))
    assert bool((found["w"] > 0).all())


# --- every criterion, called as the loop calls it --------------------------------------------------------------------


def tiny_model():
    torch.manual_seed(0)
    config = transformers.XLMRobertaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        type_vocab_size=1,
        num_labels=3,
    )
    return transformers.XLMRobertaForSequenceClassification(config)


class Run:
    """The loop in miniature: its order of calls, its seeds, plain gradient descent."""

    def __init__(self, kind, **parameters):
        self.model = tiny_model()
        self.weights = {
            f"{name}.weight": module.weight
            for name, module in self.model.named_modules()
            if name.startswith("roberta.encoder.") and isinstance(module, nn.Linear)
        }
        self.reference = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.masks = full_masks(self.weights)
        self.criterion = kind(**parameters)
        self.number = 0

    def loss(self, seed):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(3, 30, (4, 7), generator=generator)
        return self.model(input_ids=tokens, labels=torch.randint(0, 3, (4,), generator=generator)).loss

    def update(self):
        torch.manual_seed(self.number)
        self.model.train()
        self.criterion.before_forward(self.weights, self.masks)
        self.loss(self.number).backward()
        for name, weight in self.weights.items():
            weight.grad.mul_(self.masks[name])
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.criterion.observe(self.weights, self.masks, 0.05)
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.05)
        self.model.zero_grad()
        apply_masks(self.weights, self.masks)
        self.number += 1

    def gradients(self, batches):
        self.model.eval()
        for number in range(batches):
            self.model.zero_grad()
            self.loss(1000 + number).backward()
            yield {name: weight.grad for name, weight in self.weights.items()}
        self.model.zero_grad()

    def moments(self):
        self.model.eval()
        tokens = torch.randint(3, 30, (4, 7), generator=torch.Generator().manual_seed(5))
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        return input_moments(self.model, self.weights, [batch])

    def moment(self, share, stage=1):
        return PruningContext(
            weights={name: weight.detach() for name, weight in self.weights.items()},
            masks=self.masks,
            reference=self.reference,
            stage=stage,
            seed=stage,
            density=share,
            final_density=0.3,
            model=self.model,
            gradients=self.gradients,
            moments=self.moments,
        )

    def prune(self, share, stage=1, scope=None, pattern="unstructured"):
        moment = self.moment(share, stage)
        scores = self.criterion.ranking(moment)
        scope = scope or self.criterion.default_scope
        before, self.masks = self.masks, select(scores, share, self.masks, scope, pattern)
        self.criterion.compensate(
            moment.weights, {name: before[name] & ~mask for name, mask in self.masks.items()}
        )
        apply_masks(self.weights, self.masks)
        return scores

    def end_stage(self):
        self.criterion.end_stage(self.weights, self.masks)
        apply_masks(self.weights, self.masks)

    def stop_and_go_on(self, kind, **parameters):
        """Another run in another process, from what a checkpoint holds."""
        other = Run(kind, **parameters)
        other.model.load_state_dict(self.model.state_dict())
        other.masks = {name: mask.clone() for name, mask in self.masks.items()}
        other.number = self.number
        if state := self.criterion.state():
            other.criterion.load_state(load(save(state)))
        return other


VARIANTS = [(name, {}) for name in CRITERIA] + [
    ("gradient", {"mode": "taylor", "batches": 2}),
    ("lookahead", {"neighbours": "residual"}),
    ("movement", {"mode": "soft"}),
    ("platon", {"window": 2}),
    ("pins", {"window": 2}),
    ("pins", {"window": 2, "score": "signed"}),
    ("obert", {"block": 50, "batches": 3}),
    ("eq6", {"strength": 0.5}),
]
QUICK = {"obert": {"batches": 3}, "platon": {"window": 2}, "pins": {"window": 2}}


def variant(name, parameters):
    return load_component("criterion", name), {**QUICK.get(name, {}), **parameters}


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_scores_are_finite_masks_nested_and_counts_exact(name, parameters):
    kind, parameters = variant(name, parameters)
    run = Run(kind, **parameters)
    total = sum(weight.numel() for weight in run.weights.values())
    scope = run.criterion.default_scope
    for stage, share in enumerate((0.8, 0.5, 0.3), start=1):
        for _ in range(3):
            run.update()
        run.end_stage()
        before = run.masks
        scores = run.prune(share, stage)
        assert list(scores) == list(run.weights)
        for name_, score in scores.items():
            assert score.shape == run.weights[name_].shape
            assert score.isfinite().all()
            assert not score.requires_grad
            assert not (run.masks[name_] & ~before[name_]).any()
            assert (run.weights[name_][~run.masks[name_]] == 0).all()
        if scope == "global":
            assert sum(int(mask.sum()) for mask in run.masks.values()) == round(total * share)
        else:
            assert all(int(mask.sum()) == round(mask.numel() * share) for mask in run.masks.values())


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_every_criterion_serves_all_scopes_and_patterns(name, parameters):
    kind, parameters = variant(name, parameters)
    for scope, pattern in (
        ("layer", "unstructured"),
        ("global", "unstructured"),
        ("row", "unstructured"),
        ("layer", "2:4"),
        ("row", "2:4"),
        ("layer", "4:8"),
    ):
        run = Run(kind, **parameters)
        run.update()
        run.prune(0.5, scope=scope, pattern=pattern)
        assert density(run.masks) == 0.5
        assert all(follows(mask, pattern) for mask in run.masks.values())


LEARNED = {
    "l0": lambda state, name: state[f"alpha|{name}"].sigmoid(),
    "movement": lambda state, name: state[f"scores|{name}"],
}
"""What a criterion has learned of a weight, out of its state, where that is its score."""


def raw_scores(run):
    """The scores that the papers name, from what the criterion has seen."""
    name = type(run.criterion).__name__.lower()
    if name in LEARNED:
        return {key: LEARNED[name](run.criterion.state(), key) for key in run.weights}
    if name in ("pins", "platon"):
        known = {key: run.criterion._smoothed.current(key) for key in run.weights}
        if getattr(run.criterion, "score", "abs") == "signed":
            return {key: importance for key, (importance, _) in known.items()}
        return {key: importance * uncertainty for key, (importance, uncertainty) in known.items()}
    return run.criterion.scores(run.moment(0.5))


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_pooled_importance_is_the_sum_of_raw_scores(name, parameters):
    """`importance: criterion`: ranks instead of scores would let many small scores outweigh a large one."""
    kind, parameters = variant(name, parameters)
    run = Run(kind, **parameters)
    run.prune(0.8)  # the gates of `l0` begin with it
    for _ in range(5):
        run.update()
    raw = {key: score.double() for key, score in raw_scores(run).items()}
    found = pool(run.criterion.scores(run.moment(0.5)), run.model)
    for number in range(2):
        layer = f"roberta.encoder.layer.{number}"
        of = {key.removeprefix(f"{layer}."): score for key, score in raw.items() if key.startswith(layer)}
        for head in range(2):
            owned = slice(8 * head, 8 * head + 8)
            rows = sum(of[f"attention.self.{key}.weight"][owned].sum() for key in ("query", "key", "value"))
            expected = rows + of["attention.output.dense.weight"][:, owned].sum()
            assert float(found.heads[number][head]) == pytest.approx(float(expected), rel=1e-5)
        neurons = of["intermediate.dense.weight"].sum(dim=1) + of["output.dense.weight"].sum(dim=0)
        torch.testing.assert_close(found.neurons[number], neurons, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_a_ranking_never_turns_scores_around(name, parameters):
    kind, parameters = variant(name, parameters)
    run = Run(kind, **parameters)
    run.prune(0.8)
    run.update()
    scores, ranking = run.criterion.scores(run.moment(0.5)), run.criterion.ranking(run.moment(0.5))
    for key, score in scores.items():
        ordered = score.flatten()[ranking[key].flatten().argsort()].double()
        assert (ordered.diff() >= -1e-6 * ordered[1:].abs()).all(), "but for rounding to float32"


@pytest.mark.parametrize("criterion", [Platon(), Pins(), Movement(), L0()], ids=repr)
def test_criteria_that_learn_give_magnitudes_before_they_have_learned(criterion):
    weights = {"w": torch.tensor([[1.0, -3.0, 2.0]])}
    assert criterion.scores(context(weights))["w"].tolist() == [[1.0, 3.0, 2.0]]


def test_obert_keeps_no_fisher_matrix_where_nothing_is_compensated():
    """`importance: criterion` scores without a choice of masks; 4 * block bytes a weight stayed until the next one."""
    run = Run(Obert, block=4, batches=2)
    pool(run.criterion.scores(run.moment(0.5)), run.model)
    assert not run.criterion._inverse
    run.prune(0.5)
    assert not run.criterion._inverse


@pytest.mark.parametrize(
    "stop_folded", slow_after(1, [False, True]), ids=["within a stage", "between stages"]
)
@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_a_resumed_run_is_the_unbroken_one(name, parameters, stop_folded):
    kind, parameters = variant(name, parameters)

    def go(stop_at):
        run = Run(kind, **parameters)
        scores = []
        for stage, share in enumerate((0.8, 0.5, 0.3), start=1):
            for number in range(3):
                run.update()
                if stop_at == (stage, number):
                    run = run.stop_and_go_on(kind, **parameters)
            run.end_stage()
            if stop_at == (stage, "end"):
                run = run.stop_and_go_on(kind, **parameters)
            scores.append(run.prune(share, stage))
        return run, scores

    unbroken, expected = go(None)
    resumed, found = go((2, "end") if stop_folded else (2, 1))
    for key, value in unbroken.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    for before, after in zip(expected, found, strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_hook_that_nothing_calls_is_an_error_where_it_is_defined():
    with pytest.raises(TypeError, match=r"Mine.obsreve is not a known hook; did you mean 'observe'\?"):

        class Mine(Criterion):
            def obsreve(self, weights, masks, learning_rate):
                pass

    with pytest.raises(
        TypeError, match=r"act_on_dense is not a known class fact; did you mean 'acts_on_dense'"
    ):

        class Fact(Criterion):
            act_on_dense: ClassVar[bool] = True

    with pytest.raises(TypeError, match="Watcher has the hook observe and must declare acts_on_dense"):

        class Watcher(Criterion):
            def observe(self, weights, masks, learning_rate):
                pass


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_that_acts_on_the_dense_stage_says_so(name):
    kind, parameters = variant(name, {})
    run = Run(kind, **parameters)
    before = {key: value.clone() for key, value in run.criterion.state().items()}
    run.update()
    after = run.criterion.state()
    changed = before.keys() != after.keys() or any(not torch.equal(before[key], after[key]) for key in before)
    assert changed == kind.acts_on_dense


@pytest.mark.parametrize("name", CRITERIA)
def test_a_misspelt_or_senseless_parameter_is_refused(name):
    kind = load_component("criterion", name)
    with pytest.raises(ValidationError, match="misspelt"):
        kind(misspelt=1)
    fields = kind.__pydantic_fields__
    for field in fields:
        with pytest.raises(ValidationError):
            kind(**{field: math.nan})
    assert all(field.description for field in fields.values()), "a parameter without a sentence"


@pytest.mark.parametrize("name", CRITERIA)
def test_dense_training_is_that_of_magnitude_pruning(name):
    """Dense fine-tuning is shared between methods, so no criterion may change it."""
    kind, parameters = variant(name, {})
    run, plain = Run(kind, **parameters), Run(Magnitude)
    for _ in range(3):
        run.update()
        plain.update()
    run.end_stage()
    for key, value in plain.model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[key])
