"""On a GPU: the loop, a resumed run, every criterion and regularizer, and a whole run with its bundle: `make test-gpu`."""

from __future__ import annotations

import json

import golden
import pytest
import torch
from test_fine_pruning import drive, examples, make_pruner, make_recipe, restore, tiny_classifier, tiny_config
from transformers import XLMRobertaForTokenClassification
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.core.device import deterministic, resolve_device
from xlmprune.pruning import kernels
from xlmprune.pruning.masks import density
from xlmprune.pruning.regularizers.cosine import Cosine
from xlmprune.pruning.regularizers.frobenius import Frobenius
from xlmprune.recipe.registry import CRITERIA, REGULARIZERS
from xlmprune.training.loop import Step
from xlmprune.training.optimizer import mask_gradients
from xlmprune.training.teaching import Teaching

pytestmark = pytest.mark.gpu

NAME = "cuda:0"
"""The device that these tests use."""

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""Without dropout, since a GPU draws other random numbers than a CPU."""


@pytest.fixture(scope="module")
def gpu():
    return resolve_device(NAME)


def pruner_on(device, recipe, **config):
    return make_pruner(recipe, tiny_classifier(**config).to(device), examples(), lambda: 50.0)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_the_loop_computes_what_it_computes_on_a_cpu(gpu, name):
    recipe = make_recipe(regularizer=name, training={"regularize_dense": True})
    losses = {}
    for device in (torch.device("cpu"), gpu):
        steps = [event for event in drive(pruner_on(device, recipe, **STILL)) if isinstance(event, Step)]
        losses[device.type] = [step.loss + step.penalty for step in steps]
    here, there = losses["cpu"], losses[gpu.type]
    assert there[0] == pytest.approx(here[0], rel=1e-5)
    assert there == pytest.approx(here, rel=1e-2)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_prunes_exactly(gpu, name):
    fewer = {"batches": 8} if name == "obert" else {}
    pruner = pruner_on(gpu, make_recipe(pruning={"criterion": {"name": name, **fewer}}))
    drive(pruner)
    assert density(pruner.state.masks) == pytest.approx(0.343, abs=2e-3)
    for key, weight in pruner.state.weights.items():
        assert weight.device.type == gpu.type
        assert weight.isfinite().all()
        assert not weight[~pruner.state.masks[key]].any()


@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stop_after", [3, 9])
def test_a_deterministic_run_resumes_bit_for_bit(gpu, precision, stop_after, recorded):
    recipe = make_recipe(training={"precision": precision, "deterministic": True, "cuda_graphs": recorded})
    with deterministic(gpu, recipe.training.deterministic):
        unbroken = pruner_on(gpu, recipe)
        drive(unbroken)
        first = pruner_on(gpu, recipe)
        drive(first, stop_after)
        tensors = {
            file: {key: tensor.detach().cpu().clone() for key, tensor in part.items()}
            for file, part in first.state.tensors().items()
        }
        second = pruner_on(gpu, recipe)
        restore(second, tensors, json.loads(json.dumps(first.state.progress())))
        drive(second)
    for name, parameter in unbroken.model.named_parameters():
        assert torch.equal(parameter, dict(second.model.named_parameters())[name]), name


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, []) for name in golden.RUNS), ("cosine", ["--set", "training.cuda_graphs=true"])],
)
def test_a_whole_run_writes_a_bundle_that_holds(gpu, tmp_path, name, options):
    golden.write_inputs(tmp_path)
    recipe = golden.write_recipe(tmp_path, name)
    run = tmp_path / "run"
    command = ["compress", str(recipe), "--out", str(run), "--device", NAME, *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert f"device: {NAME} (" in done.stderr
    report = json.loads((run / "bundle" / "report.json").read_text(encoding="utf-8"))
    assert report["environment"]["device"] == gpu.type
    assert CliRunner().invoke(app, ["verify", str(run / "bundle")]).exit_code == 0


SHAPES = [(5, 7), (64, 48), (48, 64), (16, 1024), (3, 3000)]
"""Of matrices: rows that are shorter and longer than a block, and that a block does not divide."""


def matrices(device, seed):
    """Return weights with a gradient, a row of zeros among them, references with one too, and masks."""
    random = torch.Generator().manual_seed(seed)
    weights, references, masks = {}, {}, {}
    for number, shape in enumerate(SHAPES):
        name = f"layer{number}"
        masks[name] = (torch.rand(shape, generator=random) < 0.4).to(device)
        weights[name] = (torch.randn(shape, generator=random).to(device) * masks[name]).requires_grad_()
        weights[name].grad = torch.randn(shape, generator=random).to(device)
        references[name] = torch.randn(shape, generator=random).to(device)
    with torch.no_grad():
        weights["layer1"][3] = 0
        references["layer2"][5] = 0
    return weights, references, masks


@pytest.mark.parametrize(
    "regularizer",
    [
        Cosine(),
        Cosine(abs=False),
        Cosine(reduction="sum", strength=0.1),
        Frobenius(strength=0.1),
        Frobenius(strength=0.1, reduction="mean"),
    ],
    ids=str,
)
def test_one_launch_adds_what_the_plain_form_adds(gpu, monkeypatch, regularizer):
    found = []
    for plain in (False, True):
        weights, references, masks = matrices(gpu, 0)
        if plain:
            monkeypatch.setattr(kernels, "usable", lambda *tensors: False)
        else:
            assert kernels.usable([*weights.values()], [*references.values()])
        value = regularizer.add_gradient(weights, references, masks)
        found.append((float(value), [weight.grad for weight in weights.values()]))
    (value, gradients), (expected, others) = found
    assert value == pytest.approx(expected, rel=1e-5)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("regularizer", [Cosine(), Frobenius()], ids=str)
@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")
def test_few_launches_align_the_matrices_of_a_model(gpu, regularizer):
    random = torch.Generator(device=gpu).manual_seed(0)
    shapes = [(768, 768)] * 48 + [(3072, 768)] * 12 + [(768, 3072)] * 12
    weights = {str(n): torch.randn(shape, device=gpu, generator=random) for n, shape in enumerate(shapes)}
    references = {
        name: torch.randn(weight.shape, device=gpu, generator=random) for name, weight in weights.items()
    }
    for weight in weights.values():
        weight.requires_grad_().grad = torch.zeros_like(weight)
    regularizer.add_gradient(weights, references, None)  # compiled, and lengths and addresses known
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        regularizer.add_gradient(weights, references, None)
        torch.cuda.synchronize()
    launched = [event for event in profile.events() if event.device_type.name == "CUDA"]
    assert 0 < len(launched) <= (10 if isinstance(regularizer, Cosine) else 60), [e.name for e in launched]


def test_gradients_are_masked_in_one_launch(gpu):
    weights, _, masks = matrices(gpu, 1)
    expected = {name: weight.grad * masks[name] for name, weight in weights.items()}
    norms = mask_gradients(weights, masks)
    for name, weight in weights.items():
        assert torch.equal(weight.grad, expected[name])
        assert float(norms[name]) == pytest.approx(float(expected[name].norm()), rel=1e-6)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # PyTorch's own use
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_recorded_updates_are_the_plain_ones(gpu, precision, compiled):
    """With dropout, over many shapes of batches, and through three prunings."""
    runs = {}
    for recorded in (False, True):
        settings = {
            "precision": precision,
            "cuda_graphs": recorded,
            "compile": compiled,
            "deterministic": True,
        }
        pruner = pruner_on(gpu, make_recipe(training=settings))
        pruner.gradients.multiple = 8
        with deterministic(gpu, True):
            events = [event for event in drive(pruner) if isinstance(event, Step)]
        runs[recorded] = pruner, [event.loss for event in events]
        if recorded:
            assert len(pruner.gradients.graphs._recorded) > 1
    (plain, losses), (graphs, others) = runs[False], runs[True]
    assert others == pytest.approx(losses, rel=1e-3 if precision == "bf16" else 1e-5)
    for name, mask in plain.state.masks.items():
        agree = (mask == graphs.state.masks[name]).float().mean()
        assert agree > (0.99 if precision == "bf16" else 0.9999), name


@pytest.mark.parametrize("keeping", ["cpu", "bf16"])
def test_frozen_weights_elsewhere_give_the_same_updates(gpu, keeping):
    """From the CPU's memory bit for bit; in bf16 nearly."""
    losses = []
    for where in ("fp32", keeping):
        settings = {"precision": "fp32", "deterministic": True, "frozen_weights": where}
        recipe = make_recipe(training=settings, distillation={"weight": 0.5, "hidden": 0.1})
        teaching = Teaching(recipe.distillation, examples(10, seed=1), 8, recipe.seed, where)
        pruner = make_pruner(recipe, tiny_classifier().to(gpu), examples(), lambda: 50.0, teaching)
        with deterministic(gpu, True):
            losses.append([event.loss for event in drive(pruner) if isinstance(event, Step)])
        kept = {tensor.device.type for tensor in pruner.state.pretrained.values()}
        assert kept == {"cpu" if where == "cpu" else "cuda"}
    assert losses[1] == (losses[0] if keeping == "cpu" else pytest.approx(losses[0], rel=0.02))


@pytest.mark.parametrize("hidden", [0.0, 0.1])
@pytest.mark.parametrize("labels", ["texts", "tokens"])
def test_recorded_updates_learn_from_the_teacher(gpu, hidden, labels):
    distillation = {"weight": 0.5, "hidden": hidden, "teacher": "finetuned"}
    losses = []
    for recorded in (False, True):
        settings = {"precision": "fp32", "cuda_graphs": recorded, "deterministic": True}
        recipe = make_recipe(training=settings, distillation=distillation)
        tokens = labels == "tokens"
        teaching = Teaching(recipe.distillation, examples(10, seed=1, tokens=tokens), 8, recipe.seed)
        model = (XLMRobertaForTokenClassification(tiny_config()) if tokens else tiny_classifier()).to(gpu)
        pruner = make_pruner(recipe, model, examples(tokens=tokens), lambda: 50.0, teaching)
        pruner.gradients.multiple = 8
        with deterministic(gpu, True):
            losses.append([event.loss for event in drive(pruner) if isinstance(event, Step)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
