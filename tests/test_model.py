"""Loading: only XLM-R, only whole, and with the tokenizer it was trained with."""

import json

import pytest
import torch
from tiny import SENTENCES, tiny_model, tiny_tokenizer
from tokenizers import Regex, Tokenizer, normalizers
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaForSequenceClassification

from xlmprune.core.errors import MachineError, ModelError
from xlmprune.models import architecture
from xlmprune.models.loading import (
    load_pretrained,
    parameters_by_part,
    prunable,
    read_start,
    save_start,
    save_tokenizer,
)
from xlmprune.recipe.schema import ModelRecipe


def normalizing_tokenizer() -> Tokenizer:
    tokenizer = tiny_tokenizer()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    return tokenizer


@pytest.fixture
def folder(tmp_path):
    tiny_model().roberta.save_pretrained(tmp_path)
    save_tokenizer(normalizing_tokenizer(), tmp_path, 64)
    return tmp_path


def load(name, kind="text", labels=("a", "b"), seed=0):
    return load_pretrained(ModelRecipe(name=str(name)), kind, labels, seed)


def test_xlm_r_base_has_the_papers_72_matrices():
    config = XLMRobertaConfig(
        vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=3
    )
    with torch.device("meta"):
        model = XLMRobertaForSequenceClassification(config)
    weights = prunable(model)
    assert len(weights) == 72
    assert sum(weight.numel() for weight in weights.values()) == 84_934_656
    assert sum(len(weight) for weight in weights.values()) == 82_944
    assert list(weights)[:6] == [
        f"roberta.encoder.layer.0.{suffix}.weight"
        for suffix in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
    ]
    parts = parameters_by_part(model)
    assert sum(parts.values()) == 278_045_955
    assert parts["embeddings"] == 192_001_536 + 394_752 + 768 + 1_536
    assert parts["head"] == 592_899
    assert architecture.of(model).part_of("lm_head.bias") == "other"


def test_the_head_is_new_and_drawn_from_the_seed(folder):
    one, same, other = load(folder), load(folder), load(folder, seed=1)
    assert torch.equal(one.model.classifier.out_proj.weight, same.model.classifier.out_proj.weight)
    assert not torch.equal(one.model.classifier.out_proj.weight, other.model.classifier.out_proj.weight)
    assert one.model.config.id2label == {0: "a", 1: "b"}
    assert not one.model.training


def test_the_tokenizer_keeps_its_normalizer(folder):
    wanted = normalizing_tokenizer()
    found = load(folder).tokenizer
    for text in ("ｔｕｒｎ  ｏｎ", *(text for texts in SENTENCES.values() for text in texts)):
        assert found.encode(text).ids == wanted.encode(text).ids
    assert found.encode("ｔｕｒｎ").ids != tiny_tokenizer().encode("ｔｕｒｎ").ids, (
        "else this test shows nothing"
    )
    saved = AutoTokenizer.from_pretrained(folder)
    assert saved("ｔｕｒｎ  ｏｎ", "b")["input_ids"] == wanted.encode("ｔｕｒｎ  ｏｎ", "b").ids


def test_start_is_read_back_equal(folder, tmp_path):
    loaded = load(folder, kind="tokens", labels=("O", "B-X", "I-X"))
    place = tmp_path / "start"
    save_start(loaded, place, 32)
    again = read_start(place, "tokens")
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, dict(again.model.named_parameters())[name])
    assert again.tokenizer.to_str() == loaded.tokenizer.to_str()
    assert again.origin == loaded.origin
    assert str(tmp_path) not in (place / "origin.json").read_text()


def test_a_folder_without_config(tmp_path):
    with pytest.raises(ModelError, match=r"without config\.json"):
        load(tmp_path)


def test_a_checkpoint_with_weights_missing(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"layer\.1\.output\.dense"):
        load(folder)


def test_a_tokenizer_of_another_model(folder):
    config = json.loads((folder / "tokenizer.json").read_text())
    config["model"]["vocab"] += [[f"piece{i}", -9.0] for i in range(500)]
    (folder / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="belong to different models"):
        load(folder)


def test_no_hub_says_what_helps():
    with pytest.raises(MachineError, match=r"model\.name: quickstart"):
        load("FacebookAI/xlm-roberta-base")


@pytest.mark.parametrize("labels", [("a", "b"), ("one", "two")])
def test_a_head_trained_before_is_replaced(folder, labels):
    """Though it has as many labels, or the very same."""
    tuned = tiny_model(labels=labels)
    torch.nn.init.constant_(tuned.classifier.out_proj.bias, 7.0)
    tuned.save_pretrained(folder)
    fresh = load(folder)
    assert not fresh.model.classifier.out_proj.bias.any()
    assert fresh.model.config.id2label == {0: "a", 1: "b"}
    weight = fresh.model.classifier.dense.weight
    assert torch.equal(weight, load(folder).model.classifier.dense.weight)
    assert not torch.equal(weight, load(folder, seed=1).model.classifier.dense.weight)


def test_a_folder_without_a_tokenizer_is_refused(folder):
    """transformers would make one up that knows nothing but <unk>."""
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(
        ModelError, match=r"no tokenizer.json, and none of sentencepiece.bpe.model, .*save_pretrained"
    ):
        load(folder)


def test_a_damaged_tokenizer_is_said_to_be_so(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {', encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer\.json is damaged"):
        load(folder)
