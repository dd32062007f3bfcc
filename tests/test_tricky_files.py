"""Data files as people have them: each is read as it is meant, or refused with a sentence."""

import gzip
import json

import pytest
from campaigns import data_files as campaign

from xlmprune.core.errors import DataError
from xlmprune.recipe import registry
from xlmprune.recipe.schema import TaskRecipe


def task_of(folder, content, name="classification", suffix="tsv", split="train", **fields):
    """A task of the user's own files, with this content of one English split."""
    (folder / f"en.{split}.{suffix}").write_bytes(content if isinstance(content, bytes) else content.encode())
    path = f"{folder}/{{language}}.{{split}}.{suffix}"
    return registry.load("task", name)(TaskRecipe(name=name, source="files", path=path, **fields))


def read(*args, **fields):
    """Texts and names of labels of the English train file."""
    task = task_of(*args, **fields)
    examples = task.examples("en", "train")
    return examples.first, named(task, examples.labels), examples.notes


def named(task, labels):
    return [
        [task.labels[tag] for tag in label] if isinstance(label, list) else task.labels[label]
        for label in labels
    ]


def refused(*args, **fields):
    with pytest.raises(DataError) as caught:
        read(*args, **fields)
    return str(caught.value)


# Tags of entities

BIO = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "I-LOC", "I-LOC"], ["B-PER", "B-PER"]]


def tokens(tags):
    """A token file with these tags."""
    return "\n".join("".join(f"w{word}\t{tag}\n" for word, tag in enumerate(sentence)) for sentence in tags)


@pytest.mark.parametrize(
    "tags",
    [
        [["B-PER", "E-PER", "O", "S-LOC"], ["B-LOC", "I-LOC", "E-LOC"], ["S-PER", "S-PER"]],
        [["B-PER", "L-PER", "O", "U-LOC"], ["B-LOC", "I-LOC", "L-LOC"], ["U-PER", "U-PER"]],
        [["B-PER", "E-PER", "O", "S-LOC"], ["B-LOC", "M-LOC", "E-LOC"], ["S-PER", "S-PER"]],
        [["B_PER", "I_PER", "O", "B_LOC"], ["B_LOC", "I_LOC", "I_LOC"], ["B_PER", "B_PER"]],
        [["PER-B", "PER-I", "O", "LOC-B"], ["LOC-B", "LOC-I", "LOC-I"], ["PER-B", "PER-B"]],
        [["b-PER", "i-PER", "o", "b-LOC"], ["b-LOC", "i-LOC", "i-LOC"], ["b-PER", "b-PER"]],
        [["I-PER", "I-PER", "O", "I-LOC"], ["I-LOC", "I-LOC", "I-LOC"], ["I-PER", "B-PER"]],
    ],
)
def test_tags_of_every_scheme_become_bio(tmp_path, tags):
    task = task_of(tmp_path, tokens(tags), "tagging")
    assert task.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert task.metrics[0].name == "f1"
    examples = task.examples("en", "train")
    assert named(task, examples.labels) == BIO
    assert len(examples.notes) == 1
    assert "rewritten to BIO" in examples.notes[0] or "IOB1" in examples.notes[0]


@pytest.mark.parametrize("tags", [[["B", "I", "O"], ["O", "B"]], [["B", "E", "O"], ["O", "S"]]])
def test_tags_without_types_are_entities(tmp_path, tags):
    task = task_of(tmp_path, tokens(tags), "tagging")
    assert (task.labels, task.metrics[0].name) == (("O", "B", "I"), "f1")
    assert named(task, task.examples("en", "train").labels) == [["B", "I", "O"], ["O", "B"]]


def test_tags_of_a_test_file_may_be_in_another_scheme(tmp_path):
    task = task_of(tmp_path, tokens(BIO), "tagging")
    task_of(tmp_path, tokens([["B-PER", "E-PER", "O", "S-LOC"]]), "tagging", split="test")
    examples = task.examples("en", "test")
    assert named(task, examples.labels) == BIO[:1]
    assert examples.notes[0].endswith("en.test.tsv: 2 tags rewritten to BIO, such as E-PER to I-PER")
    ner = registry.load("task", "ner")(
        TaskRecipe(name="ner", source="files", path=f"{tmp_path}/{{language}}.{{split}}.tsv")
    )
    assert named(ner, ner.examples("en", "test").labels) == BIO[:1]


def test_tags_in_several_styles_are_refused(tmp_path):
    message = refused(tmp_path, tokens([["B-PER", "I_PER", "PER-E", "B_LOC", "O"]]), "tagging")
    assert "mix several ways to mark entities: B-PER, B_LOC, I_PER, O, PER-E" in message
    meant = task_of(
        tmp_path, tokens([["B-X", "I_Y"], ["X-B", "B-X"]]), "tagging", labels=["B-X", "I_Y", "X-B"]
    )
    assert meant.metrics[0].name == "token_accuracy"


def test_plain_tags_stay(tmp_path):
    for tags in ([["NOUN", "VERB"]], [["B", "C"]], [["S-NP", "NOUN", "VERB", "X"]], [["S", "B"]]):
        task = task_of(tmp_path, tokens(tags), "tagging")
        assert task.labels == tuple(sorted(tags[0]))
        assert task.metrics[0].name == "token_accuracy"


def test_a_file_without_empty_lines_is_no_sentence(tmp_path):
    assert "600 words and no empty line" in refused(tmp_path, tokens([["X", "Y"] * 300]), "tagging")
    assert len(read(tmp_path, tokens([["X", "Y"] * 200]), "tagging")[0]) == 1


# Labels


def test_rows_without_a_label_are_left_out(tmp_path):
    content = "a\tx\nb\t-\nc\ty\nd\t-\n"
    texts, labels, notes = read(tmp_path, content)
    assert (texts, labels) == (["a", "c"], ["x", "y"])
    assert notes == (f"{tmp_path}/en.train.tsv: 2 rows without a label ('-') left out",)
    assert read(tmp_path, "a\t2\nb\t-1\nc\t0\nd\t1\n")[1] == ["2", "0", "1"]
    assert read(tmp_path, "a\t-1\nb\t1\nc\t0\n")[1] == ["-1", "1", "0"], "a rating"
    assert read(tmp_path, "a\t-1\nb\t1\nc\t0\n", labels=[0, 1])[1] == ["1", "0"]
    assert read(tmp_path, "a\t-\nb\t+\nc\t-\n")[1] == ["-", "+", "-"]
    task = task_of(tmp_path, "a\t-1\nb\t-1\n", split="test", labels=["0", "1"])
    assert task.examples("en", "test").labels is None


def test_labels_that_look_alike_are_named(tmp_path):
    content = "a\tpos\nb\tPos\nc\t1\nd\t1.0\ne\tcafé\nf\tcafe\u0301\ng\tneg\nh\tneg\u200b\n"
    notes = read(tmp_path, content)[2]
    assert len(notes) == 1
    for twins in ("'Pos' and 'pos'", "'1' and '1.0'", r"'cafe\u0301' and 'café'", r"'neg' and 'neg\u200b'"):
        assert twins in notes[0]
    task = task_of(tmp_path, "a\tpos\nb\tneg\n")
    task_of(tmp_path, "c\tPOS\n", split="test")
    with pytest.raises(
        DataError, match=r"test\.tsv:1: label 'POS' is not 'pos', from which it differs only in case"
    ):
        task.examples("en", "test")


def test_a_label_column_that_comes_first_is_refused(tmp_path):
    content = "pos\tgood one\nneg\tbad one\npos\tfine one\nneg\tpoor one\n"
    assert "`task.columns: {first: 1, label: 0}`" in refused(tmp_path, content)
    assert read(tmp_path, content, columns={"first": 1, "label": 0})[1] == ["pos", "neg"] * 2


def test_numbers_mean_positions_in_the_labels_of_the_recipe(tmp_path):
    _, labels, notes = read(tmp_path, "a\t1\nb\t0\n", labels=["bad", "good"])
    assert labels == ["good", "bad"]
    assert notes[0].endswith("labels are numbers, read as positions in task.labels (0 = bad, 1 = good)")
    content = '{"tokens": ["a", "b"], "ner_tags": [1, 2]}\n{"tokens": ["c"], "ner_tags": [0]}\n'
    given = ["O", "B-PER", "E-PER"]
    assert read(tmp_path, content, "tagging", "jsonl", labels=given)[1] == [["B-PER", "I-PER"], ["O"]]
    assert "label '1' is not one of Bad, Good" in refused(tmp_path, "a\tb\t1\nc\td\t0\n", "qadsm")


def test_regression_and_several_labels_are_refused_by_name(tmp_path):
    assert "Regression is not supported" in refused(tmp_path, "a\t0.5\nb\t1.25\nc\t3\n")
    assert read(tmp_path, "a\t0.5\nb\t1.5\n", labels=["0.5", "1.5"])[1] == ["0.5", "1.5"]
    assert "Several labels for one text" in refused(tmp_path, "a\tx\nb\ty\nc\tx, y\n")
    assert read(tmp_path, "a\tx\nb\tx, y\n")[1] == ["x", "x, y"]
    content = '{"text": "a", "label": LABEL}\n{"text": "b", "label": ["y"]}\n'
    one = content.replace("LABEL", '["x"]')
    assert read(tmp_path, one, suffix="jsonl")[1] == ["x", "y"]
    assert "label is a list of 2" in refused(tmp_path, content.replace("LABEL", '["x", "y"]'), suffix="jsonl")
    assert "label is 0.5" in refused(tmp_path, content.replace("LABEL", "0.5"), suffix="jsonl")
    assert read(tmp_path, one.replace('["x"]', "1.0").replace('["y"]', "2"), suffix="jsonl")[1] == ["1", "2"]


def test_a_label_with_a_line_break_is_refused(tmp_path):
    assert "has a line break" in refused(tmp_path, 'text,label\na,"two\nlines"\nb,c\n', suffix="csv")


# Tables


def test_quotation_marks_in_a_tsv(tmp_path):
    assert "set `task.quoting: true`" in refused(tmp_path, '"a ""b"""\t"x"\n"c\td"\t"y"\n')
    assert read(tmp_path, '"a ""b"""\t"x"\n"c\td"\t"y"\n', quoting=True)[0] == ['a "b"', "c\td"]
    texts, labels, notes = read(tmp_path, '"a ""b"""\t"x"\n"c"\t"y"\n')
    assert (texts, labels) == (['a "b"', "c"], ["x", "y"])
    assert "quotation marks around every field removed" in notes[0]
    assert read(tmp_path, '"a"\t"x"\n"c"\t"y"\n', quoting=False)[1] == ['"x"', '"y"']
    some = 'text\tlabel\n"He said ""hi"""\tx\nno\ty\n'
    texts, _, notes = read(tmp_path, some)
    assert texts[0] == '"He said ""hi"""'
    assert "1 field with quotation marks around and doubled ones inside" in notes[0]
    assert read(tmp_path, some, quoting=True)[0] == ['He said "hi"', "no"]


def test_a_quotation_mark_that_swallows_rows_is_refused(tmp_path):
    content = 'text,label\ngood,x\n"bad,y\nfine,x\n",y\n'
    assert "en.train.csv:3: a quotation mark opens a field that holds whole rows, as line 3" in refused(
        tmp_path, content, suffix="csv"
    )
    several = 'text,label\n"good,\nand long, really",x\nbad,y\n'
    assert read(tmp_path, several, suffix="csv")[0] == ["good,\nand long, really", "bad"]
    assert len(read(tmp_path, 'text,label\n"good,x\nbad,y\n', suffix="csv", quoting=False)[0]) == 2


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        ("sep=,\ntext,label\na,x\nb,y\n", {}),
        ("sep=;\r\ntext;label\r\na;x\r\nb;y\r\n", {}),
        ('"sep=|"\ntext|label\na|x\nb|y\n', {}),
        ("\ufefftext;label\na;x\nb;y\n", {}),
        ('text;label\n"a";x\nb;"y"\n', {}),
        ("a;x\nb;y\n", {"delimiter": ";"}),
        ("a|x\nb|y\n", {"delimiter": "|"}),
    ],
)
def test_separators_of_a_csv(tmp_path, content, fields):
    assert read(tmp_path, content, suffix="csv", **fields)[:2] == (["a", "b"], ["x", "y"])


def test_lines_are_counted_below_a_line_that_names_the_separator(tmp_path):
    assert "en.train.csv:4: the label is empty" in refused(
        tmp_path, "sep=,\ntext,label\na,x\nb,\nc,y\n", suffix="csv"
    )


def test_a_column_or_key_given_twice_is_refused(tmp_path):
    assert "several columns are called 'label'" in refused(tmp_path, "text\tlabel\tlabel\na\tx\ty\nb\ty\tx\n")
    twice = '{"text": "a", "label": "x", "label": "y"}\n'
    assert "en.train.jsonl:1: the key 'label' is given twice" in refused(tmp_path, twice, suffix="jsonl")
    unused = "text\tnote\tnote\tlabel\na\t1\t2\tx\nb\t1\t2\ty\n"
    assert read(tmp_path, unused)[1] == ["x", "y"]


def test_one_file_with_a_column_for_the_language(tmp_path):
    content = "lang\ttext\tlabel\nen\ta\tx\nde\tb\ty\nen\tc\ty\n"
    for split in ("train", "test"):
        (tmp_path / f"{split}.tsv").write_text(content)
    build = registry.load("task", "classification")
    recipe = {"name": "classification", "source": "files", "path": f"{tmp_path}/{{split}}.tsv"}
    with pytest.raises(
        DataError, match=r"column 'lang' has several languages \(en, de\).*columns: \{language: lang"
    ):
        build(TaskRecipe(**recipe)).examples("en", "train")
    task = build(TaskRecipe(**recipe, columns={"language": "lang"}))
    assert task.languages() == ("en", "de")
    assert task.examples("en", "train").first == ["a", "c"]
    assert task.examples("de", "test").first == ["b"]
    assert task.unlabelled("de") == []
    with pytest.raises(DataError, match=r"no test set for language 'fr'\. Languages with a test set: de, en"):
        build(TaskRecipe(**recipe, columns={"language": "lang"}, languages=["fr"])).languages()
    with pytest.raises(DataError, match=r"no column is called 'lng'"):
        build(TaskRecipe(**recipe, columns={"language": "lng"})).languages()


# JSON


def test_an_array_of_objects(tmp_path):
    records = [{"text": "a", "label": "x"}, {"text": "b [,] {}", "label": "y"}]
    for content in (json.dumps(records), json.dumps(records, indent=1) + "\n"):
        assert read(tmp_path, content, suffix="json")[:2] == (["a", "b [,] {}"], ["x", "y"])
    broken = '[\n{"text": "a", "label": "x"},\n{"text": "b", "label": ""}\n]'
    assert "en.train.json:3: the label is empty" in refused(tmp_path, broken, suffix="json")
    for content in (broken[:-3], broken + "x", "[{]"):
        assert "not a JSON array of objects" in refused(tmp_path, content, suffix="json")


def test_dots_reach_nested_keys(tmp_path):
    content = '{"data": {"text": "a", "id": 1}, "gold": {"label": "x"}}\n{"data": {"text": "b"}, "gold": {"label": "y"}}\n'
    columns = {"first": "data.text", "label": "gold.label"}
    assert read(tmp_path, content, suffix="jsonl", columns=columns)[:2] == (["a", "b"], ["x", "y"])
    dotted = '{"data.text": "a", "gold.label": "x"}\n{"data.text": "b", "gold.label": "y"}\n'
    assert read(tmp_path, dotted, suffix="jsonl", columns=columns)[:2] == (["a", "b"], ["x", "y"])
    lacking = content.replace('{"text": "b"}', '{"tekst": "b"}')
    assert "en.train.jsonl:2: no 'data.text'" in refused(tmp_path, lacking, suffix="jsonl", columns=columns)


def test_keys_that_are_not_used_may_be_missing(tmp_path):
    content = '{"text": "a", "label": "x", "note": 1}\n{"text": "b", "label": "y"}\n'
    assert read(tmp_path, content, suffix="jsonl")[1] == ["x", "y"]


@pytest.mark.parametrize("content", ["[" * 100_000, '{"text": ' + "9" * 5000 + "}", "{" * 100_000])
def test_hostile_json_is_a_sentence(tmp_path, content):
    assert "en.train.jsonl:1" in refused(tmp_path, content, suffix="jsonl")


def test_a_file_may_be_gzipped_whatever_its_name(tmp_path):
    assert read(tmp_path, gzip.compress(b"a\tx\nb\ty\n"))[1] == ["x", "y"]


def test_random_files_are_read_exactly_or_refused_where_they_are_wrong():
    """A slice of `tests/campaigns/data_files.py`."""
    counts, failures = campaign.run(count=300, seed=1_000_000)
    assert failures == []
    assert min(counts["read"], counts["refused"]) > 50


def test_the_campaign_notices_what_is_read_wrongly(tmp_path):
    read = next(case for case in map(campaign.make, range(100)) if not case.refused)
    assert campaign.check(read, tmp_path) == ""
    read.labels = read.labels[:-1]
    assert campaign.check(read, tmp_path).startswith("labels differ")
    faulty = next(case for case in map(campaign.make, range(100)) if case.refused)
    faulty.refused = ("another sentence",)
    assert "the refusal lacks" in campaign.check(faulty, tmp_path)


# Headers that count the columns


@pytest.mark.parametrize("fields", [{}, {"header": True}, {"columns": {"first": 0, "label": 1}}])
def test_a_header_that_counts_the_columns_is_left_out(tmp_path, fields):
    texts, labels, notes = read(tmp_path, "0\t1\none\tx\ntwo\ty\n", **fields)
    assert (texts, labels) == (["one", "two"], ["x", "y"])
    assert notes[0].startswith(f"{tmp_path}/en.train.tsv:1: left out, because it only counts the columns")


@pytest.mark.parametrize(
    ("content", "fields", "count"),
    [
        ("0\t1\none\tx\ntwo\t1\n", {"header": False}, 3),
        ("0\t1\n7\t0\n9\t1\n", {}, 3),
        ("1\t2\none\t2\ntwo\t1\n", {}, 3),
    ],
)
def test_a_row_of_numbers_may_be_an_example(tmp_path, content, fields, count):
    texts, _, notes = read(tmp_path, content, **fields)
    assert len(texts) == count
    assert not notes


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "rows",
    [
        "one\t1\ntwo\t0\nthree\t2\n",
        "one\t2\ntwo\t0\n",
        "one\t0\n",
    ],
    ids=["a label of other rows", "few numbers", "one number"],
)
def test_a_row_that_counts_the_columns_and_may_be_an_example_is_refused(tmp_path, split, rows):
    def first_texts(**fields):
        task_of(tmp_path, "begin\t0\ngo\t1\nend\t2\n")
        task = task_of(tmp_path, f"0\t1\n{rows}", split=split, labels=["0", "1", "2"], **fields)
        return task.examples("en", split).first[:2]

    with pytest.raises(
        DataError, match=r"looks like column names \(0, 1\): it counts .* set `task\.header: true`"
    ):
        first_texts()
    assert first_texts(header=False) == ["0", "one"]
    if rows.count("\n") > 1:
        assert first_texts(header=True)[0] == "one"


def test_a_count_of_the_columns_that_is_no_label_is_left_out(tmp_path):
    rows = "".join(f"text {i}\tother {i}\t{i % 2}\n" for i in range(6))
    texts, labels, notes = read(tmp_path, f"0\t1\t2\n{rows}", name="pair_classification")
    assert (len(texts), set(labels)) == (6, {"0", "1"})
    assert "only counts the columns" in notes[0]


def test_pairs_without_labels_below_a_count_of_the_columns(tmp_path):
    def first_texts(content):
        task = task_of(tmp_path, content, name="pair_classification", split="test", labels=["x", "y"])
        return task.examples("en", "test").first

    assert first_texts("0\t1\none\ttwo\nthree\tfour\n") == ["one", "three"]
    with pytest.raises(DataError, match="texts of other lines are numbers too"):
        first_texts("0\t1\none\ttwo\n3\tfour\n")


@pytest.mark.parametrize(
    ("name", "content", "first", "second"),
    [
        ("classification", "\t0\t1\n5\tone\t1\n3\ttwo\t0\n", ["one", "two"], None),
        ("classification", "\t0\t1\n0\t7\t1\n1\t8\t0\n", ["7", "8"], None),
        ("classification", "\t0\t1\nr5\tone\tx\nr3\ttwo\ty\n", ["one", "two"], None),
        (
            "pair_classification",
            "\t0\t1\t2\n0\tone\ta\t1\n1\ttwo\tb\t2\n",
            ["one", "two"],
            ["a", "b"],
        ),
    ],
)
def test_a_column_of_row_numbers_below_an_empty_cell_is_no_text(tmp_path, name, content, first, second):
    examples = task_of(tmp_path, content, name=name).examples("en", "train")
    assert (examples.first, examples.second) == (first, second)
    columns = {"first": 1, "label": content.partition("\n")[0].count("\t")}
    if second is None:
        assert task_of(tmp_path, content, columns=columns).examples("en", "train").first == first


def test_columns_of_one_name_are_told_apart_by_position(tmp_path):
    columns = {"first": 0, "label": 2}
    texts, labels, _ = read(tmp_path, "x\ty\ty\none\tn\ta\ntwo\tm\tb\n", header=True, columns=columns)
    assert (texts, labels) == (["one", "two"], ["a", "b"])
    by_name = refused(tmp_path, "x\ty\ty\none\tn\ta\ntwo\tm\tb\n", columns={"first": "x", "label": "y"})
    assert "several columns are called 'y'" in by_name


def test_names_in_a_recipe_are_compared_without_outer_spaces(tmp_path):
    columns = {"first": " t ", "label": "l"}
    for content, suffix in (
        ("t\tl\none\ta\ntwo\tb\n", "tsv"),
        ('{"t ": "one", "l": "a"}\n{"t ": "two", "l": "b"}\n', "jsonl"),
    ):
        assert read(tmp_path, content, suffix=suffix, columns=columns)[0] == ["one", "two"]
