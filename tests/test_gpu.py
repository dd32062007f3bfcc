"""On a GPU: the loop, a resumed run, every criterion and regularizer, and a whole run with its bundle: `make test-gpu`."""

from __future__ import annotations

import json

import golden
import pytest
import torch
from test_fine_pruning import drive, examples, make_pruner, make_recipe, restore, tiny_classifier
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.core.device import deterministic, resolve_device
from xlmprune.pruning.masks import density
from xlmprune.recipe.registry import CRITERIA, REGULARIZERS
from xlmprune.training.loop import Step

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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stop_after", [3, 9])
def test_a_deterministic_run_resumes_bit_for_bit(gpu, precision, stop_after):
    recipe = make_recipe(training={"precision": precision, "deterministic": True})
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


@pytest.mark.parametrize("name", golden.RUNS)
def test_a_whole_run_writes_a_bundle_that_holds(gpu, tmp_path, name):
    golden.write_inputs(tmp_path)
    recipe = golden.write_recipe(tmp_path, name)
    run = tmp_path / "run"
    command = ["compress", str(recipe), "--out", str(run), "--device", NAME]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert f"device: {NAME} (" in done.stderr
    report = json.loads((run / "bundle" / "report.json").read_text(encoding="utf-8"))
    assert report["environment"]["device"] == gpu.type
    assert CliRunner().invoke(app, ["verify", str(run / "bundle")]).exit_code == 0
