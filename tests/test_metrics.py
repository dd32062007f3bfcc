from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlmprune.core.errors import DataError, RecipeError
from xlmprune.data.examples import Examples
from xlmprune.data.readers.labels import to_iob2
from xlmprune.tasks.metrics import (
    METRICS,
    Accuracy,
    EntityF1,
    Ndcg,
    TagRuns,
    TokenAccuracy,
    entities,
    main_first,
    ndcg,
    tag_runs,
)

BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
UPOS = ("NOUN", "VERB", "SCONJ", "CCONJ", "SYM")


def one_hot(rows, labels):
    return np.eye(len(labels))[[labels.index(name) for name in rows]].reshape(-1, len(labels))


def tagged(sentences, labels):
    return Examples(
        "en", "test", sentences, None, [[labels.index(tag) for tag in tags] for tags in sentences]
    )


def value(metric, logits, examples, labels):
    statistics = metric.statistics(logits, examples, labels)
    assert statistics.dtype == np.float64
    score = metric.value(statistics.sum(axis=0))
    assert 0 <= score <= 100
    return float(score)


def test_accuracy():
    examples = Examples("en", "test", ["a", "b", "c", "d"], None, [0, 1, 2, 0])
    logits = [np.array(row) for row in ([1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0], [9.0, 1, 8])]
    assert value(Accuracy(), logits, examples, ("x", "y", "z")) == 75.0
    assert Accuracy().statistics(logits, examples, ("x", "y", "z")).tolist() == [
        [1, 1],
        [0, 1],
        [1, 1],
        [1, 1],
    ]


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_nothing_scores_zero_and_totals_may_be_stacked(metric):
    examples = Examples("en", "test", [], None, [], groups=[])
    statistics = metric.statistics([], examples, ("0", "1"))
    assert statistics.shape[0] == 0
    assert float(metric.value(statistics.sum(axis=0))) == 0
    stacked = metric.value(np.ones((3, 2, statistics.shape[1])))
    assert stacked.shape == (3, 2)
    np.testing.assert_allclose(stacked, 100)


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_a_set_without_labels_is_refused(metric):
    with pytest.raises(DataError, match=r"here\.tsv: no labels"):
        metric.statistics([np.zeros(2)], Examples("en", "test", ["a"], origin="here.tsv"), ("0", "1"))


def test_words_cut_off_are_wrong():
    examples = tagged([["NOUN", "VERB", "NOUN", "NOUN"]], UPOS)
    logits = [one_hot(["NOUN", "VERB"], UPOS)]
    assert value(TokenAccuracy(), logits, examples, UPOS) == 50.0
    found = tagged([["B-PER", "I-PER", "O", "B-LOC"]], BIO)
    # the place is cut off: one entity of two found, and nothing wrong predicted
    assert value(EntityF1(), [one_hot(["B-PER", "I-PER", "O"], BIO)], found, BIO) == pytest.approx(200 / 3)
    # the person is cut in two: a wrong entity predicted, none found
    assert value(EntityF1(), [one_hot(["B-PER"], BIO)], found, BIO) == 0
    assert value(TokenAccuracy(), [np.zeros((0, 5))], found, BIO) == 0


def test_more_words_than_the_sentence_has_is_our_fault():
    with pytest.raises(ValueError, match="2 words for a sentence of 1"):
        TokenAccuracy().statistics([np.zeros((2, 5))], tagged([["NOUN"]], UPOS), UPOS)


def test_entity_f1_by_hand():
    gold = tagged([["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "B-LOC"]], BIO)
    predicted = [
        one_hot(["B-PER", "I-PER", "O", "B-PER"], BIO),  # one right, one of the wrong type
        one_hot(["O", "B-LOC", "I-LOC"], BIO),  # two places taken for one
    ]
    statistics = EntityF1().statistics(predicted, gold, BIO)
    assert statistics.tolist() == [[1, 2, 2], [0, 1, 2]]
    assert float(EntityF1().value(statistics.sum(axis=0))) == pytest.approx(200 * 1 / 7)


def test_entities_are_read_leniently():
    assert entities(["I-PER", "I-PER", "O", "I-LOC"]) == {("PER", 0, 1), ("LOC", 3, 3)}
    assert entities(["B-PER", "I-LOC", "I-LOC"]) == {("PER", 0, 0), ("LOC", 1, 2)}
    assert entities(["I-ORG", "I-ORG", "B-ORG", "I-ORG"]) == {("ORG", 0, 1), ("ORG", 2, 3)}
    assert entities(["S-PER", "B-PER", "E-PER", "I-PER"]) == {("PER", 0, 0), ("PER", 1, 2), ("PER", 3, 3)}
    assert entities(["B-new-york", "I-new-york"]) == {("new-york", 0, 1)}
    assert entities([]) == entities(["O", "O"]) == set()


def strict(tags):
    """Entities of IOB2 tags, read by their definition: a B- and the I- of its type that follow it."""
    found = set()
    for start, tag in enumerate(tags):
        if tag.startswith("B-"):
            end = start
            while end + 1 < len(tags) and tags[end + 1] == "I-" + tag[2:]:
                end += 1
            found.add((tag[2:], start, end))
    return found


@given(st.lists(st.sampled_from(BIO), max_size=9))
def test_iob1_and_iob2_are_the_same_entities(tags):
    examples = to_iob2(tagged([tags], BIO), BIO)
    rewritten = [BIO[number] for number in examples.labels[0]]
    assert entities(tags) == strict(rewritten) == entities(rewritten)
    changed = sum(a != b for a, b in zip(tags, rewritten, strict=True))
    assert bool(changed) == bool(examples.notes)
    if changed:
        assert f"{changed:,} entities began with I-" in examples.notes[0]


def test_the_official_accuracy_of_tags_is_a_precision_of_runs():
    gold = tagged([["NOUN", "NOUN", "VERB"]], UPOS)
    predicted = [one_hot(["NOUN", "VERB", "VERB"], UPOS)]
    assert value(TagRuns(), predicted, gold, UPOS) == 0
    assert value(TokenAccuracy(), predicted, gold, UPOS) == pytest.approx(200 / 3)
    assert value(TagRuns(), [one_hot(["CCONJ"], UPOS)], tagged([["SCONJ"]], UPOS), UPOS) == 0
    # S… tags do not run together: two of three single ones are right
    gold = tagged([["SYM", "SYM", "NOUN"]], UPOS)
    assert value(TagRuns(), [one_hot(["SYM", "SYM", "SYM"], UPOS)], gold, UPOS) == pytest.approx(200 / 3)


@given(st.lists(st.sampled_from(UPOS), max_size=8))
def test_runs_are_maximal_and_cover_every_word_once(tags):
    found = sorted((a, b, tag) for tag, a, b in tag_runs(tags))
    assert [place for a, b, _ in found for place in range(a, b + 1)] == list(range(len(tags)))
    for a, b, tag in found:
        assert set(tags[a : b + 1]) == {tag}
        assert tag[0] != "S" or a == b
    for (_, _, before), (_, _, after) in pairwise(found):
        assert before != after or before[0] == "S"


def test_ndcg_golden_values():
    gold = np.array([4.0, 2, 0, 1, 3])
    assert ndcg(gold, np.array([3.0, 3, 0, 0, 3])) == pytest.approx(0.9287343, abs=1e-7)
    assert ndcg(gold, gold) == pytest.approx(1)
    assert ndcg(np.zeros(3), np.array([1.0, 2, 3])) == 0


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=5))
def test_ndcg_is_the_mean_over_all_orders_of_the_tied(documents):
    gold = np.array([float(label) for label, _ in documents])
    scores = np.array([float(score) for _, score in documents])
    discounts = 1 / np.log2(np.arange(len(gold)) + 2)
    orders = [
        list(order) for order in permutations(range(len(gold))) if (np.diff(scores[list(order)]) <= 0).all()
    ]
    mean = np.mean([gold[order] @ discounts for order in orders])
    best = max(gold[list(order)] @ discounts for order in permutations(range(len(gold))))
    assert ndcg(gold, scores) == pytest.approx(mean / best if best else 0)


def test_ranking_groups_neighbours_leaves_out_singles_and_counts_the_worthless():
    labels = ("0", "1", "2", "3", "4")
    groups = ["a", "a", "b", "a", "a", "c", "c"]
    examples = Examples("en", "test", groups, groups, [4, 0, 2, 0, 1, 0, 0], groups)
    logits = [np.eye(5)[rating] for rating in (4, 0, 2, 1, 0, 3, 1)]
    statistics = Ndcg().statistics(logits, examples, labels)
    # "a" twice, since only neighbours belong together; "b" is alone; "c" has nothing of worth
    np.testing.assert_allclose(statistics, [[1, 1], [1 / np.log2(3), 1], [0, 1]])
    assert value(Ndcg(), logits, examples, labels) == pytest.approx(100 * (1 + 1 / np.log2(3)) / 3)


def test_the_expected_rating_breaks_ties_of_the_most_probable():
    labels = ("0", "1", "2")
    examples = Examples("en", "test", ["q", "q"], ["x", "y"], [0, 2], ["q", "q"])
    logits = [np.log([0.5, 0.4, 0.1]), np.log([0.5, 0.1, 0.4])]
    assert value(Ndcg("wpr_expected", expected=True), logits, examples, labels) == pytest.approx(100)
    tied = value(Ndcg(), logits, examples, labels)
    assert tied == pytest.approx(50 * (1 + 1 / np.log2(3)))


def test_gains_are_numbers_and_rows_have_queries():
    examples = Examples("en", "test", ["q", "q"], ["x", "y"], [0, 1], ["q", "q"], origin="f.tsv")
    with pytest.raises(DataError, match="nDCG needs numbers"):
        Ndcg().statistics([np.zeros(2)] * 2, examples, ("bad", "good"))
    with pytest.raises(DataError, match="0 or more"):
        Ndcg().statistics([np.zeros(2)] * 2, examples, ("-1", "1"))
    with pytest.raises(DataError, match="no query"):
        Ndcg().statistics([np.zeros(2)], Examples("en", "test", ["q"], ["x"], [0]), ("0", "1"))


def test_a_recipe_chooses_the_main_metric_by_name():
    metrics = (Ndcg("wpr_argmax"), Ndcg("wpr_expected", expected=True))
    assert [metric.name for metric in main_first(metrics, None)] == ["wpr_argmax", "wpr_expected"]
    assert [metric.name for metric in main_first(metrics, "wpr_expected")] == ["wpr_expected", "wpr_argmax"]
    with pytest.raises(
        RecipeError, match="'f1' is not a metric of this task; it has: wpr_argmax, wpr_expected"
    ):
        main_first(metrics, "f1")


def test_a_language_in_which_nothing_is_ranked_is_refused():
    """One document a query, or the documents of a query apart from each other: no score, and not a score of 0."""
    rows = Examples("de", "test", ["q"] * 4, ["d"] * 4, [1, 0, 1, 0], groups=["q1", "q2", "q1", "q2"])
    with pytest.raises(
        DataError, match=r"no query has two documents, so nothing is ranked in 'de'.*neighbouring"
    ):
        Ndcg().statistics([np.zeros(2)] * 4, rows, ("0", "1"))
