import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import SENTENCES, tiny_special, tiny_tokenizer

from xlmprune.data.encoding import (
    IGNORE,
    Encoded,
    batches_by_length,
    encode,
    length_statistics,
    pad,
    training_order,
)
from xlmprune.data.examples import Examples, normalize
from xlmprune.tasks.metrics import runs


def pieces(row):
    return [tiny_tokenizer().id_to_token(int(i)) for i in row]


def of_lengths(lengths):
    return Encoded(
        [np.zeros(length, dtype=np.int64) for length in lengths],
        None,
        None,
        np.zeros(len(lengths), dtype=bool),
        special=tiny_special(),
    )


def test_a_pair_has_two_separators_and_loses_its_longer_end():
    examples = Examples("en", "test", ["the man"], ["close the door the door the door"], [1])
    whole = encode(tiny_tokenizer(), examples, 64)
    assert pieces(whole.input_ids[0])[:5] == ["<s>", "▁the", "▁man", "</s>", "</s>"]
    cut = encode(tiny_tokenizer(), examples, 9)
    assert pieces(cut.input_ids[0]) == [
        "<s>",
        "▁the",
        "▁man",
        "</s>",
        "</s>",
        "▁close",
        "▁the",
        "▁door",
        "</s>",
    ]
    assert (whole.truncated.tolist(), cut.truncated.tolist()) == ([False], [True])
    assert cut.lengths.tolist() == whole.lengths.tolist() == [13]


@pytest.mark.parametrize("max_length", [4, 8, 15, 64])
def test_ids_are_those_the_tokenizer_gives_by_itself_in_eight_scripts(max_length):
    texts = [text for sentences in SENTENCES.values() for text in sentences]
    other = tiny_tokenizer()
    other.enable_truncation(max_length, strategy="longest_first")
    for second in (None, texts[::-1]):
        if second is not None and max_length < 5:
            continue
        encoded = encode(tiny_tokenizer(), Examples("x", "test", texts, second), max_length)
        inputs = texts if second is None else list(zip(texts, second, strict=True))
        assert [row.tolist() for row in encoded.input_ids] == [e.ids for e in other.encode_batch(inputs)]


def test_the_tokenizers_own_settings_come_back():
    tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(7, stride=2)
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>", length=9)
    before = tokenizer.truncation, tokenizer.padding
    encoded = encode(tokenizer, Examples("en", "test", ["the man is sleeping " * 9]), 12)
    assert len(encoded.input_ids[0]) == 12
    assert (tokenizer.truncation, tokenizer.padding) == before


def test_a_word_is_labelled_on_its_first_sub_word():
    examples = Examples("de", "test", [["der", "Mann", "schläft", "the"], ["die"]], None, [[4, 5, 6, 7], [8]])
    encoded = encode(tiny_tokenizer(), examples, 64)
    for row, words in enumerate(examples.first):
        starts = encoded.words[row]
        assert len(starts) == len(words)
        for position, label in enumerate(encoded.labels[row]):
            expected = examples.labels[row][starts.tolist().index(position)] if position in starts else IGNORE
            assert label == expected
        assert [pieces(encoded.input_ids[row])[start].strip("▁")[0] for start in starts] == [
            w[0] for w in words
        ]


def test_a_word_is_not_read_at_the_bare_mark_of_its_start():
    words = ["打", "the", "开", "▁"]
    encoded = encode(tiny_tokenizer(), Examples("zh", "test", [words], None, [[1, 2, 3, 4]]), 64)
    assert pieces(encoded.input_ids[0]) == ["<s>", "▁", "打", "▁the", "▁", "开", "▁", "</s>"]
    assert encoded.words[0].tolist() == [2, 3, 5, 6]
    assert encoded.labels[0].tolist() == [IGNORE, IGNORE, 1, 2, IGNORE, 3, 4, IGNORE]
    cut = encode(tiny_tokenizer(), Examples("zh", "test", [words], None, [[1, 2, 3, 4]]), 6)
    assert cut.words[0].tolist() == [2, 3, 4], "of the last word only its mark is left"


def test_words_cut_off_have_no_position_and_no_label():
    examples = Examples("en", "test", [["the"] * 20, ["the"]], None, [list(range(20)), [3]])
    encoded = encode(tiny_tokenizer(), examples, 8)
    assert encoded.words[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert encoded.labels[0].tolist() == [IGNORE, 0, 1, 2, 3, 4, 5, IGNORE]
    assert encoded.truncated.tolist() == [True, False]
    assert length_statistics(encoded, examples)["words_lost"] == 14 / 21


def test_a_word_of_nothing_becomes_unknown_and_keeps_its_place():
    examples = Examples("en", "test", [["the", "", "door", " "]], None, [[0, 1, 2, 3]])
    encoded = encode(tiny_tokenizer(), examples, 64)
    assert pieces(encoded.input_ids[0]) == ["<s>", "▁the", "<unk>", "▁door", "<unk>", "</s>"]
    assert encoded.words[0].tolist() == [1, 2, 3, 4]
    assert encoded.unknown.tolist() == [2]


def test_a_word_with_a_space_inside_is_one_word():
    encoded = encode(tiny_tokenizer(), Examples("vi", "test", [["the door", "man"]], None, [[1, 2]]), 64)
    assert pieces(encoded.input_ids[0]) == ["<s>", "▁the", "▁door", "▁man", "</s>"]
    assert encoded.labels[0].tolist() == [IGNORE, 1, IGNORE, 2, IGNORE]


def test_sentences_of_no_words_and_sets_of_no_rows_encode():
    encoded = encode(tiny_tokenizer(), Examples("en", "test", [["the"], []], None, [[0], []]), 8)
    assert encoded.words[1].tolist() == []
    assert encoded.labels[1].tolist() == [IGNORE, IGNORE]
    assert len(encode(tiny_tokenizer(), Examples("en", "test", [], None, []), 8)) == 0


def test_padding_is_masked_and_has_no_label():
    examples = Examples("en", "test", [["the"], ["the", "door", "man"]], None, [[5], [6, 7, 8]])
    batch = pad(encode(tiny_tokenizer(), examples, 64), [1, 0])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["labels"].shape == (2, 5)
    assert {array.dtype for array in batch.values()} == {np.dtype("int64")}
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["input_ids"][1, 3:].tolist() == [1, 1]
    assert batch["labels"].tolist() == [[IGNORE, 6, 7, 8, IGNORE], [IGNORE, 5, IGNORE, IGNORE, IGNORE]]
    texts = encode(tiny_tokenizer(), Examples("en", "test", ["the", "a", "the door"], None, [0, 1, 2]), 64)
    assert pad(texts, np.array([2, 0]))["labels"].tolist() == [2, 0]
    assert "labels" not in pad(encode(tiny_tokenizer(), Examples("en", "test", ["the"]), 8), [0])


LENGTHS = st.lists(st.integers(1, 5), max_size=60)


@given(LENGTHS, st.integers(1, 7))
def test_evaluation_batches_hold_every_row_once_and_are_sorted(lengths, size):
    batches = batches_by_length(of_lengths(lengths), size)
    rows = [int(row) for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths)
    assert all(len(batch) == size for batch in batches[:-1])


@given(LENGTHS, st.integers(1, 7), st.integers(0, 3), st.integers(0, 3))
def test_training_batches_hold_every_row_once_and_depend_on_nothing_else(lengths, size, seed, epoch):
    encoded = of_lengths(lengths)
    batches = training_order(encoded, size, seed, epoch)
    assert sorted(int(row) for batch in batches for row in batch) == list(range(len(lengths)))
    assert max((len(batch) for batch in batches), default=0) <= size
    assert len(batches) == -(-len(lengths) // size)
    again = training_order(of_lengths(lengths), size, seed, epoch)
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in again]


def test_training_order_changes_with_epoch_and_seed_and_saves_padding():
    lengths = np.random.default_rng(0).integers(5, 200, size=5000)
    encoded = of_lengths(lengths)

    def order(seed, epoch):
        return [row for batch in training_order(encoded, 32, seed, epoch) for row in batch]

    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    batches = training_order(encoded, 32, 1, 0)
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    assert padded < 1.05 * lengths.sum()
    means = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3, "batches come in the order of their length"


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        batches_by_length(of_lengths([1, 2]), 0)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(1, 40))
def test_a_sample_of_a_ranking_is_whole_groups(sizes, count):
    groups = [f"query {number}" for number, size in enumerate(sizes) for _ in range(size)]
    texts = [str(row) for row in range(len(groups))]
    examples = Examples("en", "test", texts, texts, list(range(len(groups))), groups)
    sample = examples.sample(count)
    taken = list(dict.fromkeys(sample.groups))
    sizes_taken = [sizes[int(group.split()[1])] for group in taken]
    assert [sample.groups.count(group) for group in taken] == sizes_taken
    assert len(sample) <= max(count, sizes_taken[0] if len(taken) == 1 else 0)
    assert sample.first == sorted(sample.first, key=int)
    assert sample.labels == [int(text) for text in sample.first]
    if len(sample) < len(examples):
        left = [size for number, size in enumerate(sizes) if f"query {number}" not in taken]
        assert len(sample) + min(left) > count


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 60))
def test_a_sample_has_every_label_in_its_proportion(labels, count):
    texts = [str(row) for row in range(len(labels))]
    examples = Examples("en", "test", texts, None, labels)
    sample = examples.sample(count)
    assert len(sample) == min(count, len(labels))
    assert sample.first == sorted(sample.first, key=int)
    assert sample.labels == [labels[int(text)] for text in sample.first]
    kinds = set(labels)
    for label in kinds:
        share = labels.count(label) * min(1, count / len(labels))
        taken = sample.labels.count(label)
        assert taken <= labels.count(label)
        assert taken < share + 1
        if count >= len(kinds):
            assert taken >= 1


@given(st.lists(st.sampled_from("xyz"), min_size=1, max_size=12), st.data())
def test_two_queries_of_one_name_stay_two_when_what_is_between_them_is_left_out(names, data):
    names = [name for number, name in enumerate(names) if number == 0 or name != names[number - 1]]
    groups = [name for name in names for _ in range(2)]
    texts = [str(row) for row in range(len(groups))]
    examples = Examples("en", "test", texts, texts, [0] * len(groups), groups)
    sample = examples.sample(data.draw(st.integers(1, len(groups))))
    for part in (sample, sample.sample(max(1, len(sample) // 2))):
        assert len(runs(part.groups)) == len(part) / 2
    assert examples.take(range(len(groups))).groups == groups


def test_a_sample_of_a_sorted_file_is_of_all_its_rows_and_the_same_in_every_language():
    labels = [0] * 500 + [1] * 300 + [2] * 200
    english = Examples("en", "test", [f"text {row}" for row in range(1000)], None, labels, notes=("one",))
    swahili = Examples("sw", "test", [f"maandishi {row}" for row in range(1000)], None, labels)
    sample = english.sample(100)
    assert [sample.labels.count(label) for label in range(3)] == [50, 30, 20]
    rows = [int(text.split()[1]) for text in sample.first]
    assert [int(text.split()[1]) for text in swahili.sample(100).first] == rows
    assert english.sample(100) == sample, "at every stage"
    assert 150 < np.mean([row for row in rows if row < 500]) < 350
    assert sample.notes == ("one",)
    assert english.sample(1000) is english.sample(2000) is english
    tagged = Examples("en", "test", [["a"]] * 50 + [["b"]] * 50, None, [[0]] * 50 + [[1]] * 50)
    assert {words[0] for words in tagged.sample(20).first} == {"a", "b"}
    bare = Examples("en", "test", [str(row) for row in range(100)])
    assert bare.sample(10).first == Examples("de", "test", bare.first).sample(10).first != bare.first[:10]


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="labels has 1 entries for 2"):
        Examples("en", "test", ["a", "b"], None, [0])


def test_length_statistics_by_hand():
    examples = Examples("en", "test", ["the door", "the"], ["man", "close the door"])
    encoded = encode(tiny_tokenizer(), examples, 8)
    # 3 and 4 pieces, each with 4 special tokens: 7 fits into 8, 8 does too
    statistics = length_statistics(encoded, examples)
    assert statistics["n"] == 2
    assert statistics["tokens_mean"] == 7.5
    assert statistics["tokens_per_word"] == 1.0
    assert statistics["tokens_per_character"] == 7 / len("thedoorthemanclosethedoor")
    assert statistics["truncated"] == 0
    assert statistics["unknown"] == 0
    assert statistics["words_lost"] is None
    assert length_statistics(encode(tiny_tokenizer(), examples, 7), examples)["truncated"] == 0.5
    foreign = Examples("xx", "test", ["the ☃☃"])
    assert length_statistics(encode(tiny_tokenizer(), foreign, 8), foreign)["unknown"] > 0
    empty = Examples("en", "test", [])
    assert length_statistics(encode(tiny_tokenizer(), empty, 8), empty)["tokens_mean"] is None


@given(st.text(st.characters(max_codepoint=127), max_size=20))
def test_plain_ascii_is_compared_as_every_other_text(text):
    # With a letter that is no ASCII the general way is taken.
    assert normalize(text + "aé") == (normalize(text) if any(map(str.isalnum, text)) else "") + "aé"
