"""The estimate of a run's memory: against measured peaks, and in closed form for models that are too large to build."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from test_fine_pruning import make_recipe
from tiny_run import write_data, write_model, write_recipe

from xlmprune.data.examples import Examples
from xlmprune.models.loading import count_parameters
from xlmprune.recipe.loading import load_recipe
from xlmprune.training import planning
from xlmprune.training.memory import estimate_disk, estimate_memory
from xlmprune.training.method import build_method
from xlmprune.training.planning import _sharing, distinct_words

MEASURE = """
import json, sys
import numpy as np
import torch
import transformers
from tiny import tiny_special
from test_fine_pruning import make_pruner, make_recipe, tiny_classifier, examples
from xlmprune.core.machine import process_memory
from xlmprune.data.encoding import Encoded
from xlmprune.recipe.schema import DistillationRecipe
from xlmprune.training.memory import estimate_memory
from xlmprune.training.method import build_method
from xlmprune.training.teaching import Teaching

torch.set_num_threads(1)
sections, chooses = json.loads(sys.argv[1])
for _ in make_pruner(make_recipe(), tiny_classifier(), examples()).run():
    pass  # kernels are loaded
config = transformers.XLMRobertaConfig(
    vocab_size=30_000, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=2048,
    max_position_embeddings=130, type_vocab_size=1, pad_token_id=1, num_labels=3,
)
random, length = np.random.default_rng(0), sections["training"]["max_length"]
ids = [np.concatenate([[0], random.integers(4, 30_000, length - 2), [2]]).astype(np.int64) for _ in range(24)]
train = Encoded(ids, np.arange(24) % 3, None, np.zeros(24, dtype=bool), special=tiny_special())
recipe = make_recipe(**sections)
teaching = None
if recipe.distillation is not None:
    training = recipe.training
    teaching = Teaching(recipe.distillation, None, training.batch_size, 0, training.frozen_weights)
rows = len(np.unique(np.concatenate(ids)))
before = process_memory()[0]
model = transformers.XLMRobertaForSequenceClassification(config)
pruner = make_pruner(recipe, model, train, (lambda: 50.0) if chooses else None, teaching)
for _ in pruner.run():
    pass
method = build_method(recipe.pruning, recipe.regularizer)
estimate = estimate_memory(recipe, method, model, rows, chooses_best=chooses)
print(json.dumps({"measured": process_memory()[1] - before, "estimate": estimate}))
"""

TRAINING = {"epochs_per_stage": 1, "batch_size": 8, "max_length": 64}
STAGES = {"schedule": {"name": "geometric", "step_fraction": 0.3, "stages": 2}}
CASES = {
    "plain": ({}, False),
    "best epoch": ({"training": {**TRAINING, "epochs_per_stage": 2}}, True),
    "frozen embeddings": ({"training": {**TRAINING, "freeze_embeddings": True}}, False),
    "teacher": (
        {"distillation": {"weight": 0.5}, "regularizer": {"name": "frobenius", "reference": "finetuned"}},
        False,
    ),
    "teacher and reference in bf16": (
        {
            "training": {**TRAINING, "frozen_weights": "bf16"},
            "distillation": {"weight": 0.5},
            "regularizer": {"name": "frobenius", "reference": "finetuned"},
        },
        False,
    ),
    "criterion with state": ({"pruning": {**STAGES, "criterion": "platon", "scope": "global"}}, False),
    "long texts": ({"training": {**TRAINING, "max_length": 128}}, False),
    "layers computed again": (
        {
            "training": {
                **TRAINING,
                "batch_size": 24,
                "max_length": 128,
                "epochs_per_stage": 2,
                "gradient_checkpointing": True,
            }
        },
        False,
    ),
    "micro-batches": (
        {"training": {**TRAINING, "epochs_per_stage": 3, "batch_size": 24, "gradient_accumulation": 3}},
        False,
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_within_ten_percent_of_the_measured_peak(name):
    sections, chooses = CASES[name]
    sections = {"training": TRAINING, "pruning": STAGES, **sections}
    # Memory that is freed goes back to the system at once, so that the peak is that of what is held.
    settings = {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", MEASURE, json.dumps([sections, chooses])]
    done = subprocess.run(
        command,
        env={**os.environ, **settings},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["estimate"]["total"] == pytest.approx(found["measured"], rel=0.1)


def model_of(kind="XLMRoberta", **sizes):
    config = getattr(transformers, f"{kind}Config")(type_vocab_size=1, pad_token_id=1, **sizes)
    with torch.device("meta"):
        return getattr(transformers, f"{kind}ForSequenceClassification")(config)


BASE = {
    "vocab_size": 250_002,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
}
LARGE = {
    "vocab_size": 250_002,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
}
XL = {
    "vocab_size": 250_880,
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "intermediate_size": 10_240,
    "num_attention_heads": 32,
}


def parts_of(model, sections=None, rows=40_000, chooses=True, bf16=False, processes=1):
    recipe = make_recipe(**(sections or {}))
    return estimate_memory(
        recipe,
        build_method(recipe.pruning, recipe.regularizer),
        model,
        rows,
        chooses,
        bf16,
        processes=processes,
    )


@pytest.mark.parametrize(
    ("kind", "sizes", "parameters"),
    [("XLMRoberta", BASE, 278e6), ("XLMRoberta", LARGE, 560e6), ("XLMRobertaXL", XL, 3.48e9)],
)
def test_models_that_nobody_builds_are_estimated_by_their_configuration(kind, sizes, parameters):
    model = model_of(kind, **sizes)
    assert count_parameters(model) == pytest.approx(parameters, rel=0.01)
    found = parts_of(model)
    prunable = sizes["num_hidden_layers"] * (4 + 8) * sizes["hidden_size"] ** 2
    assert found["weights"] == 4 * count_parameters(model)
    assert found["reference"] == 4 * prunable
    assert found["masks"] == prunable
    table = sizes["hidden_size"] * (sizes["vocab_size"] - 40_000)
    assert found["optimizer"] == 8 * (count_parameters(model) - table)
    # Activations are gone when all gradients are there, and an update needs more than the choice of masks.
    spared = found["choosing masks"] + min(found["activations"], found["gradients"])
    assert found["total"] == sum(found.values()) - found["total"] - spared


def test_every_part_counts_once():
    base = model_of(**BASE)
    plain = parts_of(base, chooses=False)
    parameters, prunable = count_parameters(base), 84_934_656
    assert plain["activations"] == 4 * 8 * 12 * (20 * 256 * 768 + 3 * 12 * 256**2)
    teacher = parts_of(base, {"distillation": {"weight": 0.5}}, chooses=False)
    assert teacher["total"] - plain["total"] == teacher["teacher"] == 4 * parameters
    best = parts_of(base)
    assert best["total"] - plain["total"] == best["weights of the best epoch"] == best["gradients"]
    finetuned = parts_of(
        base, {"regularizer": {"name": "frobenius", "reference": "finetuned"}}, chooses=False
    )
    assert finetuned["total"] - plain["total"] == 4 * prunable
    platon = parts_of(base, {"pruning": {"criterion": "platon"}}, chooses=False)
    assert platon["criterion"] == 12 * prunable
    frozen = parts_of(base, {"training": {"freeze_embeddings": True}}, chooses=False)
    assert frozen["optimizer"] < plain["optimizer"]
    assert parts_of(base, rows=None)["optimizer"] == 8 * parameters


@pytest.mark.parametrize(("unlabelled", "kinds"), [(None, 1), ("text/{language}.txt", 2)])
def test_each_recorded_shape_has_gradients_of_its_own(unlabelled, kinds):
    """Texts of up to 100 tokens have 13 lengths that are multiples of 8."""
    sections = {"distillation": {"weight": 0.5, "unlabelled": unlabelled}}
    found = []
    for recorded in (False, True):
        recipe = make_recipe(training={**TRAINING, "max_length": 100, "cuda_graphs": recorded}, **sections)
        method = build_method(recipe.pruning, recipe.regularizer)
        found.append(estimate_memory(recipe, method, model_of(**BASE), 1000, on_cpu=False))
    plain, recorded = found
    assert recorded["gradients"] == 13 * kinds * plain["gradients"]
    assert recorded["total"] > plain["total"]


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "texts"),
    [(8, 1, 1, 8), (8, 1, 2, 4), (8, 2, 1, 4), (8, 2, 2, 4), (8, 4, 2, 2), (8, 1, 3, 3), (2, 1, 4, 1)],
)
def test_processes_share_the_texts_of_a_batch_and_nothing_else(batch, accumulation, processes, texts):
    base = model_of(**BASE)
    training = {"training": {"batch_size": batch, "gradient_accumulation": accumulation}}
    alone, found = parts_of(base, training), parts_of(base, training, processes=processes)
    assert found["activations"] == 4 * texts * 12 * (20 * 256 * 768 + 3 * 12 * 256**2)
    assert {**found, "activations": 0, "total": 0} == {**alone, "activations": 0, "total": 0}


@pytest.mark.parametrize(
    ("device", "said"),
    [("cpu", "GB in each of 4 processes, 12.0 GB on this host"), ("cuda:0", "on a GPU of its own")],
)
def test_the_plan_says_what_the_processes_of_a_host_need(device, said):
    assert said in "3.0 GB" + _sharing({"device": device, "host": {"processes": 4, "memory": 12e9}})
    assert _sharing({"device": device}) == ""


@pytest.mark.parametrize("criterion", ["pins", "movement", "platon", "l0", "magnitude"])
def test_updates_that_are_timed_do_not_change_what_a_checkpoint_needs(tmp_path, criterion):
    write_model(tmp_path / "model")
    write_data(tmp_path / "data")
    recipe = load_recipe(str(write_recipe(tmp_path)), [f"pruning.criterion={criterion}"])
    found = planning.plan(recipe, "cpu")
    assert min(found["seconds"]["update"]) > 0, "some were timed"
    held = found["memory"].get("criterion", 0)
    assert found["disk"]["checkpoint"] < 17 * found["parameters"] + held


def test_a_plan_under_torchrun_has_the_memory_of_its_host(tmp_path, monkeypatch):
    write_model(tmp_path / "model")
    write_data(tmp_path / "data")
    recipe = load_recipe(str(write_recipe(tmp_path)))
    assert "host" not in planning.plan(recipe, "cpu")
    for name, value in {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    found = planning.plan(recipe, "cpu")
    assert found["host"] == {"processes": 2, "memory": 2 * found["memory"]["total"]}


def test_choosing_masks_may_need_more_than_an_update():
    base = model_of(**BASE)
    small = {"training": {"batch_size": 1, "max_length": 16}}
    obert = {**small, "pruning": {"criterion": {"name": "obert", "block": 50}}}
    plain, other = parts_of(base, small), parts_of(base, obert)
    assert other["choosing masks"] >= 4 * 50 * 84_934_656
    assert other["total"] - plain["total"] > 10e9


def test_a_checkpoint_of_xlm_r_base_has_its_size():
    base, recipe = model_of(**BASE), make_recipe()
    method = build_method(recipe.pruning, recipe.regularizer)
    whole = estimate_disk(recipe, method, base, None)
    assert whole["checkpoint"] == pytest.approx(4.4e9, rel=0.02)
    assert whole["run folder"] == 4 * count_parameters(base) + 3 * whole["checkpoint"]
    assert estimate_disk(recipe, method, base, 40_000)["checkpoint"] < 2.7e9


def test_distinct_words_ignore_case_and_punctuation():
    texts = Examples("", "", ["Turn on the light.", "the LIGHT, is on"], ["Light!", "off"])
    assert distinct_words([texts]) == 6
    assert distinct_words([Examples("", "", [["The", "light"], ["the"]])]) == 2
