"""What ModernBERT alone has: local attention, fused matrices, gated neurons, a first layer unlike the others."""

import json

import numpy as np
import pytest
import torch
import transformers
import yaml
from test_families import MODERN, write_data, write_model
from tiny import SENTENCES, tiny_tokenizer
from tiny_run import assert_same_weights, stopped_at
from typer.testing import CliRunner

import xlmprune
from xlmprune.cli import app
from xlmprune.core.errors import ModelError, RecipeError
from xlmprune.export.graph import export_onnx
from xlmprune.export.runtime import open_session
from xlmprune.export.sizing import Source, narrowed, random_model
from xlmprune.models import architecture
from xlmprune.pruning.budget import Size
from xlmprune.pruning.importance import magnitude_importance
from xlmprune.pruning.reconstruction import reconstruct
from xlmprune.pruning.structures import choose, layout_of, slice_model, whole_config
from xlmprune.recipe.schema import ReconstructRecipe, StructureRecipe
from xlmprune.training.shrinking import require_possible, require_refittable


def config_of(layers=4, **settings):
    return transformers.ModernBertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=256, initializer_range=0.3, num_labels=3, **{**MODERN, **settings},
    )  # fmt: skip


def modernbert(layers=4, **settings):
    torch.manual_seed(0)
    return transformers.ModernBertForSequenceClassification(config_of(layers, **settings)).eval()


def batch(*lengths):
    """Texts of these lengths, padded to the longest."""
    random = np.random.default_rng(0)
    mask = np.array([[int(place < length) for place in range(max(lengths))] for length in lengths])
    return np.where(mask == 1, random.integers(4, 60, mask.shape), 1), mask


@torch.no_grad()
def logits(model, ids, mask):
    return model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits


def answers(file, ids, mask):
    """Return what an ONNX file answers."""
    return open_session(file, 1).run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("opset", [20, 23])
def test_padding_wider_than_the_window_changes_nothing(tmp_path, pooling, opset):
    model = modernbert(classifier_pooling=pooling)
    export_onnx(model, tmp_path / "model.onnx", opset=opset)
    ids, mask = batch(90, 3, 40)  # from a padded token, the window of four to each side holds padding alone
    found = answers(tmp_path / "model.onnx", ids, mask)
    assert np.allclose(found, logits(model, ids, mask).numpy(), atol=1e-4)
    alone = logits(model, ids[1:2, :3], mask[1:2, :3]).numpy()
    assert np.allclose(found[1:2], alone, atol=1e-4)


@pytest.mark.slow
def test_words_outside_the_window_reach_the_first_token_through_global_layers_alone(tmp_path):
    ids, mask = batch(90)
    other = ids.copy()
    other[0, 60:] = 5
    for kinds, far in ((["sliding_attention"] * 2, False), (["sliding_attention", "full_attention"], True)):
        model = modernbert(2, layer_types=kinds)
        export_onnx(model, tmp_path / "model.onnx")
        first, second = (answers(tmp_path / "model.onnx", given, mask) for given in (ids, other))
        assert np.allclose(first, logits(model, ids, mask).numpy(), atol=1e-4)
        assert np.allclose(first, second, atol=1e-5) != far


def test_layers_that_remain_keep_their_kind_of_attention(tmp_path):
    model = modernbert()
    assert model.config.layer_types == ["full_attention", "sliding_attention"] * 2
    whole, before = layout_of(model), modernbert()
    slice_model(model, choose(magnitude_importance(model), layers=[0, 1, 3], neurons=0.5, multiple=8))
    assert model.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert layout_of(model).is_stock(model.config)
    model.save_pretrained(tmp_path)
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    given = batch(30, 12)
    torch.testing.assert_close(logits(stock.eval(), *given), logits(model, *given))
    config = whole_config(model, whole)
    assert (config.num_hidden_layers, config.intermediate_size, len(config.layer_types)) == (4, 32, 4)
    shapes = [parameter.shape for parameter in type(model)(config).parameters()]
    assert shapes == [parameter.shape for parameter in before.parameters()]


@pytest.mark.slow
def test_graphs_to_time_are_narrowed_in_both_halves_of_a_fused_matrix(tmp_path):
    source = Source("modernbert", config_of(), "text")
    model = random_model(source, Size(2, 1, 32), 60)
    graph = narrowed(export_onnx(model), 8, 50)
    narrow = random_model(source, Size(2, 1, 8), 50)
    kept = {
        "mlp.Wi": (0, [*range(8), *range(32, 40)]),
        "mlp.Wo": (1, [*range(8)]),
        "tok_embeddings": (0, [*range(50)]),
    }
    wide, tensors = dict(model.named_parameters()), {}
    for name in dict(narrow.named_parameters()):
        dim, entries = next((found for part, found in kept.items() if part in name), (0, None))
        tensors[name] = wide[name] if entries is None else wide[name].index_select(dim, torch.tensor(entries))
    narrow.load_state_dict(tensors, strict=False)
    (tmp_path / "narrow.onnx").write_bytes(graph.SerializeToString())
    ids, mask = batch(20, 7)
    ids = ids.clip(max=49)
    found = answers(tmp_path / "narrow.onnx", ids, mask)
    assert np.allclose(found, logits(narrow, ids, mask).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "refitted", "said"),
    [
        (
            {"layers": [1, 3]},
            False,
            r"\[1, 3\] asked for; the first layer .* must remain. Begin the list with 0",
        ),
        (
            {"smallest": 0.5},
            False,
            r"hold several matrices in one \(attn.Wqkv, mlp.Wi\).* Leave smallest out",
        ),
        ({"heads": 0.5}, True, "normalise before each part of a layer, .* Leave reconstruct out"),
    ],
)
def test_what_the_family_cannot_do_is_refused_before_training(settings, refitted, said):
    with pytest.raises(RecipeError, match=said):
        require_possible(modernbert(), StructureRecipe(**settings), refitted)
    require_possible(modernbert(), StructureRecipe(layers=[0, 3], heads=0.5), refitted=False)


def test_output_projections_are_not_refitted():
    model = modernbert()
    with pytest.raises(RecipeError, match="correct_drift: models of type 'modernbert' normalise before"):
        require_refittable(model, ReconstructRecipe(correct_drift=True))
    require_refittable(model, ReconstructRecipe())
    with pytest.raises(ModelError, match="only where LayerNorm follows"):
        reconstruct(model, model, [], range(4))


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modernbert")
    write_model(folder / "model", "modernbert", tiny_tokenizer(), **MODERN)
    task = write_data(folder, "text")
    return folder, {**task, "path": str(folder / task["path"])}


def compress(workplace, run, pruning):
    folder, task = workplace
    recipe = {
        "name": "modernbert",
        "model": {"name": str(folder / "model")},
        "task": task,
        "training": {"dense_epochs": 1, "epochs_per_stage": 1, "batch_size": 8, "max_length": 32},
        "distillation": {"unlabelled": str(folder / "{language}.free"), "hidden": 0.1},
        "pruning": pruning,
        "export": {"onnx": ["fp32", "int8"]},
    }
    run.parent.mkdir(exist_ok=True)
    (run.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return CliRunner().invoke(
        app, ["compress", str(run.parent / "recipe.yaml"), "--out", str(run), "--device", "cpu"]
    )


LINEAR = {"name": "linear", "stages": 2, "final_density": 0.4}
STRUCTURE = {"heads": 0.5, "neurons": 0.5, "multiple": 4, "importance": "fisher"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "pruning",
    [
        {"schedule": LINEAR},
        {"structure": {**STRUCTURE, "layers": 1}, "pattern": "structured"},
        {"structure": {**STRUCTURE, "importance": "criterion", "rounds": 2}, "schedule": LINEAR},
        {"criterion": "lookahead", "reconstruct": {"texts": 40}, "schedule": LINEAR},
    ],
    ids=lambda pruning: " and ".join(pruning),
)
def test_a_run_resumes_with_the_same_bits_and_its_files_agree(workplace, tmp_path, pruning):
    run, again = tmp_path / "whole" / "run", tmp_path / "again" / "run"
    result = compress(workplace, run, pruning)
    assert result.exit_code == 0, result.output
    with stopped_at(stage=1, update=1):
        assert compress(workplace, again, pruning).exit_code == 130
    assert compress(workplace, again, pruning).exit_code == 0
    assert_same_weights(run, again)

    encoded = tiny_tokenizer().encode_batch([text for texts in SENTENCES.values() for text in texts])
    length = max(len(row.ids) for row in encoded)
    ids = np.array([row.ids + [1] * (length - len(row.ids)) for row in encoded])
    mask = (ids != 1).astype(np.int64)
    model = xlmprune.load(run / "bundle")
    assert np.allclose(
        logits(model, ids, mask).numpy(), answers(run / "bundle" / "model.onnx", ids, mask), atol=1e-4
    )
    verified = CliRunner().invoke(app, ["verify", str(run / "bundle")])
    assert verified.exit_code == 0, verified.output
    if "structure" in pruning:
        facts = json.loads((run / "bundle" / "report.json").read_text(encoding="utf-8"))["model"]["structure"]
        assert facts["whole"] == {"layers": 2, "heads": 2, "neurons": 32}
        assert {(layer["heads"], layer["neurons"]) for layer in facts["layers"]} == {(1, 16)}
        layers = architecture.of(model).layers(model)
        assert [tuple(layer.query.module.weight.shape) for layer in layers] == [(24, 16)] * len(
            facts["layers"]
        )
