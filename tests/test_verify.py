import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from campaigns import flips, hostile_bundles
from golden import write_inputs
from safetensors.numpy import load_file as load_golden
from safetensors.numpy import save_file as save_golden
from safetensors.torch import load_file, save_file
from tiny import tiny_bundle
from typer.testing import CliRunner

from xlmprune.bundle import golden
from xlmprune.bundle import verify as verification
from xlmprune.bundle.session import Bundle
from xlmprune.bundle.unpack import contenders, unpack_bundle
from xlmprune.bundle.verify import compare, render, verify
from xlmprune.cli import app
from xlmprune.core.errors import BundleError, MachineError
from xlmprune.export import manifest
from xlmprune.export.packing import is_packed


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Every matrix stored by its non-zeros."""
    return tiny_bundle(tmp_path_factory.mktemp("packed") / "bundle", packed=True)


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy")


def reseal(folder):
    """The manifest of the bundle as it is now: what is left are the checks that look inside."""
    manifest.write(folder, {}, "0" * 64)


def failures(folder):
    return {check.name: check.detail for check in verify(folder, threads=1) if not check.passed}


def test_a_whole_bundle_passes_every_check(bundle):
    checks = {check.name: check for check in verify(bundle, threads=1)}
    assert all(check.passed and check.detail for check in checks.values())
    assert {
        *("model.onnx", "model.safetensors", "config.json", "tokenizer.json", "golden.safetensors"),
        *("weights", "tokenizer", "model.onnx: graph", "model.onnx: golden logits"),
        *("triton/tiny/1/model.onnx", "triton/tiny/1/model.onnx serves"),
    } <= checks.keys()
    assert "12 pruned matrices" in checks["weights"].detail
    assert render(list(checks.values())).row_count == len(checks)


def test_verifying_changes_nothing(bundle):
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    verify(bundle, threads=1)
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*")} == before


def test_verifying_needs_neither_pytorch_nor_transformers(bundle):
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "datasets"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from xlmprune.bundle.verify import verify
assert all(check.passed for check in verify({str(bundle)!r}, threads=1))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_one_changed_byte_is_found(copy):
    path = copy / "tokenizer_config.json"
    path.write_bytes(path.read_bytes().replace(b'"pad_token"', b'"pad_tokem"'))
    assert failures(copy) == {"tokenizer_config.json": "has another SHA-256 than when it was made"}


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.onnx", "model.safetensors", "golden.safetensors"]
)
@pytest.mark.parametrize("damage", ["missing", "cut", "zeroed"])
def test_damage_is_a_failed_check_and_no_crash(copy, name, damage):
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    if damage != "missing":
        content = content[: len(content) // 2] if damage == "cut" else bytes(len(content))
        (copy / name).write_bytes(content)
    found = failures(copy)
    assert name in found
    if damage == "missing":
        assert "is missing" in found[name]
    reseal(copy)
    assert failures(copy)  # the manifest agrees now, what is inside does not


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_golden(folder, **arrays):
    found = load_golden(folder / "golden.safetensors")
    found |= {name.replace("__", "."): np.asarray(array) for name, array in arrays.items()}
    save_golden(found, folder / "golden.safetensors")


def flip_an_id(folder):
    ids = golden.read(folder).input_ids.copy()
    ids[0, 1] += 1 << 20
    change_golden(folder, input_ids=ids)


def spoil_a_name(folder):
    content = (folder / "model.onnx").read_bytes()
    name = b"roberta.embeddings.word_embeddings.weight"
    assert name in content
    (folder / "model.onnx").write_bytes(content.replace(name, b"\xff" + name[1:]))


def spoil_the_manifest(folder):
    facts = json.loads((folder / "manifest.json").read_text())
    facts["files"]["config.json"]["bytes"] = "12"
    (folder / "manifest.json").write_text(json.dumps(facts))


GOLDEN = "model.onnx: golden logits"
PACKED = "model.onnx: packed equals dense"


@pytest.mark.parametrize(
    ("damage", "name", "said"),
    [
        (flip_an_id, "model.onnx: packed equals dense", "idx=|out of"),
        (flip_an_id, GOLDEN, "cannot be run on"),
        (spoil_a_name, "model.onnx: packed", "is not UTF-8"),
        (lambda folder: change_golden(folder, logits__fp32=np.array(1.0)), GOLDEN, r"fp32 are \(\)"),
        (lambda folder: change_golden(folder, logits__fp32=np.zeros((32, 0))), GOLDEN, r"\(32, 0\)"),
        (lambda folder: change_golden(folder, logits__fp32=np.full((32, 3), np.nan)), GOLDEN, "not finite"),
        (lambda folder: edit(folder / "config.json", vocab_size=None), "tokenizer", "vocab_size is None"),
        (spoil_the_manifest, "manifest.json", "'config.json' has no size"),
    ],
)
def test_every_damage_is_a_failed_check_beside_the_others(packed, tmp_path, damage, name, said):
    folder = shutil.copytree(packed, tmp_path / "copy")
    before = {check.name for check in verify(folder, threads=1)}
    damage(folder)
    checks = {check.name: check for check in verify(folder, threads=1)}
    assert not checks[name].passed
    assert re.search(said, checks[name].detail)
    inside = {"weights", "tokenizer", "model.onnx: graph", GOLDEN, "triton/tiny/1/model.onnx serves"}
    assert inside <= before & checks.keys()


def test_a_file_that_may_not_be_read_is_a_failed_check(copy, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(manifest, "sha256_of", refuse)
    monkeypatch.setattr(verification, "sha256_of", refuse)
    found = failures(copy)
    assert found["tokenizer.json"] == "cannot be read: Permission denied"
    assert "Permission denied" in found["triton"]


def test_an_added_file_and_a_missing_manifest_are_failed_checks(copy):
    (copy / "triton" / "notes.txt").write_text("hello")
    assert failures(copy) == {
        "triton/notes.txt": "is not in the manifest; this file was added after the bundle was made"
    }
    (copy / "manifest.json").unlink()
    assert "is missing" in failures(copy)["manifest.json"]
    (copy / "manifest.json").write_text('{"files": {"a": {}}}')
    found = failures(copy)
    assert "is damaged" in found["manifest.json"]
    assert "Copy the bundle again. `predict --no-verify`" in found["manifest.json"]
    assert found["provenance"] == "was not checked, since the manifest cannot be read"
    with pytest.raises(BundleError, match="no such folder"):
        verify(copy / "nowhere")


def add_a_link(folder):
    (folder / "extra").symlink_to(folder / "config.json")


def add_a_broken_link(folder):
    (folder / "extra").symlink_to("nowhere")


def add_a_pipe(folder):
    os.mkfifo(folder / "extra")


def add_a_folder(folder):
    (folder / "extra").mkdir()


def add_a_link_to_a_folder(folder):
    (folder / "extra").symlink_to("triton")


@pytest.mark.parametrize(
    ("add", "kind"),
    [
        (add_a_link, "link"),
        (add_a_broken_link, "link"),
        (add_a_pipe, "pipe, socket or device"),
        (add_a_folder, "folder"),
        (add_a_link_to_a_folder, "link"),
    ],
)
def test_whatever_is_added_is_found(copy, add, kind):
    add(copy)
    assert failures(copy) == {
        "extra": f"is not in the manifest; this {kind} was added after the bundle was made"
    }


def test_a_bundle_of_links_into_a_cache_passes(copy, tmp_path):
    """As model hubs keep downloads: every file a link to a blob elsewhere."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate([path for path in copy.rglob("*") if path.is_file()]):
        shutil.move(path, blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert failures(copy) == {}
    Bundle(copy).session()


def test_an_edited_manifest_is_found(copy):
    labels = ["no", "maybe", "yes"]
    report = {"recipe_sha256": "0" * 64, "environment": {"python": "3"}, "task": {"labels": labels}}
    (copy / "report.json").write_text(json.dumps(report))
    manifest.write(copy, {"python": "3"}, "0" * 64)
    assert failures(copy) == {}
    whole = json.loads((copy / "manifest.json").read_text())
    for change, name, said in (
        ({"versions": {"python": "4"}}, "versions", "disagree on python"),
        ({"versions": {"python": "3", "torch": "9"}}, "versions", "disagree on torch"),
        ({"recipe_sha256": "1" * 64}, "recipe", "another recipe than report.json"),
        ({"schema_version": 2}, "manifest.json", "schema_version is 2, expected 1"),
        ({"note": "trust me"}, "manifest.json", "its keys are"),
        ({"versions": 0}, "manifest.json", "is damaged"),
        ({"versions": {"python": 3}}, "manifest.json", "the version of 'python' is not a text"),
        ({"recipe_sha256": None}, "manifest.json", "recipe_sha256 is not a text"),
    ):
        (copy / "manifest.json").write_text(json.dumps(whole | change))
        assert said in failures(copy)[name]
    (copy / "report.json").write_text(json.dumps(report | {"task": {"labels": labels[::-1]}}))
    manifest.write(copy, {"python": "3"}, "0" * 64)
    assert "config.json names ['no', 'maybe', 'yes']" in failures(copy)["labels"]
    text = json.dumps(whole)
    (copy / "manifest.json").write_text(text[:-1] + ', "files": {}}')
    assert "the key 'files' is given twice" in failures(copy)["manifest.json"]
    with pytest.raises(BundleError, match="given twice"):
        Bundle(copy)


def test_what_model_hubs_add_to_a_download_is_no_damage(copy):
    (copy / ".gitattributes").write_text("*.onnx filter=lfs")
    (copy / ".cache" / "huggingface").mkdir(parents=True)
    (copy / ".cache" / "huggingface" / "CACHEDIR.TAG").write_text("x")
    assert failures(copy) == {}
    (copy / "triton" / ".gitattributes").write_text("x")
    assert failures(copy).keys() == {"triton/.gitattributes"}


def test_a_tokenizer_that_numbers_otherwise_is_found(copy):
    content = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    special = 4
    vocabulary[special:] = vocabulary[special:][::-1]
    (copy / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    reseal(copy)
    found = failures(copy)
    assert found.keys() == {"tokenizer"}
    assert "other token ids than the model was measured with" in found["tokenizer"]


def test_a_profile_that_a_full_disk_cut_short_says_nothing_of_the_bundle(packed, monkeypatch):
    real = onnxruntime.InferenceSession.end_profiling

    def cut_short(session):
        name = real(session)
        os.truncate(name, 100)
        return name

    monkeypatch.setattr(onnxruntime.InferenceSession, "end_profiling", cut_short)
    checks = {check.name: check for check in verify(packed, threads=1)}
    assert all(check.passed for check in checks.values())
    assert checks[PACKED].warning
    assert "is full (the runtime's profile is cut short)" in checks[PACKED].detail


def test_a_form_that_was_taken_out_is_found_by_its_answers(tmp_path):
    """A server would fall back to another form, whose answers differ a little."""
    copy = tiny_bundle(tmp_path / "bundle", forms=("fp32", "int8"))
    (copy / "model.int8.onnx").unlink()
    reseal(copy)
    found = failures(copy)
    assert "golden.safetensors has answers of it" in found["model.int8.onnx: golden logits"]


def test_another_model_in_its_place_is_found_by_its_answers(copy):
    graph = onnx.load(copy / "model.onnx")
    for tensor in graph.graph.initializer:
        if tensor.name == "roberta.encoder.layer.1.output.dense.weight.T":
            weight = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight[::-1].copy(), tensor.name))
    (copy / "model.onnx").unlink()
    onnx.save(graph, copy / "model.onnx")
    reseal(copy)
    found = failures(copy)
    assert found.keys() == {"model.onnx: golden logits", "triton/tiny/1/model.onnx serves"}
    assert "differs from what was measured" in found["model.onnx: golden logits"]


def test_a_graph_the_checker_refuses(copy):
    graph = onnx.load(copy / "model.onnx")
    graph.graph.node[-1].input[0] = "nothing"
    (copy / "model.onnx").unlink()
    onnx.save(graph, copy / "model.onnx")
    assert "the ONNX checker rejects it" in failures(copy)["model.onnx: graph"]


def test_a_mask_that_does_not_fit_its_values(copy):
    path = copy / "model.safetensors"
    name = "roberta.encoder.layer.0.attention.self.query.weight"
    from xlmprune.export.sparse import read_facts

    facts, tensors = read_facts(path), load_file(path)
    tensors[f"{name}.mask"] = tensors[f"{name}.mask"][:-1].clone()
    save_file(tensors, path, {"xlmprune": json.dumps(facts)})
    reseal(copy)
    found = failures(copy)
    assert found.keys() == {"weights"}
    assert f"{name}.mask is damaged" in found["weights"]


def test_a_tokenizer_of_another_model(copy):
    config = json.loads((copy / "config.json").read_text())
    config["vocab_size"] = 20
    (copy / "config.json").write_text(json.dumps(config))
    assert "belong to different models" in failures(copy)["tokenizer"]


def stored(logits, mask=None):
    logits = np.array(logits, dtype=np.float32)
    shape = logits.shape[:2] if mask is not None else (len(logits), 4)
    return golden.Golden(
        np.zeros(shape, int), np.ones(shape, int) if mask is None else np.array(mask), {"fp32": logits}
    )


def test_how_far_logits_may_differ():
    first = [[0.0, 1.0], [10.0, 0.0], [5.0, 5.0]]
    assert "differ by at most 0 " in compare(stored(first), "fp32", np.array(first))
    tie = np.add(first, [[0, 0], [0, 0], [0.0, 0.009]])  # a near tie may fall the other way
    assert "100.0% of the labels" in compare(stored(first), "fp32", tie)
    with pytest.raises(BundleError, match=r"0\.20% of their range"):
        compare(stored(first), "fp32", np.add(first, [[0, 0.02], [0, 0], [0, 0]]))
    with pytest.raises(BundleError, match="not finite"):
        compare(stored(first), "fp32", np.full((3, 2), np.nan))
    with pytest.raises(BundleError, match=r"\[2, 2\]; the stored logits have shape \[3, 2\]"):
        compare(stored(first), "fp32", np.zeros((2, 2)))


def test_what_a_tagger_says_of_padding_does_not_count():
    logits = [[[0.0, 1.0], [1.0, 0.0], [7.0, 7.0]]]
    found = np.array(logits)
    found[0, 2] = [99.0, -99.0]
    assert "differ by at most 0 " in compare(stored(logits, [[1, 1, 0]]), "fp32", found)
    with pytest.raises(BundleError):
        compare(stored(logits, [[1, 1, 1]]), "fp32", found)


def test_a_token_bundle_passes_too(tmp_path):
    folder = tiny_bundle(tmp_path / "tokens", "tokens", ("O", "B-PER", "I-PER", "B-LOC"))
    assert failures(folder) == {}
    assert Bundle(folder).kind == "tokens"


def test_the_manifest_names_every_file_and_no_machine(bundle, tmp_path):
    facts = manifest.read(bundle)
    assert set(facts["files"]) == {
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()
    } - {"manifest.json"}
    text = (bundle / "manifest.json").read_text()
    assert str(tmp_path.parent) not in text
    assert facts["files"]["model.onnx"] == facts["files"]["triton/tiny/1/model.onnx"]


def test_a_packed_bundle_is_compared_with_its_dense_form(packed, monkeypatch):
    monkeypatch.setattr(verification, "SLOWEST_PACKED", 10.0)  # microseconds of a tiny model say little
    checks = {check.name: check for check in verify(packed, threads=1)}
    assert all(check.passed for check in checks.values())
    assert "bit for bit" in checks["model.onnx: packed equals dense"].detail


def test_a_packed_file_of_other_values_is_found(packed, tmp_path, monkeypatch):
    folder = shutil.copytree(packed, tmp_path / "copy")
    monkeypatch.setattr(verification, "SLOWEST_PACKED", 0.0)
    slow = {check.name: check for check in verify(folder, threads=1)}["model.onnx: packed equals dense"]
    assert slow.passed, "a busy machine says nothing of the bundle"
    assert slow.warning
    assert "expected at most 0 times" in slow.detail
    monkeypatch.setattr("xlmprune.export.packing.unfolded", lambda *_: ["xlmprune.packed/a/flat"])
    assert "at every call (1 of its nodes" in failures(folder)["model.onnx: packed equals dense"]


def test_unpacked_a_bundle_is_dense(packed, tmp_path):
    written = unpack_bundle(packed, tmp_path / "plain")
    assert sorted(written) == [
        *(
            "config.json",
            "manifest.json",
            "model.onnx",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        )
    ]
    whole, plain = Bundle(packed, threads=1), Bundle(tmp_path / "plain", threads=1)
    batch = golden.read(packed)
    assert np.array_equal(
        whole.forward()(batch.input_ids, batch.attention_mask),
        plain.forward()(batch.input_ids, batch.attention_mask),
    )
    assert not is_packed(onnx.load(tmp_path / "plain" / "model.onnx"))
    with pytest.raises(BundleError, match="is the bundle itself"):
        unpack_bundle(packed, packed)
    with pytest.raises(BundleError, match="is inside the bundle"):
        unpack_bundle(packed, packed / "plain")


def test_unpacked_where_another_bundle_was_nothing_of_that_one_is_left(packed, tmp_path):
    out = tmp_path / "plain"
    out.mkdir()
    for name in ("model.int8.onnx", "model.int8.onnx.data", "model.onnx.data", "notes.txt"):
        (out / name).write_text("of another model")
    written = unpack_bundle(packed, out)
    assert sorted(path.name for path in out.iterdir()) == sorted([*written, "notes.txt"])


def test_unpack_from_within_the_bundle(packed, tmp_path, monkeypatch):
    folder = shutil.copytree(packed, tmp_path / "copy")
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, ["unpack", "."])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "copy-unpacked" / "model.onnx").is_file()


def test_a_full_or_missing_place_for_temporary_files_is_a_sentence(packed, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("xlmprune.export.graph.save_onnx", full)
        patched.setattr(tempfile, "tempdir", str(tmp_path))
        with (
            pytest.raises(
                MachineError, match=rf"^{tmp_path}, the folder for temporary files, is full .*TMPDIR"
            ),
            contenders(packed),
        ):
            pass
        [compared] = [check for check in verify(packed, threads=1) if check.name == PACKED]
        assert compared.passed, "the machine is full, and the bundle is good"
        assert compared.warning
        assert f"not checked on this machine: {tmp_path}, the folder for temporary files" in compared.detail
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with (
        pytest.raises(MachineError, match=r"no folder for temporary files was found .*gone.*TMPDIR"),
        contenders(packed),
    ):
        pass


# --- a slice of the campaigns ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What the campaigns on bundles need; here, where the tiny model is exported already."""
    folder = tmp_path_factory.mktemp("campaign")
    write_inputs(folder)
    counted = Counter()
    return SimpleNamespace(folder=folder, counted=counted, count=lambda what: counted.update([what]))


@pytest.mark.slow
def test_flipped_bits_are_found(runs):
    assert [wrong for seed in range(12) if (wrong := flips.case(random.Random(seed), runs))] == []
    assert len(runs.counted) > 3


@pytest.mark.parametrize("change", hostile_bundles.HOSTILE, ids=lambda change: change.__name__)
def test_a_hostile_bundle_is_a_sentence(runs, change, monkeypatch):
    monkeypatch.setattr(hostile_bundles, "HOSTILE", [change])
    assert hostile_bundles.case(random.Random(7), runs) is None


def test_the_campaigns_notice_what_is_accepted(runs, monkeypatch):
    def lie(folder, draw):
        config = json.loads((folder / "config.json").read_text())
        config["id2label"] = dict(enumerate(config["xlmprune"]["labels"][::-1]))
        config["xlmprune"]["labels"].reverse()
        (folder / "config.json").write_text(json.dumps(config))
        return "labels reversed"

    monkeypatch.setattr(hostile_bundles, "HOSTILE", [lie])
    assert "verify passes, and the answers are" in hostile_bundles.case(random.Random(7), runs)

    def greedy(folder, draw):
        monkeypatch.setattr(hostile_bundles, "labels", lambda bundle: np.ones(10**10))
        return "asks for memory"

    monkeypatch.setattr(hostile_bundles, "HOSTILE", [greedy])
    assert "predict: " in hostile_bundles.case(random.Random(7), runs)
    monkeypatch.setattr(flips, "verify", lambda *_, **__: [])
    assert "accepted by verify" in flips.case(random.Random(0), runs)
