"""Warnings about the data of a task as a whole."""

from xlmprune.data.checks import warnings_about
from xlmprune.data.examples import Examples


def texts(split, first, labels, language="en", **columns):
    return Examples(language, split, first, labels=labels, **columns)


def test_clean_data_have_no_warnings():
    train = texts("train", ["a", "b", "a"], [0, 1, 0])
    tests = {"en": texts("test", ["c", "d"], [0, 1]), "de": texts("test", ["e", "f"], [1, 0], "de")}
    assert warnings_about(train, texts("dev", ["g", "h"], [0, 1]), tests) == ()
    assert warnings_about(train, None, {"de": texts("test", ["e", "f"], None, "de")}) == ()


def test_texts_of_two_splits_are_counted():
    train = texts("train", ["The door", "b", "c"], [0, 1, 0])
    tests = {"en": texts("test", ["x", "the  door"], [0, 1]), "de": texts("test", ["B", "c"], [1, 0], "de")}
    warnings = warnings_about(train, texts("dev", ["x", "y"], [0, 1]), tests)
    assert len(warnings) == 3
    assert warnings[0].startswith("the en test set and the training set have texts in common (1 of 2 of")
    assert warnings[1].startswith("the de test set and the training set have texts in common (all of")
    assert warnings[2].startswith("the en test set and the dev set have texts in common (1 of 2 of")


def test_a_pair_is_in_common_if_both_texts_are():
    train = texts("train", ["a", "b"], [0, 1], second=["c", "d"])
    tests = {"en": texts("test", ["a", "b"], [0, 1], second=["d", "D"])}
    (warning,) = warnings_about(train, None, tests)
    assert "1 of 2" in warning


def test_labels_that_a_set_should_have_are_missed():
    train = texts("train", [str(i) for i in range(40)], [0, 1] * 15 + [2] * 10)
    dev = texts("dev", [f"d{i}" for i in range(20)], [0, 1] * 10)
    few = {"de": texts("test", ["e", "f"], [0, 1], "de")}
    (warning,) = warnings_about(train, dev, few)
    assert warning == (
        "the en dev set has no example of 1 label of the training set (10 examples there), so its scores do not measure them"
    )


def test_labels_without_a_training_example_are_named():
    train, tests = texts("train", ["a", "b"], [0, 2]), {"de": texts("test", ["e", "f"], [1, 2], "de")}
    assert warnings_about(train, None, tests, ["open", "store", "shut"]) == (
        "the training set has no example of 1 label (store), so the model cannot learn it",
    )
    (warning,) = warnings_about(train, None, tests, [f"x{number}" for number in range(9)])
    assert warning.endswith("7 labels (x1, x3, x4, x5, x6, …), so the model cannot learn them")


def test_contradictions_and_single_classes_are_named():
    train = texts("train", ["a", "b", "A ", "b", "b"], [0, 1, 1, 1, 0])
    warnings = warnings_about(train, texts("dev", ["x", "y"], [1, 1]), {"en": texts("test", ["z"], [0])})
    assert warnings == (
        "the training set has 2 texts more than once with different labels",
        "the en dev set has only one label, so scores on it say little",
    )
    ranked = texts("train", ["q", "r"], [0, 1], second=["d", "d"], groups=["1", "2"])
    assert warnings_about(ranked, None, {}) == ()
    tagged = Examples("en", "train", [["a", "b"], ["a", "b"]], labels=[[0, 1], [1, 1]])
    assert "1 text more than once" in warnings_about(tagged, None, {})[0]
