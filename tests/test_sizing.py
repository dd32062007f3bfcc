"""Budgets in runs: measured once, resumed with what was chosen, tables from files, and what cannot be met."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import TensorProto, helper
from safetensors.numpy import load_file
from tiny import tiny_model
from tiny_run import compress, report_of, stopped_at, write_recipe
from typer.testing import CliRunner

from xlmprune import pipeline
from xlmprune.bundle.inspect import inspect
from xlmprune.bundle.unpack import contenders
from xlmprune.cli import app
from xlmprune.core.errors import BundleError, ModelError, RecipeError
from xlmprune.core.progress import silent_reporter
from xlmprune.export import sizing
from xlmprune.export.form import all_forms, form_named
from xlmprune.export.graph import export_onnx
from xlmprune.export.runtime import forward_of, open_session
from xlmprune.models.loading import count_parameters
from xlmprune.pruning.budget import Settled, Size, SizedFile, SizeTable, Timing
from xlmprune.recipe.schema import StructureRecipe
from xlmprune.training.shrinking import require_possible

INT8 = sizing.Exporting("int8", 20, "int8")


def source(**changes):
    """A model with four heads, and neurons in several multiples of 32."""
    config = transformers.XLMRobertaConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
        type_vocab_size=1, max_position_embeddings=40, pad_token_id=1,
    )  # fmt: skip
    for key, value in changes.items():
        setattr(config, key, value)
    return sizing.Source("small", config, "text")


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    model = sizing.random_model(source(), Size(1, 2, 256), 200)
    return model, export_onnx(model)


@pytest.mark.slow
def test_a_narrowed_graph_is_that_of_the_narrower_model(exported, tmp_path):
    model, graph = exported
    narrow = sizing.random_model(source(), Size(1, 2, 64), 100)
    wide, tensors = dict(model.named_parameters()), {}
    for name, parameter in narrow.named_parameters():
        kept = tuple(slice(0, length) for length in parameter.shape)
        tensors[name] = wide[name].detach()[kept]
    narrow.load_state_dict(tensors, strict=False)
    onnx.save(sizing.narrowed(graph, 64, 100), tmp_path / "narrow.onnx")
    ids = np.array([[0, 5, 99, 7, 2], [0, 8, 2, 1, 1]])
    mask = (ids != 1).astype(np.int64)
    with torch.no_grad():
        expected = narrow(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
        ).logits.numpy()
    found = forward_of(open_session(tmp_path / "narrow.onnx", 1))(ids, mask)
    assert np.allclose(found, expected, atol=1e-6)
    removed = count_parameters(model) - count_parameters(narrow)
    whole = sum(np.prod(tensor.dims) for tensor in graph.graph.initializer)
    assert (
        whole - sum(np.prod(t.dims) for t in onnx.load(tmp_path / "narrow.onnx").graph.initializer) == removed
    )


def test_every_form_can_be_sampled(exported):
    for form in all_forms().values():
        onnx.checker.check_model(form.sample(exported[1], "int8"))


def test_measuring_writes_each_size_once_and_times_all_together(exported, monkeypatch):
    asked, calls = [], []
    monkeypatch.setattr(sizing, "random_model", lambda source, size, rows: asked.append((size, rows)))
    monkeypatch.setattr(sizing, "export_onnx", lambda model, opset: exported[1])

    def time_in_turns(files, batch, tokens, threads, seconds):
        assert all(path.is_file() for path in files.values())
        calls.append((batch, tokens, threads))
        sizes = [name for name in files if name != "dense"]
        return {"dense": 9.0} | {name: 1.0 + number for number, name in enumerate(sizes)}

    monkeypatch.setattr(sizing, "time_in_turns", time_in_turns)
    table = sizing.measure(source(), INT8, [(1, 64, 1), (8, 64, 2)])
    assert asked == [(Size(1, 1, 256), 300), (Size(2, 1, 256), 300), (Size(2, 4, 256), 300)]
    assert calls == [(1, 64, 1), (8, 64, 2)]
    widths = [32, 64, 256]
    assert [file.size.neurons for file in table.files] == [*widths, 256, *widths, *widths]
    assert [file.rows for file in table.files] == [300] * 3 + [150] + [300] * 6
    assert table.timings[0].ms == tuple(range(1, 11))
    assert table.timings[1].dense_ms == 9
    assert table.whole == Size(2, 4, 256)
    assert table.files[0].bytes < table.files[2].bytes
    assert SizeTable.from_record(json.loads(json.dumps(table.record()))) == table


# --- runs -------------------------------------------------------------------------------------------------------------

WHOLE = {"type": "xlm-roberta", "hidden": 16, "layers": 2, "heads": 2, "neurons": 32}


def known_table(**changes):
    """A table of the tiny model: a layer takes as many milliseconds as it has heads and eighths of its neurons."""
    sizes = [Size(1, 1, 4), Size(1, 1, 32), Size(2, 1, 4), Size(2, 1, 32), Size(2, 2, 32), Size(2, 2, 4)]
    files = [
        SizedFile(size, rows, 500 + 10 * rows + size.layers * (size.heads * 100 + size.neurons * 10))
        for size in sizes
        for rows in (50, 100)
    ]
    ms = tuple(1.0 + file.size.layers * (file.size.heads + file.size.neurons / 8) for file in files)
    table = SizeTable(
        {"name": "tiny", **WHOLE}, "int8", 20, "int8", {}, tuple(files), (Timing(1, 64, 1, ms, 26.0),)
    )
    return dataclasses.replace(table, **changes)


def sections(folder, **budget):
    return {
        "distillation": {"unlabelled": str(folder / "text" / "{language}.txt")},
        "pruning": {"structure": {"budget": budget, "multiple": 4}, "pattern": "structured"},
        "export": {"onnx": []},
    }


def test_a_run_measures_once_and_resumes_with_what_was_chosen(workplace, tmp_path, monkeypatch):
    measured = []

    def measure(*given):
        measured.append(given[1:3])
        return known_table()

    monkeypatch.setattr(sizing, "measure", measure)
    run, given = tmp_path / "run", sections(workplace, latency_ms=6.1, speedup=2)
    with stopped_at(stage=1, update=0):
        assert compress(workplace, run, **given).exit_code == 130
    result = compress(workplace, run, **given)
    assert result.exit_code == 0, result.output
    assert measured == [(INT8, [(1, 64, 1)])]
    # Two layers take 1 + 2 * (1 + 12 / 8) = 6 ms and are worth (12 / 32 / 2) ** 0.5 = 0.43, one layer at most 0.25.
    found = report_of(run)["model"]["structure"]
    assert [(layer["heads"], layer["neurons"]) for layer in found["layers"]] == [(1, 12), (1, 12)]
    assert found["budget"]["chosen"] == {"layers": 2, "heads": 1, "neurons": 12}
    assert found["budget"]["predicted"]["latency_ms"] == pytest.approx(6)
    assert found["budget"]["predicted"]["speedup"] == pytest.approx(26 / 6)
    kept = json.loads((run / "budget.json").read_text(encoding="utf-8"))
    assert SizeTable.from_record(kept["table"]) == known_table()
    assert "the layer sizes were chosen so that the" in (run / "bundle" / "README.md").read_text(
        encoding="utf-8"
    )
    assert inspect(run)["structures_removed"]
    left = sum(tensor.size for tensor in load_file(run / "bundle" / "model.safetensors").values())
    assert left == found["parameters"]


def test_the_files_are_timed_as_the_budget_was(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(pipeline.bench, "time_files", lambda files, say, **given: calls.append(given) or {})
    asked = {"batch": 2, "tokens": 32, "threads": 1, "speedup": 4.0}
    for milliseconds in (12.0, None):
        budget = {"asked": asked, "predicted": {"latency_ms": milliseconds}}
        scored = SimpleNamespace(outcome=SimpleNamespace(model=tiny_model(), budget=budget))
        made = SimpleNamespace(path=tmp_path, shipped=[form_named("int8")], scored=scored)
        assert pipeline.time_forms([made], None, silent_reporter()) == [{}]
    assert calls == [{"batch": 2, "tokens": 32, "threads": 1}, {}]


def dry_run(folder, tmp_path, *options, **budget):
    recipe = write_recipe(tmp_path, model={"name": str(folder / "model")}, **sections(folder, **budget))
    task = f"task.path={folder / 'data' / '{language}.{split}.tsv'}"
    return CliRunner().invoke(app, ["compress", str(recipe), "--dry-run", "--set", task, *options])


def test_a_dry_run_says_what_the_budget_resolves_to(workplace, tmp_path):
    sizing.write_table(known_table(), tmp_path / "table.json")
    result = dry_run(workplace, tmp_path, "--json", speedup=4, table="table.json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["budget"]["chosen"] == {"layers": 2, "heads": 1, "neurons": 12}
    prunable = 2 * (4 * 16 * 8 + 2 * 16 * 12) / (2 * (4 * 16 * 16 + 2 * 16 * 32))
    assert [stage["encoder_density"] for stage in plan["stages"]] == pytest.approx([1, prunable])
    result = dry_run(workplace, tmp_path, speedup=4, table="table.json")
    assert (
        "the budget keeps 2 layers with 1 head and 12 FFN neurons each; predicted for int8: 6 ms"
        in " ".join(result.output.split())
    )


OTHER = {"name": "large", **WHOLE, "hidden": 1024, "layers": 24}


@pytest.mark.parametrize(
    ("table", "budget", "said"),
    [
        (
            {},
            {"latency_ms": 1},
            "latency_ms 1 cannot be met; the best possible is 2.5 ms, with 1 layer with 1 head",
        ),
        ({}, {"speedup": 50}, "speedup 50 cannot be met; the best possible is 10.4"),
        ({}, {"bytes": "1 kB"}, "bytes 1.0 kB cannot be met; the best possible is"),
        (
            {},
            {"speedup": 2, "batch": 8},
            "batch 8, 64 tokens, 1 thread asked for; the table has batch 1, 64 tokens",
        ),
        ({}, {"speedup": 2, "form": "fp32"}, "was measured with form int8; this recipe has fp32"),
        ({"opset": 23}, {"speedup": 2}, "was measured with opset 23; this recipe has 20"),
        (
            {"model": OTHER},
            {"speedup": 2},
            "is the table of another model, large (xlm-roberta of width 1024, 24 layers",
        ),
    ],
)
def test_a_budget_that_cannot_be_used_is_explained(workplace, tmp_path, table, budget, said):
    sizing.write_table(known_table(**table), tmp_path / "table.json")
    result = dry_run(workplace, tmp_path, table="table.json", **budget)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        ({"budget": {"speedup": 2}, "layers": 1}, "give either these or the budget"),
        ({"budget": {"speedup": 2}, "heads": 0.5}, "give either these or the budget"),
        ({"budget": {"batch": 1}}, "nothing is limited"),
        ({"budget": {"speedup": 2, "form": "int9"}}, "'fp32', 'fp16' or 'int8'"),
        ({"budget": {"bytes": "ten"}}, "expected a number of bytes, or a size such as 10.5 MB"),
        ({"budget": {"bytes": "9" * 400 + " GB"}}, "finite number"),
        ({"budget": {"latency_ms": 0}}, "greater than 0"),
    ],
)
def test_a_budget_that_says_nothing_is_refused(structure, said):
    with pytest.raises(ValueError, match=said):
        StructureRecipe(**structure)


def test_a_budget_that_nobody_settled_never_trains():
    with pytest.raises(ValueError, match="not settled"):
        require_possible(tiny_model(), StructureRecipe(budget={"speedup": 2}), refitted=False)


@pytest.mark.parametrize(
    ("given", "meant"), [("10.5 MB", 10_500_000), ("12kB", 12_000), (7, 7), ("900 B", 900), ("1gb", 10**9)]
)
def test_bytes_may_have_a_unit(given, meant):
    assert StructureRecipe(budget={"bytes": given}).budget.bytes == meant


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "budget.json").write_text("{}")
    with pytest.raises(ModelError, match=r"budget\.json: is damaged"):
        Settled.read(tmp_path / "budget.json")
    (tmp_path / "budget.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"budget\.json: is damaged"):
        Settled.read(tmp_path / "budget.json")
    for text, said in (('{"files": []}', "it is not a table of sizes"), ("[" * 100_000, "recursion")):
        (tmp_path / "table.json").write_text(text)
        with pytest.raises(RecipeError, match=rf"table\.json cannot be read: .*{said}"):
            sizing.read_table(tmp_path / "table.json", source(), INT8)
    with pytest.raises(RecipeError, match=r"missing\.json is not there"):
        sizing.read_table(tmp_path / "missing.json", source(), INT8)


# --- the command ------------------------------------------------------------------------------------------------------


def bundle(folder, **model):
    """What a table needs of a bundle: config.json, report.json and one graph."""
    config = {**source().config.to_dict(), "xlmprune": {"kind": "tokens"}, **model}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    graph = helper.make_graph([], "empty", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), folder / "model.onnx")
    facts = {"name": "small", "structure": {"whole": {"layers": 12, "heads": 4, "neurons": 512}}}
    (folder / "report.json").write_text(json.dumps({"model": facts}))
    return folder


def test_a_bundle_is_sized_as_the_model_it_was_made_from(tmp_path):
    cut = {"head_size": 4, "layers": [{"source": 0, "heads": 1, "neurons": 256}] * 2}
    folder = bundle(tmp_path / "bundle", structure=cut)
    found = sizing.source_of_bundle(folder)
    assert found.facts() == {
        "name": "small", "type": "xlm-roberta", "hidden": 16, "layers": 12, "heads": 4, "neurons": 512
    }  # fmt: skip
    assert found.kind == "tokens"
    assert sizing.exporting_of_bundle(folder, "int8") == sizing.Exporting("int8", 23, "int8")
    (folder / "report.json").unlink()
    with pytest.raises(BundleError, match="do not describe a model"):
        sizing.source_of_bundle(folder)


@pytest.mark.slow
def test_bench_compares_with_the_whole_model(tmp_path, monkeypatch):
    cut = {"head_size": 4, "layers": [{"source": 0, "heads": 1, "neurons": 256}] * 2}
    folder, said = bundle(tmp_path / "bundle", structure=cut), []
    with contenders(folder, say=said.append) as files:
        assert list(files) == ["dense fp32", "fp32"]
        graph = onnx.load(files["dense fp32"])
        assert sum(tensor.dims[:] == [300, 16] for tensor in graph.graph.initializer) == 1, "the vocabulary"
        wide = [tensor for tensor in graph.graph.initializer if sorted(tensor.dims) == [16, 512]]
        assert len(wide) == 2 * 12, "two matrices of each layer"
        assert open_session(files["dense fp32"], 1).get_inputs()
    assert [text.split(" to compare")[0] for text in said] == ["exporting the dense model"]
    with contenders(folder, folder) as files:
        assert "dense fp32" not in files
    with monkeypatch.context() as patch:
        for module in ("sizing", "whole"):
            patch.delitem(sys.modules, f"xlmprune.export.{module}")
        patch.setitem(sys.modules, "torch", None)
        with contenders(folder, say=said.append) as files:
            assert list(files) == ["fp32"]
    assert said[1].startswith(
        "the dense model was not measured: it needs the package torch, which is not installed."
    )
    (folder / "report.json").write_text(json.dumps({"model": {"structure": {"whole": {}}}}))
    with contenders(folder, say=said.append) as files:
        assert list(files) == ["fp32"]
    assert "do not describe a model" in said[-1]


def test_bench_writes_a_table(tmp_path, monkeypatch):
    measured = []

    def measure(source, exporting, conditions, say, seconds):
        measured.append((source.name, exporting, conditions))
        return known_table()

    monkeypatch.setattr(sizing, "measure", measure)
    folder, file = bundle(tmp_path / "bundle"), tmp_path / "table.json"
    options = ["--latency-table", str(file), "--threads", "1,2", "--lengths", "32"]
    result = CliRunner().invoke(app, ["bench", str(folder), *options])
    assert result.exit_code == 0, result.output
    assert measured == [("small", sizing.Exporting("int8", 23, "int8"), [(1, 32, 1), (1, 32, 2)])]
    assert SizeTable.from_record(json.loads(file.read_text(encoding="utf-8"))) == known_table()
    result = CliRunner().invoke(app, ["bench", str(folder), *options, "--form", "int9"])
    assert result.exit_code == 2
    assert "no form is called 'int9'" in result.output


@pytest.mark.parametrize(("name", "said"), [("", "is a folder"), ("none/t.json", "there is no folder")])
def test_nothing_is_measured_for_a_table_that_cannot_be_written(tmp_path, monkeypatch, name, said):
    monkeypatch.setattr(sizing, "measure", lambda *_: pytest.fail("measured"))
    folder = bundle(tmp_path / "bundle")
    result = CliRunner().invoke(app, ["bench", str(folder), "--latency-table", str(tmp_path / name)])
    assert result.exit_code == 2
    assert said in result.output


def test_a_size_that_cannot_be_timed_is_named(exported, monkeypatch):
    monkeypatch.setattr(sizing, "random_model", lambda *_: None)
    monkeypatch.setattr(sizing, "export_onnx", lambda model, opset: exported[1])
    with pytest.raises(BundleError, match=r"1 layer with 1 head .* does not accept texts of 100000 tokens"):
        sizing.measure(source(), INT8, [(1, 100_000, 1)], seconds=0.1)


def test_bench_takes_a_recipe(workplace, tmp_path, monkeypatch):
    measured = []

    def measure(source, exporting, conditions, say, seconds):
        measured.append((source.facts(), exporting, conditions))
        return known_table()

    monkeypatch.setattr(sizing, "measure", measure)
    model = {"name": str(workplace / "model")}
    recipe = write_recipe(tmp_path, model=model, **sections(workplace, speedup=2))
    task = f"task.path={workplace / 'data' / '{language}.{split}.tsv'}"
    options = ["--latency-table", str(tmp_path / "t.json"), "--form", "fp32", "--set", task]
    result = CliRunner().invoke(app, ["bench", str(recipe), *options])
    assert result.exit_code == 0, result.output
    assert measured == [
        ({"name": model["name"], **WHOLE}, sizing.Exporting("fp32", 20, "int8"), [(1, 64, 1)])
    ]


def test_numbers_of_threads_are_checked(tmp_path):
    result = CliRunner().invoke(app, ["bench", str(tmp_path), "--threads", "1,x"])
    assert result.exit_code == 2
    assert "--threads 1,x" in result.output
