"""`training.cuda_graphs` without a GPU: where it is refused, and what it asks of a batch. `test_gpu.py` runs the graphs."""

import numpy as np
import pytest
import torch
from test_fine_pruning import examples, tiny_classifier
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.core import processes
from xlmprune.core.errors import MachineError, RecipeError
from xlmprune.data.encoding import IGNORE, pad
from xlmprune.recipe.loading import recipe_of
from xlmprune.recipe.schema import TrainingRecipe
from xlmprune.training import tracking
from xlmprune.training.conditions import changes, require_possible
from xlmprune.training.graphs import BatchGraphs
from xlmprune.training.optimizer import clip, new_optimizer, step_if_finite


def test_a_cpu_is_refused():
    with pytest.raises(MachineError, match=r"training\.cuda_graphs needs a GPU, and this run uses the CPU"):
        BatchGraphs(torch.device("cpu")).add("kind", [], {}, lambda batch: batch)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "launched", lambda: 2)
    with pytest.raises(MachineError, match="one process only"):
        BatchGraphs(torch.device("cuda")).add("kind", [], {}, lambda batch: batch)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("training.cuda_graphs=true", "training.cuda_graphs needs a GPU, and this run uses the CPU"),
        ("training.report_to=[mlflow]", "needs the package mlflow, which is not installed"),
    ],
)
def test_a_plan_is_refused_where_the_run_would_be_and_both_at_once(tmp_path, monkeypatch, setting, said):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    told = []
    for options in (["--dry-run"], ["--out", str(tmp_path / "run")]):
        result = CliRunner().invoke(
            app, ["compress", "quickstart", "--device", "cpu", "--set", setting, *options]
        )
        assert result.exit_code == 2, result.output
        told.append(result.stderr.splitlines()[-1])
        assert "reading quickstart" not in result.stderr
    assert told[0] == told[1]
    assert said in told[0]


def test_a_plan_needs_the_workspace_under_which_results_repeat(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    settings = TrainingRecipe(deterministic=True)
    require_possible(torch.device("cpu"), settings)
    with pytest.raises(MachineError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0: training\.deterministic needs"):
        require_possible(torch.device("cuda"), settings)


@pytest.mark.parametrize(
    ("name", "training", "said"),
    [
        ("quickstart", {"gradient_accumulation": 2}, "micro-batches have shares that a graph cannot change"),
        ("quickstart_dynamic", {}, "every size of the model in an update would be recorded anew"),
    ],
)
def test_what_a_graph_cannot_record_is_refused_in_the_recipe(name, training, said):
    with pytest.raises(RecipeError, match=rf"training\.cuda_graphs=true: {said}"):
        recipe_of(name, {"training": {"cuda_graphs": True, **training}})


def test_graphs_are_a_condition_that_a_resumed_run_must_keep():
    assert changes({"cuda_graphs": False}, {"processes": 1, "compile": False, "cuda_graphs": True}) == {
        "cuda_graphs": (False, True)
    }


@pytest.mark.parametrize("tokens", [False, True])
def test_a_batch_is_padded_to_a_multiple(tokens):
    texts = examples(tokens=tokens)
    plain, padded = pad(texts, range(5)), pad(texts, range(5), multiple=8)
    longest = plain["input_ids"].shape[1]
    assert padded["input_ids"].shape[1] == -(-longest // 8) * 8 > longest
    assert (padded["input_ids"][:, longest:] == texts.special.pad).all()
    assert not padded["attention_mask"][:, longest:].any()
    for name, array in plain.items():
        same = padded[name] if array.ndim == 1 else padded[name][:, :longest]
        assert np.array_equal(same, array)
    if tokens:
        assert (padded["labels"][:, longest:] == IGNORE).all()


@pytest.mark.parametrize("numbers", [[1.0, 2.0], [float("inf"), 1.0], [1.0, float("nan")]])
def test_a_step_changes_nothing_where_a_number_is_not_finite(numbers):
    model = tiny_classifier()
    optimizer = new_optimizer(model, TrainingRecipe(learning_rate=0.1))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    step_if_finite(optimizer, torch.tensor(numbers, dtype=torch.float64))
    clip(model, 1.0, torch.tensor(numbers[1], dtype=torch.float64), optimizer)
    optimizer.step()
    same = [torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert not any(same) if np.isfinite(numbers).all() else all(same)
