"""A tiny random XLM-R with its tokenizer, and a bundle made from it: seconds become milliseconds.

The tokenizer has every character of its sample sentences in eight scripts, and some whole words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor, nn

from xlmprune.data.special import SpecialTokens, special_tokens

SENTENCES = {
    "en": ["turn on the kitchen light", "what is the temperature", "the man is sleeping", "close the door"],
    "de": ["schalte das Licht in der Küche ein", "wie warm ist es", "der Mann schläft", "schließe die Tür"],
    "ru": ["включи свет на кухне", "какая температура", "мужчина спит", "закрой дверь"],
    "el": ["άναψε το φως στην κουζίνα", "ποια είναι η θερμοκρασία", "ο άντρας κοιμάται", "κλείσε την πόρτα"],
    "ar": ["شغل ضوء المطبخ", "كم درجة الحرارة", "الرجل نائم", "أغلق الباب"],
    "hi": ["रसोई की बत्ती जलाओ", "तापमान क्या है", "आदमी सो रहा है", "दरवाज़ा बंद करो"],
    "th": ["เปิดไฟในครัว", "อุณหภูมิเท่าไหร่", "ผู้ชายกำลังนอนหลับ", "ปิดประตู"],
    "zh": ["打开厨房的灯", "现在温度是多少", "男人在睡觉", "把门关上"],
}

MAX_LENGTH = 40


@cache
def _tokenizer_text() -> str:
    texts = [text for sentences in SENTENCES.values() for text in sentences]
    characters = sorted({character for text in texts for character in text if character != " "})
    words = sorted({"▁" + word for text in texts[:8] for word in text.split()})
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(word, -4.0) for word in words] + [(character, -6.0) for character in characters]
    pieces.append(("<mask>", 0.0))
    return transformers.XLMRobertaTokenizer(vocab=pieces).backend_tokenizer.to_str()


def tiny_tokenizer() -> Tokenizer:
    """An XLM-R tokenizer of a few hundred pieces."""
    return Tokenizer.from_str(_tokenizer_text())


def tiny_special() -> SpecialTokens:
    """What `encode` keeps of the tiny tokenizer."""
    return special_tokens(tiny_tokenizer())


def tiny_model(
    kind: str = "text",
    labels: Sequence[str] = ("no", "maybe", "yes"),
    layers: int = 2,
    hidden: int = 16,
    seed: int = 0,
    positions: int = 64,
) -> nn.Module:
    """XLM-R of random weights with the head for ``kind``, in eval mode; `positions` counts usable tokens."""
    config = transformers.XLMRobertaConfig(
        vocab_size=tiny_tokenizer().get_vocab_size(),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        type_vocab_size=1,
        pad_token_id=1,
        max_position_embeddings=positions + 2,
        initializer_range=0.3,
        layer_norm_eps=1e-5,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    heads = {"tokens": transformers.XLMRobertaForTokenClassification}
    head = heads.get(kind, transformers.XLMRobertaForSequenceClassification)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return head(config).eval()


def tiny_masks(model: nn.Module, density: float = 0.31, seed: int = 0) -> dict[str, Tensor]:
    """Random masks for the encoder's matrices, already applied to the model."""
    random = torch.Generator().manual_seed(seed)
    masks = {}
    for name, module in model.named_modules():
        if name.startswith("roberta.encoder.") and isinstance(module, nn.Linear):
            mask = torch.rand(module.weight.shape, generator=random) < density
            with torch.no_grad():
                module.weight.masked_fill_(~mask, 0.0)
            masks[f"{name}.weight"] = mask
    return masks


def tiny_texts(kind: str = "text") -> list:
    """Sentences in eight scripts, as `text`, `pair` or `tokens` tasks take them."""
    texts = [text for sentences in SENTENCES.values() for text in sentences]
    if kind == "pair":
        return list(zip(texts, texts[1:] + texts[:1], strict=True))
    if kind == "tokens":
        return [text.split() for text in texts]
    return texts


def tiny_bundle(
    folder: Path,
    kind: str = "text",
    labels: Sequence[str] = ("no", "maybe", "yes"),
    forms: Sequence[str] = ("fp32",),
    density: float = 0.31,
    packed: bool = False,
) -> Path:
    """A whole bundle in ``folder``, with everything but report and model card."""
    from xlmprune.bundle import golden
    from xlmprune.export import graph as onnx
    from xlmprune.export import manifest, packing, quantization, runtime, triton
    from xlmprune.export import sparse as safetensors
    from xlmprune.export.form import form_named, form_to_serve
    from xlmprune.export.fp16 import halve

    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = tiny_model(kind, labels), tiny_tokenizer()
    masks = tiny_masks(model, density)
    safetensors.save_sparse(model, masks, folder / "model.safetensors")
    config = json.loads(model.config.to_json_string(use_diff=False))
    config["architectures"] = [type(model).__name__]
    facts = {"version": "0", "task": "tiny", "kind": kind, "labels": list(labels), "metric": "accuracy"}
    config["xlmprune"] = {
        **facts,
        "max_length": MAX_LENGTH,
        "train_language": "en",
        "languages": list(SENTENCES),
    }
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False))
    transformers.XLMRobertaTokenizer(tokenizer_object=tokenizer, model_max_length=MAX_LENGTH).save_pretrained(
        folder
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    feed = tiny_batch(kind)
    arrays = dict(feed)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
        arrays["logits.pytorch"] = model(**tensors).logits.numpy()
    for form in forms:
        proto = tiny_graph(kind, labels, density)
        proto = {"fp32": lambda graph: graph, "fp16": halve, "int8": quantization.quantize}[form](proto)
        proto = packing.pack(proto, smallest=1) if packed else proto
        onnx.save_onnx(proto, folder / form_named(form).file)
        forward = runtime.forward_of(runtime.open_session(folder / form_named(form).file, threads=1))
        arrays[f"logits.{form}"] = forward(feed["input_ids"], feed["attention_mask"])
    golden.write(folder, arrays, tiny_examples(kind))
    if forms:
        file = folder / form_named(form_to_serve(forms)).file
        triton.write_triton(folder / "triton", "tiny", file, labels, kind)
    manifest.write(folder, {"python": "3"}, "0" * 64)
    return folder


@cache
def _exported_bytes(kind: str, labels: tuple[str, ...], density: float) -> bytes:
    # An export takes seconds, and the tests of a file want the same few models again and again.
    from xlmprune.export import graph as onnx

    model = tiny_model(kind, labels)
    tiny_masks(model, density)
    return onnx.export_onnx(model).SerializeToString(deterministic=True)


def tiny_graph(kind: str = "text", labels: Sequence[str] = ("no", "maybe", "yes"), density: float = 0.31):
    """The exported ModelProto of ``tiny_model(kind, labels)`` with ``tiny_masks(density)``; exported once a process."""
    import onnx

    same = "tokens" if kind == "tokens" else "text"
    return onnx.load_from_string(_exported_bytes(same, tuple(labels), density))


def tiny_examples(kind: str = "text"):
    """The sample sentences as examples without labels."""
    from xlmprune.data.examples import Examples

    texts = tiny_texts(kind)
    first, second = ([list(part) for part in zip(*texts, strict=True)]) if kind == "pair" else (texts, None)
    return Examples("", "", first, second)


def tiny_batch(kind: str = "text") -> dict[str, np.ndarray]:
    """The sample sentences as one padded batch."""
    from xlmprune.data.encoding import encode, pad

    examples = tiny_examples(kind)
    return pad(encode(tiny_tokenizer(), examples, MAX_LENGTH), range(len(examples.first)))


def entropy_bits(density: float) -> float:
    """H(p): bits an entry that a mask of this density takes at least, if it has no structure."""
    if density in (0.0, 1.0):
        return 0.0
    return -density * math.log2(density) - (1 - density) * math.log2(1 - density)


def follows(mask: torch.Tensor, pattern: str) -> bool:
    """Does ``mask`` [out, in] keep at most N of every M consecutive inputs? Always, if unstructured."""
    if pattern == "unstructured":
        return True
    from xlmprune.pruning.masks import parse_pattern

    keep, group = parse_pattern(pattern)
    if mask.shape[-1] % group:
        return False
    return bool((mask.reshape(-1, group).sum(dim=1) <= keep).all())
