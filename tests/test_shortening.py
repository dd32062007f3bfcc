"""Options that make a long run short, worked out for the recipe."""

import pytest
from test_timing import STRUCTURED, recipe

from xlmprune.recipe.loading import load_recipe
from xlmprune.training.shortening import LONG, SHORT, learned_at_most, shortened
from xlmprune.training.timing import Duration

TESTS = (200, 200)


def long_run(training, seconds=(2.0, 3.0), updates=(1000, 800), measuring=300.0, tests=TESTS, **sections):
    """Shorten a run of two stages, of 100 updates an epoch."""
    settings = recipe(pruning=STRUCTURED, training=training, **sections)
    whole = sum(each * count for each, count in zip(seconds, updates, strict=True))
    return settings, shortened(settings, Duration(seconds, whole, measuring), updates, 100, tests)


def test_a_run_that_is_not_long_is_left_as_it_is():
    training = {"dense_epochs": 2, "epochs_per_stage": 1}
    assert long_run(training, updates=(200, 100))[1] is None
    assert long_run(training, updates=(200, 100), measuring=LONG)[1] is not None


def test_epochs_are_lowered_together():
    _, found = long_run({"dense_epochs": 10, "epochs_per_stage": 8, "learning_rate": 1e-4})
    # 600 of 4,400 seconds of training remain, besides 300 of scores.
    assert found.options == ["training.dense_epochs=1.4", "training.epochs_per_stage=1.1"]
    assert found.seconds == pytest.approx(300 + 140 * 2 + 110 * 3)


def test_a_share_of_an_epoch_becomes_a_limit_on_updates():
    settings, found = long_run(
        {"epochs_per_stage": 1, "learning_rate": 1e-4}, (50.0, 50.0), (10_000, 10_000), tests=(0,)
    )
    (option,) = found.options
    key, value = option.split("=")
    assert key == "training.max_updates_per_stage"
    # With fewer updates than this the model would not learn: at 1e-4, falling linearly, 20 sum up to 0.001.
    assert int(value) == 20
    assert learned_at_most(settings.training, 20) == pytest.approx(1e-3)
    _, found = long_run(
        {"epochs_per_stage": 10, "max_updates_per_stage": 900, "learning_rate": 1e-4}, updates=(900, 900)
    )
    assert found.options == [f"training.max_updates_per_stage={round(900 * 600 / 4500)}"]


def test_fewer_test_texts_where_scores_take_long():
    training = {"dense_epochs": 1, "epochs_per_stage": 1, "learning_rate": 1e-3}
    _, found = long_run(training, updates=(100, 100), measuring=4500, tests=(5000, 50))
    assert found.options[0] == "task.max_test_examples=500"
    assert found.seconds < 1.2 * SHORT
    _, found = long_run(training, updates=(100, 100), measuring=1e6, tests=(5000, 50))
    assert found.options[0] == "task.max_test_examples=100", "fewer say little"


def test_a_run_without_updates_after_pruning_is_shortened_before_it():
    _, found = long_run({"dense_epochs": 20, "epochs_per_stage": 0, "learning_rate": 1e-4}, updates=(2000, 0))
    assert found.options == ["training.dense_epochs=3"]


def test_the_options_are_taken_by_the_command():
    training = {"dense_epochs": 10, "epochs_per_stage": 8, "learning_rate": 1e-4}
    _, found = long_run(training, measuring=3000, tests=(1000, 1000))
    changed = load_recipe("quickstart", found.options)
    assert len(found.options) == 3
    assert f"training.dense_epochs={changed.training.dense_epochs:g}" in found.options
    assert f"task.max_test_examples={changed.task.max_test_examples}" in found.options
