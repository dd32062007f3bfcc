"""Unlabelled text beside the labels: where it comes from, what is left out, and in which order it is met."""

import json

import numpy as np
import pytest
from test_pipeline import report_of, workplace, write_recipe  # noqa: F401
from tiny import SENTENCES, tiny_tokenizer
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.data import Examples, encode
from xlmprune.distillation import Distillation
from xlmprune.errors import DataError
from xlmprune.teaching import Teaching, join_encoded, unlabelled_examples


class Task:
    def __init__(self, kind):
        self.kind = kind

    def unlabelled(self, language):
        return SENTENCES[language]


def measured(kind, languages=("de", "th")):
    found = {}
    for language in languages:
        texts = SENTENCES[language][:1]
        if kind == "tokens":
            found[language] = Examples(
                language, "test", [texts[0].split()], labels=[[0] * len(texts[0].split())]
            )
        elif kind == "pair":
            found[language] = Examples(language, "test", texts, ["b"], labels=[0])
        else:
            found[language] = Examples(language, "test", texts, labels=[0])
    return found


def test_test_texts_are_left_out():
    found = unlabelled_examples(Task("text"), "task", measured("text"))
    assert found["de"].first == SENTENCES["de"][1:]
    assert found["de"].labels is None


def test_text_can_be_limited_to_languages_and_to_a_number():
    found = unlabelled_examples(Task("text"), "task", measured("text"), ["th"], 2)
    assert list(found) == ["th"]
    assert found["th"].first == SENTENCES["th"][1:3]


def test_a_language_that_is_not_measured_is_an_error():
    with pytest.raises(DataError, match="fi not among the languages measured, de, th"):
        unlabelled_examples(Task("text"), "task", measured("text"), ["th", "fi"])


def test_choosing_text_needs_text():
    with pytest.raises(ValueError, match="there is no unlabelled text to choose from"):
        Distillation(max_texts=5)


def test_words_of_taggers_are_what_spaces_separate():
    found = unlabelled_examples(Task("tokens"), "task", measured("tokens"))
    assert found["de"].first == [text.split() for text in SENTENCES["de"][1:]]


def test_pairs_come_from_tabs_or_neighbours(tmp_path):
    (tmp_path / "de.txt").write_text("a\tb\nc\n\nd\ne\n", encoding="utf-8")
    found = unlabelled_examples(Task("pair"), str(tmp_path / "{language}.txt"), measured("pair"))
    assert list(zip(found["de"].first, found["de"].second, strict=True)) == [("a", "b"), ("c", "d")]
    assert "th" not in found, "a language without a file does without"


def test_no_text_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no text found for de, th"):
        unlabelled_examples(Task("text"), str(tmp_path / "{language}.txt"), measured("text"))


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_every_text_is_met_once_a_pass(kind):
    tests = measured(kind, tuple(SENTENCES))
    parts = unlabelled_examples(Task(kind), "task", tests)
    texts = join_encoded([encode(tiny_tokenizer(), part, 32) for part in parts.values()])
    teaching = Teaching(Distillation(unlabelled="task"), texts, 5, seed=1)
    passes = -(-len(texts) // 5)
    seen = [teaching.unlabelled_batch(position) for position in range(passes)]
    met = sorted(tuple(row[row != 1]) for batch in seen for row in batch["input_ids"])
    assert met == sorted(tuple(ids) for ids in texts.input_ids)
    again = Teaching(Distillation(unlabelled="task"), texts, 5, seed=1).unlabelled_batch(passes + 1)
    np.testing.assert_array_equal(again["input_ids"], teaching.unlabelled_batch(passes + 1)["input_ids"])
    if kind == "tokens":
        for batch in seen:
            inside = (batch["input_ids"] != 0) & (batch["input_ids"] != 2) & (batch["input_ids"] != 1)
            np.testing.assert_array_equal(batch["where"], inside, "every sub-word, no special token")


def test_report_says_which_languages_gave_text(workplace, tmp_path):  # noqa: F811
    for language in ("de", "ru"):
        (tmp_path / f"{language}.txt").write_text("ein neuer Satz\nund noch einer\n", encoding="utf-8")
    recipe = write_recipe(
        workplace, name="taught", distillation={"unlabelled": str(tmp_path / "{language}.txt"), "hidden": 0.1}
    )
    result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    report = report_of(tmp_path / "run")
    assert report["unlabelled"] == {"de": 2, "ru": 2}
    assert {language for language, row in report["languages"].items() if row["seen_unlabelled"]} == {
        "de",
        "ru",
    }
    assert str(tmp_path) not in json.dumps(report)
