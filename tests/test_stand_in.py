"""The loop on a stand-in for a GPU: no operation mixes devices, and an update waits for the device once."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from slow import slow_but
from stand_in import StandIn
from test_fine_pruning import examples, make_pruner, make_recipe, tiny_classifier
from torch.optim import AdamW

from xlmprune.recipe.registry import CRITERIA, REGULARIZERS
from xlmprune.training.gradients import Gradients

FORWARD = 1
"""Reads of a forward pass: transformers looks whether an attention mask hides anything."""


class PlainAdamW(AdamW):
    """AdamW without its fused kernel, which the stand-in does not have."""

    grad_scale = found_inf = None

    def __init__(self, groups, fused, **settings):
        super().__init__(groups, **settings)

    def step(self):
        for name in ("grad_scale", "found_inf"):
            assert getattr(self, name) is None or getattr(self, name).is_meta
            setattr(self, name, None)
        super().step()


@pytest.fixture
def updates(monkeypatch):
    """Make updates in stage 0 and in stage 1 on the stand-in; return the reads of each."""
    monkeypatch.setattr("torch.optim.AdamW", PlainAdamW)
    monkeypatch.setattr(Gradients, "_autocast", lambda self: nullcontext())

    def run(count=2, value=1.0, **sections):
        model = tiny_classifier().to("meta")
        with StandIn(value) as device:
            pruner = make_pruner(make_recipe(**sections), model, examples())
            reads = []
            for _ in range(2):
                pruner.state.begin_stage(pruner.settings)
                for _ in range(count):
                    before = device.reads
                    pruner._update(6)
                    reads.append(device.reads - before)
                pruner.state.end_stage()
        return reads

    return run


@pytest.mark.parametrize("name", slow_but(["cosine"], REGULARIZERS))
def test_an_update_waits_for_the_device_once(updates, name):
    assert updates(regularizer=name, training={"regularize_dense": True}) == [FORWARD + 1] * 4


@pytest.mark.parametrize("parts", slow_but([2], [2, 4]))
def test_micro_batches_do_not_wait_for_one_another(updates, parts):
    assert updates(training={"gradient_accumulation": parts}) == [parts * FORWARD + 1] * 4


@pytest.mark.parametrize(
    "name",
    slow_but(["lookahead"], [name for name in CRITERIA if name not in ("l0", "movement", "pins", "platon")]),
)
def test_no_criterion_mixes_devices_or_waits(updates, name):
    assert updates(pruning={"criterion": name}) == [FORWARD + 1] * 4


@pytest.mark.parametrize("limit", slow_but([0.5], [None, 0.5, 2.0]))
def test_clipping_leaves_its_factor_on_the_device(updates, limit):
    assert updates(training={"gradient_clip": limit}) == [FORWARD + 1] * 4


def test_the_stand_in_refuses_to_mix_devices():
    with StandIn(), pytest.raises(RuntimeError, match="mixes devices"):
        torch.ones(2, 3, device="meta") @ torch.ones(3, 2)
    with StandIn() as device:
        found = torch.ones(2, 3, device="meta") * torch.tensor(2.0)  # numbers may come from the CPU
        assert found.is_meta
        assert device.reads == 0
        assert float(found.sum()) == 1.0
        assert found.cpu().tolist() == [[1.0] * 3] * 2
        assert device.reads == 2


def test_a_batch_that_stays_on_the_cpu_is_found(updates, monkeypatch):
    """What the test above would find in the loop."""
    kept = lambda self, batch: {key: torch.from_numpy(value) for key, value in batch.items()}  # noqa: E731
    monkeypatch.setattr(Gradients, "_to_device", kept)
    with pytest.raises(RuntimeError, match="device"):
        updates()
