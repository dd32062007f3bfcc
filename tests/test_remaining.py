"""How much of a run is still to come, in updates of the present stage: worked out by hand."""

import numpy as np
import pytest
from test_timing import STRUCTURED, recipe
from tiny import tiny_model

from xlmprune.data.encoding import Encoded
from xlmprune.training.method import build_method
from xlmprune.training.remaining import remaining, shares_left
from xlmprune.training.timing import SPECIAL


def texts(count, tokens):
    ids = [np.zeros(tokens, dtype=np.int64)] * count
    return Encoded(ids, None, None, np.zeros(count, dtype=bool), special=SPECIAL)


def test_single_weights_do_not_change_the_time_of_an_update():
    settings = recipe(evaluation={"max_stage_examples": 30}, export={"onnx": ["fp32", "int8"]})
    found = remaining(settings, [1.0], [100, 50, 50], texts(50, 10), None, [texts(60, 20), texts(120, 20)])
    # An update passes 4 texts of 10 tokens forward and back: 120. 180 test texts of 20 tokens: 3,600 a time, 30 of each
    # language: 1,200. After stage 0 all, after stage 1 the sample, at the end all in PyTorch and in two ONNX forms.
    assert found.after(0) == pytest.approx(100 + (3600 + 1200 + 3 * 3600) / 120)
    assert found.after(1) == pytest.approx(50 + (1200 + 3 * 3600) / 120)
    assert found.after(2) == pytest.approx(3 * 3600 / 120)


def test_a_smaller_model_is_faster_and_a_teacher_takes_time():
    settings = recipe(pruning=STRUCTURED, distillation={"unlabelled": "x/{language}"}, export={"onnx": []})
    found = remaining(settings, [1.0, 0.25], [10, 10], texts(50, 10), texts(90, 20), [texts(0, 1)])
    # Four labelled texts of 10 tokens and four others of 20: forward and back in a quarter, forward in the teacher.
    assert found.after(0) == pytest.approx(10 * 120 * (3 * 0.25 + 1) / 120)
    sizes = recipe(pruning={**STRUCTURED, "structure": {**STRUCTURED["structure"], "smallest": 0.5}})
    found = remaining(sizes, [1.0, 0.5], [10, 10], texts(50, 10), None, [texts(0, 1)])
    assert found.after(0) == pytest.approx(10), "half of a model, twice"


def test_the_shares_are_those_that_structures_leave():
    config = tiny_model().config
    settings = recipe(pruning=STRUCTURED)
    assert shares_left(config, "text", build_method(settings.pruning, settings.regularizer)) == [1.0, 0.5]
    assert shares_left(config, "text", build_method(recipe().pruning, recipe().regularizer)) == [1.0]
