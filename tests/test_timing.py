"""How long a run takes, estimated by a few updates of its own loop."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from slow import slow_after
from tiny import tiny_model

from xlmprune.core.progress import Reporter
from xlmprune.data.examples import Examples
from xlmprune.recipe.schema import Recipe
from xlmprune.training import timing
from xlmprune.training.datasets import Texts
from xlmprune.training.method import build_method

CPU = torch.device("cpu")
WORDS = ["schalte", "das", "Licht", "in", "der", "Küche", "ein"]


def texts(kind="text", unlabelled=True):
    def examples(language, split, count):
        first = [" ".join(WORDS[: 1 + row % len(WORDS)]) for row in range(count)]
        labels = [row % 3 for row in range(count)]
        if kind == "tokens":
            first = [text.split() for text in first]
            labels = [[0] * len(words) for words in first]
        second = first if kind == "pair" else None
        return Examples(language, split, first, second, labels)

    task = SimpleNamespace(kind=kind, labels=("a", "b", "c"))
    tests = {language: examples(language, "test", 20) for language in ("en", "de")}
    plain = {"de": replace(examples("de", "train", 30), labels=None)} if unlabelled and kind == "text" else {}
    return Texts(task, examples("en", "train", 50), examples("en", "dev", 10), tests, plain)


def recipe(**sections):
    values = {"name": "x", "task": {"name": "classification", "source": "files", "path": "x"}}
    training = {"batch_size": 4, "max_length": 16, "epochs_per_stage": 1, "learning_rate": 1e-3}
    return Recipe.model_validate({**values, "training": training, "regularizer": "none", **sections})


def estimate(settings, read, stages=(13, 13), memory=1):
    method = build_method(settings.pruning, settings.regularizer)
    return timing.estimate_duration(settings, method, tiny_model().config, read, stages, 40, CPU, memory)


STRUCTURED = {
    "pattern": "structured",
    "structure": {"heads": 0.5, "neurons": 0.5, "multiple": 1},
    "reconstruct": {},
}


@pytest.mark.parametrize(
    ("kind", "pruning"),
    [
        ("text", {"criterion": "pins"}),
        ("pair", STRUCTURED),
        *slow_after(0, [("tokens", STRUCTURED), ("tokens", {"criterion": "obert"})]),
    ],
)
def test_updates_of_every_kind_of_run_are_timed(kind, pruning):
    found = estimate(recipe(pruning=pruning), texts(kind), stages=(13, 13, 13))
    assert len(found.updates) == 3
    assert found.updates[1] == found.updates[2] > 0
    assert found.training == pytest.approx(13 * sum(found.updates))
    assert found.measuring > 0


def test_a_teacher_and_its_text_take_time():
    pruning = {"pattern": "structured", "structure": {"layers": 1}}
    found = estimate(
        recipe(pruning=pruning, distillation={"unlabelled": "x/{language}", "hidden": 1}), texts()
    )
    assert all(seconds > 0 for seconds in found.updates)


def test_a_stage_without_updates_takes_no_time():
    training = {"epochs_per_stage": 0, "dense_epochs": 1, "batch_size": 4, "max_length": 16}
    found = estimate(recipe(pruning=STRUCTURED, training=training), texts(), stages=(13, 0))
    assert found.updates[0] > 0
    assert found.training == pytest.approx(13 * found.updates[0])


def test_timing_is_not_silent():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    method = build_method(recipe().pruning, recipe().regularizer)
    with Reporter(console) as reporter:
        timing.estimate_duration(
            recipe(), method, tiny_model().config, texts(), (13, 13), 40, CPU, 1, reporter
        )
    assert "timing a few updates with random weights" in console.file.getvalue()
    assert "timing updates" in console.file.getvalue()


def test_nothing_is_timed_without_memory():
    assert estimate(recipe(), texts(), memory=10**15) is None


def test_texts_are_counted_as_often_as_they_are_scored():
    sizes = [20, 20]
    settings = recipe(
        evaluation={"stage_interval": 2, "max_stage_examples": 5}, export={"onnx": ["fp32", "int8"]}
    )
    # Dense, pruned, fp32 and INT8 on 40 texts, and after stages 2 and 4 of 6 on 5 texts of two languages.
    assert timing.texts_measured(settings, sizes, 7) == 4 * 40 + 2 * 10
    assert timing.texts_measured(recipe(export={"onnx": []}), sizes, 2) == 2 * 40


def test_invented_texts_have_the_lengths_of_real_ones():
    part = Examples("en", "train", ["x" * 50, "", "x" * 1000], None, [0, 1, 2])
    found = timing._invented([part], 32, 10, 3, "text", np.random.default_rng(0))
    assert [len(ids) for ids in found.input_ids] == [16, 3, 32]
    assert max(ids.max() for ids in found.input_ids) < 14
    assert set(found.labels) <= {0, 1, 2}
