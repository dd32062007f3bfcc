"""Every task of the registry, on made files in the official layout and on files of one's own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_tokenizer

from xlmprune.core.errors import DataError, RecipeError
from xlmprune.data.encoding import encode
from xlmprune.evaluation.predictions import write_predictions
from xlmprune.recipe import registry
from xlmprune.recipe.catalog import shipped_recipes
from xlmprune.recipe.loading import load_recipe
from xlmprune.recipe.schema import TaskRecipe
from xlmprune.tasks.metrics import METRICS

SAMPLE = Path(__file__).parent / "data" / "xglue_sample"
PAPER = ("xnli", "nc", "ner", "pos", "pawsx", "qam", "qadsm", "wpr")

LANGUAGES = {
    "xnli": ("en", "ar", "sw", "th", "zh"),
    "nc": ("en", "de", "es", "fr", "ru"),
    "ner": ("en", "de", "es", "nl"),
    "pos": ("en", "ar", "pt", "th", "vi", "zh"),
    "pawsx": ("en", "de", "es", "fr"),
    "qam": ("en", "de", "fr"),
    "qadsm": ("en", "de", "fr"),
    "wpr": ("en", "pt", "zh"),
}


def build(name, **fields):
    return registry.load("task", name)(TaskRecipe(name=name, **fields))


def official(name, **fields):
    return build(name, source="xglue", path=str(SAMPLE), **fields)


def names(task, examples):
    return [
        [task.labels[tag] for tag in label] if isinstance(label, list) else task.labels[label]
        for label in examples.labels
    ]


def confident(task, examples, encoded):
    """Logits that put every example, and every word that survived, on its label."""
    logits = []
    for row, label in enumerate(examples.labels):
        rows = [label] if task.kind != "tokens" else label[: len(encoded.words[row])]
        own = np.eye(len(task.labels))[rows].reshape(-1, len(task.labels))
        logits.append(own if task.kind == "tokens" else own[0])
    return logits


@pytest.mark.parametrize("name", PAPER)
def test_the_official_folder_from_files_to_scores(name, tmp_path):
    task = official(name)
    assert task.languages() == LANGUAGES[name]
    assert task.name == name
    assert "XGLUE" in task.licence
    assert all(METRICS[metric.name] == metric for metric in task.metrics)
    train = task.examples("en", "train")
    used = {tag for label in train.labels for tag in (label if isinstance(label, list) else [label])}
    assert used <= set(range(len(task.labels)))
    for language in task.languages():
        for split in ("dev", "test"):
            examples = task.examples(language, split)
            assert (examples.language, examples.split, examples.kind) == (language, split, task.kind)
            if examples.labels is None:
                continue
            encoded = encode(tiny_tokenizer(), examples, 64)
            logits = confident(task, examples, encoded)
            for metric in task.metrics:
                total = metric.statistics(logits, examples, task.labels).sum(axis=0)
                # rated 0 throughout, a group of WPR scores 0 even when ranked as it should be
                worthless = name == "wpr" and language == "en"
                assert float(metric.value(total)) == pytest.approx(200 / 3 if worthless else 100)
            file = write_predictions(tmp_path, task, language, logits, examples)
            assert file == tmp_path / name.upper() / f"{language}.prediction"


def test_xnli_has_one_contradiction():
    task = official("xnli")
    assert task.labels == ("entailment", "neutral", "contradiction")
    train = task.examples("en", "train")
    assert names(task, train)[0] == names(task, train)[-1] == "contradiction"
    assert train.first[0] == 'The river rose "well above" its banks.'
    assert train.second[2] == 'It rained for "ten days.'
    assert len(task.examples("zh", "test")) == 3, "the last line has no line end"


def test_nc_is_title_and_body_and_either_may_be_empty():
    task = official("nc")
    assert len(task.labels) == 10
    train = task.examples("en", "train")
    assert (train.first[2], train.second[2]) == ("", "A storm closed two bridges on Friday.")
    assert (train.first[1], train.second[1]) == ("Late goal decides the derby", "")
    assert train.notes[0].endswith("2 empty texts kept")
    assert task.examples("ru", "test").first[0].startswith("Финал"), "the byte order mark is no letter"


def test_qadsm_and_wpr_join_title_and_text():
    task = official("qadsm")
    assert task.examples("de", "test").second == [
        "Gartenhäuser ab Lager Lieferung am Montag.",
        "Billige Flüge ",
    ]
    assert names(task, task.examples("de", "test")) == ["Good", "Bad"]
    task = official("wpr")
    examples = task.examples("en", "test")
    assert examples.second[0] == "How to tie knots Twelve knots."
    assert examples.groups == examples.first
    assert task.examples("pt", "test").groups == ["nós", "nós"], "the byte order mark is no letter"


def test_wpr_ranks_neighbours_and_leaves_out_single_pages():
    task = official("wpr")
    examples = task.examples("en", "test")
    assert [metric.name for metric in task.metrics] == ["wpr_argmax", "wpr_expected"]
    logits = confident(task, examples, None)
    # knots (3), moon phase (1, left out), knots again (2), rust (2, nothing of worth)
    assert task.metrics[0].statistics(logits, examples, task.labels).tolist() == [[1, 1], [1, 1], [0, 1]]
    assert len(examples.sample(5)) in (4, 5)
    expected = official("wpr", metric="wpr_expected")
    assert expected.metrics[0].name == "wpr_expected"


def test_qam_without_test_labels_can_be_predicted_but_not_scored(tmp_path):
    task = official("qam")
    examples = task.examples("fr", "test")
    assert examples.labels is None
    file = write_predictions(tmp_path, task, "fr", [np.array([0.0, 1]), np.array([1.0, 0])], examples)
    assert file.read_text() == "1\n0\n"
    with pytest.raises(DataError, match=r"xglue\.qam\.fr\.test: no labels, so there is nothing to score"):
        task.metrics[0].statistics([np.zeros(2)] * 2, examples, task.labels)


def test_pawsx_skips_its_header_and_ids():
    examples = official("pawsx").examples("de", "test")
    assert examples.first[0] == "Das Nordtor liegt der alten Mühle gegenüber ."
    assert examples.labels == [1, 0]


def test_ner_is_iob2_throughout_and_counts_what_was_changed():
    task = official("ner")
    train = task.examples("en", "train")
    assert names(task, train) == [
        ["B-PER", "I-PER", "O", "B-LOC", "O"],
        ["B-ORG", "I-ORG", "O", "B-ORG", "I-ORG"],
        ["O", "B-MISC", "O"],
    ]
    assert train.notes[0].endswith("4 entities began with I- (as in IOB1) and now begin with B- (IOB2)")
    assert names(task, task.examples("es", "test"))[0] == ["B-LOC", "O", "O"]
    assert "1 entities began" in task.examples("es", "test").notes[0]
    assert task.examples("nl", "test").notes == ()
    assert build("ner", source="hub").labels == task.labels[:7], "WikiANN has no MISC"


def test_pos_flags_a_test_set_that_is_its_dev_set():
    task = official("pos")
    assert len(task.labels) == 17
    assert [metric.name for metric in task.metrics] == ["pos_token_accuracy", "pos_xglue"]
    assert (
        task.examples("th", "test")
        .notes[0]
        .endswith("the test set and the dev set of 'th' are the same sentences")
    )
    assert task.examples("th", "dev").notes == task.examples("en", "test").notes == ()
    assert task.unlabelled("th") == []
    assert task.unlabelled("en")[0] == "I saw that it rained ."


def test_predictions_of_tokens_have_a_line_a_word_and_an_empty_one_a_sentence(tmp_path):
    task = official("ner")
    examples = task.examples("en", "test")
    encoded = encode(tiny_tokenizer(), examples, 6)
    logits = confident(task, examples, encoded)
    file = write_predictions(tmp_path, task, "en", logits, examples)
    tags = [sentence.split("\n") for sentence in file.read_text().removesuffix("\n\n").split("\n\n")]
    assert [len(sentence) for sentence in tags] == [len(words) for words in examples.first]
    assert tags == [["B-PER", "O", "O"], ["B-LOC", "O", "O"]], "words cut off get O"


def test_hub_languages_are_the_papers():
    assert build("xnli").languages()[0] == "en"
    assert len(build("xnli").languages()) == 15
    assert len(build("pos").languages()) == 18
    assert build("pawsx").languages() == ("en", "de", "es", "fr")
    assert build("pawsx", languages=["ko"]).languages() == ("en", "ko")
    assert build("ner", languages=["yo"]).languages() == ("en", "yo")
    with pytest.raises(DataError, match="no test set for language 'yo'"):
        build("xnli", languages=["yo"]).languages()


@pytest.mark.parametrize("name", ["nc", "qam", "qadsm", "wpr"])
def test_what_is_not_on_the_hub_says_how_to_get_it(name):
    with pytest.raises(DataError, match=r"no copy on the hub.*XGLUE is not downloaded for you"):
        build(name)


@pytest.mark.parametrize("name", ["classification", "pair_classification", "tagging", "ranking"])
def test_tasks_of_ones_own_come_from_files(name):
    with pytest.raises(DataError, match=r"set `task\.source: files` and `task\.path`"):
        build(name)
    with pytest.raises(DataError, match="is not a task of XGLUE"):
        build(name, source="xglue", path=str(SAMPLE))


def own(folder, name, content, suffix="tsv", **fields):
    for file, text in content.items():
        (folder / f"{file}.{suffix}").write_text(text)
    return build(name, source="files", path=f"{folder}/{{language}}.{{split}}.{suffix}", **fields)


def test_classes_of_ones_own(tmp_path):
    content = {"en.train": "b\ttwo\na\tone\n", "en.test": "a\tone\n", "sw.test": "moja\tone\n"}
    task = own(tmp_path, "classification", content)
    assert task.labels == ("one", "two")
    assert task.languages() == ("en", "sw")
    assert task.examples("en", "train").labels == [1, 0]
    assert task.licence == "unknown"
    assert own(tmp_path, "classification", {}, labels=["two", "one"]).examples("sw", "test").labels == [1]
    with pytest.raises(RecipeError, match="'f1' is not a metric of this task; it has: accuracy"):
        own(tmp_path, "classification", {}, metric="f1")


def test_tags_of_ones_own(tmp_path):
    content = {
        "en.train": "a\tI-LOC\nb\tO\n\nc\tB-PER\n",
        "sw.test": "a\tI-PER\nb\tI-LOC\n",
        "en.test": "a\tO\n",
    }
    task = own(tmp_path, "tagging", content)
    assert task.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert [metric.name for metric in task.metrics] == ["f1", "token_accuracy"]
    assert names(task, task.examples("en", "train")) == [["B-LOC", "O"], ["B-PER"]]
    assert names(task, task.examples("sw", "test")) == [["B-PER", "B-LOC"]]
    plain = own(tmp_path, "tagging", {"en.train": "a\tX\nb\tO\n", "en.test": "a\tX\n"})
    assert plain.labels == ("O", "X")
    assert [metric.name for metric in plain.metrics] == ["token_accuracy"]


@pytest.mark.parametrize("stray", ["tag", "o", "B-", "PER"])
def test_a_stray_among_bio_tags_is_named(tmp_path, stray):
    content = {"en.train": f"a\tB-LOC\nb\tO\nd\t{stray}\n\nc\tB-PER\n", "en.test": "a\tO\n"}
    task = own(tmp_path, "tagging", content, header=False)
    for ask in (lambda: task.labels, lambda: task.metrics):
        with pytest.raises(DataError, match=rf"BIO except '{stray}' \(.*en\.train\.tsv:3\).*task\.labels"):
            ask()
    meant = own(tmp_path, "tagging", content, labels=["O", "B-LOC", "B-PER", stray])
    assert [metric.name for metric in meant.metrics] == ["token_accuracy"]


def test_plain_tags_with_hyphens_are_no_bio(tmp_path):
    content = {"en.train": "a\tB-X\nb\tNOUN\nc\tVERB\n", "en.test": "a\tNOUN\n"}
    assert own(tmp_path, "tagging", content).labels == ("B-X", "NOUN", "VERB")


def test_rankings_of_ones_own(tmp_path):
    content = {"en.train": "q\ta\t10\nq\tb\t2\nq\tc\t0\n", "en.test": "q\ta\t10\nq\tb\t0\nr\ta\t2\nr\tb\t0\n"}
    task = own(tmp_path, "ranking", content)
    assert task.labels == ("0", "2", "10")
    assert [metric.name for metric in task.metrics] == ["ndcg_expected", "ndcg_argmax"]
    examples = task.examples("en", "test")
    assert (
        task.metrics[0].statistics(confident(task, examples, None), examples, task.labels).tolist()
        == [[1, 1]] * 2
    )


def test_tasks_of_the_paper_from_files(tmp_path):
    content = {
        "en.train": "q\ta title\ta text\tGood\nq\tt\td\tBad\n",
        "en.test": "query\tad_title\tad_description\nq\tt\td\n",
    }
    task = own(tmp_path, "qadsm", content)
    assert task.examples("en", "train").second == ["a title a text", "t d"]
    assert task.examples("en", "test").second == ["t d"]
    content = {
        "en.train": "premise\thypothesis\tlabel\na\tb\tcontradictory\na\tc\tneutral\n",
        "en.test": "a\tb\tneutral\n",
    }
    task = own(tmp_path, "xnli", content)
    assert names(task, task.examples("en", "train")) == ["contradiction", "neutral"]


def test_every_task_has_its_line_and_a_docstring():
    for name in registry.TASKS:
        if name == "quickstart":
            continue
        task = registry.load("task", name)
        assert task.name == name
        assert task.kind in ("text", "pair", "tokens")
        assert sys.modules[task.__module__].__doc__
        assert task.__doc__.count("\n") == 0, "the first line is the task's row in the documentation"


def test_tasks_import_neither_torch_nor_transformers():
    modules = [entry.partition(":")[0] for name, entry in registry.TASKS.items() if name != "quickstart"]
    modules += [
        "xlmprune.data.examples",
        "xlmprune.data.encoding",
        "xlmprune.tasks.metrics",
        "xlmprune.evaluation.predictions",
        "xlmprune.data.readers.files",
    ]
    heavy = ("torch", "transformers", "datasets", "pandas", "pyarrow")
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print([name for name in {heavy!r} if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("method", ["cosine", "frobenius"])
@pytest.mark.parametrize("name", PAPER)
def test_every_task_of_the_paper_has_its_recipes(name, method):
    file = shipped_recipes()[f"{name}_{method}"]
    recipe = load_recipe(str(file))
    text = file.read_text()
    assert f"# xlmprune compress recipes/{file.name}\n" in text
    assert "# Hardware: " in text
    assert "# Scores: " in text
    assert (recipe.name, recipe.task.name, recipe.regularizer.name) == (file.stem, name, method)
    # O'Neill et al. 2022: section 4 and the recipe of the XGLUE baseline
    training = recipe.training
    assert (training.batch_size, training.epochs_per_stage, training.weight_decay) == (32, 15, 0)
    assert (training.learning_rate, training.max_length) == ((2e-5, 128) if name == "pos" else (5e-6, 256))
    densities = registry.load("schedule", recipe.pruning.schedule.name)(
        **recipe.pruning.schedule.parameters
    ).per_stage()
    assert densities == pytest.approx([0.9**stage for stage in range(1, 12)])
    strength = {"cosine": 100.0, "frobenius": 5e-4}[method]
    assert recipe.regularizer.parameters == {"strength": strength, "reference": "pretrained"}
    if recipe.task.source == "hub":
        assert build(name).languages()[0] == "en"


def test_ner_scores_entities_and_refuses_other_tags():
    """ "ORG" would be read as an O, and everything found to be right."""
    recipe = TaskRecipe(name="ner", source="files", path="{language}.{split}", labels=["O", "ORG", "LOC"])
    with pytest.raises(RecipeError, match=r"O, ORG, LOC are not BIO tags.*task.name: tagging"):
        registry.load("task", "ner")(recipe)
