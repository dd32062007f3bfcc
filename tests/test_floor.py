"""`export.floor` on test scores, on dev and on unlabelled text: what is counted, refused and reported."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import MAX_LENGTH, SENTENCES, tiny_tokenizer

from xlmprune.core.errors import DataError, RecipeError
from xlmprune.data.encoding import encode
from xlmprune.data.examples import Examples
from xlmprune.evaluation.agreement import Agreement
from xlmprune.evaluation.scores import Score, TestSet
from xlmprune.export import writing
from xlmprune.export.floor import Yardstick
from xlmprune.export.form import TextSource, Written, form_named
from xlmprune.recipe.loading import load_recipe
from xlmprune.recipe.schema import FloorRecipe
from xlmprune.report import findings
from xlmprune.tasks.metrics import Accuracy

LABELS = ("no", "yes")


def texts_of(language, texts, labels):
    examples = Examples(language, "test", texts, labels=labels)
    return TestSet(examples, encode(tiny_tokenizer(), examples, MAX_LENGTH))


def material(pattern="task", dev=True):
    """English dev: four sentences, all of label 0. Test: the first sentence. Unlabelled: all four of each language."""
    task = SimpleNamespace(
        kind="text",
        metrics=(Accuracy(),),
        labels=LABELS,
        unlabelled=lambda language, **_: SENTENCES[language],
    )
    data = SimpleNamespace(
        task=task,
        train_language="en",
        max_length=MAX_LENGTH,
        dev=texts_of("en", ["open", "it", "turn", "on"], [0] * 4) if dev else None,
        tests={code: texts_of(code, SENTENCES[code][:1], [0]) for code in ("en", "de", "th")},
    )
    return SimpleNamespace(
        data=data, tokenizer=tiny_tokenizer(), source=TextSource(pattern, None), batch_size=3
    )


def pytorch(ids, mask):
    """Answers 0 to everything."""
    return np.tile(np.array([1.0, 0.0], dtype=np.float32), (len(ids), 1))


def shaken(threshold):
    """Answers 1 to texts of at least ``threshold`` tokens."""
    return lambda ids, mask: np.eye(2, dtype=np.float32)[(mask.sum(axis=1) >= threshold).astype(int)]


def test_on_dev_the_loss_is_that_of_english_dev():
    yardstick = Yardstick("dev", material(), pytorch)
    assert yardstick.drops(pytorch) == {"en": 0.0}
    assert yardstick.drops(shaken(0)) == {"en": 100.0}


def test_on_unlabelled_text_every_changed_label_counts_and_no_test_text_is_read():
    yardstick = Yardstick("unlabelled", material(), pytorch)
    assert {code: len(part) for code, part in yardstick.sets.items()} == {"en": 3, "de": 3, "th": 3}
    assert yardstick.drops(pytorch) == {"en": 0.0, "de": 0.0, "th": 0.0}
    lengths = sorted(len(ids) for ids in yardstick.sets["th"].input_ids)
    assert yardstick.drops(shaken(lengths[-1]))["th"] == pytest.approx(100 / 3)


def test_what_the_floor_is_decided_on_must_be_there():
    with pytest.raises(DataError, match=r"export\.floor\.on: dev needs a dev set"):
        Yardstick("dev", material(dev=False), pytorch)
    with pytest.raises(DataError, match=r"export\.floor\.on: unlabelled needs unlabelled text"):
        Yardstick("unlabelled", material(pattern=None), pytorch)


@pytest.mark.parametrize(
    ("on", "drops", "refused"),
    [
        ("test", None, r"de fell by 9\.00 points \(at most 1 is allowed\)\. Scores on the test sets decide"),
        ("dev", {"en": 0.5}, None),
        ("dev", {"en": 1.5}, r"en fell by 1\.50 points.*The score on dev of the train language decides"),
        ("unlabelled", {"en": 0.0, "de": 0.0}, None),
        ("unlabelled", {"en": 0.0, "de": 2.0}, r"de fell by 2\.00 points.*unlabelled texts whose label"),
    ],
)
def test_only_what_was_chosen_decides(tmp_path, on, drops, refused):
    """The test score of German is 9 points lower throughout."""
    scores = {code: Score(90.0, {}, np.ones((1, 2))) for code in ("en", "de")}
    fallen = scores | {"de": Score(81.0, {}, np.ones((1, 2)))}
    (tmp_path / "model.int8.onnx").touch()
    entry = writing.MeasuredForm(form_named("int8"), Written(0, 0), fallen, Agreement(), drops)
    floor = FloorRecipe(worst_language_drop=1.0, on=on)
    found = writing.refuse([entry], scores, floor, "en", tmp_path)
    assert list(found) == ([] if refused is None else ["int8"])
    assert (tmp_path / "model.int8.onnx").exists() == (refused is None)
    if refused:
        assert re.search(refused, found["int8"])


def test_the_report_says_what_decided():
    lost = {"onnx_int8": {"en": 0.2}}
    said = {
        on: findings.describe_floor({"floor": {"worst_language_drop": 2.0, "on": on, "lost": lost}})
        for on in ("test", "dev", "unlabelled")
    }
    assert said["test"].endswith("Scores on the test sets decide; the report shows them.")
    assert "2 points in any language" in said["dev"]
    assert said["unlabelled"].endswith("whose label changes; no test score decides.")
    assert findings.describe_floor({}) == ""


@pytest.mark.parametrize("dense", [True, False])
def test_the_report_says_whether_the_dense_stage_was_regularized(dense):
    recipe = {"regularizer": {"name": "cosine"}, "training": {"regularize_dense": dense}}
    said = findings.describe_regularizer({"recipe": recipe})
    assert ("not in the dense stage" in said) != dense
    assert findings.describe_regularizer({"recipe": {**recipe, "regularizer": {"name": "none"}}}) == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["export.floor={on: dev, zero_shot_drop: 1}", "training.keep=last"], "on: dev needs dev examples"),
        (["export.floor={on: unlabelled, zero_shot_drop: 1}"], "on: unlabelled needs unlabelled text"),
        (
            ["export.floor={on: unlabelled, zero_shot_drop: 1}", "model.vocabulary={files: [all.txt]}"],
            "on: unlabelled needs unlabelled text.* files with {language} in the name",
        ),
        (["export.floor={on: tests}"], "expected `test` or `dev` or `unlabelled`"),
    ],
)
def test_floors_that_cannot_be_are_refused_before_training(options, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe("xnli_cosine", options)
    load_recipe(
        "xnli_cosine", ["export.floor={on: unlabelled, zero_shot_drop: 1}", "export.calibration=task"]
    )
