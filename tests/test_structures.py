"""Structures: gates and their gradients, what remains, slicing equal to gating, and what a loader needs."""

import copy
import json

import numpy as np
import pytest
import torch
import transformers
from exact_rows import solve_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_batch, tiny_model
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

from xlmprune.core.errors import DataError, ModelError
from xlmprune.models import architecture
from xlmprune.models.loading import prunable
from xlmprune.pruning.importance import (
    Importance,
    full_gates,
    gate_importance,
    gated,
    magnitude_importance,
    obs_importance,
    pool,
    removal_errors,
)
from xlmprune.pruning.moments import damped, input_moments
from xlmprune.pruning.structures import (
    CONFIG_KEY,
    LayerCut,
    Layout,
    choose,
    layout_of,
    pieces,
    resize,
    slice_model,
    spaced_layers,
)
from xlmprune.recipe import registry


def batch(kind="text", labels=False, rows=None):
    found = {name: torch.from_numpy(array)[:rows] for name, array in tiny_batch(kind).items()}
    if labels:
        shape = found["input_ids"].shape if kind == "tokens" else found["input_ids"].shape[:1]
        found["labels"] = torch.randint(3, shape, generator=torch.Generator().manual_seed(0))
    return found


@torch.no_grad()
def logits(model, data=None):
    data = data or batch()
    return model(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits


def gates_of(cut, model):
    gates = full_gates(model)
    for number, (heads, neurons) in enumerate(zip(gates.heads, gates.neurons)):
        part = {p.source: p for p in cut}[number]
        heads.zero_()[list(part.heads)] = 1
        neurons.zero_()[list(part.neurons)] = 1
    return gates


UNEVEN = (LayerCut(0, (1,), tuple(range(0, 32, 2))), LayerCut(1, (0, 1), tuple(range(5, 12))))


# --- gates ------------------------------------------------------------------------------------------------------------


def test_open_gates_change_nothing_and_leave_nothing_behind():
    model = tiny_model()
    plain = logits(model)
    with gated(model, full_gates(model)):
        torch.testing.assert_close(logits(model), plain)
    with gated(model, full_gates(model, batch=len(plain))):
        torch.testing.assert_close(logits(model), plain)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_row_of_gates_for_each_example():
    model = tiny_model()
    gates = full_gates(model, batch=32)
    gates.heads[0][3:, 1] = 0
    with gated(model, gates):
        mixed = logits(model)
    torch.testing.assert_close(mixed[:3], logits(model)[:3])
    assert (mixed[3:] - logits(model)[3:]).abs().min() > 0


def test_gates_of_another_size_are_refused_and_leave_nothing_behind():
    model = tiny_model()
    gates = full_gates(model)
    with (
        pytest.raises(ValueError, match="2 heads"),
        gated(model, Importance([gates.heads[0], torch.ones(3)], gates.neurons)),
    ):
        pass
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_gate_gradients_are_differences(kind):
    model = tiny_model(kind).double()
    data = batch(kind, labels=True, rows=1)
    found = gate_importance(model, [data], "gradient")

    def loss(layer, place, which, value):
        gates = full_gates(model)
        gates = Importance([g.double() for g in gates.heads], [g.double() for g in gates.neurons])
        getattr(gates, which)[layer][place] = value
        with gated(model, gates):
            answers = logits(model, data)
        return torch.nn.functional.cross_entropy(answers.flatten(0, -2), data["labels"].flatten())

    for layer, place, which in [(0, 0, "heads"), (1, 1, "heads"), (0, 7, "neurons"), (1, 30, "neurons")]:
        rise = (loss(layer, place, which, 1 + 1e-4) - loss(layer, place, which, 1 - 1e-4)) / 2e-4
        assert float(getattr(found, which)[layer][place]) == pytest.approx(
            abs(float(rise)), rel=2e-3, abs=1e-6
        )


def test_kinds_of_importance_are_means_over_examples():
    model, data = tiny_model(), batch(labels=True)
    each = [
        gate_importance(model, [{k: v[i : i + 1] for k, v in data.items()}], "gradient") for i in range(32)
    ]
    whole = gate_importance(model, [data], "gradient")
    halves = [{k: v[rows] for k, v in data.items()} for rows in (slice(0, 9), slice(9, 32))]
    split = gate_importance(model, halves, "gradient")
    for layer in range(2):
        mean = torch.stack([one.neurons[layer] for one in each]).mean(dim=0)
        torch.testing.assert_close(whole.neurons[layer], mean, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(whole.neurons[layer], split.neurons[layer], rtol=1e-3, atol=1e-6)
    taylor = gate_importance(model, [data], "taylor")
    assert all((t <= g + 1e-6).all() for t, g in zip(taylor.heads, whole.heads))


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_fisher_needs_no_labels_and_is_repeatable(kind):
    model = tiny_model(kind)
    data = {key: value for key, value in batch(kind).items() if key != "labels"}
    first, second = (gate_importance(model, [data], seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.neurons, second.neurons))
    assert all((heads > 0).all() for heads in first.heads)
    assert not any(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(DataError, match="reads labels"):
        gate_importance(model, [data], "taylor")


def test_importance_of_nothing_of_nan_and_in_training_is_refused():
    model = tiny_model()
    with pytest.raises(DataError, match="no examples"):
        gate_importance(model, [])
    with pytest.raises(ValueError, match="training mode"):
        gate_importance(copy.deepcopy(model).train(), [batch()])
    with torch.no_grad():
        model.roberta.encoder.layer[0].output.dense.weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match="not finite"):
        gate_importance(model, [batch(labels=True)], "gradient")


# --- importance from weights ------------------------------------------------------------------------------------------


def test_pooling_gives_each_weight_to_one_owner():
    model = tiny_model()
    pooled = pool({name: torch.ones_like(weight) for name, weight in prunable(model).items()}, model)
    assert pooled.heads[0].tolist() == [4 * 16 * 8] * 2
    assert pooled.neurons[1].tolist() == [2 * 16] * 32
    marked = {name: torch.zeros_like(weight) for name, weight in prunable(model).items()}
    marked["roberta.encoder.layer.1.attention.self.key.weight"][9, 3] = 2.0
    marked["roberta.encoder.layer.0.output.dense.weight"][3, 9] = 5.0
    pooled = pool(marked, model)
    assert pooled.heads[1].tolist() == [0, 2]
    assert int(pooled.neurons[0].argmax()) == 9
    assert float(pooled.neurons[0].sum()) == 5


def test_magnitude_of_a_head_is_the_norm_of_its_weights():
    model = tiny_model()
    layer = model.roberta.encoder.layer[0]
    rows = [getattr(layer.attention.self, role).weight[8:] for role in ("query", "key", "value")]
    owned = torch.cat([*(r.flatten() for r in rows), layer.attention.output.dense.weight[:, 8:].flatten()])
    assert float(magnitude_importance(model).heads[0][1]) == pytest.approx(float(owned.detach().norm()))


@pytest.mark.parametrize("group", [1, 4])
def test_the_first_group_to_go_costs_least_and_so_do_those_after_it(group):
    draw = torch.Generator().manual_seed(2)
    x = (
        torch.randn(50, 12, generator=draw, dtype=torch.float64)
        @ torch.randn(12, 12, generator=draw).double()
    )
    moment, weight = x.T @ x / 50, torch.randn(5, 12, generator=draw, dtype=torch.float64)
    matrix, count = damped(moment, 0.01), 12 // group
    errors = removal_errors(weight, moment, group)
    order = errors.argsort().argsort()
    gone = []
    for step in range(count - 1):
        costs = {}
        for candidate in set(range(count)) - set(gone):
            mask = torch.ones(count, dtype=torch.bool)
            mask[[*gone, candidate]] = False
            wide = mask.repeat_interleave(group).expand(5, -1)
            change = solve_rows(weight, wide, matrix) - weight
            costs[candidate] = float((change @ matrix * change).sum())
        gone.append(min(costs, key=costs.get))
        assert order[gone[-1]] == step
        assert float(errors[gone[-1]]) == pytest.approx(costs[gone[-1]], rel=1e-9), (
            "the error of all that are gone"
        )


def test_of_two_neurons_alike_obs_keeps_one():
    model = tiny_model()
    layer = model.roberta.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense.weight[4] = layer.intermediate.dense.weight[7]
        layer.intermediate.dense.bias[4] = layer.intermediate.dense.bias[7]
        layer.output.dense.weight[:, [4, 7]] = layer.output.dense.weight[:, [4]] * 3
    found = obs_importance(model, input_moments(model, prunable(model), [batch()]), ridge=1e-6, fraction=0)
    ranks = found.neurons[0].argsort().argsort()[[4, 7]]
    assert ranks.min() < 4  # the other makes up for it
    assert ranks.max() == 31


def test_obs_ranks_all_layers_as_one_by_what_they_lose():
    model = tiny_model()
    with torch.no_grad():
        model.roberta.encoder.layer[1].output.dense.weight[:, 16:] *= 1e-3
    found = obs_importance(model, input_moments(model, prunable(model), [batch()]), fraction=0)
    kept = [len(part.neurons) for part in choose(found, neurons=0.5, multiple=1, scope="global")]
    assert sum(kept) == 32
    assert kept[0] > kept[1], "layer 1 has sixteen neurons that nobody misses"


# --- choosing ---------------------------------------------------------------------------------------------------------


def importance(layers=3, heads=4, neurons=64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return Importance(
        [torch.rand(heads, generator=draw) for _ in range(layers)],
        [torch.rand(neurons, generator=draw) for _ in range(layers)],
    )


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 4),
    st.floats(1e-3, 1.0),
    st.floats(1e-3, 1.0),
    st.sampled_from([1, 8, 32, 64]),
    st.sampled_from(["layer", "global"]),
    st.integers(0, 99),
)
def test_what_remains_is_counted_in_multiples_and_never_nothing(
    layers, heads, neurons, multiple, scope, seed
):
    scores = importance(4, seed=seed)
    cut = choose(scores, layers, heads, neurons, multiple, scope)
    assert [part.source for part in cut] == list(spaced_layers(4, layers))
    for part in cut:
        assert len(part.heads) >= 1
        assert len(part.neurons) >= multiple
        assert len(part.neurons) % multiple == 0
        assert list(part.neurons) == sorted(set(part.neurons))
        kept, gone = list(part.neurons), sorted(set(range(64)) - set(part.neurons))
        if gone:
            score = scores.neurons[part.source]
            assert score[kept].min() >= score[gone].max()
    wanted = layers * max(1, round(heads * 4))
    assert sum(len(part.heads) for part in cut) == wanted


def test_a_global_ranking_leaves_layers_uneven():
    scores = importance()
    scores.heads[0][:] = torch.tensor([1.0, 0, 0, 0])
    scores.heads[1][:] = 1.0
    cut = choose(scores, heads=0.5, scope="global", multiple=8)
    assert len(cut[0].heads) == 1
    assert sum(len(part.heads) for part in cut) == 6


def test_layers_are_spaced_from_the_first():
    assert spaced_layers(12, 6) == (0, 2, 4, 6, 8, 10)
    assert spaced_layers(12, 4) == (0, 3, 6, 9)
    assert spaced_layers(3, 3) == (0, 1, 2)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"layers": 4}, "the model has 3"),
        ({"layers": 0}, "at least 1"),
        ({"layers": [1, 0]}, "rising"),
        ({"layers": [0, 3]}, "rising"),
        ({"layers": []}, "at least one"),
        ({"heads": 0}, "at least one of every layer"),
        ({"neurons": 1.5}, "not in"),
        ({"neurons": 0.5, "multiple": 48}, "does not divide"),
        ({"multiple": 0}, "does not divide"),
        ({"scope": "model"}, "neither"),
    ],
)
def test_sizes_that_cannot_be_are_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        choose(importance(), **settings_)


def test_an_importance_that_is_no_number_is_refused():
    scores = importance()
    scores.neurons[1][3] = float("nan")
    with pytest.raises(ValueError, match="not a number"):
        choose(scores, neurons=0.5)


# --- slicing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_the_sliced_model_answers_as_the_gated_one(kind):
    model = tiny_model(kind).double()
    data = batch(kind)
    with gated(model, gates_of(UNEVEN, model)):
        expected = logits(model, data)
    layout = slice_model(model, UNEVEN)
    torch.testing.assert_close(logits(model, data), expected, rtol=0, atol=1e-6)
    assert (expected - logits(tiny_model(kind).double(), data)).abs().max() > 0.1
    assert [(layer.heads, layer.neurons) for layer in layout.layers] == [(1, 16), (2, 7)]
    assert model.roberta.encoder.layer[0].attention.self.query.weight.shape == (8, 16)
    assert model.roberta.encoder.layer[1].output.dense.weight.shape == (16, 7)


def small_model(family, layers=3):
    config = transformers.AutoConfig.for_model(
        family, vocab_size=60, hidden_size=16, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=64, type_vocab_size=1, pad_token_id=1, initializer_range=0.3, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    return getattr(transformers, architecture.named(family).heads["text"])(config).eval()


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_in_every_family_slicing_is_gating_and_pieces_say_where_matrices_come_from(family):
    model = small_model(family)
    data = {name: tensor.clamp(max=59) for name, tensor in batch().items()}
    cut = tuple(LayerCut(layer, (2, 0), (30, *range(1, 30, 3))) for layer in range(3))
    with gated(model, gates_of(cut, model)):
        expected = logits(model, data)
    assert not torch.allclose(expected, logits(model, data), atol=1e-3)
    found, before = pieces(model, cut), {name: weight.clone() for name, weight in prunable(model).items()}
    layout = slice_model(model, cut)
    torch.testing.assert_close(logits(model, data), expected)
    after = prunable(model)
    assert list(found) == list(after)
    assert all(torch.equal(piece.of(before), after[name]) for name, piece in found.items())
    fresh = small_model(family)
    resize(fresh, layout)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits(fresh, data), logits(model, data))


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_in_every_family_heads_and_neurons_own_all_weights(family):
    model = small_model(family)
    found = pool({name: torch.ones_like(weight) for name, weight in prunable(model).items()}, model)
    gated_neurons = "ffn_gate" in architecture.named(family).roles
    for heads, neurons in zip(found.heads, found.neurons, strict=True):
        assert heads.tolist() == [4 * 4 * 16] * 4
        assert neurons.tolist() == [(3 if gated_neurons else 2) * 16] * 32


def test_a_dropped_layer_is_passed_by():
    model = tiny_model(layers=3)
    layout = slice_model(model, choose(magnitude_importance(model), layers=[0, 2]))
    whole = tiny_model(layers=3)
    del whole.roberta.encoder.layer[1]
    torch.testing.assert_close(logits(model), logits(whole))
    assert model.config.num_hidden_layers == 2
    assert [layer.source for layer in layout.layers] == [0, 2]
    assert layout.is_stock(model.config)


def test_slicing_twice_remembers_the_first_sources():
    model = tiny_model(layers=4)
    slice_model(model, choose(magnitude_importance(model), layers=[1, 3]))
    layout = slice_model(model, choose(magnitude_importance(model), layers=[1]))
    assert [layer.source for layer in layout.layers] == [3]
    assert layout_of(model) == layout


def test_a_sliced_model_trains():
    model = tiny_model()
    slice_model(model, UNEVEN)
    data = batch(labels=True)
    model(**{key: data[key] for key in ("input_ids", "attention_mask", "labels")}).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (LayerCut(0, (), (1,)), "last of its heads"),
        (LayerCut(0, (0,), ()), "last of its neurons"),
        (LayerCut(0, (2,), (1,)), "heads 0 to 1"),
        (LayerCut(0, (0,), (1, 1)), "neurons 0 to 31"),
        (LayerCut(2, (0,), (1,)), "the model has 2"),
    ],
)
def test_what_is_not_there_cannot_be_kept(part, message):
    model = tiny_model()
    before = [parameter.shape for parameter in model.parameters()]
    with pytest.raises(ValueError, match=message):
        slice_model(model, (part,))
    assert [parameter.shape for parameter in model.parameters()] == before


def test_a_fresh_model_takes_the_shapes_from_the_config(tmp_path):
    model = tiny_model()
    slice_model(model, UNEVEN)
    model.config.save_pretrained(tmp_path)
    tensors = model.state_dict()
    config = XLMRobertaConfig.from_pretrained(tmp_path)
    layout = Layout.from_record(json.loads((tmp_path / "config.json").read_text())[CONFIG_KEY])
    assert not layout.is_stock(config)
    fresh = XLMRobertaForSequenceClassification(config).eval()
    resize(fresh, layout)
    fresh.load_state_dict(tensors)
    assert torch.equal(logits(fresh), logits(model))
    assert layout_of(fresh) == layout


def test_uniform_widths_load_without_us(tmp_path):
    model = tiny_model(layers=4)
    slice_model(model, choose(magnitude_importance(model), layers=2, neurons=0.5, multiple=8))
    model.save_pretrained(tmp_path)
    stock = XLMRobertaForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(stock), logits(model))
    assert layout_of(model).is_stock(model.config)


def test_a_layout_of_another_model_is_refused():
    layout = layout_of(tiny_model(layers=3))
    with pytest.raises(ModelError, match="3 layers wanted"):
        resize(tiny_model(layers=2), layout)
    with pytest.raises(ModelError, match="heads of 8 wanted"):
        resize(tiny_model(layers=3, hidden=32), layout)


@pytest.mark.parametrize(
    "record",
    [
        None,
        {},
        {"head_size": 8, "layers": []},
        {"head_size": 8, "layers": [{"source": 0, "heads": 0, "neurons": 4}]},
        {"head_size": 8, "layers": [{"source": 0, "heads": 1}]},
        {"head_size": 8, "layers": [{"source": 0, "heads": "x", "neurons": 4}]},
        {"head_size": 8, "layers": 3},
    ],
)
def test_damaged_records_are_refused(record):
    with pytest.raises(ModelError, match=CONFIG_KEY):
        Layout.from_record(record)


def test_layers_are_found_by_role():
    model = tiny_model()
    layers = architecture.of(model).layers(model)
    assert {matrix.name for layer in layers for matrix in layer.matrices().values()} == set(prunable(model))
    assert np.prod([layer.heads for layer in layers]) == 4
