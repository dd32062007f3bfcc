"""Paired tests between two models on the same examples, and the file of example scores that they read."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlmprune.core.errors import DataError
from xlmprune.data.examples import Examples
from xlmprune.evaluation import score_file
from xlmprune.evaluation.significance import holm, randomization_test
from xlmprune.tasks.metrics import METRICS

ACCURACY = METRICS["accuracy"]


def answers(*right):
    return np.array([[value, 1] for value in right], dtype=float)


def test_the_randomization_test_counts_what_brute_force_counts():
    random = np.random.default_rng(0)
    first = [
        {"de": answers(*random.integers(0, 2, 6)), "th": answers(*random.integers(0, 2, 4))} for _ in range(2)
    ]
    second = [
        {"de": answers(*random.integers(0, 2, 6)), "th": answers(*random.integers(0, 2, 4))} for _ in range(2)
    ]

    def difference(swapped):
        total = 0.0
        for a, b in zip(first, second, strict=True):
            for language in ("de", "th"):
                x, y = a[language].copy(), b[language].copy()
                for place in range(len(x)):
                    if swapped[place]:
                        x[place], y[place] = b[language][place], a[language][place]
                total += float(ACCURACY.value(y.sum(0)) - ACCURACY.value(x.sum(0)))
        return total / 4

    observed = difference([False] * 6)
    every = [abs(difference(swapped)) for swapped in itertools.product([False, True], repeat=6)]
    exact = np.mean(np.array(every) >= abs(observed) - 1e-9)
    test = randomization_test(first, second, ACCURACY)
    assert test.difference == pytest.approx(observed)
    assert test.p_value == pytest.approx(exact, abs=0.02)


def test_a_score_that_is_no_mean_of_examples():
    f1 = METRICS["f1"]
    a = np.array([[1, 1, 2], [0, 3, 1], [2, 2, 2], [1, 4, 3]], dtype=float)
    b = np.array([[2, 2, 2], [1, 1, 1], [2, 2, 2], [3, 3, 3]], dtype=float)
    test = randomization_test([{"de": a}], [{"de": b}], f1)
    assert test.difference == pytest.approx(float(f1.value(b.sum(0)) - f1.value(a.sum(0))))
    # Three examples differ, all in one direction: only none and all of them swapped are as extreme.
    assert test.p_value == pytest.approx(2 / 8, abs=0.02)


def test_translations_are_no_further_evidence():
    """Ten languages that are wrong and right on the same sentences say as much as one."""
    a, b = answers(0, 0, 0, 1, 1), answers(1, 1, 1, 1, 1)
    one = randomization_test([{"de": a}], [{"de": b}], ACCURACY)
    ten = randomization_test([{str(k): a for k in range(10)}], [{str(k): b for k in range(10)}], ACCURACY)
    assert one.p_value == pytest.approx(2 / 8, abs=0.02)
    assert ten.p_value == one.p_value
    assert ten.difference == one.difference


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_the_test_does_not_mind_which_comes_first(pairs):
    a, b = answers(*(x for x, _ in pairs)), answers(*(y for _, y in pairs))
    there = randomization_test([{"de": a}], [{"de": b}], ACCURACY, rounds=200)
    back = randomization_test([{"de": b}], [{"de": a}], ACCURACY, rounds=200)
    assert there.difference == -back.difference
    assert there.p_value == back.p_value
    assert 0 < there.p_value <= 1
    if np.array_equal(a, b):
        assert there.p_value == 1


def test_different_examples_are_not_compared():
    with pytest.raises(ValueError, match="different examples"):
        randomization_test([{"de": answers(1, 0)}], [{"de": answers(1)}], ACCURACY)
    with pytest.raises(ValueError, match="different examples"):
        randomization_test([], [], ACCURACY)
    with pytest.raises(ValueError, match="different languages"):
        randomization_test([{"de": answers(1)}, {"th": answers(1)}], [{"de": answers(1)}] * 2, ACCURACY)


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_scores_of_examples_are_kept(tmp_path):
    kept = score_file.ExampleScores(
        "accuracy",
        {"sw": answers(1, 0), "ar": answers(1)},
        {"sw": answers(1, 1), "ar": answers(0)},
        {"sw": "x"},
    )
    score_file.write(tmp_path / score_file.NAME, kept)
    again = score_file.read(tmp_path / score_file.NAME)
    assert list(again.pruned) == ["sw", "ar"]
    assert (again.metric, again.fingerprints) == (kept.metric, kept.fingerprints)
    for form in ("pruned", "dense"):
        for language in ("sw", "ar"):
            assert np.array_equal(getattr(again, form)[language], getattr(kept, form)[language])
    assert [file.name for file in tmp_path.iterdir()] == [score_file.NAME]
    (tmp_path / "other").touch()
    assert (tmp_path / score_file.NAME).stat().st_mode == (tmp_path / "other").stat().st_mode
    (tmp_path / "other").unlink()
    (tmp_path / score_file.NAME).write_bytes(b"{}")
    with pytest.raises(DataError, match="cannot be read"):
        score_file.read(tmp_path / score_file.NAME)
    with pytest.raises(DataError, match="cannot be read"):
        score_file.read(tmp_path / "nowhere")


def test_a_fingerprint_tells_examples_apart():
    plain = Examples("th", "test", ["ประตู", "b"], labels=[0, 1])
    others = [
        dataclasses.replace(plain, first=["b", "ประตู"]),
        dataclasses.replace(plain, labels=[1, 0]),
        dataclasses.replace(plain, second=["a", "b"]),
        dataclasses.replace(plain, groups=["1", "1"]),
    ]
    assert len({score_file.fingerprint(examples) for examples in [plain, *others]}) == 5
    assert score_file.fingerprint(dataclasses.replace(plain, notes=("repaired",))) == score_file.fingerprint(
        plain
    )
