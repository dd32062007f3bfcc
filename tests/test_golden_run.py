"""A tiny run through the whole command: masks and counts are pinned exactly, losses within a tolerance.

The numbers come from `python tests/golden.py --runs cosine`. New ones are justified only by a change that is meant to alter
training or selection; the commit then says which and why.
"""

import hashlib
import json

import golden
import numpy as np
import pytest

import xlmprune

LOSSES = [1.6903, 2.3905, 1.5558, 1.4562]
REMAINING = 1408
"""round(256 x 0.7^3) of each attention matrix and round(512 x 0.7^3) of each of the others, in two layers."""
MASKS = "3c536477072ed64da773fdeaa2307cb6876e959792311ca3e0ef5226d1f42529"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    golden.write_inputs(folder)
    return golden.run_here(folder, "cosine")


def test_losses_of_every_stage(finished):
    report = json.loads((finished / "bundle" / "report.json").read_text(encoding="utf-8"))
    assert [stage["loss"] for stage in report["stages"]] == pytest.approx(LOSSES, rel=2e-3)


def test_masks_are_exactly_those(finished):
    model = xlmprune.load(finished / "bundle")
    masks = {
        name: weight.numpy() != 0
        for name, weight in model.state_dict().items()
        if ".encoder." in name and weight.ndim == 2
    }
    assert sum(int(mask.sum()) for mask in masks.values()) == REMAINING
    digest = hashlib.sha256(b"".join(np.packbits(masks[name]).tobytes() for name in sorted(masks)))
    assert digest.hexdigest() == MASKS
