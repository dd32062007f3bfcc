"""One run that trains every size: each smaller model is a prefix of the larger ones, and sizes are chosen at export."""

import copy
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from test_fine_pruning import drive, examples, make_pruner, make_recipe, restore, tiny_classifier
from test_reconstruction import batches, hidden
from tiny import tiny_batch
from tiny_run import assert_same_weights, compress, report_of, stopped_at, write_recipe
from typer.testing import CliRunner

import xlmprune
from xlmprune.cli import app
from xlmprune.core import run_folder
from xlmprune.pruning.importance import Importance
from xlmprune.pruning.nesting import Nest, Prefix, prefix, ranked, view_of
from xlmprune.pruning.reconstruction import Normal, reconstruct
from xlmprune.pruning.structures import LayerCut, layout_of, slice_model
from xlmprune.recipe.schema import DistillationRecipe
from xlmprune.training.teaching import Teaching

STRUCTURE = {"layers": 1, "heads": 1, "neurons": 1, "multiple": 4, "smallest": 0.25}
SIZES = [1, 0.25]


def logits(model):
    given = {key: torch.from_numpy(array) for key, array in tiny_batch().items()}
    return model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits


def sliced(model, cut):
    smaller = copy.deepcopy(model)
    slice_model(smaller, cut)
    return smaller


# --- prefixes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "heads", "neurons"), [(1, 4, 64), (0.6, 2, 40), (0.25, 1, 16), (0.01, 1, 8)]
)
def test_a_prefix_is_the_sliced_model_and_follows_the_whole_one(size, heads, neurons):
    model = wide_model()
    cut = prefix(model, size, 8)
    assert [(len(part.heads), len(part.neurons)) for part in cut] == [(heads, neurons)] * 2
    small, inside = view_of(model, cut), Prefix(model, cut)
    with torch.no_grad():
        for _ in range(2):
            expected = logits(sliced(model, cut))
            torch.testing.assert_close(logits(small), expected, rtol=0, atol=1e-6)
            torch.testing.assert_close(logits(inside), expected, rtol=0, atol=1e-6)
            for parameter in model.parameters():
                parameter.mul_(1.1)


def wide_model():
    """Four heads and 64 neurons in each of two layers."""
    return tiny_classifier(
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=400,
        max_position_embeddings=66,
        initializer_range=0.3,
    )


def test_gradients_of_a_prefix_reach_its_own_rows_and_columns_alone():
    model = wide_model()
    logits(Prefix(model, prefix(model, 0.5, 8))).square().sum().backward()
    layer = model.roberta.encoder.layer[0]
    for linear, rows in ((layer.attention.self.query, 16), (layer.intermediate.dense, 32)):
        assert linear.weight.grad[:rows].abs().sum(dim=1).min() > 0
        assert not linear.weight.grad[rows:].any()
        assert not linear.bias.grad[rows:].any()
    for linear, columns in ((layer.attention.output.dense, 16), (layer.output.dense, 32)):
        assert linear.weight.grad[:, :columns].abs().sum(dim=0).min() > 0
        assert not linear.weight.grad[:, columns:].any()
        assert linear.bias.grad.all()
    assert layer.output.LayerNorm.weight.grad.any()
    assert model.get_input_embeddings().weight.grad.any()


def test_a_prefix_has_dropout_exactly_where_the_model_is_in_training():
    model = wide_model()
    inside = Prefix(model, prefix(model, 0.5, 8))
    with torch.no_grad():
        model.train()
        torch.manual_seed(0)
        first = logits(inside)
        assert not torch.equal(logits(inside), first)
        torch.manual_seed(0)
        assert torch.equal(logits(inside), first)
        model.eval()
        assert torch.equal(logits(inside), logits(inside))


def test_ranking_changes_the_order_and_no_answer():
    model = wide_model()
    worth = Importance(
        [torch.tensor([1.0, 3.0, 0.0, 2.0])] * 2, [torch.arange(64.0).roll(5) for _ in range(2)]
    )
    cut = ranked(
        (LayerCut(0, (0, 1, 3), tuple(range(0, 64, 2))), LayerCut(1, (0, 1, 2, 3), tuple(range(64)))), worth
    )
    assert [part.heads for part in cut] == [(1, 3, 0), (1, 3, 0, 2)]
    assert cut[1].neurons[:2] == (4, 3)
    assert set(cut[0].neurons) == set(range(0, 64, 2))
    whole = (LayerCut(0, cut[1].heads, cut[1].neurons), cut[1])
    with torch.no_grad():
        torch.testing.assert_close(logits(sliced(model, whole)), logits(model), rtol=0, atol=1e-5)


def test_sizes_of_an_update_are_the_largest_the_smallest_and_one_between():
    model = wide_model()

    def drawn(seed):
        nest = Nest(model, 0.25, 8, seed)
        rows = [nest.learners(1, update) for update in range(20)]
        assert all(row[0] is model and row[1] is nest.at(0.25) for row in rows)
        return [[(layer.heads, layer.neurons) for layer in layout_of(row[2].model).layers] for row in rows]

    widths = drawn(1)
    assert widths == drawn(1) != drawn(2)
    neurons = {row[0][1] for row in widths}
    assert len(neurons) > 3
    assert 16 <= min(neurons) <= max(neurons) <= 64


# --- learning ---------------------------------------------------------------------------------------------------------


def dynamic_recipe(**sections):
    given = {"pruning": {"pattern": "structured", "structure": STRUCTURE | {"importance": "magnitude"}}}
    return make_recipe(**given, **sections)


def test_losses_are_averaged_and_sizes_learn_the_answers_of_the_largest():
    model = tiny_classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    gradients = make_pruner(dynamic_recipe(), model, examples()).gradients
    alone = gradients.add(0, taught=True)
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    # A size that is the whole model has its answers already.
    both = gradients.add(0, True, [model, Prefix(model, prefix(model, 1, 4))])
    assert both == pytest.approx(alone / 2)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name] / 2, rtol=1e-4, atol=1e-7)
    smaller = gradients.add(0, True, [model, Prefix(model, prefix(model, 0.25, 4))])
    assert smaller > both


def test_the_teacher_is_asked_once_a_batch(monkeypatch):
    model, train = tiny_classifier(), examples()
    teaching = Teaching(DistillationRecipe(unlabelled="task", hidden=0.5), train, 8, 0)
    pruner = make_pruner(dynamic_recipe(), model, train, teaching=teaching)
    teaching.begin(model, 50.0)
    asked = []
    monkeypatch.setattr(
        teaching.teacher,
        "forward",
        lambda *a, **k: asked.append(1) or type(model).forward(teaching.teacher, *a, **k),
    )
    sizes = [Prefix(model, prefix(model, size, 4)) for size in (0.5, 0.25)]
    alone = pruner.gradients.add(0, True)
    pairs = [2 * pruner.gradients.add(0, True, [model, size]) for size in sizes]
    asked.clear()
    together = pruner.gradients.add(0, True, [model, *sizes])
    assert len(asked) == 2  # a labelled and an unlabelled batch
    assert together == pytest.approx((sum(pairs) - alone) / 3)


@pytest.mark.parametrize("stop", [5, 11])
def test_a_stage_that_is_stopped_resumes_with_the_same_bits(stop):
    train = examples()

    def started():
        text = Teaching(DistillationRecipe(unlabelled="task", hidden=0.5), train, 8, 0)
        return make_pruner(dynamic_recipe(), tiny_classifier(), train, lambda: 50.0, text)

    whole = started()
    drive(whole)
    stopped = started()
    drive(stopped, stop)
    tensors = {
        file: {k: v.clone() for k, v in part.items()} for file, part in stopped.state.tensors().items()
    }
    progress = json.loads(json.dumps(stopped.state.progress()))
    resumed = started()
    restore(resumed, tensors, progress)
    drive(resumed)
    assert resumed.state.cuts == whole.state.cuts
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# --- one least squares for all sizes ----------------------------------------------------------------------------------


def test_sizes_are_solved_together():
    draw = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(6, 3)
    normal, rows, goals = Normal(linear), [], []
    for width in (6, 2, 4):
        x, target = torch.randn(80, width, generator=draw), torch.randn(80, 3, generator=draw)
        normal.add(x, target)
        rows.append(np.hstack([np.pad(x.double().numpy(), ((0, 0), (0, 6 - width))), np.ones((80, 1))]))
        goals.append(target.double().numpy())
    _, after = normal.solve(1e-9)
    best, residual, *_ = np.linalg.lstsq(np.vstack(rows), np.vstack(goals), rcond=None)
    np.testing.assert_allclose(linear.weight.detach().numpy(), best[:-1].T, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(linear.bias.detach().numpy(), best[-1], rtol=1e-3, atol=1e-5)
    assert after == pytest.approx(residual.sum() / np.square(np.vstack(goals)).sum(), rel=1e-4)


def test_a_joint_solution_brings_every_size_closer():
    dense = wide_model()
    model = copy.deepcopy(dense)
    views = [view_of(model, prefix(model, size, 8)) for size in (0.5, 0.25)]
    goal = hidden(dense)
    before = [(hidden(view) - goal).norm() for view in views]
    alone = sliced(dense, prefix(dense, 1, 8))
    reconstruct(dense, alone, batches(), [0, 1])
    fits = reconstruct(dense, model, batches(), [0, 1], prefixes=views)
    assert all(fit.after <= fit.before for fit in fits)
    for view, strayed in zip(views, before, strict=True):
        assert (hidden(view) - goal).norm() < 0.8 * strayed
    assert (hidden(model) - goal).norm() > (hidden(alone) - goal).norm()


# --- whole runs -------------------------------------------------------------------------------------------------------


def sections(folder, **more):
    return {
        "distillation": {"unlabelled": str(folder / "text" / "{language}.txt"), "hidden": 0.1},
        "pruning": {"structure": STRUCTURE, "pattern": "structured"},
        **more,
    }


@pytest.fixture(scope="module")
def finished(workplace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dynamic") / "run"
    export = {"onnx": ["fp32", "int8"], "sizes": SIZES}
    result = compress(workplace, folder, **sections(workplace, export=export))
    assert result.exit_code == 0, result.output
    return folder, result


@pytest.mark.slow
def test_every_size_is_a_whole_bundle(finished):
    run, _ = finished
    folders = ["bundle", "bundle-0.25"]
    assert sorted(path.name for path in run.glob("bundle*")) == folders
    whole = load_file(run / "bundle" / "model.safetensors")
    for folder, (heads, neurons) in zip(folders, [(2, 32), (1, 8)], strict=True):
        verified = CliRunner().invoke(app, ["verify", str(run / folder)])
        assert verified.exit_code == 0, verified.output
        model = xlmprune.load(run / folder)
        assert [(layer.heads, layer.neurons) for layer in layout_of(model).layers] == [(heads, neurons)]
        said = CliRunner().invoke(app, ["predict", str(run / folder), "turn on the light"])
        assert said.exit_code == 0, said.output
        found = load_file(run / folder / "model.safetensors")
        name = "roberta.encoder.layer.0.intermediate.dense.weight"
        assert (found[name] == whole[name][:neurons]).all()


@pytest.mark.slow
def test_the_reports_have_every_size_and_language(finished):
    run, result = finished
    report = report_of(run)
    rows = report["sizes"]
    assert [row["size"] for row in rows] == SIZES
    assert [row["parameters"] for row in rows] == sorted((row["parameters"] for row in rows), reverse=True)
    for row in rows:
        own = json.loads((run / row["bundle"] / "report.json").read_text(encoding="utf-8"))
        assert own["size"] == row["size"]
        assert own["languages"].keys() == report["languages"].keys()
        assert row["zero_shot_mean"] == own["summary"]["zero_shot_mean"]["pruned"]
        assert row["bytes"]["int8"] == (run / row["bundle"] / "model.int8.onnx").stat().st_size
        assert row["median_ms"].keys() == {"fp32", "int8"}
        assert row["encoder_density"] == own["stages"][-1]["encoder_density"]
        graph = onnx.load(run / row["bundle"] / "model.onnx", load_external_data=False)
        told = {entry.key: entry.value for entry in graph.metadata_props}
        assert float(told["encoder_sparsity"]) == pytest.approx(1 - row["encoder_density"], abs=1e-6)
        assert own["stages"][-1]["zero_shot_mean"] == pytest.approx(row["zero_shot_mean"])
        assert set(own["speed"]) == {"dense fp32", "model.onnx", "model.int8.onnx"}
        assert ("sizes" in own) == (row["size"] == 1)
    assert [row["encoder_density"] for row in rows] == pytest.approx([0.5, 0.1875])
    page = (run / "bundle" / "report.html").read_text(encoding="utf-8")
    assert "accuracy against bytes of the file" in page
    text = (run / "bundle" / "report.md").read_text(encoding="utf-8")
    assert "## Sizes" in text
    assert "bundle-0.25" in result.output
    assert "size 0.25  stage 1/1" in result.output


@pytest.mark.slow
def test_other_sizes_are_exported_without_training(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    before = (run / "checkpoint").stat().st_mtime
    export = ["export", str(run), "--set", "export.onnx=[]", "--set"]
    result = CliRunner().invoke(app, [*export, "export.sizes=[0.75]"])
    assert result.exit_code == 0, result.output
    assert [path.name for path in run.glob("bundle*")] == ["bundle"]
    assert report_of(run)["model"]["structure"]["layers"][0] == {"source": 0, "heads": 2, "neurons": 24}
    assert (run / "checkpoint").stat().st_mtime == before
    for sizes in ("[0.2]", "[0.5, 1]", "[0.5, 0.5]"):
        assert CliRunner().invoke(app, [*export, f"export.sizes={sizes}"]).exit_code == 2
    result = CliRunner().invoke(app, [*export, "export.sizes=[1, 0.99]"])
    assert result.exit_code == 0, result.output
    assert "sizes 1 and 0.99 have the same attention heads and FFN neurons" in result.output
    result = CliRunner().invoke(app, [*export, "export.sizes=null"])
    assert result.exit_code == 0, result.output
    assert [row["size"] for row in report_of(run)["sizes"]] == [1, 0.25]
    # The same bytes whenever a size is exported.
    old = load_file(finished[0] / "bundle-0.25" / "model.safetensors")
    new = load_file(run / "bundle-0.25" / "model.safetensors")
    assert all((new[name] == tensor).all() for name, tensor in old.items())


@pytest.mark.slow
def test_a_folder_of_the_user_is_found_before_anything_is_exported(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    (run / "bundle-0.5").mkdir()
    (run / "bundle-2").mkdir()
    export = ["export", str(run), "--set", "export.onnx=[]", "--set"]
    result = CliRunner().invoke(app, [*export, "export.sizes=[1, 0.5]"])
    assert result.exit_code == 2, result.output
    assert "would delete files that xlmprune did not write (bundle-0.5)" in result.output
    assert "reading" not in result.output
    result = CliRunner().invoke(app, [*export, "export.sizes=[1, 0.75]"])
    assert result.exit_code == 0, result.output
    folders = ["bundle", "bundle-0.5", "bundle-0.75", "bundle-2"]
    assert sorted(path.name for path in run.glob("bundle*")) == folders


@pytest.mark.slow
def test_a_stop_while_bundles_are_put_in_place_is_made_good(finished, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    put, calls = run_folder.put_in_place, []

    def stopping(partial, final):
        calls.append(final.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        put(partial, final)

    export = ["export", str(run), "--set", "export.onnx=[]", "--set", "export.sizes=[1, 0.75, 0.3]"]
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "put_in_place", stopping)
        assert CliRunner().invoke(app, export).exit_code == 130
    assert calls[0] == "bundle-0.75"
    assert not (run / "bundle").exists()
    result = CliRunner().invoke(app, ["export", str(run)])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in run.glob("bundle*")) == ["bundle", "bundle-0.3", "bundle-0.75"]
    assert not list((run / ".xlmprune").glob("*bundle*"))


@pytest.mark.slow
def test_a_run_that_is_stopped_resumes_with_the_same_bits(workplace, tmp_path, finished):
    again, given = tmp_path / "run", sections(workplace, export={"onnx": [], "sizes": SIZES})
    with stopped_at(stage=1, update=2):
        assert compress(workplace, again, **given).exit_code == 130
    assert compress(workplace, again, **given).exit_code == 0
    for folder in ("bundle", "bundle-0.25"):
        assert_same_weights(finished[0], again, folder)


@pytest.mark.parametrize(
    ("structure", "more", "said"),
    [
        ({"rounds": 2}, {}, "structure.rounds: 1"),
        ({"scope": "global"}, {}, "structure.scope: layer"),
        ({"languages": ["de"]}, {}, "no structure.languages"),
        ({"layers": None, "budget": {"speedup": 2}}, {}, "no structure.budget"),
        ({}, {"pattern": "unstructured"}, "pattern: structured"),
        ({"smallest": 1}, {}, "less than 1"),
        ({"smallest": 0}, {}, "greater than 0"),
        ({"multiple": 24}, {}, "24 does not divide the 32 neurons"),
        ({}, {"sizes": [0.5, 1]}, "falling numbers"),
        ({}, {"sizes": [0.5, 0.5]}, "falling numbers"),
        ({}, {"sizes": [1, 0.2]}, "size 0.2 is below pruning.structure.smallest, 0.25"),
        ({}, {"sizes": [1.5]}, "less than or equal to 1"),
        ({}, {"sizes": []}, "export.sizes"),
        ({"smallest": None, "heads": 0.5}, {"sizes": [1]}, "trained with pruning.structure.smallest"),
    ],
)
def test_what_does_not_go_with_sizes_gets_a_sentence(workplace, tmp_path, structure, more, said):
    given = sections(workplace)
    given["pruning"] = {
        "structure": {**STRUCTURE, **structure},
        "pattern": more.get("pattern", "structured"),
    }
    if "sizes" in more:
        given["export"] = {"sizes": more["sizes"]}
    result = compress(workplace, tmp_path / "run", **given)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "run" / "events.jsonl").exists() or "24" in said


def test_a_dry_run_says_the_sizes(workplace, tmp_path):
    given = sections(workplace, export={"sizes": SIZES})
    recipe = write_recipe(tmp_path, model={"name": str(workplace / "model")}, **given)
    task = f"task.path={workplace / 'data' / '{language}.{split}.tsv'}"
    command = ["compress", str(recipe), "--dry-run", "--set", task]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["sizes"]
    assert [(row["size"], row["heads"], row["neurons"]) for row in rows] == [
        (1, 2, 32),
        (0.25, 1, 8),
    ]
    assert [row["encoder_density"] for row in rows] == [0.5, 0.1875]
    told = " ".join(CliRunner().invoke(app, command).stdout.split())
    assert "sizes to export: 1 (2 heads and 32 FFN neurons a layer" in told
