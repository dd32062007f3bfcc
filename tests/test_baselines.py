"""Check the scores that need no model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlmprune.data.examples import Examples
from xlmprune.evaluation import scores as evaluation
from xlmprune.evaluation.baselines import baselines, learned_nothing
from xlmprune.tasks.metrics import Accuracy, EntityF1, Ndcg, TokenAccuracy

LABELS = ("a", "b", "c", "d")


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_majority_is_the_best_constant_answer(gold):
    examples = Examples("en", "test", ["x"] * len(gold), labels=gold)
    found = baselines(examples, Accuracy(), LABELS)
    counts = np.bincount(gold, minlength=4)
    assert found.majority == pytest.approx(100 * counts.max() / len(gold))
    assert counts[LABELS.index(found.label)] == counts.max()
    assert found.chance == 25
    assert found.best == max(found.majority, 25)


def test_words_are_counted_one_by_one():
    examples = Examples("en", "test", [["x"] * 3, ["y"]], labels=[[0, 1, 1], [1]])
    found = baselines(examples, TokenAccuracy(), LABELS)
    assert (found.majority, found.chance, found.label) == (75, 25, "b")


def test_answering_no_entity_scores_nothing():
    examples = Examples("en", "test", [["x"] * 4], labels=[[1, 2, 0, 0]])
    found = baselines(examples, EntityF1(), ("O", "B-X", "I-X"))
    assert found.majority == 0
    assert 0 <= found.chance < 60


def test_a_constant_answer_ranks_as_chance_does():
    gold = [0, 1, 2, 3] * 40
    examples = Examples(
        "en", "test", ["q"] * 160, ["d"] * 160, gold, groups=[str(row // 4) for row in range(160)]
    )
    metric = Ndcg("ndcg_expected", expected=True)
    found = baselines(examples, metric, ("0", "1", "2", "3"))
    assert found.majority == pytest.approx(found.chance, abs=3)
    assert 50 < found.chance < 90


def test_without_labels_there_is_no_baseline():
    assert baselines(Examples("en", "test", ["x"]), Accuracy(), LABELS) is None
    assert baselines(Examples("en", "test", [], labels=[]), Accuracy(), LABELS) is None


def scored(right, wrong):
    gold = [0] * (right + wrong)
    logits = [np.eye(4)[0]] * right + [np.eye(4)[1]] * wrong
    examples = Examples("en", "dev", ["x"] * len(gold), labels=[row % 4 for row in range(len(gold))])
    score = evaluation.score(
        logits, Examples("en", "dev", ["x"] * len(gold), labels=gold), (Accuracy(),), LABELS
    )
    return score.statistics, Accuracy(), baselines(examples, Accuracy(), LABELS)


def test_a_model_near_chance_has_learned_nothing_and_a_better_one_has():
    assert learned_nothing(*scored(26, 74))
    assert learned_nothing(*scored(32, 68)), "32 of 100 is within what chance gives"
    assert not learned_nothing(*scored(45, 55))
