"""The compact table of word embeddings: the same run bit for bit, with all rows wherever anyone looks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from slow import slow_but
from test_fine_pruning import examples, make_pruner, make_recipe, tiny_classifier
from torch.nn import functional

from xlmprune.training import loop
from xlmprune.training.loop import Step
from xlmprune.training.table import CompactTable, compact_table


def run(monkeypatch, compact, **training):
    """A run's losses and parameters, and its loop, with the compact table or without."""
    if not compact:
        monkeypatch.setattr(loop, "compact_table", lambda model, texts: None)
    pruner = make_pruner(make_recipe(training=training), tiny_classifier(vocab_size=90), examples())
    losses = [event.loss for event in pruner.run() if isinstance(event, Step)]
    monkeypatch.undo()
    return losses, {name: p.detach() for name, p in pruner.model.named_parameters()}, pruner


@pytest.mark.parametrize("clip", slow_but([1.0], [None, 1.0, 1e-2]))
def test_a_run_is_the_same_bit_for_bit(monkeypatch, clip):
    plain, expected, _ = run(monkeypatch, False, precision="fp32", gradient_clip=clip)
    losses, found, pruner = run(monkeypatch, True, precision="fp32", gradient_clip=clip)
    assert len(pruner.state.table.rows) < 60  # else this test shows nothing
    assert losses == plain
    for name, parameter in expected.items():
        assert torch.equal(found[name], parameter), name


def test_rows_that_do_not_occur_stay_as_they_were(monkeypatch):
    before = tiny_classifier(vocab_size=90).get_input_embeddings().weight.detach().clone()
    _, _, pruner = run(monkeypatch, True, precision="fp32")
    after = pruner.model.get_input_embeddings().weight.detach()
    rows = pruner.state.table.rows
    others = np.setdiff1d(np.arange(90), rows.numpy())
    assert torch.equal(after[others], before[others])
    assert not torch.equal(after[rows], before[rows])


def test_a_checkpoint_has_all_rows_and_a_resumed_run_is_the_same():
    recipe = make_recipe(training={"precision": "fp32"})
    whole = make_pruner(recipe, tiny_classifier(vocab_size=90), examples())
    expected = [event.loss for event in whole.run() if isinstance(event, Step)]
    first = make_pruner(recipe, tiny_classifier(vocab_size=90), examples())
    events = first.run()
    losses = [next(events).loss for _ in range(4)]
    tensors = {  # copies
        file: {name: tensor.detach().clone() for name, tensor in part.items()}
        for file, part in first.state.tensors().items()
    }
    name = next(name for name in tensors["model"] if "word_embeddings" in name)
    assert len(tensors["model"][name]) == 90
    assert len(tensors["optimizer"][f"exp_avg|{name}"]) == len(first.state.table.rows)
    second = make_pruner(recipe, tiny_classifier(vocab_size=90), examples())
    second.state.restore(tensors, first.state.progress(), recipe.training)
    losses += [event.loss for event in second.run() if isinstance(event, Step)]
    assert losses == expected
    for (name, parameter), (_, other) in zip(whole.model.named_parameters(), second.model.named_parameters()):
        assert torch.equal(parameter, other), name


def test_shrinking_and_expanding_lose_nothing():
    model = tiny_classifier(vocab_size=90)
    whole = model.get_input_embeddings()
    table = CompactTable(model, torch.tensor([0, 1, 2, 7, 80]))
    table.shrink()
    ids = torch.tensor([[0, 7, 80, 2, 1]])
    assert torch.equal(model.get_input_embeddings()(ids), functional.embedding(ids, whole.weight))
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1.0)
    expected = whole.weight.detach().clone()
    expected[table.rows] += 1.0
    table.expand()
    assert model.get_input_embeddings() is whole
    assert torch.equal(whole.weight, expected)
    table.shrink()
    with pytest.raises(IndexError):
        model.get_input_embeddings()(torch.tensor([3]))


def test_frozen_embeddings_have_no_compact_table():
    model = tiny_classifier(vocab_size=90)
    model.get_input_embeddings().weight.requires_grad_(False)
    assert compact_table(model, [examples()]) is None
