"""Answers to single examples: confusion matrices, errors that pruning introduced, and how well classes separate."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import SENTENCES, tiny_batch, tiny_model, tiny_special, tiny_tokenizer

from xlmprune.data.encoding import Encoded, encode
from xlmprune.data.examples import Examples
from xlmprune.evaluation import answers
from xlmprune.evaluation.observing import Observed, Vectors, observe
from xlmprune.evaluation.scores import TestSet
from xlmprune.evaluation.separability import SAMPLE, between_classes, main_plane, sampled
from xlmprune.models.loading import forward_of, logits_and_vectors_of
from xlmprune.report.labels import label_scores
from xlmprune.tasks.metrics import Accuracy, TokenAccuracy

LABELS = ("no", "maybe", "yes")


def texts(labels, second=None, groups=None) -> TestSet:
    first = [f"text {number}" for number in range(len(labels))]
    examples = Examples("de", "test", first, second, list(labels), groups)
    ids = [np.array([0, 5, 2])] * len(labels)
    return TestSet(
        examples, Encoded(ids, None, None, np.zeros(len(labels), dtype=bool), special=tiny_special())
    )


def one_hot(labels) -> list[np.ndarray]:
    return [np.eye(len(LABELS), dtype=np.float32)[label] for label in labels]


def test_a_confusion_matrix_is_the_one_counted_by_hand():
    test, given_answers = texts([0, 0, 0, 2, 2]), one_hot([0, 0, 2, 2, 1])
    items = answers.items_of(test)
    found = answers.confusion(items, answers.answers_of(given_answers, 3), LABELS)
    assert found == {"no": {"no": 2, "yes": 1}, "yes": {"maybe": 1, "yes": 1}}
    scored = label_scores(found, LABELS)
    no, maybe, yes = (scored[label] for label in LABELS)
    assert (no.count, no.precision, no.recall, no.f1) == (3, 100, pytest.approx(200 / 3), 80)
    assert (maybe.count, maybe.precision, maybe.recall, maybe.f1) == (0, 0, None, 0)
    assert (yes.precision, yes.recall, yes.f1) == (50, 50, 50)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1))
def test_the_diagonal_is_the_accuracy(pairs):
    test, logits = texts([gold for gold, _ in pairs]), one_hot([answer for _, answer in pairs])
    counts = answers.confusion(answers.items_of(test), answers.answers_of(logits, 3), LABELS)
    right = sum(row.get(label, 0) for label, row in counts.items())
    statistics = Accuracy().statistics(logits, test.examples, LABELS)
    assert (right, sum(sum(row.values()) for row in counts.values())) == tuple(statistics.sum(axis=0))


def test_words_that_were_cut_off_are_errors_of_their_own():
    sentences = [text.split() for text in SENTENCES["de"]]
    examples = Examples("de", "test", sentences, labels=[[1] * len(words) for words in sentences])
    test = TestSet(examples, encode(tiny_tokenizer(), examples, max_length=8))
    read = [len(words) for words in test.encoded.words]
    words = sum(map(len, sentences))
    assert sum(read) < words, "the test needs truncation"
    logits = [np.tile(one_hot([1])[0], (count, 1)) for count in read]
    items = answers.items_of(test)
    assert len(items.gold) == sum(read)
    assert items.words.tolist() == [word for count in read for word in range(count)]
    counts = answers.confusion(items, answers.answers_of(logits, 3), LABELS)
    assert counts == {"maybe": {"maybe": sum(read), answers.CUT_OFF: words - sum(read)}}
    right, all_words = TokenAccuracy().statistics(logits, examples, LABELS).sum(axis=0)
    assert (counts["maybe"]["maybe"], words) == (right, all_words)


def test_ranking_and_sets_without_labels_have_no_matrix():
    assert answers.items_of(texts([0, 1], groups=["a", "a"])) is None
    unlabelled = texts([0, 1])
    blank = Examples("de", "test", unlabelled.examples.first)
    assert answers.items_of(TestSet(blank, unlabelled.encoded)) is None
    assert sampled({"de": TestSet(blank, unlabelled.encoded), "fr": texts([0, 1], groups=["a", "a"])}) == {}


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1), st.integers(0, 4))
def test_samples_are_errors_that_pruning_introduced(rows, count):
    gold, dense, pruned = (np.array(column) for column in zip(*rows, strict=True))
    test = texts(gold.tolist(), second=["s" * 400] * len(gold))
    items = answers.items_of(test)
    introduced = answers.introduced(items, dense, pruned)
    shown = answers.sample_errors(test.examples, items, dense, pruned, LABELS, count)
    assert shown == answers.sample_errors(test.examples, items, dense, pruned, LABELS, count)
    assert len(shown) == min(count, len(introduced))
    for error in shown:
        row = int(error["text"].removeprefix("text "))
        assert row in introduced
        assert error["gold"] == error["dense"] == LABELS[gold[row]] != error["pruned"] == LABELS[pruned[row]]
        assert len(error["second"]) == answers.LONGEST_TEXT


def test_the_sample_of_a_tagging_task_names_the_word_and_takes_a_sentence_once():
    examples = Examples("de", "test", [["das", "Licht"], ["eine", "Tür"]], labels=[[0, 1], [0, 1]])
    test = TestSet(examples, encode(tiny_tokenizer(), examples, max_length=30))
    items = answers.items_of(test)
    dense, pruned = items.gold, np.array([2, 2, 0, 2])
    shown = answers.sample_errors(examples, items, dense, pruned, LABELS, 4)
    assert [error["text"] for error in shown] == ["das Licht", "eine Tür"]
    assert shown[0]["word"] in ("das", "Licht")
    assert shown[1]["word"] == "Tür"
    assert [len(answers.introduced(items, dense, pruned))] == [3]


# --- separability ---


def test_separability_of_cases_worked_by_hand():
    points = np.array([[0.0, 0], [0, 0], [2, 0], [2, 0]])
    assert between_classes(points, np.array([0, 0, 1, 1])) == 1
    assert between_classes(points, np.array([0, 1, 0, 1])) == 0
    # Means 1 and 3, all 2: between 4 * 1, in all 9 + 1 + 1 + 9 over values -1, 3, 1, 5.
    assert between_classes(np.array([[-1.0], [3], [1], [5]]), np.array([0, 0, 1, 1])) == pytest.approx(4 / 20)
    assert between_classes(np.ones((4, 3)), np.array([0, 0, 1, 1])) == 0


def test_the_main_plane_keeps_what_lies_in_a_plane():
    random = np.random.default_rng(0)
    flat = random.normal(size=(20, 2)) * [5, 1]
    turned, _ = np.linalg.qr(random.normal(size=(6, 6)))
    points, explained = main_plane(flat @ turned[:2])
    assert sum(explained) == pytest.approx(1)
    assert explained[0] > explained[1] > 0
    before, after = (np.linalg.norm(found[:, None] - found[None], axis=-1) for found in (flat, points))
    np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.parametrize("vectors", [np.zeros((3, 4)), np.ones((1, 4)), np.arange(3.0)[:, None]])
def test_vectors_without_a_plane_have_points_all_the_same(vectors):
    points, explained = main_plane(vectors)
    assert points.shape == (len(vectors), 2)
    assert np.isfinite(points).all()
    assert all(math.isfinite(share) for share in explained)


def with_vectors(tests, vector) -> tuple[dict, Vectors]:
    """Give every example its one-hot logits and a vector; return the logits and what was kept beside them."""
    kept = Vectors(tests, len(LABELS))
    logits = {}
    for language, test in tests.items():
        outputs = [
            np.concatenate([logits, vector(language, row)])
            for row, logits in enumerate(one_hot(test.examples.labels))
        ]
        logits[language] = kept.split(language, outputs)
    return logits, kept


def test_vectors_of_the_sample_are_kept_and_logits_are_taken_apart():
    tests = {"de": texts([0, 1, 2] * 50), "th": texts([0, 1])}
    logits, kept = with_vectors(tests, lambda language, row: np.array([row, len(language)], np.float32))
    for language, test in tests.items():
        np.testing.assert_array_equal(logits[language], one_hot(test.examples.labels))
        rows = kept.found[language][:, 0].astype(int)
        assert [test.examples.first[row] for row in rows] == list(kept.sample[language].examples.first)
    assert len(kept.found["de"]) == SAMPLE


def test_a_language_without_labels_has_logits_and_no_vectors():
    unlabelled = TestSet(replace(texts([0, 1]).examples, labels=None), texts([0, 1]).encoded)
    kept = Vectors({"de": texts([0, 1, 2]), "th": unlabelled}, len(LABELS))
    outputs = [np.concatenate([logits, np.zeros(5, np.float32)]) for logits in one_hot([0, 1])]
    np.testing.assert_array_equal(kept.split("th", outputs), one_hot([0, 1]))
    assert not kept.found


def test_a_pass_with_vectors_has_the_logits_of_one_without_bit_for_bit():
    model, cpu = tiny_model(), torch.device("cpu")
    batch = tiny_batch()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    logits, both = forward_of(model, cpu)(ids, mask), logits_and_vectors_of(model, cpu)(ids, mask)
    np.testing.assert_array_equal(both[:, : logits.shape[1]], logits)
    with torch.no_grad():
        hidden = model(torch.tensor(ids), torch.tensor(mask), output_hidden_states=True).hidden_states[-1]
    np.testing.assert_array_equal(both[:, logits.shape[1] :], hidden[:, 0].numpy())


def test_what_was_observed_comes_back_from_a_checkpoint():
    tests = {"de": texts([0, 1, 2] * 50), "th": texts([0, 1])}
    random = np.random.default_rng(0)
    found = observe(*with_vectors(tests, lambda language, row: random.normal(size=5).astype(np.float32)))
    assert found.answers["de"].dtype == np.uint8
    assert {language: len(points) for language, points in found.classes.points.items()} == {
        "de": SAMPLE,
        "th": 2,
    }
    again = Observed.of_tensors(found.tensors())
    for language in tests:
        np.testing.assert_array_equal(again.answers[language], found.answers[language])
        np.testing.assert_array_equal(again.classes.points[language], found.classes.points[language])
    assert again.classes.shares == found.classes.shares
    assert again.classes.explained == found.classes.explained
    assert Observed.of_tensors({}) == Observed()


def test_a_diverged_model_has_answers_and_no_classes():
    tests = {"de": texts([0, 1, 2])}
    found = observe(*with_vectors(tests, lambda language, row: np.full(5, np.nan, np.float32)))
    assert found.classes is None
    assert len(found.answers["de"]) == 3
