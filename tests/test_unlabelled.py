"""Text of the languages that are only measured: read when the recipe asks for it, marked, and never test text."""

import gzip
from types import SimpleNamespace

import numpy as np
import pytest

from xlmprune.core.errors import DataError
from xlmprune.data.checks import uneven_text
from xlmprune.data.encoding import Encoded
from xlmprune.data.examples import Examples
from xlmprune.data.readers import Corpus
from xlmprune.data.readers.hub import Hub, HubSet
from xlmprune.data.readers.rows import Rows
from xlmprune.data.special import SpecialTokens
from xlmprune.data.unlabelled import unlabelled_examples, unmeasured_languages, vocabulary_texts
from xlmprune.export.choosing import unlabelled_texts
from xlmprune.export.form import TextSource
from xlmprune.export.writing import calibration_text
from xlmprune.recipe import registry
from xlmprune.recipe.schema import VOCABULARY_FILES, DistillationRecipe, ExportRecipe, Recipe, TaskRecipe
from xlmprune.report import findings
from xlmprune.report.results import target_text
from xlmprune.tasks.metrics import METRICS
from xlmprune.training.datasets import read_texts


def recipe(**sections):
    values = {"name": "x", "task": {"name": "quickstart"}, **sections}
    return Recipe.model_validate(values)


DISTILLED = {"teacher": "finetuned", "unlabelled": "task"}


@pytest.mark.parametrize(
    ("sections", "pattern"),
    [
        ({}, None),
        ({"model": {"vocabulary": {"keep_languages_of": "task"}}}, None),
        ({"model": {"vocabulary": {"files": ["text/{language}.txt"]}}}, "text/{language}.txt"),
        ({"model": {"vocabulary": {"files": ["all.txt", "text/{language}.txt"]}}}, "text/{language}.txt"),
        ({"model": {"vocabulary": {"files": ["all.txt"]}}}, None),
        ({"distillation": DISTILLED}, "task"),
        ({"distillation": {**DISTILLED, "unlabelled": "task_with_translations"}}, "task"),
        ({"export": {"calibration": "task"}}, "task"),
        ({"export": {"calibration": "own/{language}.txt"}, "distillation": DISTILLED}, "own/{language}.txt"),
    ],
)
def test_int8_is_calibrated_on_what_the_recipe_names(sections, pattern):
    assert calibration_text(recipe(**sections)).pattern == pattern


def test_a_pattern_for_calibration_names_the_language():
    with pytest.raises(ValueError, match=r"does not contain \{language\}"):
        recipe(export={"calibration": "all.txt"})


@pytest.mark.parametrize(
    ("keys", "teaches", "on_unlabelled"),
    [
        ({}, True, False),
        ({"weight": 0}, False, False),
        ({"weight": 0, "hidden": 0.1}, True, False),
        ({"confidence": True}, True, False),
        ({"weight": 0, "unlabelled": "task"}, True, True),
        ({"weight": 0, "unlabelled": "task", "unlabelled_weight": 0}, False, False),
    ],
)
def test_a_teacher_without_weight_teaches_nothing(keys, teaches, on_unlabelled):
    """The report does not say that the model learned from it."""
    settings = DistillationRecipe(**keys)
    assert (settings.teaches, settings.teaches_on_unlabelled) == (teaches, on_unlabelled)
    assert findings._has_teacher({"recipe": {"distillation": settings.model_dump()}}) == teaches
    said = target_text(recipe(distillation=keys))
    assert any("learn the teacher's answers" in sentence for sentence in said) == on_unlabelled


def test_the_report_says_for_what_task_text_was_read():
    assert target_text(recipe()) == []
    assert (
        target_text(
            recipe(model={"vocabulary": {"files": ["a.txt"]}}, export={"calibration": "b/{language}"})
        )
        == []
    )
    (counted,) = target_text(recipe(model={"vocabulary": {"keep_languages_of": "task"}}))
    assert counted.startswith(
        "the task's own text of the zero-shot languages was used to count the vocabulary"
    )
    taught, calibrated = target_text(
        recipe(
            distillation={**DISTILLED, "unlabelled": "task_with_translations"}, export={"calibration": "task"}
        )
    )
    assert taught.endswith("with machine translations of the training set")
    assert "calibrate quantization" in calibrated
    assert target_text(recipe(export={"calibration": "task", "onnx": ["fp32"]})) == []


class Rowed:
    """A source on the hub of which every set can be asked for, and says what was."""

    licence = "unknown"

    def __init__(self):
        self.read = []

    def languages(self):
        return ("de", "en")

    def has(self, language, split):
        return True

    def rows(self, language, split):
        self.read.append((language, split))
        first = [f"{language} {split} {number}" for number in range(3)]
        return Rows("hub", first, [f"{text} second" for text in first], ["0", "1", "0"], None, [1, 2, 3])


@pytest.fixture
def translated(monkeypatch):
    """A corpus of the hub whose training sets in other languages are translations."""
    source = Rowed()
    hub = HubSet("some/set", ("de", "en"), first="a", second="b", label="l", translated_train=True)
    corpus = Corpus(TaskRecipe(name="xnli"), "pair", hub=hub)
    assert isinstance(corpus.source, Hub)
    monkeypatch.setattr(corpus, "source", source)
    return corpus


def test_translations_of_the_training_set_are_read_by_name_only(translated):
    assert [text.split("\t")[0] for text in translated.unlabelled("de")] == [f"de dev {n}" for n in range(3)]
    assert ("de", "train") not in translated.source.read
    assert len(translated.unlabelled("de", translations=True)) == 6
    assert len(translated.unlabelled("en")) == 6, "English is no translation"
    task = SimpleNamespace(kind="pair", unlabelled=translated.unlabelled)
    tests = {"de": Examples("de", "test", ["x"], ["y"])}
    assert len(unlabelled_examples(task, "task", tests)["de"]) == 3
    assert len(unlabelled_examples(task, "task_with_translations", tests)["de"]) == 6


@pytest.mark.parametrize("name", ["xnli", "pawsx"])
def test_the_hubs_training_sets_of_these_tasks_are_translations(name):
    assert registry.load("task", name).hub.translated_train


@pytest.mark.parametrize(
    ("english", "said"),
    [(20, []), (15, []), (99, ["83% of the unlabelled text is English", "distillation.max_texts: 10"])],
)
def test_it_is_said_if_most_of_the_unlabelled_text_is_of_one_language(english, said):
    counts = {"en": english, "de": 10, "fr": 10}
    parts = {code: Examples(code, "unlabelled", ["x"] * count) for code, count in counts.items()}
    sentence = uneven_text(parts)
    assert bool(sentence) == bool(said)
    assert all(part in sentence for part in said)
    assert uneven_text({"en": parts["en"]}) == "", "nothing to share out"


class Plain:
    """Ten test and dev texts in English and German; the task's own text is all of them and one more."""

    name = "plain"
    kind = "text"
    measures_all = True
    labels = ("a", "b")
    metrics = (METRICS["accuracy"],)

    def languages(self):
        return ("en", "de")

    def unlabelled(self, language, translations=False):
        texts = [text for split in ("test", "dev") for text in self.examples(language, split).first]
        return [*map(str.upper, texts), f"{language} is free"]

    def examples(self, language, split):
        texts = [f"{language} {split} number {'abcdefghij'[number]}" for number in range(10)]
        return Examples(language, split, texts, labels=[0, 1] * 5)


@pytest.mark.parametrize("cap", [None, 3])
def test_a_sample_of_the_test_sets_still_keeps_all_of_their_texts_out(cap):
    settings = TaskRecipe(name="classification", source="files", path="x", max_test_examples=cap)
    distillation = DistillationRecipe(teacher="finetuned", unlabelled="task")
    texts = read_texts(Plain(), settings, "best", distillation)
    assert len(texts.tests["de"]) == (cap or 10)
    assert {language: part.first for language, part in texts.unlabelled.items()} == {
        "en": ["en is free"],
        "de": [*map(str.upper, Plain().examples("de", "dev").first), "de is free"],
    }


class Task:
    """Text in two languages."""

    kind = "pair"
    measures_all = True

    def languages(self):
        return ("en", "de")

    def unlabelled(self, language, translations=False):
        return [f"{language} own{' translated' * translations}"]

    def examples(self, language, split):
        return Examples(language, split, [f"{language} {split} text"], ["other half"])


def test_the_vocabulary_counts_task_text_of_other_languages_only_where_asked(tmp_path):
    file = tmp_path / "de.txt"
    file.write_text("Neuer Satz\nDE  test, text!\nfrei\tOther half.\nfrei\tund neu\n", encoding="utf-8")
    files = [str(tmp_path / "{language}.txt")]
    assert vocabulary_texts(Task(), files, None) == {
        "en": ["en own", "en train text", "en dev text"],
        "de": ["Neuer Satz", "frei", "und neu"],
    }
    file.write_bytes(gzip.compress(file.read_bytes()))
    assert vocabulary_texts(Task(), files, None)["de"] == ["Neuer Satz", "frei", "und neu"]
    file.rename(tmp_path / "de.txt.gz")
    assert vocabulary_texts(Task(), files, None)["de"] == ["Neuer Satz", "frei", "und neu"]
    assert vocabulary_texts(Task())["de"] == ["de own"]
    assert vocabulary_texts(Task(), None, "task_with_translations")["de"] == ["de own translated"]
    assert vocabulary_texts(Task(), files)["de"] == ["de own", "Neuer Satz", "frei", "und neu"]


def files_of_three(folder):
    """Write text of a measured language, of one that is not, and files that are of no language."""
    for name in ("de", "fr", "zh-Hant", "notes", "readme"):
        (folder / f"{name}.txt").write_text(f"text of {name}\nDE test number a!\n", encoding="utf-8")
    return str(folder / "{language}.txt")


def test_text_of_languages_without_a_test_set_is_read_too_without_test_text(tmp_path):
    pattern, task = files_of_three(tmp_path), Plain()
    tests = {language: task.examples(language, "test") for language in task.languages()}
    assert unmeasured_languages(task, [pattern, "task"]) == ["fr", "zh-Hant"]
    found = unlabelled_examples(task, pattern, tests)
    assert {code: part.first for code, part in found.items()} == {
        code: [f"text of {code}"] for code in ("de", "fr", "zh-Hant")
    }
    counted = vocabulary_texts(task, [pattern], None)
    assert (counted["fr"], counted["zh-Hant"]) == (["text of fr"], ["text of zh-Hant"])
    assert list(unlabelled_examples(task, pattern, tests, languages=["fr"])) == ["fr"]


def test_a_recipe_that_lists_its_languages_reads_text_of_these_alone(tmp_path, monkeypatch):
    pattern, task = files_of_three(tmp_path), Plain()
    monkeypatch.setattr(Plain, "measures_all", False)
    tests = {language: task.examples(language, "test") for language in task.languages()}
    assert unmeasured_languages(task, [pattern]) == []
    assert list(unlabelled_examples(task, pattern, tests)) == ["de"]
    assert list(vocabulary_texts(task, [pattern], None)) == ["en", "de"]
    chosen = unlabelled_examples(task, pattern, tests, languages=["de", "fr"])
    assert list(chosen) == ["de", "fr"], "named by distillation.languages"


def test_the_run_says_which_languages_nothing_measures(tmp_path):
    settings = TaskRecipe(name="classification", source="files", path="x")
    pattern = files_of_three(tmp_path)
    distillation = DistillationRecipe(teacher="finetuned", unlabelled=pattern)
    for taught, counted in ((distillation, ()), (None, [pattern])):
        warnings = read_texts(Plain(), settings, "best", taught, counted).warnings
        (said,) = [warning for warning in warnings if "no test set" in warning]
        assert said.startswith("there is text in French, Chinese (Traditional), and no test set")
    one = DistillationRecipe(teacher="finetuned", unlabelled=pattern, languages=["de"])
    assert not any(
        "no test set" in warning for warning in read_texts(Plain(), settings, "best", one).warnings
    )


def test_text_for_the_export_is_there_before_anything_is_trained(tmp_path, monkeypatch):
    settings = TaskRecipe(name="classification", source="files", path="x")
    pattern = str(tmp_path / "{language}.txt")

    def warnings(**keys):
        return read_texts(Plain(), settings, "best", None, (), ExportRecipe(**keys)).warnings

    quiet = warnings()
    with pytest.raises(DataError, match=r"export.calibration: no text found for en, de at '.*language"):
        warnings(calibration=pattern)
    (tmp_path / "de.txt").write_bytes(b"gut\n\xff\n")
    with pytest.raises(DataError, match=r"de\.txt.*UTF-8"):
        warnings(calibration=pattern)
    (tmp_path / "de.txt").unlink()
    (tmp_path / "fr.txt").write_text("une phrase\n", encoding="utf-8")  # of a language that nothing measures
    assert warnings(calibration=pattern) == warnings(calibration="task") == quiet
    monkeypatch.setattr(Plain, "unlabelled", lambda *_, **__: [])
    (said,) = set(warnings(calibration="task")) - set(quiet)
    assert said.startswith("export.calibration: the task has no unlabelled text of its own")
    with pytest.raises(DataError, match=r"export.calibration: no text found for en, de at 'task'"):
        warnings(calibration="task", floor={"on": "unlabelled", "zero_shot_drop": 1})


@pytest.mark.parametrize("key", ["export.calibration", "distillation.unlabelled", VOCABULARY_FILES])
def test_only_the_vocabularys_text_may_be_missing_at_the_export(tmp_path, key):
    plain = Plain()
    tests = {
        language: SimpleNamespace(examples=plain.examples(language, "test")) for language in ("en", "de")
    }
    special = SpecialTokens(
        {}, pad=1, unknown=3, separator=2, single=2, pair=4, segments=False, word_start=None
    )
    train = Encoded([np.array([0, 5, 2])], None, None, np.zeros(1, bool), special=special)
    data = SimpleNamespace(task=plain, train=train, dev=None, tests=tests, max_length=8)
    source = TextSource(str(tmp_path / "{language}.txt"), None, key)
    material = SimpleNamespace(data=data, source=source, tokenizer=None)
    if key == VOCABULARY_FILES:
        assert list(unlabelled_texts(material)) == ["train"]
        return
    with pytest.raises(DataError, match=f"{key}: no text found for en, de"):
        unlabelled_texts(material)


def test_a_language_of_the_list_with_neither_test_set_nor_text_is_named(tmp_path):
    with pytest.raises(DataError, match=r"it not among the measured languages: de, and no text of it at"):
        unlabelled_examples(
            Plain(),
            files_of_three(tmp_path),
            {"de": Plain().examples("de", "test")},
            languages=["fr", "it"],
        )
