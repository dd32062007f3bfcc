"""Checkpoints as people have them: each that cannot be used names its cause, and none is executed or half read."""

from __future__ import annotations

import io
import json
import pickle
import time
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from test_families import write_model
from tiny import SENTENCES, tiny_masks, tiny_model, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaForMaskedLM

from xlmprune.core.errors import ModelError
from xlmprune.core.progress import Reporter
from xlmprune.export import sparse
from xlmprune.models import vocabulary
from xlmprune.models.loading import load_pretrained, save_start, save_tokenizer
from xlmprune.recipe.schema import ModelRecipe
from xlmprune.training import start


@pytest.fixture
def folder(tmp_path):
    tiny_model().roberta.save_pretrained(tmp_path)
    save_tokenizer(tiny_tokenizer(), tmp_path, 64)
    return tmp_path


def load(folder):
    return load_pretrained(ModelRecipe(name=str(folder)), "text", ("a", "b"), 0)


def refused(folder, match):
    with pytest.raises(ModelError, match=match):
        load(folder)


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


# --- weights that would be dropped


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["encoder.layer.0.attention.self.query.lora_A.default.weight"], "LoRA weights: merge them"),
        (["base_model.model.roberta.encoder.layer.0.attention.self.query.lora_B.weight"], "merge_and_unload"),
        (["encoder.layer.1.output.adapters.sv.adapter_down.0.weight"], "adapters"),
        (["encoder.layer.0.attention.self.query.base_layer.weight"], "peft layers"),
        (["encoder.layer.2.output.dense.weight", "encoder.layer.3.output.dense.weight"], "more layers than .* and 1 more"),
        (["encoder.layer.0.attention.self.gate.weight"], "gate.weight would be dropped"),
        (["embeddings.language_embeddings.weight"], "would be dropped"),
        (["encoder.layer.0.output.dense.SCB"], "bitsandbytes"),
    ],
)  # fmt: skip
def test_unexpected_weights_of_the_encoder_are_refused_with_their_cause(folder, names, match):
    change_weights(folder, lambda tensors: tensors | {name: torch.ones(2, 2) for name in names})
    refused(folder, match)


@pytest.mark.parametrize(
    ("prefix", "match"), [("_orig_mod.", "saved while compiled"), ("module.", "DataParallel")]
)
def test_a_wrapped_model_is_refused(folder, prefix, match):
    change_weights(folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    refused(folder, match)


def test_heads_of_pretraining_and_buffers_of_older_versions_are_no_fault(folder):
    more = {
        "lm_head.dense.weight": torch.ones(2, 2),
        "roberta.embeddings.position_ids": torch.arange(66)[None],
    }
    change_weights(folder, lambda tensors: {f"roberta.{name}": t for name, t in tensors.items()} | more)
    assert load(folder).notes == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(folder, value):
    def spoil(tensors):
        tensors["encoder.layer.1.output.dense.weight"][3, 4] = value
        return tensors

    change_weights(folder, spoil)
    refused(folder, r"layer\.1\.output\.dense\.weight holds values that are NaN or infinite")


def test_a_checkpoint_pruned_before_is_said_to_be_normal(folder):
    model = tiny_model()
    tiny_masks(model, 0.4)
    model.roberta.save_pretrained(folder)
    (note,) = load(folder).notes
    assert "60." in note or "59." in note
    assert "Training updates these weights too" in note


def test_that_it_is_normal_is_a_detail(tmp_path, monkeypatch):
    loaded = SimpleNamespace(notes=("60% of the weights are zero",))
    monkeypatch.setattr(start, "load_start", lambda recipe, task: (loaded, None))
    recipe = SimpleNamespace(model=SimpleNamespace(name="old"))
    run = SimpleNamespace(
        start=tmp_path / "start", expected_start=dict, save_start=lambda write, expected: None
    )
    said = {}
    for level in ("normal", "verbose"):
        console = Console(file=io.StringIO())
        start.open_start(recipe, None, run, Reporter(console, level))
        said[level] = console.file.getvalue()
    assert "loading old" in said["normal"]
    assert "zero" not in said["normal"]
    assert "60% of the weights are zero" in said["verbose"]


# --- config.json


def test_an_earlier_heads_problem_type_is_not_kept(folder):
    change_config(folder, problem_type="multi_label_classification")
    assert load(folder).model.config.problem_type is None


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("num_hidden_layers", 100_000, "num_hidden_layers: 100000; expected a whole number from 1 to 512"),
        ("hidden_size", 10**9, "hidden_size"),
        ("vocab_size", -1, "vocab_size: -1"),
        ("num_attention_heads", 0, "num_attention_heads: 0"),
        ("num_attention_heads", 3, "which cannot be divided by 3 heads"),
        ("intermediate_size", "64", 'intermediate_size: "64"'),
        ("max_position_embeddings", 1e9, "max_position_embeddings"),
        ("pad_token_id", None, "pad_token_id: null"),
        ("pad_token_id", -3, "pad_token_id: -3"),
        ("quantization_config", {"quant_method": "bitsandbytes"}, r"quantized \(bitsandbytes"),
        ("hidden_size", 65_536, "parameters; at most"),
    ],
)
def test_values_that_cannot_be_are_refused_before_memory_is_asked_for(folder, key, value, match):
    more = {"num_hidden_layers": 512, "num_attention_heads": 8} if value == 65_536 else {}
    change_config(folder, **{key: value, **more})
    started = time.perf_counter()
    refused(folder, match)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[1, 2]", '{"vocab_size": ' + "9" * 5_000 + "}", "{", '"x"', "\xff"]
)
def test_damaged_configs_are_a_sentence(folder, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError):
        load(folder)


def test_the_models_own_python_is_neither_run_nor_offered(folder, monkeypatch):
    (folder / "modeling_own.py").write_text("raise SystemExit('executed')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    own = {"AutoConfig": "modeling_own.Config", "AutoModel": "modeling_own.Model"}
    change_config(folder, auto_map=own)
    load(folder)  # a known type: the library's own classes
    change_config(folder, model_type="own")
    refused(folder, "'own' are not supported; known types: xlm-roberta")


# --- files


def test_an_adapter_without_its_model_is_refused(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "an adapter .* without its base model")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json"])
def test_git_lfs_pointers_are_named(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1112197096\n")
    refused(folder, f"{name} is a Git LFS pointer")


def test_a_pickle_is_not_opened_and_no_one_is_told_to_open_it(folder):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("executed",)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    refused(folder, "pickle .* can run any code")
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert "weights_only" not in str(caught.value)
    assert "trust_remote_code" not in str(caught.value)


def test_a_bundle_is_refused_with_the_command_that_unpacks_it(folder):
    model = tiny_model()
    sparse.save_sparse(model, tiny_masks(model), folder / "model.safetensors", {})
    refused(folder, "xlmprune unpack")


# --- tokenizers


def test_a_tokenizer_that_adds_no_tokens_is_refused(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(folder, "adds no token before and after a text")


def test_another_padding_id_than_the_models_is_refused(folder):
    change_config(folder, pad_token_id=0)
    refused(folder, "padding token has the id 1 and the model's is 0")


def test_sentencepiece_alone_says_which_packages_it_needs(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "sentencepiece.bpe.model").write_bytes(b"\n\x0e\n\x05<unk>")
    refused(folder, "sentencepiece and protobuf")


def test_a_wordpiece_vocabulary_alone_is_read(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "turn", "on", "##s"]
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer({word: index for index, word in enumerate(words)})
    write_model(tmp_path, "bert", Tokenizer.from_str(tokenizer.to_str()), pad_token_id=0)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    loaded = load(tmp_path).tokenizer
    assert loaded.encode("turn on").tokens == ["[CLS]", "turn", "on", "[SEP]"]


def test_added_tokens_are_kept_when_the_vocabulary_is_trimmed(folder):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<extra>", "smarthome"])
    tokenizer.add_special_tokens([AddedToken("<domain>", normalized=False)])
    config = XLMRobertaConfig.from_pretrained(folder)
    config.vocab_size = tokenizer.get_vocab_size()
    XLMRobertaForMaskedLM(config).roberta.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, 64)
    loaded = load(folder)
    before = loaded.model.get_input_embeddings().weight.detach().clone()
    texts = {"en": [*SENTENCES["en"], "smarthome <extra> close"]}
    trimmed, facts = vocabulary.trim(loaded.model, loaded.tokenizer, texts, min_count=1)
    assert facts["pieces"] == trimmed.get_vocab_size() == loaded.model.config.vocab_size < len(before)
    for text in ("<domain> smarthome", "close <extra> the door"):
        assert trimmed.encode(text).tokens == tokenizer.encode(text).tokens
        for old, new in zip(tokenizer.encode(text).ids, trimmed.encode(text).ids, strict=True):
            assert torch.equal(loaded.model.get_input_embeddings().weight[new], before[old])


def test_the_tokenizers_config_names_a_class_that_every_version_has(folder, tmp_path):
    save_start(load(folder), tmp_path / "start", 32)
    settings = json.loads((tmp_path / "start" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "backend" not in settings
    assert settings["pad_token"] == "<pad>"
    again = AutoTokenizer.from_pretrained(tmp_path / "start")
    for text in (text for texts in SENTENCES.values() for text in texts):
        assert again(text)["input_ids"] == tiny_tokenizer().encode(text).ids
