"""The loop: exact counts, dead weights stay dead, and a run taken up again is the same run."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from slow import slow_but
from tiny import tiny_special
from tiny_run import merged
from transformers import (
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
)

from xlmprune.core.errors import ModelError, TrainingError
from xlmprune.data.encoding import IGNORE, Encoded
from xlmprune.models.loading import prunable
from xlmprune.pruning.masks import density
from xlmprune.pruning.moments import input_moments, text_batches, to_device
from xlmprune.pruning.regularizers.cosine import alignment
from xlmprune.recipe.registry import CRITERIA, REGULARIZERS
from xlmprune.recipe.registry import load as load_component
from xlmprune.recipe.schema import DistillationRecipe, PruningRecipe, Recipe
from xlmprune.recipe.validation import build_component
from xlmprune.training.gradients import cross_entropy
from xlmprune.training.loop import FinePruning, StageEnd, Step
from xlmprune.training.method import build_method
from xlmprune.training.optimizer import learning_rate, updates_in_stage
from xlmprune.training.teaching import Teaching

LABELS = 3


def tiny_config(**changes):
    settings = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 34,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "num_labels": LABELS,
    }
    return XLMRobertaConfig(**{**settings, **changes})


def tiny_classifier(**changes):
    torch.manual_seed(0)
    return XLMRobertaForSequenceClassification(tiny_config(**changes)).eval()


def examples(count=24, tokens=False, seed=0):
    random = np.random.default_rng(seed)
    ids = [
        np.concatenate([[0], random.integers(4, 50, random.integers(3, 9)), [2]]).astype(np.int64)
        for _ in range(count)
    ]
    if not tokens:
        labels = np.array([row[1] % LABELS for row in ids], dtype=np.int64)
        return Encoded(ids, labels, None, np.zeros(count, dtype=bool), special=tiny_special())
    labels = [np.where(np.arange(len(row)) % 2 == 1, row % LABELS, IGNORE) for row in ids]
    return Encoded(
        ids,
        labels,
        [np.arange(1, len(row), 2) for row in ids],
        np.zeros(count, dtype=bool),
        special=tiny_special(),
    )


def make_recipe(**sections):
    values = {
        "name": "tiny",
        "task": {"name": "classification", "source": "files", "path": "{language}.{split}.tsv"},
        "training": {"epochs_per_stage": 2, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32"},
        "pruning": {"schedule": {"name": "geometric", "step_fraction": 0.3, "stages": 3}},
    }
    return Recipe.model_validate(merged(values, sections))


def make_pruner(recipe, model, train, dev=None, teaching=None):
    method = build_method(recipe.pruning, recipe.regularizer)
    device = next(model.parameters()).device
    text = text_batches({"en": train}, 20, batch_size=8) if method.moment_uses else ()
    text = [to_device(batch, device) for batch in text]
    return FinePruning(model, train, method, recipe.training, recipe.seed, dev, teaching, moment_text=text)


def restore(pruner, tensors, progress):
    pruner.state.restore(tensors, progress, pruner.settings)


def drive(pruner, stop_after=None):
    events = []
    for event in pruner.run():
        events.append(event)
        if stop_after is not None and len(events) == stop_after:
            break
    return events


def test_story_of_a_run():
    model = tiny_classifier()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    pruner = make_pruner(make_recipe(), model, examples())
    events, masks_before = [], None
    for event in pruner.run():
        events.append(event)
        for name, weight in prunable(model).items():
            assert not weight[~pruner.state.masks[name]].any()
        if isinstance(event, StageEnd):
            if masks_before is not None:
                for name, mask in pruner.state.masks.items():
                    assert not (mask & ~masks_before[name]).any(), "masks are nested"
            masks_before = pruner.state.masks
    ends = [event for event in events if isinstance(event, StageEnd)]
    assert [end.stage for end in ends] == [0, 1, 2, 3]
    for k, end in enumerate(ends):
        exact = sum(round(w.numel() * 0.7**k) for w in pruner.state.weights.values())
        assert end.density == pytest.approx(exact / sum(w.numel() for w in pruner.state.weights.values()))
    assert sum(isinstance(event, Step) for event in events) == 4 * 6
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, start[name]), f"{name} was trained"
        if name not in pruner.state.weights:
            assert not ((parameter == 0) & (start[name] != 0)).any(), f"{name} was not pruned"


def test_training_learns_the_task():
    model = tiny_classifier(initializer_range=0.3)
    recipe = make_recipe(
        training={"epochs_per_stage": 50, "learning_rate": 2e-2, "regularize_dense": True},
        pruning={"schedule": {"name": "geometric", "stages": 1}},
    )
    ends = [event for event in drive(make_pruner(recipe, model, examples())) if isinstance(event, StageEnd)]
    assert ends[0].loss < 0.2
    assert ends[1].loss < 0.2


@pytest.mark.parametrize("stop_after", slow_but([7], [1, 5, 6, 7, 8, 12, 20]))
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"regularizer": {"name": "frobenius", "strength": 0.1, "reference": "finetuned"}},
        {
            "pruning": {"criterion": {"name": "magnitude"}, "scope": "global"},
            "training": {"weight_decay": 0.01},
        },
        {"pruning": {"reconstruct": {"texts": 20, "correct_drift": True}, "pattern": "2:4"}},
        pytest.param(
            {"pruning": {"reconstruct": {}, "criterion": "obert", "scope": "global"}}, marks=pytest.mark.slow
        ),
    ],
    ids=["cosine", "frobenius to finetuned", "global with decay", "2:4 refitted", "global refitted"],
)
def test_a_run_taken_up_again_is_the_same_run(sections, stop_after):
    recipe = make_recipe(**sections)
    scores = iter(range(1000))
    unbroken = make_pruner(recipe, tiny_classifier(), examples(), lambda: float(next(scores)))
    drive(unbroken)
    scores = iter(range(1000))
    first = make_pruner(recipe, tiny_classifier(), examples(), lambda: float(next(scores)))
    drive(first, stop_after)
    tensors = {
        file: {k: v.detach().clone() for k, v in entries.items()}
        for file, entries in first.state.tensors().items()
    }
    second = make_pruner(recipe, tiny_classifier(), examples(), lambda: float(next(scores)))
    restore(second, tensors, first.state.progress())
    drive(second)
    for name, parameter in unbroken.model.named_parameters():
        assert torch.equal(parameter, dict(second.model.named_parameters())[name]), name
    for name, mask in unbroken.state.masks.items():
        assert torch.equal(mask, second.state.masks[name])


@pytest.mark.parametrize("stop_after", slow_but([8], [8, 14]))
@pytest.mark.parametrize(
    "name",
    slow_but(
        ["random", "gradient", "l0", "pins", "obert", "sparsegpt"],
        [name for name in CRITERIA if name != "magnitude"],
    ),
)
def test_every_criterion_resumes_exactly(name, stop_after):
    fewer = {"batches": 8} if name == "obert" else {}
    recipe = make_recipe(
        pruning={
            "criterion": {"name": name, **fewer},
            "schedule": {"name": "geometric", "step_fraction": 0.3, "stages": 2},
        }
    )
    unbroken = make_pruner(recipe, tiny_classifier(), examples(), lambda: 50.0)
    drive(unbroken)
    first = make_pruner(recipe, tiny_classifier(), examples(), lambda: 50.0)
    drive(first, stop_after)
    tensors = {
        file: {k: v.detach().clone() for k, v in entries.items()}
        for file, entries in first.state.tensors().items()
    }
    second = make_pruner(recipe, tiny_classifier(), examples(), lambda: 50.0)
    restore(second, tensors, json.loads(json.dumps(first.state.progress())))
    drive(second)
    for parameter_name, parameter in unbroken.model.named_parameters():
        assert torch.equal(parameter, dict(second.model.named_parameters())[parameter_name]), parameter_name
    assert density(second.state.masks) == pytest.approx(0.49, abs=2e-3)
    for weight_name, weight in second.state.weights.items():
        assert not weight[~second.state.masks[weight_name]].any()


@pytest.mark.parametrize("stop_after", slow_but([9], [7, 9]))
@pytest.mark.parametrize(
    ("teacher", "tokens"),
    [
        ("finetuned", True),
        ("best_so_far", False),
        pytest.param("finetuned", False, marks=pytest.mark.slow),
        pytest.param("best_so_far", True, marks=pytest.mark.slow),
    ],
)
def test_with_a_teacher_too_a_resumed_run_is_the_same_run(teacher, tokens, stop_after):
    recipe = make_recipe(training={"gradient_accumulation": 2})
    settings = DistillationRecipe(teacher=teacher, hidden=0.1)

    def start():
        scores = iter([50.0, 40.0, 60.0, 55.0, 70.0, 80.0, 30.0, 20.0])
        torch.manual_seed(0)
        kind = XLMRobertaForTokenClassification if tokens else XLMRobertaForSequenceClassification
        plain = examples(20, tokens=tokens, seed=1)
        teaching = Teaching(
            settings,
            Encoded(plain.input_ids, None, plain.words, plain.truncated, special=tiny_special()),
            8,
            recipe.seed,
        )
        dev = lambda: next(scores)  # noqa: E731
        return make_pruner(recipe, kind(tiny_config()), examples(tokens=tokens), dev, teaching), scores

    unbroken, _ = start()
    drive(unbroken)
    first, used = start()
    drive(first, stop_after)
    tensors = {
        file: {k: v.detach().clone() for k, v in entries.items()}
        for file, entries in first.state.tensors().items()
    }
    second, scores = start()
    restore(second, tensors, json.loads(json.dumps(first.state.progress())))
    for _ in range(8 - len(list(used))):
        next(scores)
    drive(second)
    for name, parameter in unbroken.model.named_parameters():
        assert torch.equal(parameter, dict(second.model.named_parameters())[name]), name


@pytest.mark.parametrize(
    "pruning",
    [
        {"criterion": "magnitude"},
        {"criterion": "pins", "scope": "global"},
        {"criterion": "wanda", "pattern": "2:4"},
        {"criterion": {"name": "obert", "batches": 3}},
    ],
    ids=["magnitude", "pins, global", "wanda, 2:4", "obert"],
)
def test_the_refit_keeps_the_masks_and_brings_outputs_nearer_to_those_before(pruning):
    """Outputs of every matrix on its own inputs, measured before the stage; masks are those without the refit."""

    def pruned(**more):
        recipe = make_recipe(
            pruning={**pruning, **more, "schedule": {"name": "geometric", "step_fraction": 0.5, "stages": 1}},
            training={"learning_rate": 1e-2},
        )
        pruner = make_pruner(recipe, tiny_classifier(initializer_range=0.3), examples())
        drive(pruner, stop_after=7)  # six updates, and the end of stage 0
        before = {name: weight.detach().clone() for name, weight in pruner.state.weights.items()}
        text = text_batches({"en": examples()}, 20, batch_size=8)
        moments = input_moments(pruner.model.eval(), before, text)
        pruner.pruner.before_stage(6)
        lost = 0.0
        for name, weight in pruner.state.weights.items():
            change = (weight.detach() - before[name]).double()
            lost += float((change @ moments[name].double() * change).sum())
            assert not weight[~pruner.state.masks[name]].any()
        return pruner.state.masks, lost

    masks, lost = pruned()
    kept, less = pruned(reconstruct={"ridge": 1e-3})
    assert all(torch.equal(mask, kept[name]) for name, mask in masks.items())
    assert less < 0.8 * lost


def test_correcting_drift_follows_the_model_of_the_stage_before():
    def pruned(**reconstruct):
        recipe = make_recipe(
            pruning={
                "reconstruct": reconstruct,
                "schedule": {"name": "geometric", "step_fraction": 0.5, "stages": 1},
            },
            training={"learning_rate": 1e-2},
        )
        pruner = make_pruner(recipe, tiny_classifier(initializer_range=0.3), examples())
        drive(pruner, stop_after=7)
        before = copy.deepcopy(pruner.model).eval()
        pruner.pruner.before_stage(6)
        batch = text_batches({"en": examples()}, 20, batch_size=20)[0]
        given = {key: batch[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            states = [
                model(**given, output_hidden_states=True).hidden_states[-1]
                for model in (before, pruner.model.eval())
            ]
        return pruner.state.masks, float((states[0] - states[1]).norm())

    masks, far = pruned()
    kept, near = pruned(correct_drift=True)
    assert all(torch.equal(mask, kept[name]) for name, mask in masks.items())
    assert near < 0.8 * far


def test_activations_that_are_not_numbers_stop_with_advice():
    recipe = make_recipe(pruning={"reconstruct": {}})
    pruner = make_pruner(recipe, tiny_classifier(), examples())
    drive(pruner, stop_after=7)
    with torch.no_grad():
        pruner.model.roberta.embeddings.LayerNorm.bias[0] = torch.nan
    with pytest.raises(ModelError, match=r"activations on unlabelled text are not finite.*learning_rate"):
        pruner.pruner.before_stage(6)


def test_the_teacher_is_the_dense_model_and_stays_it():
    recipe = make_recipe()
    teaching = Teaching(DistillationRecipe(), None, 8, 0)
    pruner = make_pruner(recipe, tiny_classifier(), examples(), lambda: 50.0, teaching)
    dense = None
    for event in pruner.run():
        if isinstance(event, StageEnd) and event.stage == 0:
            dense = {name: p.detach().clone() for name, p in pruner.model.named_parameters()}
    assert dense is not None
    for name, parameter in teaching.teacher.named_parameters():
        assert torch.equal(parameter, dense[name])
        assert not parameter.requires_grad


@pytest.mark.parametrize("criterion", ["magnitude", "l0"])
def test_best_dev_epoch_is_kept(criterion):
    """The very network that was measured: with its gates, where a criterion has some that are folded in."""
    model = tiny_classifier()
    recipe = make_recipe(
        training={"epochs_per_stage": 3},
        pruning={"criterion": criterion, "schedule": {"name": "geometric", "stages": 1}},
    )
    seen = []

    def dev():
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return [50.0, 90.0, 70.0, 20.0, 20.0, 10.0][len(seen) - 1]

    pruner = make_pruner(recipe, model, examples(), dev)
    for event in pruner.run():
        if isinstance(event, StageEnd):
            best = {0: 1, 1: 4}[event.stage]  # the last of equals
            assert event.dev == [90.0, 20.0][event.stage]
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter, seen[best][name])


def test_every_update_is_clipped_by_its_own_norm_also_after_a_resume():
    """Movement pruning scales gradients in the optimizer while weights may return, and itself when masks are fixed."""
    recipe = make_recipe(
        regularizer="none",
        pruning={
            "criterion": "movement",
            "schedule": {"name": "continuous", "final_density": 0.4},
            "regrow": True,
        },
        training={"epochs_per_stage": 4, "gradient_clip": 0.05},
    )

    def start():
        return make_pruner(recipe, tiny_classifier(), examples(), dev=lambda: 50.0)

    whole, first, second = start(), start(), start()
    drive(whole)
    drive(first, 13 + 9)  # the dense stage and nine updates, of which two after the last pruning
    assert first.pruner.is_final(12)
    tensors, progress = first.state.tensors(), first.state.progress()
    restore(
        second, {file: {k: t.clone() for k, t in part.items()} for file, part in tensors.items()}, progress
    )
    assert first.state.optimizer.grad_scale is None
    drive(second)
    for (name, mine), (_, theirs) in zip(
        whole.model.named_parameters(), second.model.named_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_a_run_resumed_after_its_best_epoch_keeps_that_epochs_gates():
    recipe = make_recipe(
        training={"epochs_per_stage": 3, "learning_rate": 0.1},
        pruning={"criterion": "l0", "schedule": {"name": "geometric", "stages": 1, "step_fraction": 0.5}},
    )
    scores = [50.0, 40.0, 30.0, 90.0, 20.0, 10.0]

    def start(used=0):
        left = iter(scores[used:])
        return make_pruner(recipe, tiny_classifier(), examples(), lambda: next(left))

    unbroken, first = start(), start()
    drive(unbroken)
    drive(first, 9 + 1 + 7)  # stage 0 with its end, and two epochs and an update of stage 1
    tensors = {
        file: {k: v.detach().clone() for k, v in entries.items()}
        for file, entries in first.state.tensors().items()
    }
    assert "best_criterion" in tensors
    second = start(used=5)
    restore(second, tensors, json.loads(json.dumps(first.state.progress())))
    drive(second)
    for name, parameter in unbroken.model.named_parameters():
        assert torch.equal(parameter, dict(second.model.named_parameters())[name]), name


@pytest.mark.parametrize(
    ("hidden", "unlabelled"), [(None, False), (0.0, False), (0.0, True), (0.5, False), (0.5, True)]
)
@pytest.mark.parametrize("tokens", [False, True])
def test_accumulated_gradients_are_those_of_the_whole_batch(tokens, hidden, unlabelled):
    """With a teacher too, unless ``hidden`` is None; with its answers on unlabelled text beside, or not."""
    kind = XLMRobertaForTokenClassification if tokens else XLMRobertaForSequenceClassification
    config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    results = []
    for accumulation in (1, 4):
        torch.manual_seed(0)
        model = kind(config)
        plain = examples(20, tokens=tokens, seed=1)
        text = (
            Encoded(plain.input_ids, None, plain.words, plain.truncated, special=tiny_special())
            if unlabelled
            else None
        )
        teaching = None if hidden is None else Teaching(DistillationRecipe(hidden=hidden), text, 8, 0)
        recipe = make_recipe(training={"gradient_accumulation": accumulation, "max_updates_per_stage": 3})
        pruner = make_pruner(recipe, model, examples(tokens=tokens), teaching=teaching)
        # Three updates of the dense stage, its end, and two of the next, in which a teacher speaks.
        steps = [event for event in drive(pruner, 6) if isinstance(event, Step)]
        results.append(([step.loss for step in steps], [p.detach().clone() for p in model.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for one, four in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, four, rtol=1e-3, atol=2e-5)


def test_a_part_of_a_batch_without_any_label_adds_nothing():
    """Sentences whose words were all cut off, say; with one row a part, four of these have no label."""
    data = examples(8, tokens=True)
    labels = [np.full_like(row, IGNORE) if number % 2 else row for number, row in enumerate(data.labels)]
    results = []
    for accumulation in (1, 8):
        torch.manual_seed(0)
        config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        recipe = make_recipe(training={"gradient_accumulation": accumulation, "max_updates_per_stage": 2})
        train = Encoded(data.input_ids, labels, data.words, data.truncated, special=tiny_special())
        events = drive(make_pruner(recipe, XLMRobertaForTokenClassification(config), train), 2)
        results.append([event.loss for event in events])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_divergence_stops_with_advice_and_leaves_the_weights():
    model = tiny_classifier()
    pruner = make_pruner(make_recipe(), model, examples())
    run = pruner.run()
    next(run)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    handle = model.classifier.register_forward_hook(
        lambda *_: torch.full((8, LABELS), float("nan"), requires_grad=True)
    )
    with pytest.raises(TrainingError, match="learning_rate"):
        next(run)
    handle.remove()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_divergence_takes_the_gates_of_l0_out_of_the_weights():
    model = tiny_classifier()
    recipe = make_recipe(pruning={"criterion": {"name": "l0", "initial": -1.0}})
    pruner = make_pruner(recipe, model, examples())
    run = pruner.run()
    while not (isinstance(event := next(run), Step) and event.stage == 1):
        pass
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    handle = model.classifier.register_forward_hook(lambda module, given, logits: logits * math.nan)
    with pytest.raises(TrainingError, match="learning_rate"):
        next(run)
    handle.remove()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_frozen_embeddings_stay():
    model = tiny_classifier()
    before = model.roberta.embeddings.word_embeddings.weight.detach().clone()
    drive(make_pruner(make_recipe(training={"freeze_embeddings": True}), model, examples()))
    assert torch.equal(model.roberta.embeddings.word_embeddings.weight, before)


@pytest.mark.slow
def test_strong_alignment_holds_the_weights_to_the_pretrained_ones():
    found = {}
    for name, strength in (("none", None), ("cosine", 3000.0)):
        model = tiny_classifier()
        regularizer = {"name": name} if strength is None else {"name": name, "strength": strength}
        recipe = make_recipe(regularizer=regularizer, training={"epochs_per_stage": 10})
        pruner = make_pruner(recipe, model, examples())
        drive(pruner)
        found[name] = np.mean(
            [
                float(alignment(w.detach(), pruner.state.pretrained[n]))
                for n, w in pruner.state.weights.items()
            ]
        )
    assert found["cosine"] > found["none"] + 0.01


def test_decoupled_l2_is_adamws_decay_of_the_prunable_matrices_from_the_first_pruning_on():
    found, rate, strength = {}, 0.01, 3.0
    for name, regularizer in (
        ("none", "none"),
        ("l2", {"name": "l2", "strength": strength, "decoupled": True}),
    ):
        recipe = make_recipe(
            regularizer=regularizer,
            training={"max_updates_per_stage": 1, "learning_rate": rate, "keep": "last"},
            pruning={"schedule": {"name": "geometric", "step_fraction": 0.3, "stages": 1}},
        )
        pruner = make_pruner(recipe, tiny_classifier(), examples())
        states = []
        for event in pruner.run():
            if isinstance(event, StageEnd):
                states.append({n: p.detach().clone() for n, p in pruner.model.named_parameters()})
        found[name] = (states, pruner.state)
    (plain, state), (decayed, _) = found["none"], found["l2"]
    for name, before in plain[0].items():
        assert torch.equal(decayed[0][name], before), "stage 0 is not regularized by default"
        if name in state.weights:
            expected = plain[1][name] - rate * strength * before * state.masks[name]
            assert torch.allclose(decayed[1][name], expected, atol=1e-6)
            assert not torch.equal(decayed[1][name], plain[1][name])
        else:
            assert torch.equal(decayed[1][name], plain[1][name])


def test_learning_rate_decays_to_zero_and_restarts_each_stage():
    steps = [
        event
        for event in drive(make_pruner(make_recipe(), tiny_classifier(), examples()))
        if isinstance(event, Step)
    ]
    rates = [step.learning_rate for step in steps]
    assert rates[:6] == pytest.approx([1e-3 * (6 - k) / 6 for k in range(6)])
    assert rates[6:12] == rates[:6]


@pytest.mark.parametrize(
    ("epochs", "cap", "expected"),
    [(2, None, 6), (0.5, None, 2), (0.01, None, 1), (2, 4, 4), (0, None, 0), (0, 4, 0)],
)
def test_updates_in_a_stage(epochs, cap, expected):
    recipe = make_recipe(training={"epochs_per_stage": epochs, "max_updates_per_stage": cap})
    assert updates_in_stage(recipe.training, 3, 1, last=2) == expected


def test_pruning_without_training_afterwards_only_masks_the_dense_model():
    recipe = make_recipe(
        training={"dense_epochs": 2, "epochs_per_stage": 0},
        pruning={"schedule": {"name": "geometric", "step_fraction": 0.5, "stages": 1}},
    )
    pruner = make_pruner(recipe, tiny_classifier(), examples(), dev=lambda: 50.0)
    dense, ends = {}, []
    for event in pruner.run():
        if isinstance(event, StageEnd):
            ends.append(event)
            dense = dense or {name: weight.detach().clone() for name, weight in pruner.state.weights.items()}
    assert (ends[0].loss is None, ends[1].loss, ends[1].dev) == (False, None, 50.0)
    assert pruner.state.density() == pytest.approx(0.5, abs=0.01)
    for name, weight in pruner.state.weights.items():
        assert torch.equal(weight, dense[name].where(pruner.state.masks[name], 0.0))


def test_the_last_stage_may_be_longer():
    settings = make_recipe(
        training={"epochs_per_stage": 2, "dense_epochs": 3, "last_epochs": 5, "max_updates_per_stage": 12}
    ).training
    assert [updates_in_stage(settings, 3, stage, last=2) for stage in range(3)] == [9, 6, 12]
    assert updates_in_stage(settings, 3, 0, last=0) == 9


def test_cross_entropy_of_unlabelled_positions_is_left_out():
    logits = torch.tensor([[[2.0, 0.0], [5.0, 5.0]]])
    labels = torch.tensor([[0, IGNORE]])
    assert cross_entropy(logits, labels).item() == pytest.approx(np.log(1 + np.exp(-2)))


def test_densities_of_masks_in_the_bundle_are_exact():
    pruner = make_pruner(make_recipe(), tiny_classifier(), examples())
    drive(pruner)
    assert density(pruner.state.masks) == pytest.approx(0.7**3, abs=1e-3)


# --- real densities --------------------------------------------------------------------------------------------------


def nonzero_count(pruner):
    return sum(int((weight != 0).sum()) for weight in pruner.state.weights.values())


QUICK = {"obert": {"batches": 2}, "l0": {"strength": 1e4, "learning_rate": 0.5}}
CHOSEN = [("unstructured", "layer"), ("unstructured", "global"), ("2:4", "layer"), ("4:8", "layer")]
SHAPES = {
    "geometric": {"step_fraction": 0.4, "stages": 2},
    "linear": {"final_density": 0.3, "stages": 2},
    "cubic": {"final_density": 0.3, "stages": 2},
    "continuous": {"final_density": 0.3, "every": 1, "warm_up": 0.1, "cool_down": 0.3},
}


PAIRS = [
    (name, *chosen, list(SHAPES)[(row + column) % len(SHAPES)])
    for row, name in enumerate(CRITERIA)
    for column, chosen in enumerate(CHOSEN)
]
"""Every criterion with every pattern and with every schedule, and every pattern with every schedule."""


@pytest.mark.parametrize(("name", "pattern", "scope", "schedule"), PAIRS)
def test_the_reported_density_is_the_share_of_weights_that_are_not_zero(name, scope, pattern, schedule):
    """Every criterion, scope, pattern and schedule, with pruned weights that return wherever they may."""
    criterion = {"name": name, **QUICK.get(name, {})}
    regrow = schedule == "continuous" and load_component("criterion", name).scores_pruned
    shape = {"name": schedule, **SHAPES[schedule]}
    if pattern != "unstructured" and schedule != "continuous":
        shape["stages"] = 1
    recipe = make_recipe(
        pruning={
            "criterion": criterion, "scope": scope, "pattern": pattern, "schedule": shape, "regrow": regrow
        },
        training={"epochs_per_stage": 1, "dense_epochs": 0.3},
    )  # fmt: skip
    pruner = make_pruner(recipe, tiny_classifier(num_hidden_layers=1), examples())
    sizes = [weight.numel() for weight in pruner.state.weights.values()]
    wanted = [1.0, *build_component(recipe, "schedule").per_stage()]
    ends = [event for event in drive(pruner) if isinstance(event, StageEnd)]
    for end in ends:
        share = wanted[end.stage] if pattern == "unstructured" else (1.0 if end.stage == 0 else 0.5)
        whole = scope == "global" and pattern == "unstructured"
        exact = round(sum(sizes) * share) if whole else sum(round(size * share) for size in sizes)
        assert end.density == exact / sum(sizes)
    assert nonzero_count(pruner) == exact
    assert sum(int(mask.sum()) for mask in pruner.state.nonzero_masks().values()) == exact
    reported = np.average([layer["density"] for layer in pruner.state.layers()], weights=sizes)
    assert reported == pytest.approx(ends[-1].density)


def test_a_mask_that_is_not_what_is_there_is_an_internal_error():
    pruner = make_pruner(make_recipe(), tiny_classifier(), examples())
    drive(pruner)
    weight = next(iter(pruner.state.weights.values()))
    weight.data[weight == 0] = 1.0
    with pytest.raises(RuntimeError, match="of them pruned ones"):
        pruner.state.nonzero_masks()
    weight.data.zero_()
    with pytest.raises(RuntimeError, match="the masks keep"):
        pruner.state.nonzero_masks()


@pytest.mark.parametrize("name", CRITERIA)
def test_a_checkpoint_with_dead_neurons_is_pruned_like_any_other(name):
    """Their weights are zero, and without a gradient they stay so; the density counts them as pruned."""
    model = tiny_classifier(num_hidden_layers=1)
    layer = model.roberta.encoder.layer[0]
    with torch.no_grad():
        for tensor in (layer.intermediate.dense.weight[:4], layer.intermediate.dense.bias[:4]):
            tensor.zero_()
        layer.output.dense.weight[:, :4] = 0
    dead = 2 * 4 * 16
    recipe = make_recipe(
        pruning={"criterion": {"name": name, **QUICK.get(name, {})}}, training={"epochs_per_stage": 1}
    )
    pruner = make_pruner(recipe, model, examples())
    sizes = [weight.numel() for weight in pruner.state.weights.values()]
    ends = [event for event in drive(pruner) if isinstance(event, StageEnd)]
    assert ends[0].density == 1 - dead / sum(sizes)
    assert ends[-1].density <= sum(round(size * 0.7**3) for size in sizes) / sum(sizes) + 1e-9
    assert not layer.intermediate.dense.weight[:4].any()


# --- continuous stages -----------------------------------------------------------------------------------------------

CONTINUOUS = {"name": "continuous", "final_density": 0.3, "every": 4, "warm_up": 0.1, "cool_down": 0.3}

PUBLISHED = {
    "pins": {"criterion": {"name": "pins", "window": 4}, "regrow": True},
    "platon": {"criterion": {"name": "platon", "window": 4}, "regrow": True},
    "movement": {"criterion": "movement", "regrow": True},
    "soft movement": {"criterion": {"name": "movement", "mode": "soft", "strength": 0.01}, "regrow": True},
    "obert": {"criterion": {"name": "obert", "batches": 4}},
    "magnitude": {"criterion": "magnitude"},
    "l0": {"criterion": "l0"},
    "restarted": {
        "criterion": {"name": "pins", "window": 4},
        "regrow": True,
        "schedule": {**CONTINUOUS, "every": 2, "restart": True},
    },
}


def continuous_pruner(method, epochs=10, dev=None, teaching=None, **sections):
    recipe = make_recipe(
        training={"epochs_per_stage": epochs, "dense_epochs": 1, "warmup_updates": 3, "weight_decay": 0.01},
        **sections,
    )
    pruning = PruningRecipe.model_validate({"schedule": CONTINUOUS, **PUBLISHED[method]})
    model = tiny_classifier()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    built = build_method(pruning, recipe.regularizer)
    return FinePruning(
        model, examples(), built, recipe.training, recipe.seed, dev, teaching, start=lambda: start
    )


@pytest.mark.parametrize("method", PUBLISHED)
def test_a_continuous_stage_prunes_on_the_way_and_ends_exactly(method):
    pruner = continuous_pruner(method)
    schedule, sizes = pruner.method.continuous, [w.numel() for w in pruner.state.weights.values()]
    is_global = pruner.method.selection.scope == "global"
    before, returned, frozen = None, 0, None
    for event in pruner.run():
        if not isinstance(event, Step) or event.stage == 0:
            continue
        masks = pruner.state.masks
        if schedule.is_due(event.number, event.total, 3):
            wanted = schedule.density(event.number, event.total)
            exact = round(sum(sizes) * wanted) if is_global else sum(round(size * wanted) for size in sizes)
            assert sum(int(mask.sum()) for mask in masks.values()) == exact
            assert event.density == wanted
            if before is not None:
                returned += sum(int((mask & ~before[name]).sum()) for name, mask in masks.items())
            before = masks
        if event.number >= schedule.end(event.total):
            assert all(not weight[~masks[name]].any() for name, weight in pruner.state.weights.items())
            assert frozen is None or frozen is masks, "the masks are final"
            frozen = masks
    assert (returned > 0) == pruner.method.regrow
    assert nonzero_count(pruner) == (
        round(sum(sizes) * 0.3) if is_global else sum(round(size * 0.3) for size in sizes)
    )


def test_a_continuous_stage_is_one_training_with_one_warm_up():
    steps = [
        event for event in drive(continuous_pruner("pins")) if isinstance(event, Step) and event.stage == 1
    ]
    assert len(steps) == 30
    rising, falling = [1 / 3, 2 / 3, 1], [(30 - k) / 27 for k in range(3, 30)]
    assert [step.learning_rate for step in steps] == pytest.approx([1e-3 * x for x in (*rising, *falling)])


def test_a_hidden_weight_keeps_its_value_until_the_final_phase():
    """Movement: the forward pass sees a pruned weight as zero, and it may return with the value it had."""
    pruner = continuous_pruner("movement")
    seen = []
    pruner.model.register_forward_pre_hook(
        lambda *_: seen.append({n: w.detach().clone() for n, w in pruner.state.weights.items()})
    )
    for event in pruner.run():
        if isinstance(event, Step) and event.stage == 1 and event.number == 12:
            break
    next(pruner.run())
    for name, mask in pruner.state.masks.items():
        assert not seen[-1][name][~mask].any()
        assert bool((pruner.state.weights[name][~mask] != 0).any())


@pytest.mark.parametrize("name", [name for name in REGULARIZERS if name != "none"])
def test_the_regularizer_sees_hidden_weights_as_zero(name, monkeypatch):
    """Movement: the term and its gradient are those of autograd through ``mask * weight``."""
    pruner = continuous_pruner("movement", regularizer={"name": name, "strength": 3.0})
    step = next(e for e in pruner.run() if isinstance(e, Step) and e.stage == 1 and e.number == 12)
    state, reference = pruner.state, pruner.reference()
    assert any(bool((w[~state.masks[n]] != 0).any()) for n, w in state.weights.items()), "some are hidden"
    leaves = {n: w.detach().double().requires_grad_() for n, w in state.weights.items()}
    seen = {n: leaf * state.masks[n] for n, leaf in leaves.items()}
    expected = pruner.method.regularizer(seen, {n: r.double() for n, r in reference.items()}, state.masks)
    expected.backward()
    monkeypatch.setattr(pruner.gradients, "add", lambda *_: torch.zeros((), dtype=torch.float64))
    monkeypatch.setattr("xlmprune.training.loop.clip", lambda *_, **__: None)
    for weight in state.weights.values():
        weight.grad = torch.zeros_like(weight)
    _, penalty, _ = pruner._backward(1e-3, step.total).read()
    assert penalty == pytest.approx(float(expected.detach()), rel=1e-5)
    for key, weight in state.weights.items():
        torch.testing.assert_close(weight.grad.double(), leaves[key].grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("name", CRITERIA)
def test_a_jump_without_warm_up_prunes_before_the_first_update(name, restart):
    """Every density that is logged is that of the masks."""
    schedule = {"final_density": 0.3, "first_density": 0.5, "every": 3, "warm_up": 0, "cool_down": 0.3}
    criterion = {"name": name, **QUICK.get(name, {})}
    recipe = make_recipe(
        pruning={
            "criterion": criterion, "schedule": {"name": "continuous", **schedule, "restart": restart},
            "regrow": load_component("criterion", name).scores_pruned,
        },
        training={"epochs_per_stage": 2, "dense_epochs": 1},
    )  # fmt: skip
    pruner = make_pruner(recipe, tiny_classifier(num_hidden_layers=1), examples())
    start = {key: value.clone() for key, value in pruner.model.state_dict().items()}
    pruner.start = lambda: start
    densities = []
    for event in pruner.run():
        if isinstance(event, Step) and event.stage == 1:
            assert density(pruner.state.masks) == pytest.approx(event.density, abs=2e-3)
            densities.append(event.density)
    assert densities[:2] == [0.5, 0.5]
    assert densities[2] < 0.5


@pytest.mark.parametrize("stop_after", slow_but([12], [5, 12, 21, 28]))
@pytest.mark.parametrize("method", slow_but(["pins", "movement"], PUBLISHED))
def test_a_continuous_stage_resumes_exactly(method, stop_after):
    def start():
        settings = DistillationRecipe(
            teacher="best_so_far", ask_every=3, dense_defends=False, confidence=True
        )
        scores = {n: float(n * 7 % 10) for n in range(40)}
        holder = []
        pruner = continuous_pruner(
            method, dev=lambda: scores[holder[0].state.at.position], teaching=Teaching(settings, None, 8, 0)
        )
        holder.append(pruner)
        return pruner

    unbroken, first = start(), start()
    drive(unbroken)
    drive(first, stop_after)
    tensors = {
        file: {k: v.detach().clone() for k, v in entries.items()}
        for file, entries in first.state.tensors().items()
    }
    second = start()
    restore(second, tensors, json.loads(json.dumps(first.state.progress())))
    drive(second)
    for name, parameter in unbroken.model.named_parameters():
        assert torch.equal(parameter, dict(second.model.named_parameters())[name]), name
    for name, parameter in unbroken.teaching.teacher.named_parameters():
        assert torch.equal(parameter, dict(second.teaching.teacher.named_parameters())[name]), name


def test_the_teacher_is_asked_every_few_updates():
    """PINS: the first student that is measured replaces the dense teacher, whatever it scored."""
    asked = []

    def dev():
        asked.append(pruner.state.at.update)
        return {3: 10.0, 6: 5.0, 9: 20.0}.get(pruner.state.at.update, 0.0)

    for defends in (False, True):
        asked.clear()
        settings = DistillationRecipe(teacher="best_so_far", ask_every=3, dense_defends=defends)
        pruner = continuous_pruner("pins", dev=dev, teaching=Teaching(settings, None, 8, 0))
        bests = []
        for event in pruner.run():
            if isinstance(event, Step) and event.stage == 1:
                bests.append(pruner.teaching.choice.best)
            if isinstance(event, StageEnd) and event.stage == 0:
                pruner.teaching.choice.best = 15.0 if defends else pruner.teaching.choice.best
        assert {3, 6, 9} <= set(asked)
        expected = [15.0, 15.0, 20.0] if defends else [10.0, 10.0, 20.0]
        assert [bests[2], bests[5], bests[8]] == expected


# --- smaller facts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pins", "platon", "movement", "l0"])
def test_the_best_epoch_is_kept_with_its_criterion(name):
    recipe = make_recipe(
        training={"epochs_per_stage": 3, "dense_epochs": 3},
        pruning={"criterion": name, "schedule": {"name": "geometric", "stages": 1, "step_fraction": 0.5}},
    )
    scores, at_best = iter([10.0, 90.0, 20.0, 10.0, 90.0, 20.0]), {}

    def dev():
        score = next(scores)
        if score == 90.0:
            at_best.update({key: t.clone() for key, t in pruner.method.criterion.state().items()})
        return score

    pruner = make_pruner(recipe, tiny_classifier(), examples(), dev)
    for event in pruner.run():
        if isinstance(event, StageEnd):
            state = pruner.method.criterion.state()
            changed = [
                key for key, t in at_best.items() if key != "folded" and not torch.equal(t, state[key])
            ]
            assert state.keys() == at_best.keys()
            assert not changed


def test_warm_up_is_at_most_a_tenth_of_a_stage():
    """A hundred updates of it in stages of thirty would never reach the learning rate."""
    settings = make_recipe(training={"warmup_updates": 100}).training
    rates = [learning_rate(settings, 1, update, 30) for update in range(30)]
    assert max(rates) == settings.learning_rate
    assert rates[:4] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])
    long = [learning_rate(settings, 1, update, 3000) for update in range(3000)]
    assert long.index(max(long)) == 99


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("limit", [None, 0.05])
@pytest.mark.parametrize("included", [False, True])
def test_criteria_see_the_regularizer_only_if_asked(included, limit, decoupled):
    """A strong pull changes what PINS observes in the first update only where it is included; clipped in any case."""
    states = []
    for strength in (0.0, 50.0):
        recipe = make_recipe(
            regularizer={"name": "l2", "strength": strength, "decoupled": decoupled},
            training={"gradient_clip": limit, "regularize_dense": True},
            pruning={"criterion": "pins", "observe_regularizer": included},
        )
        pruner = make_pruner(recipe, tiny_classifier(), examples())
        drive(pruner, 1)
        states.append(pruner.method.criterion.state())
    exact = limit is None or decoupled
    same = all(
        torch.equal(states[0][key], states[1][key])
        if exact
        else torch.allclose(states[0][key], states[1][key], rtol=1e-5, atol=0)
        for key in states[0]
    )
    assert same == (decoupled or not included)


@pytest.mark.parametrize("regularizer", ["none", {"name": "frobenius", "strength": 3.0}])
@pytest.mark.parametrize("method", ["pins", "platon", "movement", "l0"])
def test_criteria_that_watch_see_the_gradient_of_the_task_clipped(method, regularizer, monkeypatch):
    """Published code clips before it scores; without a limit they see the gradient itself."""
    pruner = continuous_pruner(method, regularizer=regularizer)
    step = next(e for e in pruner.run() if isinstance(e, Step) and e.stage == 1 and e.number == 12)
    state, kind, limit = pruner.state, type(pruner.method.criterion), 0.05
    start = copy.deepcopy((state.tensors(), state.progress()))

    def gradients(clip):
        def observe(self, weights, masks, rate):
            seen.update({name: weight.grad.clone() for name, weight in weights.items()})
            kept(self, weights, masks, rate)

        seen, kept = {}, kind.observe
        restore(pruner, *copy.deepcopy(start))
        pruner.settings = pruner.settings.model_copy(update={"gradient_clip": clip})
        pruner.model.train()
        pruner.model.zero_grad()
        torch.manual_seed(5)
        with monkeypatch.context() as patch:
            patch.setattr(kind, "observe", observe)
            pruner._backward(1e-3, step.total)
        others = [p.grad for n, p in pruner.model.named_parameters() if n not in seen and p.grad is not None]
        return seen, others

    (task, others), (clipped, _) = gradients(None), gradients(limit)
    hidden = method == "movement"
    counted = [gradient * state.masks[name] if hidden else gradient for name, gradient in task.items()]
    norm = float(torch.stack([gradient.norm() for gradient in (*counted, *others)]).norm())
    assert norm > limit
    for name, gradient in task.items():
        torch.testing.assert_close(clipped[name], gradient * (limit / norm), rtol=1e-4, atol=1e-9)
