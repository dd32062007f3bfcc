"""Structured pruning in whole runs: fewer layers, heads and neurons, really smaller files, and exact resume."""

import copy
import json
from contextlib import nullcontext

import numpy as np
import onnx
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from slow import slow_after
from tiny import tiny_model
from tiny_run import assert_same_weights, compress, report_of, stopped_at, write_recipe
from typer.testing import CliRunner

import xlmprune
from xlmprune.bundle.session import Bundle
from xlmprune.cli import app
from xlmprune.core.errors import BundleError, RecipeError
from xlmprune.export import sparse
from xlmprune.pruning.importance import magnitude_importance
from xlmprune.pruning.structures import layout_of, slice_model
from xlmprune.recipe.schema import StructureRecipe
from xlmprune.training.shrinking import (
    planned_densities,
    require_pattern,
    require_possible,
    round_cut,
    round_layers,
)

STRUCTURE = {"layers": 1, "heads": 0.5, "neurons": 0.5, "multiple": 4}


def sections(folder, **pruning):
    return {
        "distillation": {"unlabelled": str(folder / "text" / "{language}.txt"), "hidden": 0.1},
        "pruning": {"structure": STRUCTURE, "pattern": "structured", **pruning},
    }


@pytest.fixture(scope="module")
def run(workplace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("structured") / "run"
    result = compress(workplace, folder, **sections(workplace), export={"onnx": ["fp32", "int8"]})
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.slow
def test_the_report_counts_against_the_whole_model(run):
    report = report_of(run)
    model, found = report["model"], report["model"]["structure"]
    assert found["layers"] == [{"source": 0, "heads": 1, "neurons": 16}]
    assert found["whole"] == {"layers": 2, "heads": 2, "neurons": 32}
    left = sum(tensor.size for name, tensor in load_file(run / "bundle" / "model.safetensors").items())
    assert found["parameters"] == model["remaining"] == left
    prunable = 4 * 16 * 8 + 2 * 16 * 16  # one head of eight columns, sixteen neurons
    assert model["encoder_density"] == pytest.approx(prunable / (2 * (4 * 16 * 16 + 2 * 16 * 32)))
    assert [stage["encoder_density"] for stage in report["stages"]] == [1.0, model["encoder_density"]]
    assert "1 of 2 layers remain" in (run / "bundle" / "README.md").read_text(encoding="utf-8")
    assert set(report["speed"]) == {"dense fp32", "model.onnx", "model.int8.onnx"}
    assert report["packed"] == []
    assert report["dense_bytes"]["safetensors"] == 4 * model["parameters"]


@pytest.mark.slow
def test_bench_measures_the_whole_model_too(run):
    short = ["--batches", "1", "--lengths", "8", "--seconds", "0.1"]
    result = CliRunner().invoke(app, ["bench", str(run / "bundle"), *short, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["first"] == "dense fp32"
    assert list(facts["files"]) == ["dense fp32", "fp32", "int8"]
    assert facts["files"]["dense fp32"]["bytes"] > facts["files"]["fp32"]["bytes"]


@pytest.mark.slow
def test_every_way_to_load_gives_the_same_answers(run, tmp_path):
    bundle = run / "bundle"
    model = xlmprune.load(bundle)
    ids = np.array([[0, 5, 9, 7, 2], [0, 8, 2, 1, 1]])
    mask = (ids != 1).astype(np.int64)
    with torch.no_grad():
        ours = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
    assert np.allclose(ours, Bundle(bundle).forward("fp32")(ids, mask), atol=1e-4)
    assert CliRunner().invoke(app, ["verify", str(bundle)]).exit_code == 0
    out = tmp_path / "plain"
    result = CliRunner().invoke(app, ["unpack", str(bundle), "--out", str(out)])
    assert result.exit_code == 0, result.output
    again = sparse.load(out)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    shapes = {
        tuple(tensor.dims) for tensor in onnx.load(bundle / "model.onnx").graph.initializer if tensor.dims
    }
    assert (16, 32) not in shapes
    assert (32, 16) not in shapes


@pytest.mark.slow
def test_a_structure_that_does_not_fit_is_refused(run, tmp_path):
    config = json.loads((run / "bundle" / "config.json").read_text(encoding="utf-8"))
    for change in ({"heads": 3}, {"neurons": 10**9}, {"heads": 0}, {"source": "x"}):
        layers = [{**config["structure"]["layers"][0], **change}]
        hostile = {**config, "structure": {**config["structure"], "layers": layers}}
        (tmp_path / "config.json").write_text(json.dumps(hostile), encoding="utf-8")
        (tmp_path / "model.safetensors").write_bytes((run / "bundle" / "model.safetensors").read_bytes())
        with pytest.raises(BundleError, match="structure"):
            sparse.load(tmp_path)


@pytest.mark.parametrize(
    "pruning",
    slow_after(
        0,
        [
            {"pattern": "structured", "structure": {**STRUCTURE, "rounds": 2, "scope": "global"}},
            {
                "pattern": "unstructured",
                "criterion": "pins",
                "structure": {"heads": 0.5, "importance": "obs"},
                "schedule": {"name": "geometric", "step_fraction": 0.5, "stages": 1},
            },
            {"pattern": "2:4", "criterion": "l0", "structure": {"layers": [1], "importance": "taylor"}},
            {
                "criterion": "wanda",
                "structure": {**STRUCTURE, "importance": "criterion"},
                "schedule": {"name": "linear", "stages": 1, "final_density": 0.5},
            },
        ],
    ),
)
def test_a_run_that_is_stopped_resumes_with_the_same_bits(workplace, tmp_path, pruning):
    given = sections(workplace, **pruning)
    given["pruning"]["pattern"] = pruning.get("pattern", "unstructured")
    if pruning.get("pattern") == "2:4":
        given["pruning"]["schedule"] = {"name": "linear", "stages": 1, "final_density": 0.5}
    given["regularizer"] = {"name": "cosine", "reference": "finetuned"}
    given["export"] = {"onnx": ["fp32"] if "scope" in pruning["structure"] else []}
    run = tmp_path / "whole" / "run"
    run.parent.mkdir()
    result = compress(workplace, run, **given)
    assert result.exit_code == 0, result.output
    report = report_of(run)
    asked = pruning["structure"].get("heads", 1)
    whole = report["model"]["structure"]["whole"]
    assert sum(layer["heads"] for layer in report["model"]["structure"]["layers"]) >= asked * whole["heads"]
    again = tmp_path / "again" / "run"
    again.parent.mkdir()
    given["export"] = {"onnx": []}
    with stopped_at(stage=2, update=1):
        assert compress(workplace, again, **given).exit_code == 130
    assert compress(workplace, again, **given).exit_code == 0
    assert_same_weights(run, again)


@pytest.mark.parametrize(
    ("settings", "rounds"),
    [
        ({"layers": 6}, [[0, 2, 4, 6, 8, 10]]),
        ({"layers": 6, "rounds": 2}, [[0, 1, 2, 4, 5, 6, 8, 9, 10], [0, 2, 4, 6, 8, 10]]),
        ({"layers": 4, "rounds": 3}, [None, None, [0, 3, 6, 9]]),
        ({"layers": [0, 11], "rounds": 2}, [[0, 1, 3, 5, 7, 9, 11], [0, 11]]),
        ({"heads": 0.5}, [list(range(12))]),
    ],
)
def test_layers_go_round_by_round(settings, rounds):
    sources = list(range(12))
    for stage, expected in enumerate(rounds, 1):
        places = round_layers(StructureRecipe(**settings), sources, stage, total=12)
        sources = [sources[place] for place in places]
        assert expected in (None, sources)


@pytest.mark.parametrize("layers", [2, [0, 2], [1, 3]])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_rounds_leave_the_share_of_the_layers_that_stay(layers, scope):
    torch.manual_seed(0)
    config = transformers.XLMRobertaConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=4, num_attention_heads=8, intermediate_size=64
    )
    model = transformers.XLMRobertaForSequenceClassification(config)
    settings = StructureRecipe(
        layers=layers, heads=0.5, neurons=0.5, rounds=2, multiple=1, scope=scope, importance="magnitude"
    )
    planned = planned_densities(copy.deepcopy(model), settings)
    whole = layout_of(model)
    for stage in (1, 2):
        importance = magnitude_importance(model)  # of uneven layers
        for number, worth in enumerate(importance.heads):
            worth *= 2.0**number * torch.linspace(1, 3, len(worth))
        slice_model(model, round_cut(model, settings, importance, stage, whole))
    left = layout_of(model).layers
    assert [layer.source for layer in left] == ([0, 2] if layers == 2 else layers)
    assert sum(layer.heads for layer in left) == 8
    assert sum(layer.neurons for layer in left) == 64
    assert planned[-1] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("pattern", "settings", "said"),
    [
        ("2:4", {"neurons": 0.3, "multiple": 1}, "Choose a multiple of 4"),
        ("8:16", {"heads": 0.5}, "an attention head has 8 of them"),
        ("2:3", None, "has 16 inputs"),
        ("2:4", {"heads": 0.5, "neurons": 0.5, "multiple": 8}, None),
        ("unstructured", {"neurons": 0.3, "multiple": 1}, None),
    ],
)
def test_a_pattern_that_does_not_divide_what_structures_leave_is_refused(pattern, settings, said):
    structure = None if settings is None else StructureRecipe(**settings)
    with nullcontext() if said is None else pytest.raises(RecipeError, match=said):
        require_pattern(tiny_model(), pattern, structure)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers": 3}, "the model has 2 layers"),
        ({"layers": [0, 2]}, "the model has 2 layers, 0 to 1"),
        ({"neurons": 0.5, "multiple": 24}, "24 does not divide the 32 neurons"),
    ],
)
def test_what_the_model_does_not_have_is_refused_before_training(settings, said):
    with pytest.raises(RecipeError, match=said):
        require_possible(tiny_model(), StructureRecipe(**settings), refitted=True)


@pytest.mark.parametrize(
    ("pruning", "said"),
    [
        ({"structure": {"heads": 0.0}}, "greater than 0"),
        ({"structure": {}}, "nothing is removed"),
        ({"structure": {"layers": [2, 1]}}, "rising numbers"),
        ({"structure": {"layers": []}}, "structure.layers"),
        ({"structure": None, "pattern": "structured"}, "pattern structured needs `structure`"),
        ({"structure": {**STRUCTURE, "languages": ["th"]}}, "there is no text in Thai"),
    ],
)
def test_bad_structures_get_a_sentence(workplace, tmp_path, pruning, said):
    given = sections(workplace)
    given["pruning"] |= pruning
    result = compress(workplace, tmp_path / "run", **given)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_a_dry_run_says_what_remains(workplace, tmp_path):
    given = sections(workplace, pattern="unstructured")
    given["pruning"]["schedule"] = {"name": "geometric", "step_fraction": 0.5, "stages": 1}
    recipe = write_recipe(tmp_path, model={"name": str(workplace / "model")}, **given)
    task = f"task.path={workplace / 'data' / '{language}.{split}.tsv'}"
    result = CliRunner().invoke(app, ["compress", str(recipe), "--dry-run", "--json", "--set", task])
    assert result.exit_code == 0, result.output
    densities = [stage["encoder_density"] for stage in json.loads(result.stdout)["stages"]]
    assert densities == [1.0, 0.25, 0.125]


@pytest.mark.parametrize(("heads", "rounds", "expected"), [(11 / 12, 3, 11), (0.25, 4, 3), (0.5, 1, 6)])
def test_rounding_does_not_add_up_over_rounds(heads, rounds, expected):
    config = transformers.XLMRobertaConfig(
        vocab_size=16, hidden_size=24, num_hidden_layers=2, num_attention_heads=12, intermediate_size=192
    )
    model = transformers.XLMRobertaForSequenceClassification(config)
    settings = StructureRecipe(heads=heads, neurons=23 / 48, multiple=4, rounds=rounds)
    planned_densities(model, settings)
    assert [(layer.heads, layer.neurons) for layer in layout_of(model).layers] == [(expected, 92)] * 2
