"""Unlabelled text beside the labels: where it comes from, what is left out, and in which order it is met."""

import json

import numpy as np
import pytest
import torch
from tiny import SENTENCES, tiny_tokenizer
from tiny_run import report_of, write_recipe
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.core.errors import DataError
from xlmprune.core.progress import Reporter
from xlmprune.data.encoding import encode, join_encoded
from xlmprune.data.examples import Examples, normalize
from xlmprune.data.unlabelled import unlabelled_examples
from xlmprune.recipe.loading import load_recipe
from xlmprune.recipe.schema import DistillationRecipe
from xlmprune.training.checkpoint import open_run
from xlmprune.training.run import Training
from xlmprune.training.teaching import Teaching


class Task:
    measures_all = False

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


SAME = (
    "Mach das Licht an.",
    "mach  das Licht an",
    "Mach das Licht an .",
    "MACH DAS LICHT AN!",
    "\u00a0Mach das Licht\u3000an ",
)


@pytest.mark.parametrize("kind", ["text", "tokens"])
@pytest.mark.parametrize("copy", SAME)
def test_copies_of_what_is_measured_are_left_out(tmp_path, kind, copy):
    """However spaced, cased or punctuated, of the test set of any language and of dev."""
    text = SAME[2].split() if kind == "tokens" else SAME[0]
    test, dev = (
        Examples("de", "test", [text]),
        Examples("en", "dev", [["other"] if kind == "tokens" else "other"]),
    )
    (tmp_path / "de.txt").write_text(f"{copy}\nMach das Licht aus.\nOther!\n", encoding="utf-8")
    (tmp_path / "en.txt").write_text(f"{copy}\nstays\n", encoding="utf-8")
    tests = {"en": Examples("en", "test", [["x"] if kind == "tokens" else "x"]), "de": test}
    found = unlabelled_examples(Task(kind), str(tmp_path / "{language}.txt"), tests, dev)
    split = str.split if kind == "tokens" else str
    assert {language: part.first for language, part in found.items()} == {
        "en": [split("stays")],
        "de": [split("Mach das Licht aus.")],
    }


def test_marks_and_signs_tell_texts_apart():
    """Vowels of Hindi and Thai are marks; a text of signs alone is itself."""
    assert normalize("की") != normalize("का")
    assert normalize("ที่") != normalize("ท")
    assert normalize("Ｌｉｃｈｔ 1") == normalize("licht１")
    assert normalize("?") != normalize("!")
    assert normalize(" ? ") == normalize("?")


def test_a_pair_is_left_out_if_either_text_is_measured(tmp_path):
    lines = ["p1\th2", "p2\tH1.", "p2\th2", "p1", "p3", "h1", "h3"]
    (tmp_path / "de.txt").write_text("\n".join(lines), encoding="utf-8")
    tests = {"de": Examples("de", "test", ["p1"], ["h1"])}
    found = unlabelled_examples(Task("pair"), str(tmp_path / "{language}.txt"), tests)
    assert list(zip(found["de"].first, found["de"].second, strict=True)) == [("p2", "h2"), ("p3", "h3")]


def test_text_can_be_limited_to_languages_and_to_a_number():
    found = unlabelled_examples(Task("text"), "task", measured("text"), languages=["th"], max_texts=2)
    assert list(found) == ["th"]
    assert found["th"].first in [
        [a, b] for i, a in enumerate(SENTENCES["th"][1:]) for b in SENTENCES["th"][i + 2 :]
    ]
    again = unlabelled_examples(Task("text"), "task", measured("text"), languages=["th"], max_texts=2)
    assert again["th"].first == found["th"].first


def test_a_language_that_is_not_measured_is_an_error():
    with pytest.raises(DataError, match="fi not among the measured languages: de, th"):
        unlabelled_examples(Task("text"), "task", measured("text"), languages=["th", "fi"])


def test_choosing_text_needs_text():
    with pytest.raises(ValueError, match="there is no unlabelled text to choose from"):
        DistillationRecipe(max_texts=5)


def test_words_of_taggers_are_what_spaces_separate():
    found = unlabelled_examples(Task("tokens"), "task", measured("tokens"))
    assert found["de"].first == [text.split() for text in SENTENCES["de"][1:]]


def test_pairs_come_from_tabs_or_neighbours(tmp_path):
    (tmp_path / "de.txt").write_text("a\tz\nc\n\nd\ne\n", encoding="utf-8")
    found = unlabelled_examples(Task("pair"), str(tmp_path / "{language}.txt"), measured("pair"))
    assert list(zip(found["de"].first, found["de"].second, strict=True)) == [("a", "z"), ("c", "d")]
    assert "th" not in found, "a language without a file does without"


def test_no_text_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no text found for de, th"):
        unlabelled_examples(Task("text"), str(tmp_path / "{language}.txt"), measured("text"))


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_every_text_is_met_once_a_pass(kind):
    tests = measured(kind, tuple(SENTENCES))
    parts = unlabelled_examples(Task(kind), "task", tests)
    texts = join_encoded([encode(tiny_tokenizer(), part, 32) for part in parts.values()])
    teaching = Teaching(DistillationRecipe(unlabelled="task"), texts, 5, seed=1)
    passes = -(-len(texts) // 5)
    seen = [teaching.unlabelled_batch(position) for position in range(passes)]
    met = sorted(tuple(row[row != 1]) for batch in seen for row in batch["input_ids"])
    assert met == sorted(tuple(ids) for ids in texts.input_ids)
    again = Teaching(DistillationRecipe(unlabelled="task"), texts, 5, seed=1).unlabelled_batch(passes + 1)
    np.testing.assert_array_equal(again["input_ids"], teaching.unlabelled_batch(passes + 1)["input_ids"])
    if kind == "tokens":
        for batch in seen:
            inside = (batch["input_ids"] != 0) & (batch["input_ids"] != 2) & (batch["input_ids"] != 1)
            np.testing.assert_array_equal(batch["where"], inside, "every sub-word, no special token")


@pytest.mark.slow
def test_report_says_which_languages_gave_text(workplace, tmp_path):
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


def test_a_run_does_not_go_on_with_other_unlabelled_text(workplace, tmp_path):
    """It is read from stage 1 on, so other text is refused once stage 1 has begun; before, nothing has been read."""
    text = tmp_path / "de.txt"
    text.write_text("ein neuer Satz\nund noch einer\n", encoding="utf-8")
    given = write_recipe(
        workplace, name="taught", distillation={"unlabelled": str(tmp_path / "{language}.txt")}
    )
    recipe = load_recipe(str(given))

    def go(out, until):
        with open_run(out, recipe) as folder:
            Training(recipe, folder, torch.device("cpu"), Reporter()).run(until)

    go(tmp_path / "run", 1)
    text.write_text("ganz etwas anderes\nund noch einer\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"changed since the run started \(unlabelled de\)"):
        go(tmp_path / "run", 2)
    text.unlink()
    (tmp_path / "ru.txt").write_text("anderswo\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"\(unlabelled de, unlabelled ru\)"):
        go(tmp_path / "run", 2)


def test_a_plan_tells_what_text_there_is_and_where_there_is_none(workplace, tmp_path):
    pattern = str(tmp_path / "{language}.txt")
    recipe = write_recipe(workplace, name="planned", distillation={"unlabelled": pattern})
    command = ["compress", str(recipe), "--out", str(tmp_path / "run"), "--dry-run"]
    missing = CliRunner().invoke(app, command)
    assert missing.exit_code == 2
    assert "distillation.unlabelled: no text found" in missing.stderr
    (tmp_path / "de.txt").write_text("ein neuer Satz\nund noch einer\n", encoding="utf-8")
    found = CliRunner().invoke(app, command)
    assert "unlabelled texts to learn a teacher's answers on: de 2" in found.stdout
