import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import onnx
import pytest
import torch
from slow import slow_but
from tiny import MAX_LENGTH, tiny_batch, tiny_bundle, tiny_masks, tiny_model, tiny_texts, tiny_tokenizer

from xlmprune.bundle import golden
from xlmprune.bundle import session as serving
from xlmprune.bundle.session import Bundle, predict
from xlmprune.core.errors import BundleError, DataError
from xlmprune.export import runtime
from xlmprune.export.sparse import load

TAGS = ("O", "B-PER", "I-PER", "B-LOC")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """One bundle a kind; never changed."""
    root = tmp_path_factory.mktemp("bundles")
    return {
        "text": tiny_bundle(root / "text"),
        "pair": tiny_bundle(root / "pair", "pair"),
        "tokens": tiny_bundle(root / "tokens", "tokens", TAGS),
    }


@pytest.fixture
def copy(bundles, tmp_path):
    """A bundle that may be damaged."""
    return shutil.copytree(bundles["text"], tmp_path / "copy")


def expected_probabilities(folder, kind, inputs):
    """What PyTorch and the bundle's own tokenizer say, one text at a time."""
    model, tokenizer = load(folder), tiny_tokenizer()
    encoding = (
        tokenizer.encode(*inputs)
        if kind == "pair"
        else tokenizer.encode(inputs, is_pretokenized=kind == "tokens")
    )
    with torch.no_grad():
        logits = model(torch.tensor([encoding.ids]), torch.ones(1, len(encoding.ids))).logits[0]
    return torch.softmax(logits, -1).numpy(), encoding


@pytest.mark.slow
def test_onnx_runtime_sends_nothing_home(bundles, tmp_path):
    code = f"from xlmprune.bundle.session import Bundle; Bundle({str(bundles['text'])!r}).session()"
    quiet = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    quiet |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], env=quiet, check=True)
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]  # what waits to be sent
    code = "import os, xlmprune; assert os.environ['ORT_DISABLE_TELEMETRY'] == {!r}"
    for given, wanted in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        subprocess.run([sys.executable, "-c", code.format(wanted)], env=quiet | given, check=True)


@pytest.mark.parametrize("kind", ["text", "pair"])
@pytest.mark.parametrize(
    ("batch_size", "look_ahead"), slow_but([(5, 12)], [(1, 1), (5, 12), (5, 4096), (64, 64)])
)
def test_answers_are_those_of_pytorch_in_order(bundles, kind, batch_size, look_ahead):
    texts = tiny_texts(kind)
    answers = list(
        predict(Bundle(bundles[kind], threads=1), iter(texts), batch_size=batch_size, look_ahead=look_ahead)
    )
    assert len(answers) == len(texts) == 32
    for text, answer in zip(texts, answers, strict=True):
        found = (answer["text"], answer["text_pair"]) if kind == "pair" else answer["text"]
        assert found == text
        scores, encoding = expected_probabilities(bundles[kind], kind, text)
        assert answer["truncated"] == (len(encoding.ids) > MAX_LENGTH)
        if not answer["truncated"]:
            assert list(answer["probabilities"]) == ["no", "maybe", "yes"]
            assert np.allclose(list(answer["probabilities"].values()), scores, atol=1e-5)
            assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert any(answer["truncated"] for answer in answers) == (kind == "pair")


def test_every_word_gets_a_tag(bundles):
    sentences = tiny_texts("tokens")
    for words, answer in zip(
        sentences, predict(Bundle(bundles["tokens"], 1), sentences, batch_size=7), strict=True
    ):
        scores, encoding = expected_probabilities(bundles["tokens"], "tokens", words)
        # A word is read at its first sub-word that holds a letter: Chinese and Thai words open with a bare mark.
        first = [
            next(
                place
                for place, own in enumerate(encoding.word_ids)
                if own == word and encoding.tokens[place] != "▁"
            )
            for word in range(len(words))
        ]
        assert answer["words"] == words
        assert answer["tags"] == [TAGS[int(scores[place].argmax())] for place in first]
        assert np.allclose(answer["probabilities"], scores[first].max(1), atol=1e-5)
        assert answer["truncated"] is False


def test_a_text_for_a_tagger_is_split_at_spaces_and_words_cut_off_have_no_tag(bundles):
    text = " ".join(["включи", "свет"] * 8)
    [answer] = predict(Bundle(bundles["tokens"], 1), [text])
    assert answer["words"] == text.split()
    assert answer["truncated"] is True
    assert len(answer["tags"]) == len(answer["probabilities"]) == 16
    kept = [tag for tag in answer["tags"] if tag is not None]
    assert 0 < len(kept) < 16
    assert answer["tags"] == kept + [None] * (16 - len(kept))


def test_a_long_text_is_read_to_max_length_and_flagged(bundles):
    bundle = Bundle(bundles["text"], threads=1)
    long = "какая температура " * 20
    [answer] = predict(bundle, [long])
    assert answer["truncated"] is True
    assert answer["text"] == long
    ids = tiny_tokenizer().encode(long).ids
    cut = np.array([[*ids[: MAX_LENGTH - 1], 2]])
    assert np.allclose(
        list(answer["probabilities"].values()), serving.softmax(bundle.forward()(cut, np.ones_like(cut)))[0]
    )


@pytest.mark.parametrize(
    ("kind", "texts", "sentence"),
    [
        ("text", ["good", ("a", "b")], "text 2: .* one text, found 2 texts"),
        ("pair", ["good"], "text 1: .* pair of texts, found one text"),
        ("pair", [("a", "b", "c")], "found 3 texts"),
        ("tokens", [["a", 3]], "list of words"),
        ("text", [None], "found NoneType"),
    ],
)
def test_a_text_of_another_kind_is_named(bundles, kind, texts, sentence):
    with pytest.raises(DataError, match=sentence):
        list(predict(Bundle(bundles[kind], threads=1), texts, batch_size=1))


def test_texts_of_like_length_share_a_call_within_the_look_ahead(bundles):
    bundle = Bundle(bundles["text"], threads=1)
    widths, taken = [], []
    real = bundle.forward()

    def forward(ids, mask):
        widths.append(ids.shape[1])
        return real(ids, mask)

    bundle.forward = lambda form="": forward

    def texts():
        for number in range(24):
            taken.append(number)
            yield "свет " * (number % 3 * 4 + 1)

    answers = predict(bundle, texts(), batch_size=4, look_ahead=12)
    first = next(answers)
    assert first["text"] == "свет "
    assert taken == list(range(12)), "a stream is read no further than the look-ahead"
    assert len(set(widths)) == len(widths) == 3, "each call has texts of one length"
    assert len([first, *answers]) == 24


def test_a_stream_is_answered_as_it_comes(bundles):
    command = [sys.executable, "-m", "xlmprune", "predict", str(bundles["text"])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for text in ("свет", "light"):
            process.stdin.write(f"{text}\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == text
        process.stdin.close()
        assert process.stdout.read() == ""


def test_a_file_that_is_not_what_the_manifest_says_is_refused_before_it_is_used(copy):
    whole = {name: (copy / name).read_bytes() for name in ("config.json", "tokenizer.json", "model.onnx")}
    for name, content in whole.items():
        (copy / name).write_bytes(content + b" ")
        with pytest.raises(BundleError, match=rf"{name} has .* bytes, .* expected.* --no-verify"):
            Bundle(copy).tokenizer, Bundle(copy).session()
        (copy / name).write_bytes(content)
    Bundle(copy).session()
    (copy / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        Bundle(copy)
    assert Bundle(copy, verify=False).session()


def test_nothing_and_empty_texts(bundles):
    assert list(predict(Bundle(bundles["text"], 1), [])) == []
    assert [answer["truncated"] for answer in predict(Bundle(bundles["text"], 1), ["", " "])] == [
        False,
        False,
    ]
    [answer] = predict(Bundle(bundles["tokens"], 1), [[]])
    assert answer["tags"] == []


def test_a_bundle_says_what_it_is(bundles):
    bundle = Bundle(bundles["tokens"], threads=1)
    assert (bundle.kind, bundle.labels, bundle.max_length, bundle.forms) == (
        "tokens",
        TAGS,
        MAX_LENGTH,
        ("fp32",),
    )
    feed = tiny_batch("tokens")
    assert bundle.forward()(**feed).shape == (*feed["input_ids"].shape, 4)
    assert bundle.session("fp32") is bundle.session()
    with pytest.raises(BundleError, match="no 'int8' form; it has fp32"):
        bundle.session("int8")


def test_serving_needs_neither_pytorch_nor_transformers(bundles):
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "datasets", "onnx", "pandas", "scipy", "pydantic", "yaml"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from xlmprune.bundle.session import Bundle, predict
print([answer["label"] for answer in predict(Bundle({str(bundles["text"])!r}), ["打开厨房的灯"])])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("['no']", "['maybe']", "['yes']")


def rewrite(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda config: config.pop("xlmprune"), "no section xlmprune"),
        (lambda config: config["xlmprune"].pop("labels"), "labels"),
        (
            lambda config: config["xlmprune"].update(kind="audio"),
            "'audio' found, expected text or pair or tokens",
        ),
        (lambda config: config["id2label"].update({"0": "other"}), "different labels"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(copy, change, sentence):
    rewrite(copy, change)
    with pytest.raises(BundleError, match=sentence):
        Bundle(copy, verify=False)


def test_missing_and_damaged_files_are_named(copy, tmp_path):
    with pytest.raises(BundleError, match="no such folder"):
        Bundle(tmp_path / "nowhere")
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json is damaged"):
        Bundle(copy, verify=False).tokenizer  # noqa: B018
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        Bundle(copy, verify=False).tokenizer  # noqa: B018
    whole = (copy / "model.onnx").read_bytes()
    for damaged in (b"", b"not a model", whole[: len(whole) // 2]):
        (copy / "model.onnx").write_bytes(damaged)
        with pytest.raises(BundleError, match=r"model\.onnx cannot be opened by ONNX Runtime"):
            Bundle(copy, verify=False).session()
    (copy / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"has no ONNX file; expected model\.onnx"):
        Bundle(copy, verify=False).session()
    (copy / "config.json").write_text("{")
    with pytest.raises(BundleError, match=r"config\.json is damaged"):
        Bundle(copy, verify=False)


def test_a_model_of_another_task_is_refused(copy, bundles):
    shutil.copyfile(bundles["tokens"] / "model.onnx", copy / "model.onnx")
    with pytest.raises(BundleError, match="expected logits for 3 labels"):
        Bundle(copy, verify=False).session()
    graph = onnx.load(bundles["text"] / "model.onnx")
    other = onnx.compose.add_prefix(graph, "x_")
    onnx.save(other, copy / "model.onnx")
    with pytest.raises(BundleError, match="expected input_ids and attention_mask"):
        Bundle(copy, verify=False).session()


def test_a_packed_file_without_optimization_is_announced(copy):
    from xlmprune.export.packing import pack

    runtime.open_session(copy / "model.onnx", optimize=False)
    onnx.save(pack(onnx.load(copy / "model.onnx"), smallest=1), copy / "packed.onnx")
    with pytest.warns(UserWarning, match="rebuilt at every call"):
        runtime.open_session(copy / "packed.onnx", optimize=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runtime.open_session(copy / "packed.onnx")


def test_golden_arrays_come_back(tmp_path):
    arrays = {
        **tiny_batch(),
        "logits.fp32": np.ones((32, 3), np.float32),
        "logits.pytorch": np.zeros((32, 3)),
    }
    golden.write(tmp_path, arrays)
    found = golden.read(tmp_path)
    assert np.array_equal(found.input_ids, arrays["input_ids"])
    assert found.logits.keys() == {"fp32", "pytorch"}
    golden.write(tmp_path, {**arrays, "logits.fp32": np.ones((31, 3))})
    with pytest.raises(BundleError, match="one row of labels for each text"):
        golden.read(tmp_path)
    golden.write(tmp_path, {"input_ids": arrays["input_ids"]})
    with pytest.raises(BundleError, match="'attention_mask' is missing"):
        golden.read(tmp_path)
    (tmp_path / golden.FILE).write_bytes(b"?")
    with pytest.raises(BundleError, match="damaged"):
        golden.read(tmp_path)
    (tmp_path / golden.FILE).unlink()
    with pytest.raises(BundleError, match="missing"):
        golden.read(tmp_path)


def test_the_unpruned_model_differs(bundles):
    # So that the comparison with PyTorch above is one with the pruned weights.
    whole, pruned = tiny_model(), tiny_model()
    tiny_masks(pruned)
    feed = {name: torch.from_numpy(array) for name, array in tiny_batch().items()}
    with torch.no_grad():
        assert not torch.allclose(whole(**feed).logits, pruned(**feed).logits, atol=1e-2)
