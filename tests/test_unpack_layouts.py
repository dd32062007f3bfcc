"""The layouts of `xlmprune unpack`: the same answers, in files where transformers.js and optimum look for them."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
from tiny import SENTENCES, tiny_batch, tiny_bundle, tiny_tokenizer
from tokenizers import Regex, Tokenizer, normalizers
from typer.testing import CliRunner

from xlmprune.bundle.unpack import unpack_bundle, without_nmt
from xlmprune.cli import app
from xlmprune.export import manifest

TRICKY = (
    "ｆｕｌｌ－ｗｉｄｔｈ　１２３",
    "zero\u200bwidth\u200d joiners\ufeff",
    "tab\tline\nreturn\rfeed\x0c",
    "control\x01\x08\x0b\x1f\x7f\x8f\x9f",
    "▁ already",
    "e\u0301 é ﬁ ½ Ⅷ ㎏",
    "नमस्ते   दुनिया",
    "สวัสดีชาวโลก",
    "한국어와 日本語",
    "\u1680\u2028\u2029\ufffd",
    "",
)


def xlmr_like() -> Tokenizer:
    """The tiny tokenizer with the normalizer of the quickstart's model."""
    tokenizer = tiny_tokenizer()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    return tokenizer


def rewritten(tokenizer: Tokenizer) -> Tokenizer:
    values = json.loads(tokenizer.to_str())
    return Tokenizer.from_str(json.dumps({**values, "normalizer": without_nmt(values["normalizer"])}))


def test_the_normalizer_without_nmt_does_the_same_to_every_character_and_to_real_sentences():
    before, after = xlmr_like(), rewritten(xlmr_like())
    assert '"Nmt"' in before.to_str()
    assert '"Nmt"' not in after.to_str()
    characters = [chr(code) for code in range(0x3000) if not 0xD800 <= code < 0xE000]
    characters += [chr(code) for code in range(0xF900, 0x10000)]
    for text in [f"a{character}b" for character in characters] + list(TRICKY):
        assert after.normalizer.normalize_str(text) == before.normalizer.normalize_str(text), repr(text)
    for text in [text for sentences in SENTENCES.values() for text in sentences] + list(TRICKY):
        assert after.encode(text).ids == before.encode(text).ids


def test_other_normalizers_stay():
    assert without_nmt(None) is None
    kept = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
    assert without_nmt(kept) == kept
    assert without_nmt({"type": "Nmt"})["type"] == "Sequence"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tiny_bundle(tmp_path_factory.mktemp("layouts") / "bundle", forms=("fp32", "int8"), packed=True)
    xlmr_like().save(str(folder / "tokenizer.json"))
    manifest.write(folder, {"xlmprune": "0"}, "0" * 64)
    return folder


def logits(file):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["logits"], tiny_batch("text"))[0]


def test_transformers_js_finds_its_files_and_they_answer_as_the_bundle_does(bundle, tmp_path):
    out = tmp_path / "js"
    result = CliRunner().invoke(
        app, ["unpack", str(bundle), "--out", str(out), "--layout", "transformers.js"]
    )
    assert result.exit_code == 0, result.output
    names = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert names >= {
        "onnx/model.onnx",
        "onnx/model_int8.onnx",
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    }
    assert not list(out.glob("*.onnx"))
    for found, stored in (("model.onnx", "model.onnx"), ("model_int8.onnx", "model.int8.onnx")):
        np.testing.assert_array_equal(logits(out / "onnx" / found), logits(bundle / stored))
    tokenizer, stored = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (out, bundle))
    assert '"Nmt"' not in (out / "tokenizer.json").read_text(encoding="utf-8")
    for text in TRICKY:
        assert tokenizer.encode(text).ids == stored.encode(text).ids
    assert all(check.passed for check in manifest.check(out))


def test_another_layout_in_the_same_folder_leaves_no_graph_of_the_first(bundle, tmp_path):
    unpack_bundle(bundle, tmp_path, layout="transformers.js")
    unpack_bundle(bundle, tmp_path)
    assert {file.name for file in tmp_path.rglob("*.onnx")} == {"model.onnx", "model.int8.onnx"}
    assert '"Nmt"' in (tmp_path / "tokenizer.json").read_text(encoding="utf-8")


def test_an_unknown_layout_is_a_sentence(bundle, tmp_path):
    result = CliRunner().invoke(app, ["unpack", str(bundle), "--out", str(tmp_path), "--layout", "js"])
    assert result.exit_code == 2
    assert "--layout js: expected one of bundle, transformers.js" in result.stderr
