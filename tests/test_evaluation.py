"""Scores, intervals and paired tests, against hand-worked cases and brute force."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_special

from xlmprune.data.encoding import Encoded
from xlmprune.data.examples import Examples
from xlmprune.evaluation import intervals
from xlmprune.evaluation import scores as evaluation
from xlmprune.evaluation.agreement import Agreement
from xlmprune.evaluation.scores import TestSet
from xlmprune.tasks.metrics import Accuracy, EntityF1


def encoded(lengths, words=None):
    ids = [np.arange(4, 4 + length, dtype=np.int64) for length in lengths]
    return Encoded(ids, None, words, np.zeros(len(lengths), dtype=bool), special=tiny_special())


def test_logits_come_back_in_the_order_of_the_examples():
    lengths = [9, 2, 5, 7, 3]

    def forward(ids, mask):
        return np.stack([mask.sum(1), ids.max(1)], axis=1).astype(np.float32)

    logits = evaluation.collect(forward, encoded(lengths), batch_size=2)
    assert [int(row[0]) for row in logits] == lengths


def test_tagging_logits_are_those_of_first_sub_words():
    words = [np.array([1, 3]), np.array([2])]

    def forward(ids, mask):
        return np.repeat(ids[:, :, None], 2, axis=2).astype(np.float32)

    logits = evaluation.collect(forward, encoded([6, 4], words), batch_size=8)
    assert logits[0][:, 0].tolist() == [5, 7]
    assert logits[1][:, 0].tolist() == [6]


def test_interval_of_accuracy_is_near_the_binomial_one():
    statistics = np.array([[1, 1]] * 80 + [[0, 1]] * 20, dtype=float)
    low, high = intervals.interval(statistics, Accuracy())
    assert low == pytest.approx(80 - 7.84, abs=1.5)
    assert high == pytest.approx(80 + 7.84, abs=1.5)
    assert intervals.interval(statistics, Accuracy()) == (low, high)


def test_an_interval_does_not_collapse_where_all_or_none_is_right():
    # Wilson 1927 by hand: n / (n + z²) = 20 / 23.8415 at the one end, z² / (n + z²) at the other.
    assert intervals.interval(np.ones((20, 2)), Accuracy()) == pytest.approx((83.8874, 100.0), abs=1e-3)
    none = np.array([[0.0, 1.0]] * 20)
    assert intervals.interval(none, Accuracy()) == pytest.approx((0.0, 16.1126), abs=1e-3)


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_an_interval_holds_its_score(right):
    statistics = np.array([[value, 1] for value in right], dtype=float)
    low, high = intervals.interval(statistics, Accuracy())
    score = float(Accuracy().value(statistics.sum(axis=0)))
    assert 0 <= low <= score <= high <= 100
    assert high - low > 5


def test_where_resampling_says_nothing_there_is_no_interval():
    assert intervals.interval(np.array([[2.0, 2.0, 2.0]] * 20), EntityF1()) == (None, None)
    assert intervals.interval(np.empty((0, 2)), Accuracy()) == (None, None)
    low, high = intervals.interval(np.array([[2.0, 2.0, 2.0], [1.0, 2.0, 2.0]] * 20), EntityF1())
    assert 60 < low < 75 < high < 90


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_the_exact_binomial(pairs):
    before = np.array([[a, 1] for a, _ in pairs], dtype=float)
    after = np.array([[b, 1] for _, b in pairs], dtype=float)
    found = intervals.paired(before, after, Accuracy())
    gained = sum(b and not a for a, b in pairs)
    lost = sum(a and not b for a, b in pairs)
    assert (found["gained"], found["lost"]) == (gained, lost)
    total = gained + lost
    tail = sum(comb(total, k) for k in range(min(gained, lost) + 1)) / 2**total
    assert found["p_value"] == pytest.approx(min(1.0, 2 * tail))


def test_an_entity_where_there_is_none_is_an_example_lost():
    right, invented = [0, 0, 0], [0, 1, 0]
    one, other = np.array([right] * 6 + [[1, 1, 1]], float), np.array([invented] * 6 + [[1, 1, 1]], float)
    found = intervals.paired(one, other, EntityF1())
    assert found == {"p_value": pytest.approx(2 / 2**6), "gained": 0, "lost": 6}
    assert intervals.paired(other, one, EntityF1())["gained"] == 6
    assert intervals.paired(one, one, EntityF1())["p_value"] == 1


def test_models_measured_on_different_examples_are_not_paired():
    with pytest.raises(ValueError, match="different examples"):
        intervals.paired(np.ones((3, 2)), np.ones((4, 2)), Accuracy())


def test_the_train_language_is_never_in_the_zero_shot_mean():
    assert evaluation.zero_shot_mean({"en": 100.0, "de": 50.0, "sw": 30.0}, "en") == 40
    assert evaluation.zero_shot_mean({"en": 100.0}, "en") is None


def test_agreement_sees_what_differs():
    one = [np.array([0.0, 1.0]), np.array([3.0, 2.0])]
    other = [np.array([0.0, 1.0]), np.array([2.0, 2.5])]
    agreement = Agreement()
    agreement.add(one, other)
    assert agreement.largest == 1.0
    assert agreement.relative == pytest.approx(1 / 3)
    assert agreement.agreement == 0.5
    broken = Agreement()
    broken.add(one, [np.array([np.nan, 1.0]), np.array([3.0, 2.0])])
    assert broken.largest == float("inf")


def test_a_capped_test_set_has_the_token_ids_of_its_examples():
    examples = Examples("de", "test", list("abcdefgh"), labels=[0, 1] * 4)
    whole = TestSet(examples, encoded(range(2, 10)))
    test = whole.sample(4)
    assert test.examples == examples.sample(4)
    assert [len(ids) for ids in test.encoded.input_ids] == [
        2 + "abcdefgh".index(t) for t in test.examples.first
    ]
    assert whole.sample(None) is whole.sample(8) is whole


def test_languages_share_batches_and_each_gets_its_own_logits():
    sets = {
        language: evaluation.TestSet(
            Examples(language, "", ["x"] * len(lengths), labels=[0] * len(lengths)), encoded(lengths)
        )
        for language, lengths in {"en": [5, 2, 9], "de": [3], "fr": [8, 4]}.items()
    }
    shapes = []

    def forward(ids, mask):
        shapes.append(ids.shape)
        return np.stack([mask.sum(axis=1), np.zeros(len(ids))], axis=1).astype(np.float32)

    class Task:
        metrics = (Accuracy(),)
        labels = ("a", "b")

    measured = evaluation.evaluate(forward, sets, Task, 2)
    found = {name: [int(row[0]) for row in logits] for name, _, logits in measured}
    assert found == {"en": [5, 2, 9], "de": [3], "fr": [8, 4]}
    assert len(shapes) == 3
    shapes.clear()
    assert len(list(evaluation.evaluate(forward, sets, Task, 2, apart=True))) == 3
    assert len(shapes) == 4


@pytest.mark.parametrize(("together", "told"), [(1, 2), (3, 6)])
def test_progress_counts_the_texts_of_the_processes_that_work_together(monkeypatch, together, told):
    """Not of all that were launched: the export runs in the first one alone."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(evaluation.processes, "count", lambda: together)
    heard = []
    forward = evaluation.counted(lambda ids, mask: ids, heard.append)
    assert forward(np.zeros((2, 3)), np.ones((2, 3))).shape == (2, 3)
    assert heard == [told]
