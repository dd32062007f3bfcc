"""`training.frozen_weights`: the teacher and the reference in less memory of the device."""

import pytest
import torch
from stand_in import StandIn
from test_compiling import run_of
from test_fine_pruning import examples, make_pruner, make_recipe, tiny_classifier
from test_memory import BASE, model_of, parts_of
from test_stand_in import updates as updates  # a fixture
from tiny_run import merged

from xlmprune.core.errors import RecipeError
from xlmprune.models.loading import count_parameters, prunable
from xlmprune.pruning.masks import pack_bits
from xlmprune.pruning.structures import LayerCut
from xlmprune.recipe.loading import recipe_of
from xlmprune.recipe.registry import REGULARIZERS
from xlmprune.training.dense import dense_key
from xlmprune.training.frozen import beside, call, frozen_copy
from xlmprune.training.loop import Step
from xlmprune.training.memory import estimate_memory
from xlmprune.training.method import build_method

COSINE = {"name": "cosine", "strength": 100.0}
FINETUNED = {"name": "frobenius", "strength": 0.5, "reference": "finetuned"}


def losses_of(events):
    return [(event.loss, event.penalty) for event in events if isinstance(event, Step)]


@pytest.mark.parametrize("regularizer", [COSINE, FINETUNED], ids=["pretrained", "finetuned"])
def test_on_a_cpu_the_place_changes_nothing(regularizer):
    (one, events), (other, others) = (
        run_of(False, regularizer=regularizer, training={"frozen_weights": keeping})
        for keeping in ("fp32", "cpu")
    )
    assert losses_of(events) == losses_of(others)
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("regularizer", [COSINE, FINETUNED], ids=["pretrained", "finetuned"])
def test_in_bf16_a_run_is_near_that_in_fp32_and_resumes(regularizer):
    bf16 = {"regularizer": regularizer, "training": {"frozen_weights": "bf16"}}
    exact, plain = run_of(False, regularizer=regularizer)
    whole, events = run_of(False, **bf16)
    state = whole.state
    assert {tensor.dtype for tensor in state.pretrained.values()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in whole.teaching.teacher.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in whole.model.parameters()} == {torch.float32}
    for mine, theirs in zip(losses_of(events), losses_of(plain), strict=True):
        assert mine == pytest.approx(theirs, rel=0.02, abs=0.01)
    agree = [(mask == exact.state.masks[name]).float().mean().item() for name, mask in state.masks.items()]
    assert min(agree) > 0.98
    facts = zip(state.layers(), exact.state.layers(), strict=True)
    assert all(mine["alignment"] == pytest.approx(theirs["alignment"], abs=0.01) for mine, theirs in facts)
    for place in (4, 11):  # within stage 0, and with a teacher and weights to compare with
        resumed, others = run_of(False, interrupted=place, **bf16)
        assert losses_of(others) == losses_of(events)
        for mine, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_weights_on_the_cpu_come_to_the_device_for_an_update(updates, name):
    """On the stand-in for a GPU, which refuses to mix devices and counts what waits."""
    training = {"regularize_dense": True, "frozen_weights": "cpu"}
    assert updates(regularizer=name, training=training) == [2] * 4


def test_a_teacher_on_the_cpu_comes_to_the_device_to_answer():
    ids = torch.randint(4, 50, (2, 5), device="meta")
    model = tiny_classifier().to("meta")
    with StandIn():
        teacher = frozen_copy(model, "cpu")
        assert {p.device.type for p in teacher.parameters()} == {"cpu"}
        assert {p.device.type for p in model.parameters()} == {"meta"}
        home = [id(parameter) for parameter in teacher.parameters()]
        with pytest.raises(RuntimeError, match="device"):
            teacher(input_ids=ids)
        assert call(teacher, ids.device, input_ids=ids).logits.is_meta
    assert [id(parameter) for parameter in teacher.parameters()] == home


@pytest.mark.parametrize("keeping", ["fp32", "bf16", "cpu"])
def test_a_resumed_run_keeps_its_reference_where_it_was(keeping):
    """On the stand-in, after another value too, and after layers, heads and neurons went."""
    where = {"fp32": ("meta", torch.float32), "bf16": ("meta", torch.bfloat16), "cpu": ("cpu", torch.float32)}
    structure = {"layers": 1, "heads": 0.5, "neurons": 0.5, "multiple": 4, "importance": "magnitude"}
    recipe = make_recipe(
        regularizer=FINETUNED, pruning={"structure": structure}, training={"frozen_weights": keeping}
    )
    saved = {name: weight.detach().clone() for name, weight in prunable(tiny_classifier()).items()}
    whole = tuple(LayerCut(source, (0, 1), tuple(range(32))) for source in range(2))
    with StandIn():
        pruner = make_pruner(recipe, tiny_classifier().to("meta"), examples())
        pruner.state.keep_finetuned()
        for tensor in (*pruner.state.pretrained.values(), *pruner.state.finetuned.values()):
            assert (tensor.device.type, tensor.dtype) == where[keeping]
        for stored in (torch.float32, torch.bfloat16):
            tensors = {
                "model": dict(tiny_classifier().named_parameters()),
                "masks": {name: pack_bits(torch.ones_like(w, dtype=torch.bool)) for name, w in saved.items()},
                "finetuned": {name: weight.to(stored) for name, weight in saved.items()},
            }
            pruner.state.restore(tensors, pruner.state.progress(), pruner.settings)
            kept = (*pruner.state.pretrained.values(), *pruner.state.finetuned.values())
            assert {(tensor.device.type, tensor.dtype) for tensor in kept} == {where[keeping]}
        pruner.state.shrink(whole)
        kept = (*pruner.state.pretrained.values(), *pruner.state.finetuned.values())
        assert {(tensor.device.type, tensor.dtype) for tensor in kept} == {where[keeping]}


def test_what_is_at_hand_is_not_copied():
    weights = {"a": torch.ones(2, 3)}
    near, far = {"a": torch.zeros(2, 3)}, {"a": torch.zeros(2, 3, dtype=torch.bfloat16)}
    assert beside(weights, near)["a"] is near["a"]
    assert beside(weights, far)["a"].dtype == torch.float32


def test_a_teacher_kept_in_bf16_computes_in_fp32_from_rounded_weights():
    model, ids = tiny_classifier(), torch.randint(4, 50, (2, 5))
    teacher = frozen_copy(model, "bf16")
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    found = call(teacher, ids.device, input_ids=ids).logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    assert found.dtype == torch.float32
    assert torch.equal(found, model(input_ids=ids).logits)
    for (name, buffer), (_, other) in zip(teacher.named_buffers(), model.named_buffers(), strict=True):
        assert buffer.dtype == other.dtype, name
        assert torch.equal(buffer, other)


def test_weights_that_are_shared_stay_shared_in_the_teacher():
    model = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    teacher = frozen_copy(model, "bf16")
    assert teacher[1].weight is teacher[0].weight
    assert teacher[0].weight is not model[0].weight


@pytest.mark.parametrize(
    ("section", "value", "same"),
    [
        ("training", {"frozen_weights": "cpu"}, True),
        ("training", {"frozen_weights": "bf16"}, True),
        ("training", {"frozen_weights": "bf16", "regularize_dense": True}, False),
        ("training", {"gradient_checkpointing": True}, True),
        ("training", {"checkpoint_minutes": 1}, True),
        ("training", {"fast_dropout": True}, False),
        ("evaluation", {"stage_precision": "bf16"}, True),
    ],
)
def test_runs_share_a_dense_stage_that_does_not_depend_on_a_key(section, value, same):
    regular = {"regularize_dense": value.get("regularize_dense", False)}
    plain = make_recipe(training=regular, regularizer=COSINE)
    other = make_recipe(**merged({"training": regular, "regularizer": COSINE}, {section: value}))
    assert (dense_key(other) == dense_key(plain)) is same


def test_the_estimate_of_memory_knows_where_they_are():
    base, matrices = model_of(**BASE), 84_934_656
    parameters = count_parameters(base)
    sections = {"distillation": {"weight": 0.5}, "regularizer": COSINE}
    found = {}
    for keeping in ("fp32", "bf16", "cpu"):
        given = parts_of(base, {**sections, "training": {"frozen_weights": keeping}}, chooses=False)
        found[keeping] = given
    assert found["cpu"] == found["fp32"], "training on a CPU"
    assert found["bf16"]["reference"] == 2 * matrices
    assert found["bf16"]["teacher"] == 2 * parameters
    assert found["bf16"]["copies of frozen weights"] == 4 * parameters
    saved = found["fp32"]["total"] - found["bf16"]["total"]
    assert saved == 2 * (matrices + parameters), "the copies come where there are no activations"
    recipe = make_recipe(**sections, training={"frozen_weights": "cpu"})
    method = build_method(recipe.pruning, recipe.regularizer)
    on_gpu = estimate_memory(recipe, method, base, 40_000, chooses_best=False, on_cpu=False)
    assert "reference" not in on_gpu
    assert "teacher" not in on_gpu
    assert on_gpu["copies of frozen weights"] == 4 * parameters


def test_recorded_updates_need_the_teacher_on_the_device():
    graphs = {"cuda_graphs": True, "frozen_weights": "cpu"}
    with pytest.raises(RecipeError, match="reads the teacher where it was"):
        recipe_of("quickstart", {"training": graphs})
    recipe_of("quickstart", {"training": {**graphs, "frozen_weights": "bf16"}})
