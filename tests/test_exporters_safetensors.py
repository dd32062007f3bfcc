import json
import struct

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import entropy_bits, tiny_masks, tiny_model, tiny_tokenizer

from xlmprune.core.errors import BundleError
from xlmprune.export import sparse

QUERY = "roberta.encoder.layer.0.attention.self.query.weight"


def write_folder(folder, kind="text", density=0.31):
    model = tiny_model(kind)
    masks = tiny_masks(model, density)
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    sparse.save_sparse(model, masks, folder / "model.safetensors", {"made_by": "a test"})
    return model, masks


def edit(path, change):
    """Rewrite a safetensors file with its tensors and metadata changed."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    metadata = header["__metadata__"]
    facts = json.loads(metadata["xlmprune"])
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors, facts)
    save_file(tensors, path, {**metadata, "xlmprune": json.dumps(facts)})


def stored_masks(path):
    entries, tensors = sparse.read_facts(path).get("matrices", {}), load_file(path)
    return {
        name: torch.from_numpy(sparse.decode_mask(path, name, entry, tensors[name + sparse.MASK].numpy()))
        for name, entry in entries.items()
    }


@pytest.mark.parametrize("kind", ["text", "tokens"])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.31, 0.9, 1.0])
def test_the_model_comes_back_bit_for_bit(tmp_path, kind, density):
    model, masks = write_folder(tmp_path, kind, density)
    loaded = sparse.load(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    ids = torch.tensor([[0, 5, 9, 2], [0, 7, 2, 1]])
    assert torch.equal(loaded(ids, (ids != 1).long()).logits, model(ids, (ids != 1).long()).logits)
    found = stored_masks(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], mask) for name, mask in masks.items() if not mask.all())
    assert len(found) == (0 if density == 1.0 else 12)


def test_zeros_among_the_remaining_weights_stay_remaining(tmp_path):
    model, masks = tiny_model(), {}
    masks = tiny_masks(model)
    row, column = masks[QUERY].nonzero()[0]
    with torch.no_grad():
        model.get_parameter(QUERY)[row, column] = 0.0
    sparse.save_sparse(model, masks, tmp_path / "m.safetensors")
    assert torch.equal(stored_masks(tmp_path / "m.safetensors")[QUERY], masks[QUERY])


def test_half_precision_stays_half_precision(tmp_path):
    model = tiny_model()
    masks = tiny_masks(model)
    model.to(torch.bfloat16)
    sparse.save_sparse(model, masks, tmp_path / "m.safetensors")
    found = sparse.read_sparse(tmp_path / "m.safetensors")
    assert all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())
    assert found[QUERY].dtype == torch.bfloat16


def test_bytes_are_near_the_bound_and_repeatable(tmp_path):

    model = tiny_model(hidden=128)
    masks = tiny_masks(model, 0.1)
    for name in ("a", "b"):
        sparse.save_sparse(model, masks, tmp_path / name)
    sparse.save_dense(model, tmp_path / "dense")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    entries = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    saved = 8 * ((tmp_path / "dense").stat().st_size - (tmp_path / "a").stat().st_size)
    bits = 32 - saved / entries
    # The JSON of twelve matrices is counted as well; at real sizes it vanishes.
    assert bits <= 1.03 * (entropy_bits(kept / entries) + 32 * kept / entries) + 8 * 3000 / entries


def test_other_users_can_read_what_is_written(tmp_path):
    sparse.save_dense(tiny_model(), tmp_path / "m.safetensors")
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    import safetensors.torch

    model, masks = tiny_model(), {}
    sparse.save_sparse(model, masks, tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        sparse.save_sparse(tiny_model(seed=1), masks, tmp_path / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    assert (tmp_path / "m.safetensors").read_bytes() == before


def test_from_pretrained_does_not_mistake_it_for_a_plain_model(tmp_path, capfd):
    write_folder(tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_unpacked_it_is_a_plain_model(tmp_path, kind, capfd):
    model, _ = write_folder(tmp_path / "bundle", kind)
    written = sparse.unpack(tmp_path / "bundle", tmp_path / "plain")
    assert {path.name for path in written} == {"config.json", "model.safetensors", "tokenizer.json"}
    auto = transformers.AutoModelForSequenceClassification
    if kind == "tokens":
        auto = transformers.AutoModelForTokenClassification
    loaded, info = auto.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())
    again = sparse.load(tmp_path / "plain")
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_a_pruned_weight_that_is_not_zero_is_a_fault(tmp_path):
    model = tiny_model()
    masks = tiny_masks(model)
    with torch.no_grad():
        model.get_parameter(QUERY).add_(1.0)
    with pytest.raises(ValueError, match=r"query\.weight: weights that the mask has pruned"):
        sparse.save_sparse(model, masks, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def pop(name):
    return lambda tensors, facts: tensors.pop(name)


def shorten(name):
    return lambda tensors, facts: tensors.update({name: tensors[name][:-1].clone()})


def retype(dtype, *names):
    """Give parameters another type; all of them, where none is named."""

    def change(tensors, facts):
        for name in names or [name for name in tensors if not name.endswith(".mask")]:
            tensors[name] = tensors[name].to(dtype)

    return change


def blank(tensors, facts):
    tensors[QUERY + ".mask"].zero_()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (pop(QUERY), f"{QUERY} is missing"),
        (pop(QUERY + ".mask"), f"{QUERY}.mask is missing"),
        (pop("classifier.out_proj.bias"), "classifier.out_proj.bias missing"),
        (shorten(QUERY), f"{QUERY} has .* values, expected"),
        (shorten(QUERY + ".mask"), f"{QUERY}.mask is damaged"),
        (blank, f"{QUERY}.mask (marks|is damaged)"),
        (shorten("classifier.out_proj.bias"), r"classifier.out_proj.bias is \[2\], expected \[3\]"),
        (lambda tensors, facts: tensors.update(stray=torch.zeros(1)), "stray found"),
        (
            lambda tensors, facts: tensors.update({"stray.mask": torch.zeros(1)}),
            "stray.mask belongs to no matrix",
        ),
        (retype(torch.int32, "classifier.out_proj.bias"), "classifier.out_proj.bias is I32"),
        (retype(torch.float16, "classifier.out_proj.bias"), "expected one type for all parameters"),
        (retype(torch.bool), "the parameters are BOOL; expected one of BF16, F16, F32, F64"),
        (lambda tensors, facts: facts.update(layout=2), "layout 2"),
        (lambda tensors, facts: facts.pop("matrices"), "description"),
        (lambda tensors, facts: facts["matrices"][QUERY].pop("code"), "description"),
        (
            lambda tensors, facts: facts["matrices"][QUERY]["code"].update(name="zip"),
            f"{QUERY}.mask is damaged",
        ),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, change, sentence):
    write_folder(tmp_path)
    edit(tmp_path / "model.safetensors", change)
    with pytest.raises(BundleError, match=sentence):
        sparse.load(tmp_path)


def test_a_cut_a_doubled_and_an_absent_file_are_refused(tmp_path):
    write_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BundleError, match=r"cut short|damaged"):
            sparse.load(tmp_path)
    path.write_bytes(whole + b"x")
    with pytest.raises(BundleError, match="expected from its header"):
        sparse.load(tmp_path)
    entry = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    header = f'{{"a":{entry},"a":{entry}}}'.encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"x")
    with pytest.raises(BundleError, match="'a' is given twice"):
        sparse.load(tmp_path)
    path.write_bytes(b"\x10" + b"\0" * 7 + b"this is not json" * 4)
    with pytest.raises(BundleError, match="not a safetensors file"):
        sparse.load(tmp_path)
    path.unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors is missing"):
        sparse.load(tmp_path)
    with pytest.raises(BundleError, match="no such folder"):
        sparse.load(tmp_path / "elsewhere")


def test_another_architecture_is_refused(tmp_path):
    write_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertModel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="BertModel"):
        sparse.load(tmp_path)
