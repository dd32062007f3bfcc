"""Every model family goes through the whole product on a small random model, and is what transformers has of it."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from slow import slow_but
from tiny import SENTENCES, tiny_tokenizer
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece
from typer.testing import CliRunner

from xlmprune.bundle.session import Bundle, predict
from xlmprune.cli import app
from xlmprune.core.errors import ModelError
from xlmprune.data.special import special_tokens
from xlmprune.export import sparse
from xlmprune.models import architecture
from xlmprune.models.architecture import FFN
from xlmprune.models.loading import load_pretrained, save_tokenizer
from xlmprune.models.segments import segment_ids
from xlmprune.recipe import registry
from xlmprune.recipe.schema import ModelRecipe

PACKAGE = Path(__file__).parents[1] / "xlmprune"

SPECIAL = ["[PAD]", "[unused1]", "[unused2]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@cache
def _wordpiece_text() -> str:
    words = sorted({word for sentences in SENTENCES.values() for text in sentences for word in text.split()})
    characters = sorted(set("".join(words)))
    pieces = [*SPECIAL, *characters, *(f"##{character}" for character in characters), *words]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([piece for piece in SPECIAL if "unused" not in piece])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    return tokenizer.to_str()


def wordpiece_tokenizer() -> Tokenizer:
    """A BERT tokenizer of a few hundred pieces; two that nothing uses stand before the special tokens."""
    return Tokenizer.from_str(_wordpiece_text())


def bpe_tokenizer() -> Tokenizer:
    """A tokenizer like mmBERT's: BPE of characters, else bytes, with `<bos>` and `<eos>`."""
    texts = [text for sentences in SENTENCES.values() for text in sentences]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [
        *special,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *sorted(set("".join(texts)) - {" "}),
    ]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A <eos> $B <eos>",
        special_tokens=[("<bos>", vocab["<bos>"]), ("<eos>", vocab["<eos>"])],
    )
    return tokenizer


def write_model(folder: Path, family: str, tokenizer: Tokenizer, **settings) -> None:
    """Write a small random encoder as the hub has it, without a head."""
    config = transformers.AutoConfig.for_model(
        family,
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
        initializer_range=0.3,
        **settings,
    )
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder, 40)


def write_data(folder: Path, kind: str) -> dict:
    """Write texts of every language, and return the recipe's task."""
    ending = "txt" if kind == "tokens" else "tsv"
    for language, sentences in SENTENCES.items():
        rows = [f"{text}\t{label}\n" for text, label in zip(sentences, "abab", strict=True)]
        if kind == "pair":
            turned = sentences[1:] + sentences[:1]
            pairs = [*zip(sentences, sentences), *zip(sentences, turned)]
            rows = [f"{a}\t{b}\t{'same' if a == b else 'other'}\n" for a, b in pairs]
        if kind == "tokens":
            rows = [
                "".join(f"{word} {'XY'[n % 2]}\n" for n, word in enumerate(text.split())) + "\n"
                for text in sentences
            ]
        for split in ("train", "dev", "test") if language == "en" else ("test",):
            (folder / f"{language}.{split}.{ending}").write_text("".join(rows) * 4, encoding="utf-8")
        # Every word of the sentences, and none of the sentences: text that is measured is not counted.
        free = [f"{first} {second}" for first in sentences for second in sentences if first != second]
        (folder / f"{language}.free").write_text("\n".join(free), encoding="utf-8")
    name = {"text": "classification", "pair": "pair_classification", "tokens": "tagging"}[kind]
    return {"name": name, "source": "files", "path": f"./{{language}}.{{split}}.{ending}"}


MODERN = {"pad_token_id": 1, "global_attn_every_n_layers": 2, "local_attention": 8}
"""One layer of global attention and one that sees four tokens to each side, fewer than a text has."""

CASES = {
    "bert, WordPiece, pairs, trimmed": ("bert", "pair", wordpiece_tokenizer, {"pad_token_id": 0}),
    "bert, XLM-R's tokenizer, text": ("bert", "text", tiny_tokenizer, {"pad_token_id": 0}),
    "bert, WordPiece, words": ("bert", "tokens", wordpiece_tokenizer, {"pad_token_id": 0}),
    "xlm-roberta-xl, text": (
        "xlm-roberta-xl",
        "text",
        tiny_tokenizer,
        {"pad_token_id": 1, "type_vocab_size": 1},
    ),
    "modernbert, pairs, trimmed": ("modernbert", "pair", tiny_tokenizer, MODERN),
    "modernbert, text, mean": (
        "modernbert",
        "text",
        tiny_tokenizer,
        {**MODERN, "classifier_pooling": "mean"},
    ),
    "modernbert, BPE, words": ("modernbert", "tokens", bpe_tokenizer, {**MODERN, "pad_token_id": 0}),
}


@pytest.fixture(
    scope="module",
    params=slow_but(["bert, WordPiece, pairs, trimmed"], CASES),
)
def run(request, tmp_path_factory):
    """A finished run of one family, its bundle unpacked."""
    family, kind, tokenizer, settings = CASES[request.param]
    folder = tmp_path_factory.mktemp("family")
    write_model(folder / "model", family, tokenizer(), **settings)
    recipe = {
        "name": "family",
        "model": {"name": str(folder / "model")},
        "task": write_data(folder, kind),
        "training": {
            "dense_epochs": 1,
            "epochs_per_stage": 1,
            "batch_size": 8,
            "learning_rate": 5e-3,
            "max_length": 32,
        },
        "pruning": {"schedule": {"name": "geometric", "step_fraction": 0.5, "stages": 1}},
        "export": {"onnx": ["fp32", "int8"]},
    }
    recipe["task"]["path"] = str(folder / recipe["task"]["path"])
    if "trimmed" in request.param:
        recipe["model"]["vocabulary"] = {"files": [str(folder / "{language}.free")], "min_count": 1}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for command in (
        ["compress", str(folder / "recipe.yaml"), "--out", str(folder / "run"), "--device", "cpu"],
        ["unpack", str(folder / "run" / "bundle"), "--out", str(folder / "plain")],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    return family, kind, special_tokens(tokenizer()).segments, folder


def _inputs(kind: str) -> list:
    texts = [text for sentences in SENTENCES.values() for text in sentences]
    if kind == "pair":
        return list(zip(texts, texts[1:] + texts[:1], strict=True))
    return [text.split() for text in texts] if kind == "tokens" else texts


def test_bundle_sparse_load_and_transformers_give_the_same_logits(run):
    family, kind, segments, folder = run
    bundle = Bundle(folder / "run" / "bundle")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "plain")
    head = "Token" if kind == "tokens" else "Sequence"
    auto = getattr(transformers, f"AutoModelFor{head}Classification")
    stock, info = auto.from_pretrained(folder / "plain", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert stock.config.model_type == family
    inputs = _inputs(kind)
    first, second = ([list(part) for part in zip(*inputs)]) if kind == "pair" else (inputs, None)
    batch = tokenizer(first, second, padding=True, return_tensors="pt", is_split_into_words=kind == "tokens")
    assert ("token_type_ids" in batch) == segments
    with torch.no_grad():
        expected = stock.eval()(**batch).logits.numpy()
        loaded = sparse.load(folder / "run" / "bundle")(**batch).logits.numpy()
    found = bundle.forward("fp32")(batch["input_ids"].numpy(), batch["attention_mask"].numpy())
    real = (
        batch["attention_mask"].numpy().astype(bool) if kind == "tokens" else np.ones(len(found), dtype=bool)
    )
    assert np.array_equal(loaded, expected)
    assert np.allclose(found[real], expected[real], atol=1e-4)
    if kind == "pair" and segments:  # else this test shows nothing of segment ids
        with torch.no_grad():
            without = stock(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits.numpy()
        assert not np.allclose(without, expected, atol=1e-3)
    answers = list(predict(bundle, inputs[:3]))
    if kind != "tokens":
        labels = [bundle.labels[i] for i in expected[:3].argmax(-1)]
        assert [answer["label"] for answer in answers] == labels


def test_report_and_inspection_know_the_parts(run):
    family, *_, folder = run
    matrices = 2 * len(architecture.named(family).modules)
    report = json.loads((folder / "run" / "bundle" / "report.json").read_text(encoding="utf-8"))
    assert len(report["layers"]) == matrices
    assert all(abs(layer["density"] - 0.5) < 0.01 for layer in report["layers"])
    result = CliRunner().invoke(app, ["inspect", str(folder / "run" / "bundle"), "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert facts["encoder_density"] == pytest.approx(0.5, abs=0.01)
    assert [row["layer"] for row in facts["layers"]] == [0, 1]
    for file in facts["files"].values():
        assert len(file["matrices"]) == matrices
        assert file["bytes_by_part"]["head"] > 0
        assert file["bytes_by_part"]["embeddings"] > 0
    result = CliRunner().invoke(app, ["verify", str(folder / "run" / "bundle")])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_layers_are_what_the_model_has(family):
    known = architecture.named(family)
    for kind, name in known.heads.items():
        config = transformers.AutoConfig.for_model(
            family, vocab_size=30, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=20, pad_token_id=1,
        )  # fmt: skip
        model = getattr(transformers, name)(config)
        assert architecture.of(model) is known
        layers = known.layers(model)
        assert [layer.index for layer in layers] == [0, 1, 2]
        for layer in layers:
            assert model.get_submodule(layer.path) is layer.module
            shapes = {role: tuple(matrix.weight.shape) for role, matrix in layer.matrices().items()}
            square = dict.fromkeys(("query", "key", "value", "attention_output"), (8, 8))
            inner = {role: (8, 24) if role == "ffn_out" else (24, 8) for role in FFN & set(shapes)}
            assert shapes == square | inner
            assert set(shapes) == set(known.roles)
            assert (layer.heads, layer.head_size, layer.neurons) == (2, 4, 24)
            normed = isinstance(layer.attention_norm, torch.nn.LayerNorm)
            assert normed or (known.first_stays and layer.index == 0)
            assert isinstance(layer.ffn_norm, torch.nn.LayerNorm)
            assert layer.attention_norm is not layer.ffn_norm
        linear = [
            f"{path}.weight"
            for path, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and known.part_of(f"{path}.weight") == "encoder"
        ]
        assert list(known.prunable(model)) == linear
        assert all(known.find_matrix(name) and architecture.find_matrix(name) for name in linear)
        parts = {known.part_of(name) for name, _ in model.named_parameters()}
        assert parts == {"embeddings", "encoder", "head"}, kind
        assert architecture.is_word_embedding(f"{known.backbone}.{known.word_embeddings}.weight/int8")
        longest = torch.arange(known.positions(config)).unsqueeze(0) % 20 + 2
        model.eval()(input_ids=longest, attention_mask=torch.ones_like(longest))
        if known.rotary:
            continue  # positions without a table go on
        with pytest.raises((IndexError, RuntimeError)):
            model(
                input_ids=torch.cat([longest, longest[:, :1]], 1),
                attention_mask=torch.ones(1, longest.shape[1] + 1),
            )


def test_a_role_may_be_rows_of_a_fused_matrix():
    rows = [architecture.Rows("qkv", index, 3).of(12) for index in range(3)]
    assert rows == [slice(0, 4), slice(4, 8), slice(8, 12)]


def test_a_type_that_is_not_known_is_refused_with_those_that_are(tmp_path):
    write_model(tmp_path, "bert", tiny_tokenizer())
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    with pytest.raises(ModelError, match=r"'deberta-v2' are not supported; known types: xlm-roberta, .*bert"):
        load_pretrained(ModelRecipe(name=str(tmp_path)), "text", ("a", "b"), 0)


def test_special_tokens_are_those_of_the_tokenizer():
    bert, xlm_r = special_tokens(wordpiece_tokenizer()), special_tokens(tiny_tokenizer())
    assert (bert.pad, bert.unknown, bert.separator, bert.single, bert.pair, bert.segments) == (
        0,
        3,
        5,
        2,
        3,
        True,
    )
    assert (xlm_r.pad, xlm_r.unknown, xlm_r.separator, xlm_r.single, xlm_r.pair) == (1, 3, 2, 2, 4)
    assert not xlm_r.segments
    assert bert.word_start is None
    assert xlm_r.word_start == tiny_tokenizer().token_to_id("▁")
    assert bert.names == {"pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]", "cls": "[CLS]", "sep": "[SEP]"}


def test_segment_ids_are_the_tokenizers_own():
    tokenizer = wordpiece_tokenizer()
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    rows = tokenizer.encode_batch([*_inputs("pair"), *_inputs("text")])
    columns = ("ids", "attention_mask", "type_ids")
    ids, mask, expected = (torch.tensor([getattr(row, name) for row in rows]) for name in columns)
    assert torch.equal(segment_ids(ids, mask, special_tokens(tokenizer).separator), expected)


NAMES = re.compile(
    r"roberta\.|XLMRoberta|BertFor|encoder\.layer|attention\.self|attention\.output|intermediate\.dense|output\.dense|"
    r"word_embeddings|classifier\.|LayerNorm\.|ModernBertFor|Wqkv|attn\.|mlp\.|tok_embeddings|layer_types"
)


def _strings(file: Path) -> list[str]:
    """Every string of a module that is no docstring."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.relative_to(PACKAGE).as_posix()
)
def test_names_of_families_and_parameters_stand_only_in_models(file):
    room = file.relative_to(PACKAGE).parts[0]
    # The quickstart's converter writes a checkpoint, and so every name of one family.
    if room in ("models", "quickstart"):
        return
    assert [text for text in _strings(file) if NAMES.search(text)] == []
    assert not re.search(r"transformers\.(XLMRoberta|Bert|ModernBert)", file.read_text(encoding="utf-8"))
