"""`training.fast_dropout`: the same chances from other random numbers."""

import pytest
import torch
from test_compiling import run_of
from test_fine_pruning import examples, make_pruner, make_recipe, tiny_classifier
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from xlmprune.core.errors import RecipeError
from xlmprune.recipe.loading import recipe_of
from xlmprune.training.dropout import FastDropout, attention, fast_dropout
from xlmprune.training.loop import Step

COUNT = 400_000


def within_five_sigma(kept, expected):
    """Whether a share of independent events is what chance allows; 5 sigma fail once in two million tests."""
    sigma = (expected * (1 - expected) / kept.numel()) ** 0.5
    return abs(float(kept.double().mean()) - expected) <= 5 * sigma + 1e-12


@pytest.mark.parametrize("chance", [0.5, 0.1, 0.25, 0.9, 1 / 65_536])
def test_each_number_is_dropped_with_the_chance_and_the_mean_stays(chance):
    torch.manual_seed(3)
    found = fast_dropout(torch.ones(COUNT), chance)
    kept = found != 0
    assert within_five_sigma(kept, 1 - chance)
    for lane in range(4):  # four numbers share a random word
        assert within_five_sigma(kept[lane::4], 1 - chance)
    exact = round(chance * 65_536) / 65_536
    assert torch.allclose(found[kept], torch.tensor(1 / (1 - exact)))
    assert exact == pytest.approx(chance, abs=1 / 131_072)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(4)
    dropped = fast_dropout(torch.ones(COUNT), 0.3) == 0
    for distance in range(1, 9):
        both = dropped[:-distance] & dropped[distance:]
        assert within_five_sigma(both[:: distance + 1], 0.09)


def test_nothing_is_dropped_at_a_chance_of_zero():
    values = torch.randn(5, 7)
    assert torch.equal(fast_dropout(values, 0.0), values)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (4, 3, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shape_and_type_stay_and_the_gradient_has_the_same_mask(shape, dtype):
    values = torch.randn(shape).to(dtype).requires_grad_()
    torch.manual_seed(1)
    found = fast_dropout(values, 0.5)
    assert (found.shape, found.dtype) == (values.shape, dtype)
    found.sum().backward()
    assert torch.equal(values.grad, torch.where(found == 0, 0.0, 2.0).to(dtype))
    torch.manual_seed(1)
    assert torch.equal(fast_dropout(values, 0.5), found)


@pytest.mark.parametrize("mask", [None, "boolean", "additive"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_without_a_drop_is_that_of_pytorch(mask, scale):
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    allowed = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    allowed[1, :, :, 3:] = False
    given = {None: None, "boolean": allowed, "additive": torch.zeros(2, 1, 5, 5).masked_fill(~allowed, -1e9)}
    found = attention(query, key, value, given[mask], 0.0, scale=scale)
    exact = functional.scaled_dot_product_attention(query, key, value, given[mask], scale=scale)
    assert torch.allclose(found, exact, atol=1e-6)
    with pytest.raises(ValueError, match="both directions"):
        attention(query, key, value, is_causal=True)


class Drawn(TorchDispatchMode):
    """Note which functions draw random numbers."""

    def __init__(self):
        super().__init__()
        self.functions = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("bernoulli", "bernoulli_", "native_dropout", "random_", "rand", "rand_like"):
            self.functions.add(name)
        return function(*args, **(kwargs or {}))


def test_every_dropout_of_an_encoder_is_drawn_anew():
    """Hidden states, attention and head; none is left to PyTorch."""
    model, ids = tiny_classifier(), torch.randint(4, 50, (4, 6))
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with FastDropout(), Drawn() as drawn:
            assert torch.equal(model(input_ids=ids).logits, plain), (
                "a model that does not train drops nothing"
            )
            assert not drawn.functions
            model.train()
            trained = model(input_ids=ids).logits
    assert drawn.functions == {"random_"}
    assert not torch.equal(trained, plain)


def test_updates_draw_with_it_and_scores_for_pruning_do_not():
    pruner = make_pruner(make_recipe(training={"fast_dropout": True}), tiny_classifier().train(), examples())
    with Drawn() as drawn:
        pruner.gradients.add(0, False)
    assert drawn.functions == {"random_"}
    with Drawn() as drawn:
        next(pruner.gradients.of_cross_entropy(1, 0))
    assert not drawn.functions


def test_a_run_resumes_and_learns():
    fast = {"training": {"fast_dropout": True}}
    (whole, events), (resumed, others) = run_of(False, **fast), run_of(False, interrupted=5, **fast)
    for mine, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    losses = [event.loss for event in events if isinstance(event, Step)]
    assert losses == [event.loss for event in others if isinstance(event, Step)]
    plain = [event.loss for event in run_of(False)[1] if isinstance(event, Step)]
    assert losses != plain
    assert losses == pytest.approx(plain, rel=0.2), "other numbers of the same kind"


def test_compiled_layers_exclude_it():
    with pytest.raises(RecipeError, match="leave compile or fast_dropout out"):
        recipe_of("quickstart", {"training": {"compile": True, "fast_dropout": True}})
