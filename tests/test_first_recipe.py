"""`xlmprune init`: what it finds in data files, and that the recipe it writes is valid and says what was found."""

import gzip
import json
import shlex

import pytest
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.core.errors import DataError, RecipeError
from xlmprune.data.lengths import most_tokens
from xlmprune.recipe import registry
from xlmprune.recipe.loading import load_recipe
from xlmprune.recipe.yaml_text import parse_yaml
from xlmprune.tasks import first_recipe

TEXTS = "".join(f"a text about thing {i}\t{('good', 'bad', 'no')[i % 3]}\n" for i in range(30))
PAIRS = "".join(f"premise {i}\thypothesis {i}\t{('yes', 'no')[i % 2]}\n" for i in range(30))
SENTENCES = "".join("Ann\tB-PER\nsaw\tO\nBob\tB-PER\n\n" for _ in range(10))
JSON = "".join(json.dumps({"text": f"text {i}", "label": ("a", "b")[i % 2]}) + "\n" for i in range(20))


def write(folder, text, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".gz"):
            file.write_bytes(gzip.compress(text.encode()))
        else:
            file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "names", "kind", "pattern", "splits"),
    [
        (
            TEXTS,
            ["en.train.tsv", "en.dev.tsv", "en.test.tsv", "no.test.tsv"],
            "classification",
            "{language}.{split}.tsv",
            {},
        ),
        (
            TEXTS,
            ["train/en.tsv", "test/en.tsv", "test/de.tsv"],
            "classification",
            "{split}/{language}.tsv",
            {},
        ),
        (
            TEXTS,
            ["en/train.tsv.gz", "en/validation.tsv.gz", "en/test.tsv", "zh/test.tsv.gz"],
            "classification",
            "{language}/{split}.tsv",
            {"dev": "validation"},
        ),
        (
            PAIRS,
            ["x-en_train.tsv", "x-en_test.tsv", "x-sw_test.tsv"],
            "pair_classification",
            "x-{language}_{split}.tsv",
            {},
        ),
        (SENTENCES, ["en.train", "en.test", "fr.test"], "tagging", "{language}.{split}", {}),
        (
            JSON,
            ["train-en.jsonl", "test-en.jsonl", "test-th.jsonl"],
            "classification",
            "{split}-{language}.jsonl",
            {},
        ),
    ],
)
def test_files_are_understood(tmp_path, text, names, kind, pattern, splits):
    write(tmp_path / "data", text, *names)
    (tmp_path / "data" / "README.md").write_text("train en test")
    found = first_recipe.init(str(tmp_path / "data"), tmp_path / "recipe.yaml")
    assert (found.kind, found.layout.splits) == (kind, splits)
    assert found.layout.pattern == (tmp_path / "data" / pattern).as_posix()
    assert (tmp_path / "recipe.yaml").read_text(encoding="utf-8").count(f'path: "data/{pattern}"') == 1
    recipe = load_recipe(str(tmp_path / "recipe.yaml"))
    task = registry.load("task", recipe.task.name)(recipe.task)
    assert task.labels == found.labels
    assert task.languages() == tuple(recipe.task.languages) == found.languages
    assert len(task.examples("en", "train")) == found.counts["train"]
    assert recipe.training.keep == ("best" if found.counts["dev"] else "last")
    assert recipe.pruning.pattern == "structured"
    assert (recipe.pruning.structure.heads, recipe.pruning.structure.neurons) == (0.5, 0.5)


def test_arguments_decide(tmp_path, monkeypatch):
    write(
        tmp_path / "data", TEXTS, "en.train.tsv", "en.test.tsv", "de.test.tsv", "no.test.tsv", "de.train.tsv"
    )
    monkeypatch.chdir(tmp_path)
    command = [
        "init",
        "data/{language}.{split}.tsv",
        "--train-language",
        "de",
        "--languages",
        "de, no",
        "--out",
        "r.yaml",
    ]
    result = CliRunner().invoke(app, [*command, "--model", "quickstart", "--density", "0.25", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["languages"] == ["de", "no"]
    recipe = load_recipe("r.yaml")
    assert (recipe.model.name, recipe.task.train_language) == ("quickstart", "de")
    assert (recipe.pruning.structure.heads, recipe.pruning.structure.neurons) == (0.25, 0.25)
    assert recipe.model.vocabulary == "keep", "no text was given to trim it to"


def test_text_without_labels_teaches(tmp_path, monkeypatch):
    write(tmp_path / "data", TEXTS, "en.train.tsv", "en.test.tsv", "de.test.tsv")
    write(tmp_path / "text", "a line\n", "de.txt")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["init", "data", "--out", "r.yaml", "--text", "text/{language}.txt"])
    assert result.exit_code == 0, result.output
    recipe = load_recipe("r.yaml")
    assert recipe.distillation.unlabelled == str(tmp_path / "text" / "{language}.txt")
    assert 'unlabelled: "text/{language}.txt"' in (tmp_path / "r.yaml").read_text()
    assert (
        recipe.model.vocabulary.files
        == recipe.export.calibration.split()
        == [str(tmp_path / "text" / "{language}.txt")]
    )
    assert recipe.pruning.reconstruct is not None


def test_text_of_a_language_without_test_file_is_served_and_said(tmp_path, monkeypatch):
    write(tmp_path / "data", TEXTS, "en.train.tsv", "en.test.tsv", "de.test.tsv")
    write(tmp_path / "text", "a line\n", "de.txt", "fr.txt", "notes.txt")
    monkeypatch.chdir(tmp_path)
    command = ["init", "data", "--out", "r.yaml", "--text", "text/{language}.txt"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "Text without a test file: French." in result.output
    recipe = load_recipe("r.yaml")
    assert recipe.task.languages == "all"
    assert recipe.model.vocabulary.files
    assert CliRunner().invoke(app, [*command, "--languages", "de", "--force"]).exit_code == 0
    assert load_recipe("r.yaml").task.languages == ["en", "de"]


def test_text_of_a_language_with_a_code_of_your_own_counts(tmp_path, monkeypatch):
    write(tmp_path / "data", TEXTS, "en.train.tsv", "en.test.tsv", "xx.test.tsv")
    write(tmp_path / "text", "a line\n", "xx.txt")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["init", "data", "--out", "r.yaml", "--text", "text/{language}.txt"])
    assert result.exit_code == 0, result.output
    assert load_recipe("r.yaml").model.vocabulary.files, "xx has text"


def test_nothing_is_trimmed_where_a_measured_language_has_no_text(tmp_path, monkeypatch):
    write(tmp_path / "data", TEXTS, "en.train.tsv", "en.test.tsv", "de.test.tsv", "sw.test.tsv")
    write(tmp_path / "text", "a line\n", "de.txt")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["init", "data", "--out", "r.yaml", "--text", "text/{language}.txt"])
    assert result.exit_code == 0, result.output
    assert "No text in Swahili, so the vocabulary is not trimmed" in result.output
    recipe = load_recipe("r.yaml")
    assert recipe.model.vocabulary == "keep"
    assert recipe.distillation.unlabelled


def test_it_asks_on_a_terminal(tmp_path, monkeypatch):
    write(tmp_path / "data", TEXTS, "en.train.tsv", "en.test.tsv", "de.test.tsv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("xlmprune.cli._is_terminal", lambda: True)
    result = CliRunner().invoke(app, ["init"], input="data\n\n\nquickstart\n0.4\n4x\n")
    assert result.exit_code == 0, result.output
    recipe = load_recipe("recipe.yaml")
    assert recipe.model.name == "quickstart"
    assert recipe.pruning.structure.budget.speedup == 4


def test_a_budget_is_written_into_the_recipe(tmp_path, monkeypatch):
    write(tmp_path / "data", TEXTS, "en.train.tsv", "en.test.tsv", "de.test.tsv")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["init", "data", "--out", "r.yaml", "--budget", "2.5ms, 10.5 MB"])
    assert result.exit_code == 0, result.output
    budget = load_recipe("r.yaml").pruning.structure.budget
    assert (budget.latency_ms, budget.bytes, budget.speedup) == (2.5, 10_500_000, None)
    assert load_recipe("r.yaml").pruning.pattern == "structured", (
        "nothing but the budget decides what remains"
    )
    assert first_recipe.read_budget("") == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a folder of data files"),
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "no training and test files found"),
        (["data", "--density", "1"], "expected a share from 0.01 to below 1"),
        (["data", "--density", "1e-40"], "expected a share from 0.01 to below 1"),
        (["data", "--text", "text.txt"], "expected a pattern with {language}"),
        (["data", "--text", "texts/{language}.txt"], "no such file for any of the languages en, de"),
        (["nowhere", "--out", "there.yaml"], "nowhere: no such folder"),
        (["data", "--task", "clasification"], "did you mean 'classification'"),
        (["data", "--task", "ranking"], "no kind of task can read these files"),
        (["data", "--languages", "de,xx"], "no test set for language 'xx'"),
        (
            ["data", "--out", "there.yaml"],
            "exists already; choose another file with --out, or replace it with --force",
        ),
        (["data", "--out", "empty", "--force"], "empty: is a folder"),
        (["nowhere", "--out", "there.yaml", "--force"], "nowhere: no such folder"),
        (["data", "--budget", "fast"], "--budget fast: expected milliseconds (5 ms)"),
        (["data", "--budget", "0x"], "--budget 0x: expected"),
        (["data", "--budget", "2x, 4 x"], "speedup is given twice"),
        (["data", "--columns", "message"], "--columns message: expected each part of an example once"),
        (["data", "--columns", "first=a,first=b"], "expected each part of an example once"),
        (["data", "--columns", "frist=text"], "'frist' is not a part of an example here"),
        (["data", "--columns", "first=body"], "no column is called 'body'"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(tmp_path, monkeypatch, arguments, said):
    write(tmp_path / "data", TEXTS, "en.train.tsv", "en.test.tsv", "de.test.tsv")
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.yaml").write_text("mine")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["init", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr
    assert (tmp_path / "there.yaml").read_text() == "mine"
    assert not (tmp_path / "recipe.yaml").exists()
    with pytest.raises((DataError, RecipeError)):
        first_recipe.init("nowhere", tmp_path / "there.yaml")


ROWS = [(f"t{n}", f"this is message {n} of them", "ab"[n % 2] * 3, f"reply {n} to it") for n in range(12)]
"""Id, text, label, and another text."""


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        (
            "{}.tsv",
            "ticket\tmessage\ttopic\n" + "".join(f"{i}\t{t}\t{c}\n" for i, t, c, _ in ROWS),
            {"first": "message", "label": "topic"},
        ),
        ("{}.tsv", "".join(f"{i}\t{t}\t{c}\n" for i, t, c, _ in ROWS), {"first": 1, "label": 2}),
        (
            "{}.tsv",
            "message\ttopic\n" + "".join(f"{t}\t{c}\n" for _, t, c, _ in ROWS),
            {"first": "message", "label": "topic"},
        ),
        (
            "{}.jsonl",
            "".join(json.dumps({"body of it": t, "kind_of_it": c}) + "\n" for _, t, c, _ in ROWS),
            {"first": "body of it", "label": "kind_of_it"},
        ),
        (
            "{}.csv",
            "Ihre Nachricht,Thema,Nr\n" + "".join(f'"{t}, ja",{c},{i}\n' for i, t, c, _ in ROWS),
            {"first": "Ihre Nachricht", "label": "Thema"},
        ),
        (
            "{}.jsonl",
            "".join(json.dumps({"n": i, "body_of_it": t, "kind_of_it": c}) + "\n" for i, t, c, _ in ROWS),
            {"first": "body_of_it", "label": "kind_of_it"},
        ),
    ],
)
def test_columns_of_other_names_are_guessed_from_what_they_hold(tmp_path, monkeypatch, name, text, columns):
    write(tmp_path / "data", text, *(name.format(part) for part in ("en.train", "en.test", "de.test")))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["init", "data"])
    assert result.exit_code == 0, result.output
    assert f"The text seems to be in column {columns['first']!r}" in result.stderr
    assert "# Guessed from what the columns hold." in (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    recipe = load_recipe("recipe.yaml")
    assert recipe.task.columns == columns
    task = registry.load("task", recipe.task.name)(recipe.task)
    assert task.labels == ("aaa", "bbb")
    assert task.examples("de", "test").first[3].startswith("this is message 3 of them")


def test_two_columns_without_names_are_a_text_and_its_label(tmp_path, monkeypatch):
    rows = "".join(f"{text}\t{label}\n" for _, text, label, _ in ROWS)
    recipe, task = task_made(init_in(tmp_path, monkeypatch, rows))
    assert recipe.columns is None
    assert task.labels == ("aaa", "bbb")
    assert len(task.examples("en", "train")) == len(ROWS)


def test_columns_that_cannot_be_guessed_are_asked_for_and_may_be_given(tmp_path, monkeypatch):
    """Two columns of text: a pair, or a text with a note."""
    text = "ticket\tmessage\ttopic\treply\n" + "".join("\t".join(row) + "\n" for row in ROWS)
    write(tmp_path / "data", text, "en.train.tsv", "en.test.tsv", "de.test.tsv")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["init", "data"])
    assert result.exit_code == 2
    assert (
        "the columns are ticket, message, topic, reply. Say which hold the text and the label"
        in result.stderr
    )
    for columns, kind in [
        ("first=message,label=topic", "classification"),
        ("first=message, second=reply, label=topic", "pair_classification"),
    ]:
        result = CliRunner().invoke(app, ["init", "data", "--columns", columns, "--force"])
        assert result.exit_code == 0, result.output
        recipe = load_recipe("recipe.yaml")
        assert recipe.task.name == kind
        assert "Guessed" not in (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
        train = registry.load("task", kind)(recipe.task).examples("en", "train")
        assert train.first[0] == "this is message 0 of them"
        assert (train.second is None) == (kind == "classification")


def test_a_dev_file_that_cannot_be_read_is_not_an_absent_one(tmp_path, monkeypatch):
    write(tmp_path / "data", TEXTS, "en.train.tsv", "en.dev.tsv", "en.test.tsv", "de.test.tsv")
    monkeypatch.chdir(tmp_path)
    wrong = TEXTS.replace("good", "godo", 1)
    (tmp_path / "data" / "en.dev.tsv").write_text(wrong, encoding="utf-8")
    result = CliRunner().invoke(app, ["init", "data"])
    assert result.exit_code == 2
    assert "en.dev.tsv" in result.stderr
    assert "'godo'" in result.stderr
    (tmp_path / "data" / "en.dev.tsv").unlink()
    assert CliRunner().invoke(app, ["init", "data"]).exit_code == 0
    assert load_recipe("recipe.yaml").training.keep == "last"


def test_force_replaces_a_recipe(tmp_path, monkeypatch):
    write(tmp_path / "data", TEXTS, "en.train.tsv", "en.test.tsv", "de.test.tsv")
    (tmp_path / "there.yaml").write_text("mine")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["init", "data", "--out", "there.yaml", "--force"])
    assert result.exit_code == 0, result.output
    assert load_recipe("there.yaml").task.source == "files"


@pytest.mark.parametrize(
    ("config", "refits"),
    [
        ('{"model_type": "modernbert"}', False),
        ('{"model_type": "xlm-roberta-xl"}', False),
        ('{"model_type": "xlm-roberta"}', True),
        ('{"model_type": []}', True),
        ("no JSON", True),
        (None, True),
    ],
)
def test_a_family_that_cannot_be_refitted_is_not_asked_to(tmp_path, monkeypatch, config, refits):
    write(tmp_path / "data", TEXTS, "en.train.tsv", "en.test.tsv", "de.test.tsv")
    (tmp_path / "model").mkdir()
    if config is not None:
        (tmp_path / "model" / "config.json").write_text(config, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["init", "data", "--model", "./model", "--out", "mine.yaml"])
    assert result.exit_code == 0, result.output
    assert (load_recipe("mine.yaml").pruning.reconstruct is not None) == refits


def test_labels_with_characters_that_are_not_printed_stay_in_their_comment(tmp_path):
    for name in ("en.train.tsv", "en.test.tsv", "de.test.tsv"):
        rows = "one\ta\u2028seed: 1\ntwo\tb\x85c\nthree\td\x07\nfour\tKüche\n"
        (tmp_path / name).write_text("text\tlabel\n" + rows, encoding="utf-8")
    out = tmp_path / "mine.yaml"
    result = CliRunner().invoke(app, ["init", str(tmp_path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert '"a\\u2028seed: 1", "b\\u0085c", "d\\u0007"' in out.read_text(encoding="utf-8")
    assert "Küche" in out.read_text(encoding="utf-8")
    assert load_recipe(str(out)).seed == 42


@pytest.mark.parametrize(("count", "dense", "pruned"), [(5, 10, 10), (3000, 1.6, 1.1), (400_000, 1, 1)])
def test_epochs_follow_from_the_number_of_examples(tmp_path, count, dense, pruned):
    labels = first_recipe.Survey(
        "classification",
        first_recipe.Layout("x", {}),
        "en",
        ("en", "de"),
        ("a", "b"),
        dict.fromkeys(("train", "dev", "test"), count),
        40,
    )
    text = first_recipe.recipe_text(labels, "{language}.{split}.tsv", "quickstart", 0.5)
    values, _ = parse_yaml(text, "r.yaml")
    assert (values["training"]["dense_epochs"], values["training"]["epochs_per_stage"]) == (dense, pruned)
    assert values["training"]["max_length"] == 64
    rates = [values["training"][key] for key in ("dense_learning_rate", "learning_rate")]
    assert rates == [2e-4, 1e-4], "a higher rate after pruning lost English and the others on few, long texts"


def test_lengths_are_those_of_the_language_that_needs_most(tmp_path):
    write(tmp_path, TEXTS, "en.train.tsv", "en.test.tsv")
    (tmp_path / "zh.test.tsv").write_text("text\tlabel\n" + f"{'好' * 120}\tgood\n" * 4, encoding="utf-8")
    found = first_recipe.init(str(tmp_path), tmp_path / "r.yaml")
    assert found.longest == 93
    assert load_recipe(str(tmp_path / "r.yaml")).training.max_length == 128


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The sea to the west", 19 / 2.9),
        ("Море на западе", 14 / 2.9),
        ("西边的大海", 5 / 1.3),
        ("서쪽 바다", 4 / 1.3 + 1 / 2.9),
        ("", 0),
    ],
)
def test_tokens_are_estimated_by_script(text, tokens):
    assert most_tokens(text) == pytest.approx(tokens)


def init_in(folder, monkeypatch, text, *arguments, suffix="tsv", test=None):
    """Run `xlmprune init` on a train file and test files in two languages."""
    write(folder / "data", text, f"en.train.{suffix}")
    write(folder / "data", text if test is None else test, f"en.test.{suffix}", f"de.test.{suffix}")
    monkeypatch.chdir(folder)
    return CliRunner().invoke(app, ["init", "data", "--force", *arguments])


def task_made(result):
    assert result.exit_code == 0, result.output
    recipe = load_recipe("recipe.yaml").task
    return recipe, registry.load("task", recipe.name)(recipe)


@pytest.mark.parametrize("part", ["train", "dev", "test"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(TEXTS.encode())[:40], "damaged gzip file"),
        (gzip.compress(TEXTS.encode())[:15] + b"\xff" * 40, "damaged gzip file"),
        (b"\x1f\x8bno gzip", "damaged gzip file"),
        (TEXTS.encode("utf-16"), "UTF-16 text"),
        (TEXTS.encode() + b"Gr\xfc\xdfe\tgood\n", "not UTF-8"),
        (b"", "empty file"),
    ],
    ids=["cut", "damaged", "no gzip", "UTF-16", "Latin-1", "empty"],
)
def test_a_damaged_data_file_is_named(tmp_path, monkeypatch, part, content, said):
    splits = {"train", "dev", "test"} - {part}
    write(tmp_path / "data", TEXTS, "de.test.tsv", *(f"en.{split}.tsv" for split in splits))
    (tmp_path / "data" / f"en.{part}.tsv.gz").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["init", "data"])
    assert result.exit_code == 2, result.output
    assert f"data/en.{part}.tsv.gz" in result.stderr
    assert said in result.stderr


def test_plain_text_with_the_name_of_a_gzipped_file_is_read(tmp_path, monkeypatch):
    write(tmp_path / "data", TEXTS, "en.test.tsv", "de.test.tsv")
    (tmp_path / "data" / "en.train.tsv.gz").write_text(TEXTS)
    monkeypatch.chdir(tmp_path)
    assert task_made(CliRunner().invoke(app, ["init", "data"]))[1].labels == ("bad", "good", "no")


@pytest.mark.parametrize("data", ["x" * 300, "x" * 300 + "{language}.{split}.tsv"])
def test_a_name_that_no_disk_takes_is_a_sentence(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["init", data])
    assert result.exit_code == 2, result.output
    write(tmp_path / "data", TEXTS, "en.train.tsv", "en.test.tsv")
    result = CliRunner().invoke(app, ["init", "data", "--out", f"{data}.yaml"])
    assert result.exit_code == 2, result.output
    assert "File name too long" in result.stderr


@pytest.mark.parametrize("header", ["query_id\tquery\tpassage\tlabel", "qi\tq\tp\tl"])
def test_a_column_of_queries_means_ranking(tmp_path, monkeypatch, header):
    rows = "".join(f"q{i // 3}\tquery {i // 3}\tpassage {i}\t{i % 3}\n" for i in range(12))
    columns = [] if "query" in header else ["--columns", "group=qi,first=q,second=p,label=l"]
    recipe, task = task_made(init_in(tmp_path, monkeypatch, f"{header}\n{rows}", *columns))
    assert recipe.name == "ranking"
    assert task.examples("de", "test").groups[:4] == ["q0", "q0", "q0", "q1"]
    asked = init_in(tmp_path, monkeypatch, f"{header}\n{rows}", *columns, "--task", "pair_classification")
    assert task_made(asked)[0].name == "pair_classification"


def test_labels_that_are_no_ratings_are_classes_beside_a_column_of_queries(tmp_path, monkeypatch):
    rows = "".join(f"q{i // 3}\tquery {i // 3}\tpassage {i}\t{('yes', 'no')[i % 2]}\n" for i in range(12))
    result = init_in(tmp_path, monkeypatch, f"query_id\tquery\tpassage\tlabel\n{rows}")
    assert task_made(result)[0].name == "pair_classification"


@pytest.mark.parametrize("header", ["", "text\tlabel\n"])
def test_test_files_without_labels_are_refused_at_once(tmp_path, monkeypatch, header):
    texts = "".join(f"a text about thing {i}\n" for i in range(30))
    test = header.replace("\tlabel", "") + texts
    result = init_in(tmp_path, monkeypatch, header + TEXTS, test=test)
    assert result.exit_code == 2
    assert "xlmprune: data/en.test.tsv: no labels, so there is nothing to score against" in result.stderr
    assert "--columns" not in result.stderr
    assert not (tmp_path / "recipe.yaml").exists()


FOUR = "".join("\t".join(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("header", "option"),
    [
        ("ticket\tmessage\treply\ttopic", "--columns first=reply,label=topic;"),
        ("ticket\tmessage\tthe reply\ttopic", "--columns 'first=the reply,label=topic';"),
        ("ticket\tmessage\treply, sent\ttopic", "--columns first=2,label=topic (counted from 0);"),
        ("ticket\tmessage\t\ttopic", "--columns first=2,label=topic (counted from 0);"),
        ("ticket\ttopic\t2020\ttopic", "--columns first=2,label=3 (counted from 0);"),
    ],
)
def test_the_columns_that_are_suggested_can_be_typed(tmp_path, monkeypatch, header, option):
    rows = "".join("\t".join((i, text, reply, label)) + "\n" for i, text, label, reply in ROWS)
    refused = init_in(tmp_path, monkeypatch, f"{header}\n{rows}")
    assert refused.exit_code == 2
    assert option in refused.stderr
    typed = shlex.split(option.partition(" (")[0].rstrip(";"))
    named = [] if "topic (" in option or "topic" in typed[1] else ["--set", "task.header=true"]
    _, task = task_made(init_in(tmp_path, monkeypatch, f"{header}\n{rows}", *typed, *named))
    assert task.labels == ("aaa", "bbb")
    assert task.examples("en", "train").first[0] == "reply 0 to it"


def test_a_row_of_data_is_not_suggested_as_names(tmp_path, monkeypatch):
    assert "--columns first=2,label=3 (counted from 0);" in init_in(tmp_path, monkeypatch, FOUR * 2).stderr


def test_advice_about_keys_of_a_recipe_can_be_typed_before_there_is_one(tmp_path, monkeypatch):
    """Two columns of one name, so positions are guessed, and the first row may be an example."""
    text = "x\ty\ty\n" + "".join(f"{i}\t{text}\t{label}\n" for i, text, label, _ in ROWS)
    refused = init_in(tmp_path, monkeypatch, text)
    assert refused.exit_code == 2
    assert "looks like column names (x, y, y)" in refused.stderr
    assert "The columns were guessed from what they hold (first is 1, label is 2)" in refused.stderr
    assert "There is no recipe yet." in refused.stderr
    recipe, task = task_made(init_in(tmp_path, monkeypatch, text, "--set", "task.header=true"))
    assert (recipe.header, recipe.columns, task.labels) == (True, {"first": 1, "label": 2}, ("aaa", "bbb"))
    assert len(task.examples("en", "train")) == 12
    _, task = task_made(init_in(tmp_path, monkeypatch, text, "--set", "task.header=false"))
    assert task.labels == ("aaa", "bbb", "y")


def test_other_keys_that_messages_name_can_be_typed(tmp_path, monkeypatch):
    text = "".join(f'{i};"{text}";{label}\n' for i, text, label, _ in ROWS)
    refused = init_in(tmp_path, monkeypatch, text, suffix="csv")
    assert "set `task.delimiter`" in refused.stderr
    assert "--set task.header=true" in refused.stderr
    settings = ["--set", "task.delimiter=';'", "--set", "task.labels=[bbb, aaa]"]
    recipe, task = task_made(init_in(tmp_path, monkeypatch, text, *settings, suffix="csv"))
    assert (recipe.delimiter, task.labels) == (";", ("bbb", "aaa"))
    assert task.examples("en", "train").first[1] == "this is message 1 of them"
    other = init_in(tmp_path, monkeypatch, text, "--set", "seed=1")
    assert "--set seed=1: init takes only task.header" in other.stderr
    wrong = init_in(tmp_path, monkeypatch, text, "--set", "task.header=perhaps")
    assert "--set task.header=perhaps: task.header: expected true/false" in wrong.stderr
    assert "--set task.header: " not in wrong.stderr


@pytest.mark.parametrize(("mark", "typed"), [("|", "|"), (":", ":"), (",", ","), ("\t", r"\t")])
def test_usual_delimiters_can_be_typed_as_they_are(tmp_path, monkeypatch, mark, typed):
    text = f"text{mark}label\n" + "".join(f"a text of {i}{mark}l{i % 2}\n" for i in range(12))
    option = ["--set", f"task.delimiter={typed}"]
    recipe, task = task_made(init_in(tmp_path, monkeypatch, text, *option))
    assert (recipe.delimiter, task.labels) == (mark, ("l0", "l1"))


def test_a_delimiter_is_hinted_at_where_there_is_only_one_column(tmp_path, monkeypatch):
    result = init_in(tmp_path, monkeypatch, TEXTS.replace("\t", "|"))
    assert result.exit_code == 2
    last, how = result.stderr.splitlines()[-2:]
    assert "there is only one column" in last
    assert "Line 1 has vertical bars: if they separate columns, set `task.delimiter`" in last
    assert "--set 'task.delimiter=|'" in how


def test_a_path_is_not_taken_for_a_key(tmp_path, monkeypatch):
    folder = tmp_path / "task.data"
    folder.mkdir()
    result = CliRunner().invoke(app, ["init", str(folder / "task.x")])
    assert "no such folder" in result.stderr
    test = "".join(f"text {i}\n" for i in range(30))
    init_in(folder, monkeypatch, TEXTS, test=test)
    result = CliRunner().invoke(app, ["init", str(folder / "data"), "--force"])
    assert result.exit_code == 2
    assert "task.data" in result.stderr
    assert "There is no recipe yet" not in result.stderr


def test_texts_are_not_printed_in_full_as_names_of_columns(tmp_path, monkeypatch):
    rows = [f"{i} {'word ' * 30}\tmore {'word ' * 30}{i}\tx{i}\ty" for i in range(30)]
    old = init_in(tmp_path, monkeypatch, "".join(row + "\r" for row in rows))
    assert old.exit_code == 2
    assert "en.train.tsv: its lines end with CR alone, expected LF" in old.stderr
    assert "\r" not in old.stderr
    result = init_in(tmp_path, monkeypatch, "".join(row + "\n" for row in rows))
    assert result.exit_code == 2
    (line,) = (line for line in result.stderr.split("\n") if "the columns are" in line)
    assert "…" in line
    assert "\r" not in line
    assert "word " * 10 not in line


def test_another_train_language_is_named(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        rows = "".join(f"das ist Satz {split} {i}\t{'ab'[i % 2]}\n" for i in range(8))
        (tmp_path / "data" / f"de.{split}.tsv").write_text(rows)
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, ["init", "data"])
    assert refused.exit_code == 2
    assert refused.stderr == (
        "xlmprune: data/{language}.{split}.tsv: there is no training file in English (en), but in de. Say which language "
        "trains, as in --train-language de\n"
    )
    assert CliRunner().invoke(app, ["init", "data", "--train-language", "de"]).exit_code == 0


def test_the_example_of_columns_does_not_drop_half_of_a_pair(tmp_path, monkeypatch):
    rows = "".join(f"how do I open door {i}?\thow can door {i} be opened?\t{i % 2}\n" for i in range(30))
    result = init_in(tmp_path, monkeypatch, f"question1\tquestion2\tis_duplicate\n{rows}")
    assert result.exit_code == 2
    assert "as in --columns first=question1,second=question2,label=is_duplicate" in result.stderr


def test_an_error_after_a_guess_says_what_was_guessed(tmp_path, monkeypatch):
    text = "ticket\tmessage\ttopic\n" + "".join(f"{i}\t{text}\t{label}\n" for i, text, label, _ in ROWS)
    result = init_in(tmp_path, monkeypatch, text, test=text.replace("aaa", "ccc"))
    assert result.exit_code == 2
    assert "label 'ccc' is not one of aaa, bbb" in result.stderr
    assert "guessed from what they hold (first is 'message', label is 'topic')" in result.stderr
    assert "as in --columns first=1,label=2" in result.stderr
    plain = init_in(
        tmp_path, monkeypatch, text, "--columns", "first=message,label=topic", test=text.replace("aaa", "ccc")
    )
    assert "guessed" not in plain.stderr


@pytest.mark.parametrize("header", ["0\t1\t2\n", "\t0\t1\n"])
def test_a_header_that_counts_the_columns_is_no_example(tmp_path, monkeypatch, header):
    text = header + "".join(f"{i}\t{text}\t{label}\n" for i, text, label, _ in ROWS)
    recipe, task = task_made(init_in(tmp_path, monkeypatch, text))
    assert (recipe.columns, task.labels) == ({"first": 1, "label": 2}, ("aaa", "bbb"))
    _, task = task_made(init_in(tmp_path, monkeypatch, text, "--columns", "first=1,label=2"))
    assert task.labels == ("aaa", "bbb")


def test_row_numbers_of_pandas_are_no_texts(tmp_path, monkeypatch):
    """With fewer rows than a guess needs."""
    text = "\t0\t1\n" + "".join(f"{i}\ta text about {i}\t{i % 2}\n" for i in range(8))
    recipe, task = task_made(init_in(tmp_path, monkeypatch, text))
    assert (recipe.name, task.labels) == ("classification", ("0", "1"))
    assert task.examples("de", "test").first[0] == "a text about 0"


@pytest.mark.parametrize(("header", "count"), [("true", 18), ("false", 19)])
def test_a_first_line_of_numbers_that_may_be_an_example_is_asked_for(tmp_path, monkeypatch, header, count):
    text = "0\t1\n" + "".join(f"a text about {i}\t{i % 3}\n" for i in range(18))
    refused = init_in(tmp_path, monkeypatch, text)
    assert refused.exit_code == 2
    assert "looks like column names (0, 1): it counts the columns from 0" in refused.stderr
    assert "--set task.header=true" in refused.stderr
    assert "the columns are" not in refused.stderr
    _, task = task_made(init_in(tmp_path, monkeypatch, text, "--set", f"task.header={header}"))
    assert len(task.examples("en", "train")) == count


def test_names_of_json_keys_may_have_spaces_around_them(tmp_path, monkeypatch):
    text = "".join(json.dumps({" n": i, " body ": t, "kind ": c}) + "\n" for i, t, c, _ in ROWS)
    recipe, task = task_made(init_in(tmp_path, monkeypatch, text, suffix="jsonl"))
    assert recipe.columns == {"first": "body", "label": "kind"}
    assert task.labels == ("aaa", "bbb")
    known = text.replace(" body ", " text").replace("kind ", "label ")
    assert task_made(init_in(tmp_path, monkeypatch, known, suffix="jsonl"))[1].labels == ("aaa", "bbb")


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("a last one\t\n", "data/en.train.tsv:32: the label is empty; give this row one, or remove the row"),
        (None, "data/en.train.tsv: the only label is '-'; a training set needs at least two"),
    ],
)
def test_a_fault_in_a_label_is_all_that_is_said(tmp_path, monkeypatch, train, said):
    """Neither what other kinds of task would need, nor how columns are named, helps."""
    rows = [f"this is text {number}\t{'ab'[number % 2] if train else '-'}\n" for number in range(30)]
    result = init_in(tmp_path, monkeypatch, "text\tlabel\n" + "".join(rows) + (train or ""))
    assert result.exit_code == 2
    assert result.stderr == f"xlmprune: {said}\n"


def test_a_column_with_a_known_name_is_suggested_for_what_the_name_says(tmp_path, monkeypatch):
    """Two columns are called `label`; the text is neither of them."""
    text = "text\tlabel\tlabel\n" + "".join(f"this is text {i}\t{'ab'[i % 2]}\tx\n" for i in range(30))
    refused = init_in(tmp_path, monkeypatch, text)
    assert "several columns are called 'label'" in refused.stderr
    assert "as in --columns first=text,label=1 (counted from 0)" in refused.stderr
    _, task = task_made(init_in(tmp_path, monkeypatch, text, "--columns", "first=text,label=1"))
    assert task.labels == ("a", "b")
