"""Reconstruction: second moments, the refit of masked rows, output projections; against lstsq and exact rows."""

import copy

import numpy as np
import pytest
import torch
from exact_rows import solve_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import follows, tiny_batch, tiny_model, tiny_special

from xlmprune.core.errors import DataError, ModelError
from xlmprune.data.encoding import Encoded
from xlmprune.models.loading import prunable
from xlmprune.pruning.criteria.sparsegpt import sparsegpt_scores
from xlmprune.pruning.criteria.wanda import Wanda, wanda
from xlmprune.pruning.importance import magnitude_importance
from xlmprune.pruning.masks import full_masks, select
from xlmprune.pruning.moments import damped, input_moments, inverse_diagonal, inverse_factor, text_batches
from xlmprune.pruning.reconstruction import Normal, descend, reconstruct, refit
from xlmprune.pruning.structures import LayerCut, choose, slice_model, spaced_layers


def batches(kind="text", size=5):
    whole = {name: torch.from_numpy(array) for name, array in tiny_batch(kind).items()}
    rows = len(whole["input_ids"])
    return [{name: t[i : i + size] for name, t in whole.items()} for i in range(0, rows, size)]


def problem(rows=6, inputs=20, tokens=60, density=0.4, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=draw, dtype=torch.float64)
    x = torch.randn(tokens, inputs, generator=draw, dtype=torch.float64) @ mix
    weight = torch.randn(rows, inputs, generator=draw, dtype=torch.float64)
    mask = torch.rand(rows, inputs, generator=draw) < density
    return x, (x.T @ x / tokens), weight.to(dtype), mask


def error(found, weight, matrix):
    change = (found - weight).double()
    return float((change @ matrix * change).sum())


# --- text -------------------------------------------------------------------------------------------------------------


def encoded(counts):
    ids = [np.full(2 + i % 5, 7 + i, dtype=np.int64) for i in range(counts)]
    return Encoded(ids, None, None, np.zeros(counts, dtype=bool), special=tiny_special())


@given(st.lists(st.integers(0, 9), max_size=4), st.integers(1, 30), st.integers(1, 8))
def test_texts_are_drawn_evenly_over_languages(counts, texts, batch_size):
    parts = {f"l{i}": encoded(count) for i, count in enumerate(counts)}
    drawn = text_batches(parts, texts, batch_size)
    rows = [mask.sum().item() for batch in drawn for mask in batch["attention_mask"]]
    assert len(rows) == min(texts, sum(counts))
    assert rows == sorted(rows)
    assert all(len(batch["input_ids"]) <= batch_size for batch in drawn)


def test_a_language_short_of_text_is_made_up_for():
    parts = {"sw": encoded(2), "de": encoded(50), "th": encoded(50)}
    for language, part in parts.items():
        for row in part.input_ids:
            row[0] = {"sw": 1000, "de": 2000, "th": 3000}[language]
    ids = torch.cat([batch["input_ids"][:, 0] for batch in text_batches(parts, 20)])
    assert [(ids == first).sum().item() for first in (1000, 2000, 3000)] == [2, 9, 9]
    again = torch.cat([batch["input_ids"][:, 0] for batch in text_batches(parts, 20)])
    assert torch.equal(ids, again)
    with pytest.raises(ValueError, match="at least 1"):
        text_batches(parts, 0)


# --- second moments ---------------------------------------------------------------------------------------------------


def test_moments_are_those_of_real_tokens_whatever_the_batches():
    model = tiny_model()
    names = list(prunable(model))
    seen = {}
    hooks = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda _, given, name=name: seen.setdefault(name, []).append(given[0])
        )
        for name in names
    ]
    with torch.no_grad():
        for batch in batches():
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for hook in hooks:
        hook.remove()
    real = [batch["attention_mask"].bool() for batch in batches()]
    moments = input_moments(model, names, batches())
    for name in names:
        rows = torch.cat([given[mask] for given, mask in zip(seen[name], real)]).double()
        torch.testing.assert_close(moments[name].double(), rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    again = input_moments(model, names, batches(size=2))
    for name in names:
        torch.testing.assert_close(again[name], moments[name], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(again[name], again[name].T) for name in names)


def test_query_key_and_value_share_a_moment_and_no_others_do():
    model = tiny_model()
    moments = input_moments(model, prunable(model), batches())
    assert len({id(moment) for moment in moments.values()}) == 4 * 2
    base = "roberta.encoder.layer.0.attention.self."
    assert moments[f"{base}query.weight"] is moments[f"{base}value.weight"]


def test_moments_of_no_text_and_of_one_line():
    model = tiny_model()
    with pytest.raises(DataError, match="no unlabelled text"):
        input_moments(model, prunable(model), [])
    empty = {key: value * 0 for key, value in batches()[0].items()}
    with pytest.raises(DataError, match="no batch holds a token"):
        input_moments(model, prunable(model), [empty])
    weights = {name: weight.detach().clone() for name, weight in prunable(model).items()}
    masks = {name: torch.rand(weight.shape) < 0.5 for name, weight in weights.items()}
    refit(weights, masks, input_moments(model, weights, [{k: v[:1] for k, v in batches()[0].items()}]))
    assert all(weight.isfinite().all() for weight in weights.values())


def test_activations_that_are_not_finite_are_named():
    model = tiny_model()
    with torch.no_grad():
        model.roberta.encoder.layer[1].intermediate.dense.weight[3, 2] = float("nan")
    with pytest.raises(ModelError, match=r"layer\.1\.output\.dense.* not finite"):
        input_moments(model, prunable(model), batches())
    with pytest.raises(ModelError, match="not finite"):
        reconstruct(model, copy.deepcopy(model), batches(), [0, 1])


def test_a_model_in_training_mode_is_refused():
    model = tiny_model().train()
    with pytest.raises(ValueError, match="training mode"):
        input_moments(model, prunable(model), batches())


# --- factors ----------------------------------------------------------------------------------------------------------


def test_the_factor_is_upper_and_gives_the_inverse():
    matrix = damped(problem()[1], 0.01)
    upper = inverse_factor(matrix)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(matrix))
    torch.testing.assert_close(inverse_diagonal(problem()[1], 0.01), torch.linalg.inv(matrix).diagonal())


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_singular_moments_are_no_trouble(rank):
    x = torch.randn(rank, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moment = x.T @ x
    weight = torch.randn(4, 12)
    mask = torch.rand(4, 12) < 0.5
    weights = {"w": weight.clone()}
    refit(weights, {"w": mask}, {"w": moment}, ridge=1e-4)
    assert weights["w"].isfinite().all()
    assert not weights["w"][~mask].any()


def test_a_ridge_of_nothing_is_refused():
    with pytest.raises(ValueError, match="ridge"):
        damped(torch.eye(3), 0.0)
    with pytest.raises(ModelError, match="positive definite"):
        inverse_factor(-torch.eye(3, dtype=torch.float64))


# --- refit ------------------------------------------------------------------------------------------------------------


def test_exact_rows_are_those_of_lstsq():
    x, moment, weight, mask = problem(tokens=200)
    ridge = 1e-9
    found = solve_rows(weight, mask, damped(moment, ridge))
    for row in range(len(weight)):
        columns = mask[row].numpy()
        best, *_ = np.linalg.lstsq(x.numpy()[:, columns], (x @ weight[row]).numpy(), rcond=None)
        np.testing.assert_allclose(found[row].numpy()[columns], best, rtol=1e-5, atol=1e-7)


def test_exact_rows_with_a_ridge_are_those_of_lstsq_on_stacked_rows():
    x, moment, weight, mask = problem()
    matrix = damped(moment, 0.05)
    pull = (0.05 * float(moment.diagonal().mean()) * len(x)) ** 0.5
    found = solve_rows(weight, mask, matrix)
    for row in range(len(weight)):
        columns = mask[row].numpy()
        stacked = np.vstack([x.numpy(), pull * np.eye(x.shape[1])])
        best, *_ = np.linalg.lstsq(stacked[:, columns], stacked @ weight[row].numpy(), rcond=None)
        np.testing.assert_allclose(found[row].numpy()[columns], best, rtol=1e-6, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.0, 1.0), st.sampled_from([1e-3, 0.01, 0.3]))
def test_refit_lowers_the_error_and_leaves_masks_alone(seed, density, ridge):
    _, moment, weight, mask = problem(density=density, seed=seed)
    matrix = damped(moment, ridge)
    plain = error(weight * mask, weight, matrix)
    least = error(solve_rows(weight, mask, matrix), weight, matrix)
    last = plain
    for steps in (1, 2, 4, 40):
        found = descend(weight, weight * mask, mask, matrix, steps)
        assert not found[~mask].any()
        assert error(found, weight, matrix) <= last * (1 + 1e-9) + 1e-9
        last = error(found, weight, matrix)
    assert last <= least * (1 + 1e-4) + 1e-9


def test_nothing_pruned_changes_nothing_and_everything_pruned_leaves_zeros():
    _, moment, weight, _ = problem(dtype=torch.float32)
    weights = {"w": weight.clone()}
    refit(weights, {"w": torch.ones_like(weight, dtype=torch.bool)}, {"w": moment})
    torch.testing.assert_close(weights["w"], weight)
    refit(weights, {"w": torch.zeros_like(weight, dtype=torch.bool)}, {"w": moment})
    assert not weights["w"].any()


def test_matrices_of_one_input_are_refitted_as_each_alone():
    _, moment, weight, mask = problem(rows=10, dtype=torch.float32)
    together = {"q": weight[:4].clone(), "k": weight[4:].clone()}
    refit(together, {"q": mask[:4], "k": mask[4:]}, {"q": moment, "k": moment})
    alone = {"q": weight[:4].clone()}
    refit(alone, {"q": mask[:4]}, {"q": moment})
    torch.testing.assert_close(together["q"], alone["q"])


def test_weights_pruned_before_stay_pruned():
    _, moment, weight, mask = problem(dtype=torch.float32)
    earlier = mask | (torch.rand(mask.shape, generator=torch.Generator().manual_seed(5)) < 0.3)
    weights = {"w": weight.clone()}
    refit(weights, {"w": earlier}, {"w": moment})
    refit(weights, {"w": mask}, {"w": moment})
    assert not weights["w"][~mask].any()
    assert torch.equal(weights["w"] != 0, mask)


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_patterns_survive(pattern):
    _, moment, weight, _ = problem(dtype=torch.float32)
    full = {"w": torch.ones_like(weight, dtype=torch.bool)}
    masks = select({"w": wanda(weight, moment)}, 0.5, full, pattern=pattern)
    weights = {"w": weight.clone()}
    refit(weights, masks, {"w": moment})
    assert follows(weights["w"] != 0, pattern)
    assert torch.equal(weights["w"] != 0, masks["w"])


def test_float32_is_enough():
    _, moment, weight, mask = problem(rows=8, inputs=200, tokens=400)
    matrix = damped(moment, 0.01)
    wide = descend(weight, weight * mask, mask, matrix, 20)
    narrow = descend(weight.float(), weight.float() * mask, mask, matrix, 20)
    assert error(narrow, weight, matrix) <= error(wide, weight, matrix) * 1.001


def test_what_does_not_fit_together_is_refused():
    weight, mask, moment = torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bool), torch.eye(4)
    with pytest.raises(ValueError, match="different weights"):
        refit({"a": weight}, {"b": mask}, {"a": moment})
    with pytest.raises(ValueError, match="different weights"):
        refit({"a": weight}, {"a": mask}, {})
    with pytest.raises(ValueError, match="do not fit"):
        refit({"a": weight}, {"a": mask}, {"a": torch.eye(3)})


# --- criteria from moments --------------------------------------------------------------------------------------------


def test_wanda_compares_the_weights_of_one_output():
    """Sun et al. 2023: however small an output's weights are, it keeps as many as any other."""
    torch.manual_seed(0)
    weight = torch.randn(64, 128) * torch.linspace(0.1, 2, 64)[:, None]
    scores = {"w": wanda(weight, torch.eye(128))}
    kept = select(scores, 0.5, full_masks(scores), Wanda.default_scope)["w"]
    assert kept.sum(dim=1).tolist() == [64] * 64
    for row, mask in zip(scores["w"], kept, strict=True):
        assert row[mask].min() >= row[~mask].max()


def test_wanda_and_sparsegpt_worked_by_hand():
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    moment = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(wanda(weight, moment), torch.tensor([[2.0, 2.0], [6.0, 0.0]]))
    # Uncorrelated inputs: [H^-1]_jj = 1 / A_jj, so that both agree but for the ridge.
    torch.testing.assert_close(
        sparsegpt_scores({"w": weight}, {"w": moment}, 1e-9)["w"], wanda(weight, moment)
    )


def test_sparsegpt_is_what_the_output_loses():
    _, moment, weight, _ = problem(rows=2, inputs=6)
    matrix = damped(moment, 0.01)
    found = sparsegpt_scores({"w": weight}, {"w": moment}, 0.01)["w"]
    for j in range(6):
        mask = torch.ones_like(weight, dtype=torch.bool)
        mask[:, j] = False
        change = solve_rows(weight, mask, matrix) - weight
        torch.testing.assert_close(found[:, j] ** 2, (change @ matrix * change).sum(dim=1))


# --- output projections -----------------------------------------------------------------------------------------------


def test_normal_equations_are_lstsq():
    draw = torch.Generator().manual_seed(0)
    x, target = torch.randn(300, 7, generator=draw), torch.randn(300, 3, generator=draw)
    linear = torch.nn.Linear(7, 3)
    normal = Normal(linear)
    for rows in (slice(0, 100), slice(100, 300)):
        normal.add(x[rows], target[rows])
    before, after = normal.solve(1e-9)
    wide = np.hstack([x.double().numpy(), np.ones((300, 1))])
    best, residual, *_ = np.linalg.lstsq(wide, target.double().numpy(), rcond=None)
    np.testing.assert_allclose(linear.weight.detach().numpy(), best[:-1].T, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(linear.bias.detach().numpy(), best[-1], rtol=1e-3, atol=1e-5)
    assert after == pytest.approx(residual.sum() / float(target.double().square().sum()), rel=1e-4)
    assert after <= before


def test_a_strong_ridge_leaves_weights_where_they_were():
    linear = torch.nn.Linear(4, 2)
    before = linear.weight.detach().clone()
    normal = Normal(linear)
    normal.add(torch.randn(50, 4), torch.randn(50, 2))
    normal.solve(1e6)
    torch.testing.assert_close(linear.weight.detach(), before, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="ridge"):
        normal.solve(0.0)
    with pytest.raises(DataError, match="no unlabelled text"):
        Normal(linear).solve(0.01)


def test_too_little_ridge_for_so_few_rows_is_a_sentence():
    normal = Normal(torch.nn.Linear(768, 4))
    normal.add(torch.randn(50, 768), torch.randn(50, 4))
    with pytest.raises(ModelError, match=r"singular.*raise pruning\.reconstruct\.ridge"):
        normal.solve(1e-30)
    before, after = normal.solve(1e-5)  # the least that a recipe may have
    assert after <= before


def test_masked_normal_equations_are_lstsq_on_the_columns_that_remain():
    draw = torch.Generator().manual_seed(0)
    x, target = torch.randn(300, 7, generator=draw) + 3, torch.randn(300, 3, generator=draw)
    mask = torch.rand(3, 7, generator=draw) < 0.6
    mask[2] = False
    linear = torch.nn.Linear(7, 3)
    with torch.no_grad():
        linear.weight.mul_(mask)
    normal = Normal(linear)
    normal.add(x, target)
    before, after = normal.solve(1e-9, mask)
    residual = 0.0
    for row in range(3):
        wide = np.hstack([x.double().numpy()[:, mask[row].numpy()], np.ones((300, 1))])
        best, rest, *_ = np.linalg.lstsq(wide, target[:, row].double().numpy(), rcond=None)
        found = linear.weight.detach()[row]
        np.testing.assert_allclose(found[mask[row]].numpy(), best[:-1], rtol=1e-3, atol=1e-4)
        assert float(linear.bias.detach()[row]) == pytest.approx(best[-1], rel=1e-3, abs=1e-4)
        assert not found[~mask[row]].any()
        residual += float(rest[0])
    assert after == pytest.approx(residual / float(target.double().square().sum()), rel=1e-4)
    assert after <= before


def pruned(dense, density, seed=0):
    """Return a copy with single weights pruned at random and refitted, and its masks."""
    draw = torch.Generator().manual_seed(seed)
    small = copy.deepcopy(dense)
    weights = prunable(small)
    masks = {name: torch.rand(weight.shape, generator=draw) < density for name, weight in weights.items()}
    refit(weights, masks, input_moments(dense, prunable(dense), batches()))
    return small, masks


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_correcting_drift_brings_a_refitted_model_closer_under_its_masks(density):
    dense = tiny_model(layers=3, hidden=32)
    small, masks = pruned(dense, density)
    plain = copy.deepcopy(small)
    fits = reconstruct(dense, small, batches(), range(3), masks=masks)
    assert all(fit.after <= fit.before + 1e-9 for fit in fits)
    goal, before, after = hidden(dense), hidden(plain), hidden(small)
    assert (after - goal).norm() < 0.9 * (before - goal).norm()
    old = prunable(plain)
    for name, weight in prunable(small).items():
        assert not weight[~masks[name]].any()
        projects = name.endswith("output.dense.weight")
        assert torch.equal(weight, old[name]) != projects, "output projections alone change"


def test_correcting_drift_of_a_model_with_all_weights_changes_nothing():
    dense = tiny_model(layers=2)
    same = copy.deepcopy(dense)
    reconstruct(dense, same, batches(), range(2), masks=full_masks(prunable(same)))
    torch.testing.assert_close(hidden(same), hidden(dense), rtol=1e-3, atol=1e-3)


def test_reconstructing_an_uncut_model_changes_nothing():
    dense = tiny_model(layers=3)
    same = copy.deepcopy(dense)
    fits = reconstruct(dense, same, batches(), range(3))
    assert max(max(fit.before, fit.after) for fit in fits) < 1e-7
    torch.testing.assert_close(hidden(same), hidden(dense), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layers", [None, 2, [1, 3]])
def test_reconstruction_brings_the_cut_model_closer(layers):
    dense = tiny_model(layers=4, hidden=32)
    cut = choose(magnitude_importance(dense), layers=layers, heads=0.5, neurons=0.5, multiple=8)
    small = copy.deepcopy(dense)
    slice_model(small, cut)
    plain = copy.deepcopy(small)
    sources = [part.source for part in cut]
    fits = reconstruct(dense, small, batches(), sources)
    assert len(fits) == 2 * len(cut)
    assert all(fit.after <= fit.before + 1e-9 for fit in fits)
    goal, before, after = hidden(dense), hidden(plain), hidden(small)
    assert (after - goal).norm() < 0.7 * (before - goal).norm()


def test_the_last_projection_is_least_squares_on_the_residual_stream():
    dense = tiny_model(layers=2, hidden=16)
    small = copy.deepcopy(dense)
    slice_model(small, (LayerCut(0, (1,), tuple(range(8))),))
    fits = reconstruct(dense, small, batches(), [0], ridge=1e-6)
    # What is left over is orthogonal to what enters the projection.
    entering, leaving = [], []
    layer, last = small.roberta.encoder.layer[0], dense.roberta.encoder.layer[1]
    hooks = [
        layer.output.dense.register_forward_pre_hook(lambda _, given: entering.append(given[0])),
        layer.output.LayerNorm.register_forward_pre_hook(lambda _, given: leaving.append(given[0])),
        last.output.LayerNorm.register_forward_pre_hook(lambda _, given: leaving.append(given[0])),
    ]
    rows = []
    with torch.no_grad():
        for batch in batches():
            given = {key: batch[key] for key in ("input_ids", "attention_mask")}
            small(**given)
            dense(**given)
            real = batch["attention_mask"].bool()
            rows.append((entering[-1][real], (leaving[-2] - leaving[-1])[real], leaving[-1][real]))
    for hook in hooks:
        hook.remove()
    x, rest, goal = (torch.cat(parts).double() for parts in zip(*rows))
    assert (x.T @ rest).abs().max() < 1e-2 * x.norm() * rest.norm() / len(x) ** 0.5
    assert fits[-1].after == pytest.approx(float(rest.square().sum() / goal.square().sum()), rel=1e-3)
    torch.testing.assert_close(layer.output.LayerNorm.weight, last.output.LayerNorm.weight)


def test_sources_that_cannot_be_are_refused():
    dense = tiny_model(layers=2)
    for sources in ([0], [1, 0], [0, 2], [0, 0]):
        with pytest.raises(ValueError, match="sources"):
            reconstruct(dense, copy.deepcopy(dense), batches(), sources)
    with pytest.raises(DataError, match="no unlabelled text"):
        reconstruct(dense, copy.deepcopy(dense), [], spaced_layers(2, 2))


def test_reconstruction_is_repeatable():
    dense = tiny_model(layers=2)
    found = []
    for _ in range(2):
        small = copy.deepcopy(dense)
        slice_model(small, (LayerCut(0, (0,), tuple(range(16))), LayerCut(1, (1,), tuple(range(16, 32)))))
        reconstruct(dense, small, batches(), [0, 1])
        found.append([parameter.clone() for parameter in small.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


@torch.no_grad()
def hidden(model):
    states = []
    for batch in batches():
        output = model.roberta(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        states.append(output.last_hidden_state[batch["attention_mask"].bool()])
    return torch.cat(states)
