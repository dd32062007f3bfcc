"""`training.gradient_checkpointing`: the same run, bit for bit, with less memory."""

import pytest
import torch
from test_compiling import run_of
from test_fine_pruning import drive, examples, make_pruner, make_recipe, tiny_classifier

from xlmprune.core.errors import RecipeError
from xlmprune.models import architecture
from xlmprune.recipe.loading import recipe_of
from xlmprune.recipe.registry import CRITERIA
from xlmprune.training.loop import Step


def assert_the_same(one, other):
    for (name, mine), (_, theirs) in zip(
        one.model.named_parameters(), other.model.named_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize(
    ("criterion", "fast"), [("magnitude", False), ("pins", False), ("l0", False), ("magnitude", True)]
)
def test_a_run_is_the_same_with_layers_computed_again(criterion, fast):
    """Dropout draws the same numbers the second time, those of `fast_dropout` too."""
    assert criterion in CRITERIA
    runs = []
    for again in (False, True):
        recipe = make_recipe(
            pruning={"criterion": {"name": criterion}},
            training={"gradient_checkpointing": again, "fast_dropout": fast},
        )
        pruner = make_pruner(recipe, tiny_classifier(), examples(), dev=lambda: 50.0)
        runs.append((pruner, [event.loss for event in drive(pruner) if isinstance(event, Step)]))
    assert runs[0][1] == runs[1][1]
    assert_the_same(runs[0][0], runs[1][0])


def test_with_a_teacher_and_fewer_layers_too():
    """Hidden states, unlabelled text, dropped layers, narrower layers."""
    (one, events), (other, others) = (
        run_of(False, training={"gradient_checkpointing": again}) for again in (False, True)
    )
    assert [e.loss for e in events if isinstance(e, Step)] == [e.loss for e in others if isinstance(e, Step)]
    assert_the_same(one, other)


def test_less_is_kept_and_the_layers_are_plain_afterwards():
    """Counts the bytes that autograd keeps for a backward pass."""
    kept = {}
    for again in (False, True):
        recipe = make_recipe(training={"gradient_checkpointing": again})
        pruner = make_pruner(recipe, tiny_classifier(num_hidden_layers=6), examples())
        sizes = {}
        pack = lambda tensor: sizes.setdefault(id(tensor), tensor.numel()) and tensor  # noqa: B023, E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            pruner.gradients.add(0, False)
        kept[again] = sum(sizes.values())
        layers = architecture.of(pruner.model).layers(pruner.model)
        assert not any("forward" in layer.module.__dict__ for layer in layers)
    assert kept[True] < kept[False]


@pytest.mark.parametrize("other", ["compile", "cuda_graphs"])
def test_what_excludes_it_is_named(other):
    with pytest.raises(RecipeError, match=f"leave {other} or gradient_checkpointing out"):
        recipe_of("quickstart", {"training": {"gradient_checkpointing": True, other: True}})
