import csv
import errno
import gzip
import re
import ssl

import pytest

from xlmprune.core.errors import DataError, MachineError, XlmpruneError
from xlmprune.data.readers import Corpus
from xlmprune.data.readers.files import Files, find_languages
from xlmprune.data.readers.hub import Hub, HubSet
from xlmprune.data.readers.labels import in_order
from xlmprune.data.readers.lines import read_lines
from xlmprune.data.readers.token_files import read_json_tokens, read_tokens
from xlmprune.data.readers.xglue import Layout, Xglue
from xlmprune.recipe import registry
from xlmprune.recipe.schema import TaskRecipe

PAIRS = "premise\thypothesis\tlabel\nRain fell.\tIt rained.\tyes\nฝนตก\tไม่มีฝน\tno\n"


def recipe(path, name="pair_classification", **fields):
    return TaskRecipe(name=name, source="files", path=str(path), **fields)


def files(folder, content, kind="pair", name="{language}.{split}.tsv", **fields):
    """A source whose English train file has this content."""
    file = folder / name.format(language="en", split="train")
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Files(recipe(folder / name, **fields), kind)


def refused(source, *parts):
    """The error's text; it must name each of these."""
    with pytest.raises(DataError) as caught:
        source.rows("en", "train")
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


# Tables


def test_a_header_is_told_by_its_names(tmp_path):
    rows = files(tmp_path, PAIRS).rows("en", "train")
    assert rows.first == ["Rain fell.", "ฝนตก"]
    assert rows.second == ["It rained.", "ไม่มีฝน"]
    assert rows.labels == ["yes", "no"]
    assert rows.location(1).endswith("en.train.tsv:3")
    assert rows.notes == ()


def test_without_a_header_the_label_is_last(tmp_path):
    rows = files(tmp_path, "a b\tc\tx\nd\te\ty\n").rows("en", "train")
    assert (rows.first, rows.second, rows.labels) == (["a b", "d"], ["c", "e"], ["x", "y"])
    rows = files(tmp_path, "text one\tx\ntext two\ty", kind="text").rows("en", "train")
    assert (rows.first, rows.second, rows.labels) == (["text one", "text two"], None, ["x", "y"])


def test_without_labels_there_are_none(tmp_path):
    assert files(tmp_path, "a\tb\nc\td\n").rows("en", "train").labels is None
    assert files(tmp_path, "premise\thypothesis\na\tb\n").rows("en", "train").labels is None
    assert files(tmp_path, "text\none\ntwo\n", kind="text").rows("en", "train").first == ["one", "two"]


def test_quotation_marks_are_characters_in_tsv_and_quotes_in_csv(tmp_path):
    rows = files(tmp_path, 'say "no\t"yes\tx\n').rows("en", "train")
    assert (rows.first, rows.second) == (['say "no'], ['"yes'])
    content = 'text,label\n"one, ""two""\nthree",x\nfour,y\n'
    rows = files(tmp_path, content, kind="text", name="{language}.{split}.csv").rows("en", "train")
    assert rows.first == ['one, "two"\nthree', "four"]
    assert [rows.location(row).rsplit(":")[-1] for row in (0, 1)] == ["2", "4"]


def test_fields_keep_their_spaces_and_may_be_empty(tmp_path):
    rows = files(tmp_path, "\t b \tx\na\t\ty\n").rows("en", "train")
    assert rows.first == ["", "a"]
    assert rows.second == [" b ", ""]
    assert rows.notes == (f"{tmp_path}/en.train.tsv: 2 empty texts kept",)


def test_marks_line_ends_and_empty_lines_of_other_systems(tmp_path):
    content = b"\xef\xbb\xbf" + "text\tlabel\r\none\u2028two\x85three\tx\r\n\r\nfour\ty".encode()
    rows = files(tmp_path, content, kind="text").rows("en", "train")
    assert rows.first == ["one\u2028two\x85three", "four"]
    assert rows.labels == ["x", "y"]
    assert rows.location(1).endswith(":4")
    assert rows.notes == (f"{tmp_path}/en.train.tsv: 1 empty line skipped",)


def test_gzip_is_told_by_its_content(tmp_path):
    rows = files(tmp_path, gzip.compress(PAIRS.encode(), mtime=0), name="{language}.{split}.tsv.gz").rows(
        "en", "train"
    )
    assert len(rows.first) == 2
    assert files(tmp_path, gzip.compress(PAIRS.encode(), mtime=0)).rows("en", "train").first == rows.first
    (tmp_path / "sw.train.tsv.gz").write_bytes(gzip.compress(PAIRS.encode(), mtime=0))
    assert Files(recipe(tmp_path / "{language}.{split}.tsv"), "pair").rows("sw", "train").first == rows.first


def test_columns_by_name_and_by_position(tmp_path):
    content = "id\tlang\tbody\tverdict\n7\ten\tfine\tgood\n"
    named = files(tmp_path, content, kind="text", columns={"first": "body", "label": "verdict"})
    assert named.rows("en", "train").first == ["fine"]
    assert named.rows("en", "train").notes == (f"{tmp_path}/en.train.tsv: columns not used: lang",)
    numbered = files(tmp_path, content, kind="text", columns={"first": 2, "label": 3}, header=True)
    assert numbered.rows("en", "train").labels == ["good"]
    bare = files(tmp_path, "7\ten\tfine\tgood\n", kind="text", columns={"first": 2, "label": 3})
    assert (bare.rows("en", "train").first, bare.rows("en", "train").labels) == (["fine"], ["good"])
    unlabelled = files(tmp_path, "7\ten\tfine\n", kind="text", columns={"first": 2, "label": 3})
    assert unlabelled.rows("en", "train").labels is None


def test_what_looks_like_a_header_is_data_where_the_recipe_says_so(tmp_path):
    content = "text\tlabel\none\tx\n"
    assert len(files(tmp_path, content, kind="text").rows("en", "train").first) == 1
    assert len(files(tmp_path, content, kind="text", header=False).rows("en", "train").first) == 2
    assert len(files(tmp_path, "satz\tklasse\neins\tx\n", kind="text").rows("en", "train").first) == 2


def test_groups_are_a_column_or_the_first_text(tmp_path):
    file = tmp_path / "en.train.tsv"
    file.write_text("query\tdocument\trating\tqid\na\tx\t1\t7\nA\ty\t0\t7\n")
    source = Files(recipe(tmp_path / "{language}.{split}.tsv"), "pair", grouped=True)
    assert source.rows("en", "train").groups == ["7", "7"]
    file.write_text("a\tx\t1\nA\ty\t0\n")
    assert source.rows("en", "train").groups == ["a", "A"]


def test_json_lines(tmp_path):
    content = (
        '{"premise": "a\\tb", "hypothesis": "c", "label": 1, "more": null}\n\n'
        '{"hypothesis": "e", "premise": "d", "label": "0", "more": [1]}\n'
    )
    rows = files(tmp_path, content, name="{language}.{split}.jsonl").rows("en", "train")
    assert (rows.first, rows.second, rows.labels) == (["a\tb", "d"], ["c", "e"], ["1", "0"])
    assert rows.location(1).endswith(":3")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["en.train.tsv: empty file"]),
        (" \n\n", ["en.train.tsv: empty file"]),
        ("premise\thypothesis\tlabel\n", ["a header and no examples"]),
        (b"a\tb\tx\nc\xff\td\ty\n", [":2: not UTF-8 (byte 0xff)", "iconv"]),
        (b"a\tb\tx\nPK\x03\x00\x04", [":2: binary data"]),
        ("a\tb\tx\n".encode("utf-16"), ["UTF-16"]),
        (b"\x1f\x8b\x08 and not gzip", ["damaged gzip"]),
        (gzip.compress(PAIRS.encode(), mtime=0)[:-9], ["damaged gzip"]),
        ("a\tb\tx\nc\td\n", [":2: 2 columns found, 3 expected as in line 1"]),
        ("a\tb\tx\nc\td\te\tx\n", [":2: 4 columns found, 3 expected"]),
        (
            "1\ta\tb\tc\tx\n",
            [":1: 5 columns found, 3 (first, second, label) or 2 (first, second) expected", "columns:"],
        ),
        (
            "premise\tconclusion\tlabel\na\tb\tx\n",
            ["no column for the second text", "premise, conclusion, label"],
        ),
    ],
)
def test_bad_tables_are_refused_with_file_and_line(tmp_path, content, parts):
    refused(files(tmp_path, content), str(tmp_path), *parts)


def test_bad_columns_are_refused(tmp_path):
    source = files(tmp_path, "a\tb\tx\n", columns={"first": "Satz", "second": 1})
    refused(source, "no column is called 'Satz'", "a, b, x")
    refused(files(tmp_path, "a\tb\tx\n", columns={"first": "a"}, header=False), "header: false")
    refused(files(tmp_path, "a\tb\tx\n", columns={"first": 0, "second": 9}), "none at position 9")
    refused(files(tmp_path, "a\tb\tx\n", columns={"first": 0}), "needs 'second'")
    with pytest.raises(DataError, match="'sentence' is not a part of an example"):
        files(tmp_path, "a\tb\tx\n", columns={"sentence": 0})


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"premise": "a", "hypothesis": "b"\n', [":1: not JSON"]),
        ('["a", "b"]\n', [":1: list found"]),
        (
            '{"premise": "a", "hypothesis": "b"}\n{"premise": "a"}\n',
            [":2: no 'hypothesis', which other lines have"],
        ),
        ('{"premise": "a", "hypothesis": ["b"]}\n', [':1: second is ["b"]']),
        ('{"premise": "a", "hypothesis": "b", "label": 0.5}\n', [":1: label is 0.5"]),
    ],
)
def test_bad_json_is_refused_with_file_and_line(tmp_path, content, parts):
    refused(files(tmp_path, content, name="{language}.{split}.jsonl"), *parts)


def test_broken_csv_is_refused(tmp_path):
    refused(files(tmp_path, 'a,"b\n', name="{language}.{split}.csv"), "en.train.csv:1: not valid CSV")


# First lines that may be column names

REVIEWS = "good film\tpos\nbad film\tneg\nfine\tpos\nno\tneg\nso good\tpos\n"


@pytest.mark.parametrize(
    ("head", "kind", "rest", "suffix", "columns"),
    [
        ("review\tlabel", "text", REVIEWS, "tsv", None),
        ("text\tsentiment", "text", REVIEWS, "tsv", None),
        ("satz\tklasse", "text", REVIEWS, "tsv", None),
        ("comment,toxic", "text", "you,1\nme,0\n", "csv", None),
        ("kommentar,giftig", "text", "you,1\nme,0\n", "csv", None),
        ("id\treview\tsentiment", "text", "7\tgood\tpos\n8\tbad\tneg\n", "tsv", {"first": 1, "label": 2}),
        ("a\tb\tlabel", "pair", "c\td\tx\ne\tf\ty\n", "tsv", None),
    ],
)
def test_a_first_line_that_looks_like_names_is_refused_until_the_recipe_says(
    tmp_path, head, kind, rest, suffix, columns
):
    content, name = f"{head}\n{rest}", f"{{language}}.{{split}}.{suffix}"
    refused(
        files(tmp_path, content, kind, name, columns=columns),
        f"en.train.{suffix}:1: looks like column names",
        "`task.header: true`",
        "`task.header: false`",
    )
    data = files(tmp_path, content, kind, name, columns=columns, header=False).rows("en", "train")
    assert len(data.first) == len(rest.splitlines()) + 1
    places = columns or {"first": 0, "label": 1} if kind == "text" else {"first": 0, "second": 1, "label": 2}
    named = files(tmp_path, content, kind, name, columns=places, header=True).rows("en", "train")
    assert len(named.first) == len(rest.splitlines())


@pytest.mark.parametrize(
    "content",
    [
        REVIEWS,
        "7.5\tpos\n" + REVIEWS,
        "label\tpos\nlabel\tneg\n",  # what people write recurs
        "it\ttopic\nthat\ttopic\nthis\tother\n",
        "a\t2\nb\t1\nc\t1\nd\t0\ne\t0\nf\t0\n",  # a rare rating is a number, as the others are
        "".join(f"text {letter}\t{letter}\n" for letter in "abcdefgh"),  # every label is rare
        "good\tpos\nbad\tneg\nodd\tneg\n",  # too few to tell
    ],
)
def test_first_lines_that_are_examples(tmp_path, content):
    rows = files(tmp_path, content, kind="text").rows("en", "train")
    assert len(rows.first) == content.count("\n")


def test_a_label_of_a_test_file_is_looked_up_and_a_header_suggested(tmp_path):
    (tmp_path / "en.train.tsv").write_text("a\tpos\nb\tneg\n")
    (tmp_path / "en.test.tsv").write_text("satz\tklasse\nc\tpos\nd\tpos\n")
    (tmp_path / "sw.test.tsv").write_text("sentiment\tpos\n")
    corpus = Corpus(recipe(tmp_path / "{language}.{split}.tsv"), "text")
    with pytest.raises(
        DataError, match=r"test\.tsv:1: label 'klasse' is not one of pos, neg\. If this line has column"
    ):
        corpus.examples("en", "test", ("pos", "neg"))
    with pytest.raises(DataError, match=r"sw\.test\.tsv:1: looks like column names"):
        corpus.examples("sw", "test", ("pos", "neg"))
    said = Corpus(recipe(tmp_path / "{language}.{split}.tsv", header=False), "text")
    with pytest.raises(DataError) as caught:
        said.examples("en", "test", ("pos", "neg"))
    assert "header" not in str(caught.value)


# Labels and columns of tables


def test_a_column_is_one_text_only(tmp_path):
    content = "title\tdescription\tlabel\nStorm\tTwo bridges closed\tnews\nGoal\tLate\tsports\n"
    rows = files(tmp_path, content).rows("en", "train")
    assert (rows.first, rows.second) == (["Storm", "Goal"], ["Two bridges closed", "Late"])
    content = "query\ttitle\tdescription\tlabel\nq\tt\td\tx\n"
    rows = files(tmp_path, content).rows("en", "train")
    assert (rows.first, rows.second) == (["q"], ["t d"])
    rows = files(tmp_path, content, columns={"first": "title"}).rows("en", "train")
    assert (rows.first, rows.second) == (["t"], ["d"])
    rows = files(tmp_path, "title\ttext\tlabel\na\tb\tx\n", columns={"second": "title"}).rows("en", "train")
    assert (rows.first, rows.second) == (["b"], ["a"])
    rows = files(tmp_path, "query\tanswer\nq\ta\n", columns={"group": "query"}).rows("en", "train")
    assert (rows.first, rows.second) == (["q"], ["a"])


def corpus_of(folder, content, name="{language}.{split}.tsv", kind="text", split="train", **fields):
    (folder / name.format(language="en", split=split)).write_text(content, encoding="utf-8")
    return Corpus(recipe(folder / name, **fields), kind)


def test_an_empty_label_is_refused_at_its_line(tmp_path):
    for split in ("train", "dev", "test"):
        corpus = corpus_of(tmp_path, "text\tlabel\na\tx\nb\t \nc\ty\n", split=split)
        with pytest.raises(DataError, match=rf"en\.{split}\.tsv:3: the label is empty"):
            corpus.examples("en", split, ("x", "y"))
    with pytest.raises(DataError, match=r"en\.train\.tsv:3: the label is empty"):
        corpus.label_names()


def test_empty_rows_are_skipped_and_counted(tmp_path):
    corpus = corpus_of(tmp_path, ",\ntext,label\na,x\n,\n , \nb,y\n", name="{language}.{split}.csv")
    examples = corpus.examples("en", "train", ("x", "y"))
    assert examples.first == ["a", "b"]
    assert examples.notes == (f"{tmp_path}/en.train.csv: 3 empty rows skipped",)
    corpus = corpus_of(tmp_path, ",\n,\n", name="{language}.{split}.csv")
    with pytest.raises(DataError, match=r"en\.train\.csv: nothing but empty rows"):
        corpus.label_names()


def test_a_label_column_that_is_not_there_is_named(tmp_path):
    content = "text\tsentiment\na\tpos\nb\tneg\n"
    corpus = corpus_of(tmp_path, content, columns={"first": "text", "label": "snt"})
    with pytest.raises(
        DataError, match=r"no column is called 'snt' \(task\.columns\); columns found: text, sentiment"
    ):
        corpus.label_names()
    assert corpus.source.rows("en", "train").labels is None
    corpus = corpus_of(tmp_path, content, columns={"label": "snt"}, split="test")
    assert any("no column is called 'snt'" in note for note in corpus.examples("en", "test", ("x",)).notes)
    corpus = corpus_of(tmp_path, content, header=True)
    with pytest.raises(
        DataError, match=r"columns found: text, sentiment\. Say which has them.*columns: \{label: …\}"
    ):
        corpus.label_names()
    corpus = corpus_of(tmp_path, "a b\nc d\n", columns={"first": 0, "label": 1})
    with pytest.raises(DataError, match=r"none at position 1 .*1 column found"):
        corpus.label_names()


@pytest.mark.parametrize(
    ("content", "mark"),
    [
        ("satz;klasse\na;x\nb;y\n", "semicolons"),
        ("satz;klasse\nwell, a;x\nb;y\n", "semicolons"),
        ("satz;klasse\na;x\nb; or c;y\n", "semicolons"),
        ("text\tlabel\na\tx\nb\ty\n", "tabs"),
        ("text|label\na|x\nb|y\n", "vertical bars"),
    ],
)
def test_other_separators_in_a_csv_are_hinted_at(tmp_path, content, mark):
    corpus = corpus_of(tmp_path, content, name="{language}.{split}.csv")
    with pytest.raises(
        DataError, match=rf"Line 1 has {mark}: if they separate columns, set `task\.delimiter`"
    ):
        corpus.label_names()


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("|", "vertical bars"), (",", "commas")])
@pytest.mark.parametrize("kind", ["text", "pair"])
def test_other_separators_in_a_tsv_are_hinted_at(tmp_path, kind, mark, name):
    corpus = corpus_of(tmp_path, f"text{mark}label\na{mark}x\nb{mark}y\n", kind=kind)
    with pytest.raises(
        DataError, match=rf"Line 1 has {name}: if they separate columns, set `task\.delimiter`"
    ):
        corpus.label_names()


def test_texts_with_semicolons_are_texts(tmp_path):
    corpus = corpus_of(tmp_path, "a; b\nc\n", name="{language}.{split}.csv", split="test")
    assert corpus.examples("en", "test", ("x",)).first == ["a; b", "c"]
    corpus = corpus_of(tmp_path, "a; b,x\nc; d,y\n", name="{language}.{split}.csv")
    assert corpus.label_names() == [["x"], ["y"]]


def test_a_label_for_every_row_is_another_column(tmp_path):
    corpus = corpus_of(tmp_path, "".join(f"{'pn'[i % 2]}\tsentence number {i}\n" for i in range(3000)))
    with pytest.raises(
        DataError, match=r"3,000 different labels in 3,000 rows .* probably not classes.*another column"
    ) as caught:
        corpus.label_names()
    assert len(str(caught.value)) < 600
    labels = [f"sentence {i}" for i in range(3000)]
    with pytest.raises(DataError, match=r"sentence 19, … \(3,000 in all\)") as caught:
        corpus.examples("en", "train", labels)
    assert len(str(caught.value)) < 800
    few = corpus_of(tmp_path, "".join(f"sentence number {i}\tclass {i}\n" for i in range(20)))
    assert len(in_order(few.label_names())) == 20


def test_a_training_file_has_two_labels_at_least(tmp_path):
    corpus = corpus_of(tmp_path, "a\tx\nb\tx\n")
    for read in (corpus.label_names, lambda: corpus.examples("en", "train", ("x", "y"))):
        with pytest.raises(DataError, match=r"en\.train\.tsv: the only label is 'x'"):
            read()


def test_half_a_character_in_json_is_refused(tmp_path):
    name = "{language}.{split}.jsonl"
    whole = '{"text": "a \\ud83d\\ude00", "label": "x"}\n'
    assert files(tmp_path, whole, "text", name).rows("en", "train").first == ["a 😀"]
    cut = '{"text": "a \\ud83d", "label": "x"}\n'
    refused(
        files(tmp_path, whole + cut, "text", name), r"en.train.jsonl:2: \ud83d is one half of a character"
    )
    words = '{"words": ["a \\uDE00"], "tags": ["X"]}\n'
    refused(files(tmp_path, words, "tokens", name), r"en.train.jsonl:1: \ude00 is one half of a character")


def test_a_field_of_a_csv_may_be_long(tmp_path):
    limit = csv.field_size_limit()
    article = "a" * 200_000
    rows = files(tmp_path, f"{article},x\nb,y\n", "text", "{language}.{split}.csv").rows("en", "train")
    assert rows.first == [article, "b"]
    assert csv.field_size_limit() == limit
    refused(files(tmp_path, f'a,x\n"{article}\n,y\n', "text", "{language}.{split}.csv"), ":2: not valid CSV")


# Token files


def test_a_tab_separates_and_words_may_hold_spaces(tmp_path):
    file = tmp_path / "vi.test"
    file.write_text("bắt chuyện\tVERB\nvới\tADP\n\n\n500 000\tNUM")
    rows = read_tokens(file)
    assert rows.first == [["bắt chuyện", "với"], ["500 000"]]
    assert rows.labels == [["VERB", "ADP"], ["NUM"]]
    assert [rows.location(0, 1), rows.location(1)] == [f"{file}:2", f"{file}:5"]


def test_a_space_separates_and_documents_are_passed_over(tmp_path):
    file = tmp_path / "en.test"
    file.write_text("-DOCSTART- -X- O O\n\nEU B-ORG\nrejects O\n-DOCSTART- -X- O O\nNew York B-LOC\n")
    assert read_tokens(file).first == [["EU", "rejects"], ["New York"]]
    assert read_tokens(file).labels == [["B-ORG", "O"], ["B-LOC"]]


def test_tokens_without_tags(tmp_path):
    file = tmp_path / "en.test"
    file.write_text("EU\nrejects\n\n你\n")
    rows = read_tokens(file)
    assert (rows.first, rows.labels) == ([["EU", "rejects"], ["你"]], None)


def test_empty_words_are_kept_and_counted(tmp_path):
    file = tmp_path / "en.test"
    file.write_text("a\tX\n\tX\n")
    assert read_tokens(file).first == [["a", ""]]
    assert read_tokens(file).notes == (f"{file}: 1 empty word kept",)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("a\tX\nb\n", [":2: no tag found, 2 expected as in line 1: 'b'"]),
        ("a\tX\nb\t\n", [":2: no tag found"]),
        ("a\n\nb X\n", [":3: 2 columns found, 1 expected as in line 1: 'b X'"]),
        ("1\tThe\tDET\n", [":1: 3 columns found, 2 expected (token, tag)"]),
        ("EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n", [":1: 4 columns found, 2 expected"]),
        ("\n-DOCSTART- O\n\n", ["no sentence"]),
        (b"a\tX\n\xc3\n", [":2: not UTF-8"]),
    ],
)
def test_bad_token_files_are_refused_with_file_and_line(tmp_path, content, parts):
    refused(files(tmp_path, content, kind="tokens", name="{language}.{split}"), *parts)


TAGGED = "EU\tB-ORG\nrejects\tO\n\ncalls\tO\n"


@pytest.mark.parametrize("header", ["word\ttag", "token\tner", "form\tupos", "Wort\tlabel"])
def test_column_names_of_token_files(tmp_path, header):
    content = f"{header}\n{TAGGED}"
    refused(
        files(tmp_path, content, "tokens"), "en.train.tsv:1: looks like column names", "`task.header: true`"
    )
    rows = files(tmp_path, content, "tokens", header=True).rows("en", "train")
    assert (rows.first, rows.labels) == ([["EU", "rejects"], ["calls"]], [["B-ORG", "O"], ["O"]])
    assert [rows.location(0), rows.location(0, 1), rows.location(1)] == [
        f"{tmp_path}/en.train.tsv:{n}" for n in (2, 3, 5)
    ]
    said = files(tmp_path, content, "tokens", header=False).rows("en", "train")
    assert said.first[0] == [header.split("\t")[0], "EU", "rejects"]


def test_column_names_of_token_files_without_tags(tmp_path):
    refused(files(tmp_path, "word\nEU\n", "tokens"), ":1: looks like column names (word)")
    assert files(tmp_path, "word\nEU\n", "tokens", header=True).rows("en", "train").first == [["EU"]]
    assert files(tmp_path, "Words\ncount\n", "tokens").rows("en", "train").first == [["Words", "count"]]
    assert files(tmp_path, "a\tpos\nb\tneg\nc\tpos\n", "tokens").rows("en", "train").labels == [
        ["pos", "neg", "pos"]
    ]


def test_columns_of_token_files(tmp_path):
    swapped = "B-ORG\tEU\nO\trejects\n"
    by_position = {"words": 1, "tags": 0}
    for content, columns, header in [
        (swapped, by_position, None),
        (swapped.replace("\t", " "), by_position, None),
        ("tag\tword\n" + swapped, None, True),
        ("class\tform\n" + swapped, None, True),
        ("t w\n" + swapped.replace("\t", " "), {"words": "w", "tags": "t"}, None),
        ("EU NNP I-NP B-ORG\nrejects VBZ I-VP O\n", {"words": 0, "tags": 3}, None),
        (
            "form pos chunk ner\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n",
            {"words": "form", "tags": "ner"},
            None,
        ),
    ]:
        rows = files(tmp_path, content, "tokens", columns=columns, header=header).rows("en", "train")
        assert (rows.first, rows.labels) == ([["EU", "rejects"]], [["B-ORG", "O"]]), content
    usual = files(tmp_path, "New York B-LOC\nis O\n", "tokens", columns={"words": 0, "tags": 1})
    assert usual.rows("en", "train").first == [["New York", "is"]]
    odd = files(tmp_path, "w\tt\na\tlabel\nb\tO\n", "tokens", columns={"words": "w", "tags": "t"})
    assert odd.rows("en", "train").labels == [["label", "O"]]
    bare = files(tmp_path, "EU NNP\nrejects VBZ\n", "tokens", columns={"words": 0, "tags": 2})
    assert bare.rows("en", "train").labels is None


@pytest.mark.parametrize(
    ("content", "fields", "part"),
    [
        (TAGGED, {"columns": {"words": 1, "tags": 4}}, ":1: 2 columns found, so none at position 4"),
        (TAGGED, {"columns": {"tags": 0}}, "task.columns needs 'words'"),
        (
            TAGGED,
            {"columns": {"words": "w", "tags": 1}},
            ":1: no column is called 'w'; the first line has EU, B-ORG",
        ),
        (TAGGED, {"columns": {"words": "w"}, "header": False}, "`header: false` says there are no names"),
        (
            "a\tX\tb\nc\tY\n",
            {"columns": {"words": 2, "tags": 1}},
            ":2: 2 columns found, 3 expected as in line 1",
        ),
        ("X\ta\n\tb\n", {"columns": {"words": 1, "tags": 0}}, ":2: no tag found"),
        ("a\tb\tc\nd\te\tX\n", {"header": True}, ":1: columns found: a, b, c. Say which are which"),
        (
            "word\tpos\tner\nEU\tX\tO\n",
            {"header": True},
            ":1: columns found: word, pos, ner. Say which are which",
        ),
        ("word\ttag\n", {"header": True}, "no sentence"),
    ],
)
def test_bad_columns_of_token_files_are_refused(tmp_path, content, fields, part):
    refused(files(tmp_path, content, "tokens", **fields), part)


def test_columns_of_json_tokens_have_names(tmp_path):
    content = '{"words": ["a"], "tags": ["X"]}\n'
    source = files(tmp_path, content, "tokens", "{language}.{split}.jsonl", columns={"words": 0, "tags": 1})
    refused(source, ":1: task.columns gives position 0 for 'words', but JSON lines have names: words, tags")


def test_a_treebank_is_read_by_its_columns(tmp_path):
    rest = "\t_" * 6
    content = (
        "# newdoc id = 1\n# sent_id = 1\n# text = du vin\n"
        f"1-2\tdu\t_\t_{rest}\n1\tde\tde\tADP{rest}\n2\tle\tle\tDET{rest}\n2.1\tx\t_\t_{rest}\n3\tvin\tvin\tNOUN{rest}\n"
    )
    source = files(tmp_path, content, "tokens", "{language}.{split}", columns={"words": 1, "tags": 3})
    rows = source.rows("en", "train")
    assert (rows.first, rows.labels) == ([["de", "le", "vin"]], [["ADP", "DET", "NOUN"]])
    assert [rows.location(0, word).rpartition(":")[2] for word in range(3)] == ["5", "6", "8"]
    path = f"{tmp_path}/en.train"
    assert rows.notes == (
        f"{path}: 3 comments (# …) left out",
        f"{path}: 2 ranges of multiword tokens and empty nodes left out",
    )
    refused(
        files(tmp_path, content, "tokens", "{language}.{split}"),
        "`task.columns: {words: 1, tags: 3}` for CoNLL-U",
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# id 1\nEU B-ORG\n\n# id 2\nis O\n", [["EU"], ["is"]]),
        ("# text = I am O\nEU B-ORG\nis O\n", [["EU", "is"]]),
        ("# newdoc\nEU B-ORG\nis O\n", [["EU", "is"]]),
        ("# id 1\nEU\tB-ORG\nis\tO\n", [["EU", "is"]]),
        ("# id 1\nEU\nis\n", [["EU", "is"]]),
        ("# O\nEU B-ORG\n# 1 O\nis O\n", [["#", "EU", "# 1", "is"]]),
        ("# #\nEU NNP\n", [["#", "EU"]]),
        ("# \tO\nEU\tB-ORG\n", [["# ", "EU"]]),
        ("#\nEU\n", [["#", "EU"]]),
        ("#tag O\nEU B-ORG\n", [["#tag", "EU"]]),
        ("# O\n", [["#"]]),
    ],
)
def test_comments_and_number_signs(tmp_path, content, words):
    file = tmp_path / "en.test"
    file.write_text(content)
    rows = read_tokens(file)
    assert rows.first == words
    left = sum(line != "" for line in content.split("\n")) - sum(map(len, words))
    assert rows.notes == ((f"{file}: {left} comment{'s' * (left > 1)} (# …) left out",) if left else ())


def test_tokens_from_json(tmp_path):
    file = tmp_path / "en.jsonl"
    file.write_text('{"tokens": ["a", "b"], "tags": ["X", "Y"]}\n{"tokens": [], "tags": []}\n')
    rows = read_json_tokens(file)
    assert (rows.first, rows.labels) == ([["a", "b"]], [["X", "Y"]])
    assert rows.notes == (f"{file}: 1 empty sentence left out",)
    assert read_json_tokens(file, {"words": "tokens", "tags": "tags"}).labels == [["X", "Y"]]
    file.write_text('{"words": ["a"]}\n')
    assert read_json_tokens(file).labels is None
    for content, part in [
        ('{"tokens": ["a", "b"], "tags": ["X"]}', ":1: 2 words and 1 tag"),
        ('{"text": "a b"}', ":1: no list of words; keys found: text"),
        ('{"tokens": ["a", 1]}', ":1: 'tokens' is"),
    ]:
        file.write_text(content)
        with pytest.raises(DataError, match=re.escape(part)):
            read_json_tokens(file)


def test_tags_and_tables_are_not_taken_for_each_other(tmp_path):
    refused(
        files(tmp_path, "a,X\n", kind="tokens", name="{language}.{split}.csv"), "token files or JSON lines"
    )
    refused(files(tmp_path, "a\tX\n", kind="text", format="tokens"), "use task `tagging`")


# Patterns


def test_languages_are_those_with_a_test_file(tmp_path):
    for name in [
        "en.test.tsv",
        "sw.test.tsv.gz",
        "zh-Hant.test.tsv",
        "de.dev.tsv",
        "fr.x.test.tsv",
        ".test.tsv",
    ]:
        (tmp_path / name).write_text("a\tx\n")
    (tmp_path / "it.test.tsv").mkdir()
    assert find_languages(str(tmp_path / "{language}.{split}.tsv"), "test") == ("en", "sw", "zh-Hant")
    nested = tmp_path / "el" / "test"
    nested.mkdir(parents=True)
    (nested / "el.tsv").write_text("a\tx\n")
    (nested / "fr.tsv").write_text("a\tx\n")
    assert find_languages(str(tmp_path / "{language}/{split}/{language}.tsv"), "test") == ("el",)


def test_a_folder_with_odd_characters_is_no_pattern(tmp_path):
    folder = tmp_path / "a[b]*"
    folder.mkdir()
    (folder / "en.test").write_text("a\tx\n")
    assert find_languages(str(folder / "{language}.{split}"), "test") == ("en",)


def test_splits_have_the_names_of_the_recipe(tmp_path):
    (tmp_path / "en-validation.tsv").write_text("a\tx\n")
    source = Files(recipe(tmp_path / "{language}-{split}.tsv", dev_split="validation"), "text")
    assert source.has("en", "dev")
    assert not source.has("en", "test")


def test_a_pattern_without_language_is_the_train_language(tmp_path):
    (tmp_path / "test.tsv").write_text("a\tx\n")
    source = Files(recipe(tmp_path / "{split}.tsv"), "text")
    assert source.languages() == ("en",)
    assert not source.has("de", "test")


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("{lang}.{split}.tsv", "{lang} is unknown; {language} and {split}"),
        ("~nobody-of-this-name/{split}.tsv", "no such home folder"),
    ],
)
def test_bad_patterns_are_refused(pattern, part):
    with pytest.raises(DataError, match=re.escape(part)):
        Files(recipe(pattern), "text")


def test_without_splits_there_is_a_test_file_only(tmp_path):
    (tmp_path / "en.tsv").write_text("a\tx\n")
    (tmp_path / "sw.tsv").write_text("b\ty\n")
    corpus = Corpus(recipe(tmp_path / "{language}.tsv"), "text")
    assert corpus.languages() == ("en", "sw")
    assert corpus.examples("sw", "test", ("x", "y")).labels == [1]
    assert not corpus.source.has("en", "dev")
    assert corpus.unlabelled("en") == []
    for split in ("train", "dev"):
        with pytest.raises(DataError, match=r"without \{split\} train and test would be the same file"):
            corpus.examples("en", split, ("x", "y"))


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "en.test.tsv").write_text("a\tx\n")
    source = Files(recipe("~/{language}.{split}.tsv"), "text")
    assert source.languages() == ("en",)
    assert source.rows("en", "test").origin == f"{tmp_path}/en.test.tsv"
    folder = tmp_path / "NC"
    folder.mkdir()
    (folder / "xglue.nc.de.test").write_text("Titel\tText\tsports\n")
    layout = Layout("NC", "xglue.nc.{language}.train", "xglue.nc.{language}.{split}")
    assert Xglue(TaskRecipe(name="nc", source="xglue", path="~"), layout).languages() == ("de",)


def test_a_language_without_a_file_names_those_with_one(tmp_path):
    for name in ("en.train.tsv", "en.test.tsv", "sw.test.tsv"):
        (tmp_path / name).write_text("a\tx\n")
    pattern = tmp_path / "{language}.{split}.tsv"
    with pytest.raises(DataError, match=r"yo\.test\.tsv.*languages with a test file: en, sw"):
        Files(recipe(pattern), "text").rows("yo", "test")
    with pytest.raises(DataError, match=r"no test set for language 'yo'\. Languages with a test set: en, sw"):
        Corpus(recipe(pattern, languages=["sw", "yo"]), "text").languages()
    with pytest.raises(
        DataError, match=r"'de', the train language, whose score is reported next to all others"
    ):
        Corpus(recipe(pattern, train_language="de"), "text").languages()
    assert Corpus(recipe(pattern, languages=["sw"]), "text").languages() == ("en", "sw")
    assert Corpus(recipe(pattern), "text").languages() == ("en", "sw")


# Labels


def test_labels_are_looked_up_by_name(tmp_path):
    (tmp_path / "en.train.tsv").write_text("a\tyes\nb\tno\n")
    (tmp_path / "en.test.tsv").write_text("a\tno\nb\tyes\nc\tperhaps\n")
    corpus = Corpus(recipe(tmp_path / "{language}.{split}.tsv"), "text", synonyms={"ja": "yes"})
    assert corpus.examples("en", "train", ("no", "yes")).labels == [1, 0]
    with pytest.raises(DataError, match=r"en\.test\.tsv:3: label 'perhaps' is not one of no, yes"):
        corpus.examples("en", "test", ("no", "yes"))


def test_a_tag_train_never_had_is_refused_at_its_line(tmp_path):
    (tmp_path / "en.train").write_text("a X\nb Y\n")
    (tmp_path / "sw.test").write_text("a X\nb Y\n\na X\nb Z\n")
    corpus = Corpus(recipe(tmp_path / "{language}.{split}"), "tokens")
    labels = in_order(corpus.label_names())
    with pytest.raises(DataError, match=r"sw\.test:5: label 'Z' is not one of X, Y"):
        corpus.examples("sw", "test", labels)


def test_train_and_dev_need_labels_and_test_does_not(tmp_path):
    for split in ("train", "dev", "test"):
        (tmp_path / f"en.{split}.tsv").write_text("one\ntwo\n")
    corpus = Corpus(recipe(tmp_path / "{language}.{split}.tsv"), "text")
    assert corpus.examples("en", "test", ("x",)).labels is None
    for split in ("train", "dev"):
        with pytest.raises(DataError, match=f"no labels; the {split} set needs them"):
            corpus.examples("en", split, ("x",))
    with pytest.raises(DataError, match="no labels; the train set needs them: 1 column found"):
        corpus.label_names()


def test_inferred_labels_do_not_depend_on_the_order_of_rows():
    assert in_order([["b"], ["a"], ["b"]]) == in_order([["a"], ["b"]]) == ("a", "b")
    assert in_order([["10"], ["9"], ["2"]]) == ("2", "9", "10")
    assert in_order([["x"], ["10"], ["9"]]) == ("9", "10", "x")


def test_unlabelled_texts_are_not_in_the_test_set(tmp_path):
    (tmp_path / "en.train.tsv").write_text("a\tx\nb\tx\na\ty\n")
    (tmp_path / "en.test.tsv").write_text("b\tx\nc\tx\n")
    (tmp_path / "sw.test.tsv").write_text("d\tx\n")
    corpus = Corpus(recipe(tmp_path / "{language}.{split}.tsv"), "text")
    assert corpus.unlabelled("en") == ["a"]
    assert corpus.unlabelled("sw") == []


# XGLUE


def test_the_official_folder_is_found_or_explained(tmp_path):
    layout = Layout("NC", "xglue.nc.{language}.train", "xglue.nc.{language}.{split}")
    with pytest.raises(
        DataError, match=r"no folder NC/ in it\. XGLUE is not downloaded for you: accept its terms"
    ):
        Xglue(TaskRecipe(name="nc", source="xglue", path=str(tmp_path)), layout)
    folder = tmp_path / "xglue_full_dataset" / "NC"
    folder.mkdir(parents=True)
    (folder / "xglue.nc.de.test").write_text("Titel\t\tsports\n")
    for path in (tmp_path, tmp_path / "xglue_full_dataset", folder):
        source = Xglue(TaskRecipe(name="nc", source="xglue", path=str(path)), layout)
        assert source.languages() == ("de",)
        assert source.rows("de", "test").labels == ["sports"]
    with pytest.raises(DataError, match=r"xglue\.nc\.fr\.test: no such file.*test file: de"):
        source.rows("fr", "test")
    (folder / "xglue.nc.en.train").write_text("q\tt\tb\tc\tnews\n")
    with pytest.raises(DataError, match=r"train:1: 5 columns found, 3 expected \(or 2 without labels\)"):
        source.rows("en", "train")


def test_xnli_in_one_file_of_all_languages(tmp_path):
    names = ["language", "gold_label", *"abcd", "sentence1", "sentence2", *"efghijklmno"[:11]]
    lines = [names]
    for language, label, first, second in [
        ("sw", "neutral", "Moja", "Mbili"),
        ("ur", "entailment", "ایک", "دو"),
    ] * 2:
        lines.append([language, label, "", "", "", "", first, second, *[""] * 11])
    folder = tmp_path / "XNLI"
    folder.mkdir()
    content = "\n".join("\t".join(line) for line in lines)
    for split in ("dev", "test"):
        (folder / f"xnli.{split}.tsv").write_text(content, encoding="utf-8-sig")
    (folder / "en.test").write_text("a\tb\tneutral\n")
    task = registry.load("task", "xnli")
    own = task(
        TaskRecipe(name="xnli", source="xglue", path=str(tmp_path), train_language="ur", languages=["sw"])
    )
    assert own.languages() == ("ur", "sw")
    examples = own.examples("sw", "dev")
    assert (examples.first, examples.second) == (["Moja"] * 2, ["Mbili"] * 2)
    assert [own.labels[label] for label in examples.labels] == ["neutral"] * 2
    (folder / "xnli.test.tsv").write_text(content.replace("gold_label", "gold"))
    again = task(TaskRecipe(name="xnli", source="xglue", path=str(tmp_path), train_language="ur"))
    with pytest.raises(DataError, match=r"xnli\.test\.tsv:1: expected the columns of XNLI"):
        again.examples("sw", "test")


# The hub


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    """A data set laid out as on the hub, in a folder: config, split and column features as `datasets` sees them."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(configs, features):
        folder = tmp_path / "set"
        card = ["---", "configs:"]
        for config, splits in configs.items():
            card += [f"- config_name: {config}", "  data_files:"]
            for split, columns in splits.items():
                file = folder / config / f"{split}-00000.parquet"
                file.parent.mkdir(parents=True, exist_ok=True)
                datasets.Dataset.from_dict(columns, features=features).to_parquet(file)
                card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
        (folder / "README.md").write_text("\n".join([*card, "---"]))
        return str(folder)

    return write


def test_the_hubs_labels_are_taken_by_name(local_hub):
    from datasets import ClassLabel, Features, Value

    features = Features(
        {"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=["b", "a"])}
    )
    rows = {"premise": ["ฝนตก", "p"], "hypothesis": ["h", "i"], "label": [0, 1]}
    path = local_hub({"sw": {"train": rows, "validation": rows, "test": rows}}, features)
    hub = Hub(HubSet(path, ("sw",), first="premise", second="hypothesis", label="label"))
    for split in ("train", "dev", "test"):
        read = hub.rows("sw", split)
        assert (read.first, read.second, read.labels) == (["ฝนตก", "p"], ["h", "i"], ["b", "a"])
        assert read.location(1).endswith(":2")
    assert hub.languages() == ("sw",)
    assert not hub.has("de", "test")
    with pytest.raises(DataError, match="has no test set for language 'de'; it has: sw"):
        hub.rows("de", "test")
    with pytest.raises(DataError, match="no column 'text'; found premise, hypothesis, label"):
        Hub(HubSet(path, ("sw",), first="text", label="label")).rows("sw", "test")


@pytest.mark.parametrize("numbered", [True, False])
def test_treebanks_of_the_hub(local_hub, monkeypatch, numbered):
    from datasets import ClassLabel, Features, List, Value

    from xlmprune.tasks import pos

    names = ["NOUN", "_", "ADP", "DET"]
    tags = [["ADP", "_", "DET", "NOUN"], ["NOUN"]]
    features = Features({"tokens": List(Value("string")), "upos": List(ClassLabel(names=names))})
    if not numbered:
        features["upos"] = List(Value("string"))
    columns = {"tokens": [["de", "du", "le", "10 000"], ["天"]], "upos": tags}
    if numbered:
        columns["upos"] = [[names.index(tag) for tag in row] for row in tags]
    path = local_hub(
        {"en_ewt": {"train": columns, "dev": columns, "test": columns}, "th_pud": {"test": columns}}, features
    )
    monkeypatch.setattr(pos.Pos, "hub", HubSet(**{**vars(pos.Pos.hub), "id": path, "revision": None}))
    task = pos.Pos(TaskRecipe(name="pos", languages=["th"]))
    assert task.languages() == ("en", "th")
    for language, split in [("en", "train"), ("en", "dev"), ("th", "test")]:
        examples = task.examples(language, split)
        assert examples.first == [["de", "le", "10000"], ["天"]]
        assert [[task.labels[tag] for tag in row] for row in examples.labels] == [
            ["ADP", "DET", "NOUN"],
            ["NOUN"],
        ]
        assert examples.notes == (
            "1 ranges of multiword tokens and empty nodes left out",
            "spaces taken out of 1 words",
        )
    with pytest.raises(DataError, match="no train set for language 'th'"):
        task.examples("th", "train")


@pytest.mark.parametrize("name", ["xnli", "pawsx", "ner", "pos"])
def test_without_the_hub_the_error_says_what_helps(name, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    task = registry.load("task", name)(TaskRecipe(name=name))
    with pytest.raises(
        DataError, match=r"cannot be loaded from the Hugging Face hub.*Unset HF_HUB_OFFLINE.*files"
    ):
        task.examples("en", "test")


def chained(outer, cause):
    """``outer``, raised because of ``cause``."""
    outer.__cause__ = cause
    return outer


def hub_faults():
    import requests
    from datasets import exceptions
    from huggingface_hub.errors import HTTPError

    generation = exceptions.DatasetGenerationError("An error occurred while generating the dataset")
    full = OSError(errno.ENOSPC, "No space left on device", "/somewhere/x.arrow")
    denied = PermissionError(errno.EACCES, "Permission denied", "/")
    tls = ssl.SSLCertVerificationError(1, "certificate verify failed")
    return {
        "split sizes": (exceptions.NonMatchingSplitsSizesError([{}]), DataError, ["Delete its folder in"]),
        "checksum": (exceptions.NonMatchingChecksumError("x"), DataError, ["Delete its folder in"]),
        "unknown": (
            exceptions.DatasetNotFoundError("'x' doesn't exist"),
            DataError,
            ["hub: 'x' doesn't exist. Or load it once"],
        ),
        "generation": (
            chained(generation, ValueError("line 3: no label")),
            DataError,
            ["hub: line 3: no label. Check"],
        ),
        "transport": (HTTPError("Server gone"), DataError, ["cannot be reached (Server gone)"]),
        "requests": (requests.ConnectionError("reset"), DataError, ["cannot be reached (reset)"]),
        "certificate": (tls, DataError, ["cannot be reached"]),
        "full": (full, MachineError, ["the disk of", "GB free", "HF_HOME"]),
        "full, inside": (chained(type(generation)("x"), full), MachineError, ["the disk of", "HF_HOME"]),
        "full, in Rust": (RuntimeError("IO Error (os error 28)"), MachineError, ["the disk of", "HF_HOME"]),
        "denied": (
            denied,
            MachineError,
            ["/ cannot be written to (permission denied); it belongs to the user root", "HF_HOME"],
        ),
        "denied, in Rust": (
            RuntimeError("open (os error 13)"),
            MachineError,
            ["permission denied", "HF_HOME"],
        ),
        "no folder": (
            NotADirectoryError(errno.ENOTDIR, "x", "/dev/null/hub"),
            MachineError,
            ["/dev/null cannot be written to (not a directory)", "HF_HOME"],
        ),
    }


@pytest.mark.parametrize("name", hub_faults())
def test_every_fault_of_the_hub_is_one_sentence(name, monkeypatch):
    fault, kind, said = hub_faults()[name]

    def load_dataset(*_, **__):
        raise fault

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    task = registry.load("task", "xnli")(TaskRecipe(name="xnli"))
    with pytest.raises(XlmpruneError) as caught:
        task.examples("en", "test")
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message.startswith("facebook/xnli (config en, test)")
    assert "\n" not in message
    assert [part for part in said if part not in message] == [], message
    expected = kind is DataError and name != "unknown" and "Delete" not in message
    assert message.count("Check the network") == expected


def test_lines_end_at_lf_only(tmp_path):
    file = tmp_path / "x"
    file.write_bytes("a\x0b\x0c\x1c\x85\u2028\u2029b\r\nc".encode())
    assert read_lines(file) == ["a\x0b\x0c\x1c\x85\u2028\u2029b", "c"]
