"""The whole command on a tiny model: what it writes, that it resumes exactly, and what it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from slow import slow_but
from tiny import SENTENCES, tiny_model, tiny_tokenizer
from tiny_run import assert_same_weights, report_of, stopped_at, write_data, write_recipe
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

import xlmprune
from xlmprune.bundle.session import Bundle
from xlmprune.cli import app
from xlmprune.core.device import computes_bf16_quickly
from xlmprune.core.errors import BundleError
from xlmprune.models.loading import prunable, save_tokenizer
from xlmprune.training import run as training

LANGUAGES = list(SENTENCES)


@pytest.fixture(scope="module")
def finished(workplace):
    """(run folder, what was printed) of one whole run through the command line, both forms."""
    recipe = write_recipe(workplace, export={"onnx": ["fp32", "int8"]})
    result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(workplace / "run")])
    assert result.exit_code == 0, result.output
    return workplace / "run", result


def test_results_on_stdout_progress_on_stderr(finished):
    _, result = finished
    assert "stage 3/3" in result.stderr
    assert "stage" not in result.stdout.split("\n")[0]
    for language in ("German", "Thai", "Chinese"):
        assert language in result.stdout


def test_bundle_holds_what_the_contract_names(finished):
    run, _ = finished
    names = {
        path.relative_to(run / "bundle").as_posix() for path in (run / "bundle").rglob("*") if path.is_file()
    }
    assert names >= {
        "model.onnx",
        "model.int8.onnx",
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "report.json",
        "report.md",
        "report.html",
        "golden.safetensors",
        "manifest.json",
        "triton/tiny/config.pbtxt",
        "triton/tiny/1/model.onnx",
    }
    assert (run / "recipe.yaml").is_file()
    assert json.loads((run / "bundle" / "config.json").read_text())["id2label"] == {
        "0": "door",
        "1": "light",
        "2": "sleep",
        "3": "temperature",
    }


def test_triton_and_predict_use_the_form_that_serves_best(finished):
    bundle = finished[0] / "bundle"
    assert Bundle(bundle).served == "int8"
    triton = bundle / "triton" / "tiny"
    assert (triton / "1" / "model.onnx").read_bytes() == (bundle / "model.int8.onnx").read_bytes()
    first = (triton / "config.pbtxt").read_text(encoding="utf-8").splitlines()[0]
    assert first == "# 1/model.onnx is model.int8.onnx of the bundle."
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert "It has `model.int8.onnx` with its `config.pbtxt`" in card


@pytest.mark.slow
def test_only_the_stages_between_are_measured_in_bf16(workplace, tmp_path, monkeypatch):
    """The dense model and the last one, whose scores are compared, never are."""
    used = []

    def traced(self, forward):
        inputs = np.full((2, 4), 5), np.ones((2, 4), dtype=np.int64)
        with torch.autocast("cpu", enabled=False):
            exact = training.forward_of(shown[0].pruner.model, torch.device("cpu"))(*inputs)
        used.append((self.rows[-1]["stage"], "fp32" if np.array_equal(forward(*inputs), exact) else "bf16"))
        return measure(self, forward)

    def begin(self, *arguments, **keywords):
        shown.append(self)
        init(self, *arguments, **keywords)

    shown, measure, init = [], training.StageScores.measure, training.Training.__init__
    monkeypatch.setattr(training.StageScores, "measure", traced)
    monkeypatch.setattr(training.Training, "__init__", begin)
    for precision in ("fp32", "bf16"):
        recipe = write_recipe(
            workplace,
            name=precision,
            export={"onnx": []},
            evaluation={"stage_precision": precision, "batch_size": 8},
        )
        result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / precision)])
        assert result.exit_code == 0, result.output
        assert used == [(1, precision), (2, precision)]
        used.clear()
        shown.clear()
    ours, theirs = (report_of(tmp_path / precision)["stages"] for precision in ("fp32", "bf16"))
    assert [stage["languages"] for stage in (ours[0], ours[-1])] == [
        stage["languages"] for stage in (theirs[0], theirs[-1])
    ]


def test_weights_only_with_languages_measured_at_every_second_stage(workplace, tmp_path):
    recipe = write_recipe(
        workplace, name="weights", export={"onnx": []}, evaluation={"stage_interval": 2, "batch_size": 8}
    )
    result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    report = report_of(tmp_path / "run")
    assert [("languages" in stage, "zero_shot_mean" in stage) for stage in report["stages"]] == [
        (True, True),
        (False, False),
        (True, True),
        (True, True),
    ], "dense, the second and the last"
    assert all("alignment" in stage for stage in report["stages"])
    bundle = tmp_path / "run" / "bundle"
    assert not list(bundle.rglob("*.onnx"))
    assert "onnx_fp32" not in report["summary"]["english"]
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers" in card
    assert "onnxruntime" not in card
    verified = CliRunner().invoke(app, ["verify", str(bundle)])
    assert verified.exit_code == 0, verified.output
    assert "none was shipped" in verified.output
    asked = CliRunner().invoke(app, ["predict", str(bundle), "hello"])
    assert asked.exit_code == 2
    said = " ".join(asked.output.split())
    assert "has no ONNX file; expected model.onnx, model.fp16.onnx or model.int8.onnx" in said
    assert "xlmprune export RUN --set 'export.onnx=[int8]'" in said
    assert xlmprune.load(bundle) is not None


def test_report_counts_exactly(finished):
    report = report_of(finished[0])
    weights = prunable(xlmprune.load(finished[0] / "bundle"))
    kept = sum(round(w.numel() * 0.7**3) for w in weights.values())
    assert report["model"]["prunable"] == sum(w.numel() for w in weights.values())
    assert report["model"]["encoder_density"] == pytest.approx(kept / report["model"]["prunable"])
    graph = onnx.load(finished[0] / "bundle" / "model.onnx", load_external_data=False)
    told = {entry.key: entry.value for entry in graph.metadata_props}
    assert float(told["encoder_sparsity"]) == pytest.approx(1 - report["model"]["encoder_density"], abs=1e-6)
    removed = report["model"]["prunable"] - kept
    assert report["model"]["model_density"] == pytest.approx(1 - removed / report["model"]["parameters"])
    assert set(report["languages"]) == set(LANGUAGES)
    others = [row for language, row in report["languages"].items() if language != "en"]
    for column in ("dense", "pruned", "onnx_fp32", "onnx_int8"):
        assert report["summary"]["zero_shot_mean"][column] == pytest.approx(
            np.mean([row[column] for row in others])
        )
    assert [stage["stage"] for stage in report["stages"]] == [0, 1, 2, 3]
    assert report["stages"][0]["languages"]["en"] == report["languages"]["en"]["dense"]
    assert report["stages"][-1]["languages"]["de"] == report["languages"]["de"]["pruned"]
    assert report["parity"]["onnx_fp32"]["agreement"] == 1.0
    assert report["parity"]["onnx_fp32"]["n"] == 8 * 32
    assert "alone" not in report["parity"]["onnx_fp32"]
    assert report["parity"]["onnx_int8"]["alone"]["n"] == 8 * 25
    for row in report["languages"].values():
        assert row["ci95"][0] <= row["pruned"] <= row["ci95"][1]
    shipped = report["shipped"]
    assert (shipped["key"], shipped["file"]) == ("onnx_int8", "model.int8.onnx")
    for language, row in report["languages"].items():
        found = shipped["languages"][language]
        assert found["delta"] == pytest.approx(row["onnx_int8"] - row["dense"])
        assert found["ci95"][0] <= row["onnx_int8"] <= found["ci95"][1]
        tested = shipped["paired"][language]
        assert (tested["gained"] - tested["lost"]) * 100 / row["n"] == pytest.approx(found["delta"])


def test_the_answers_in_the_report_are_those_of_its_scores(finished):
    report = report_of(finished[0])
    for language, row in report["languages"].items():
        for model, counts in report["answers"][language].items():
            right = sum(answers.get(gold, 0) for gold, answers in counts.items())
            assert 100 * right / row["n"] == pytest.approx(row[model])
            assert sum(sum(answers.values()) for answers in counts.values()) == row["n"]
        errors = report["errors"].get(language, {"introduced": 0, "shown": []})
        assert errors["introduced"] == report["paired"][language]["lost"]
        assert len(errors["shown"]) == min(3, errors["introduced"])
    assert set(report["classes"]["shares"]) == set(LANGUAGES)
    assert set(report["classes"]["points"]) == {"en", report["shipped"]["worst"]["language"]}
    for layer in report["layers"]:
        assert 0 < layer["weight_norm"] < layer["pretrained_norm"]


def test_no_file_holds_a_path_of_this_machine(finished, workplace):
    run, _ = finished
    for path in (run / "bundle").rglob("*"):
        if path.is_file():
            assert str(workplace).encode() not in path.read_bytes(), path.name


def test_pytorch_and_onnx_agree_and_dead_weights_are_zero(finished):
    bundle = finished[0] / "bundle"
    model = xlmprune.load(bundle)
    for weight in prunable(model).values():
        assert int((weight != 0).sum()) == round(weight.numel() * 0.7**3)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
    encodings = tokenizer.encode_batch([text for sentences in SENTENCES.values() for text in sentences])
    ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
    mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids), torch.from_numpy(mask)).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    golden = load_file(bundle / "golden.safetensors")
    again = session.run(
        ["logits"], {"input_ids": golden["input_ids"], "attention_mask": golden["attention_mask"]}
    )[0]
    np.testing.assert_allclose(again, golden["logits.fp32"], atol=1e-4)


def test_verify_passes_and_a_changed_byte_fails(finished, tmp_path):
    bundle = finished[0] / "bundle"
    assert CliRunner().invoke(app, ["verify", str(bundle)]).exit_code == 0
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    data = bytearray((copy / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx").write_bytes(data)
    result = CliRunner().invoke(app, ["verify", str(copy)])
    assert result.exit_code == 3
    assert "model.onnx" in result.output


def test_unpacked_is_what_transformers_loads(finished, tmp_path):
    bundle = finished[0] / "bundle"
    result = CliRunner().invoke(app, ["unpack", str(bundle), "--out", str(tmp_path / "plain")])
    assert result.exit_code == 0, result.output
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    ours = dict(xlmprune.load(bundle).named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, ours[name]), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    for text in (SENTENCES["th"][0], "ｔｕｒｎ　ｏｎ，？", "e\u0301cole ﬁn"):
        expected = Tokenizer.from_file(str(bundle / "tokenizer.json")).encode(text).ids
        assert tokenizer(text)["input_ids"] == expected, text


def test_evaluate_gives_the_reports_scores(finished):
    run, _ = finished
    path = "task.path=" + str(run.parent / "data" / "{language}.{split}.tsv")
    result = CliRunner().invoke(app, ["evaluate", str(run / "bundle"), "--set", path, "--json"])
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)["languages"]
    for language, row in report_of(run)["languages"].items():
        assert scores[language]["score"] == pytest.approx(row["onnx_fp32"])
    short = CliRunner().invoke(app, ["evaluate", str(run / "bundle"), "--set", path, "--min", "de=100.5"])
    assert short.exit_code == 3
    assert "de is" in short.stderr


def test_evaluate_reads_test_files_alone(finished, tmp_path):
    """As the help page of `evaluate` has it, without {split}; `compress` refuses that."""
    run, _ = finished
    (tmp_path / "data").mkdir()
    for language in ("en", "de"):
        text = (run.parent / "data" / f"{language}.test.tsv").read_text(encoding="utf-8")
        (tmp_path / "data" / f"{language}.tsv").write_text(text, encoding="utf-8")
    path = f"task.path={tmp_path}/data/{{language}}.tsv"
    result = CliRunner().invoke(app, ["evaluate", str(run / "bundle"), "--set", path, "--json"])
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)["languages"]
    assert list(scores) == ["en", "de"]
    assert scores["de"]["score"] == pytest.approx(report_of(run)["languages"]["de"]["onnx_fp32"])
    recipe = str(run / "recipe.yaml")
    refused = CliRunner().invoke(app, ["compress", recipe, "--set", path, "--out", str(tmp_path / "run")])
    assert refused.exit_code == 2
    assert "without {split} train and test would be the same file" in refused.stderr


def test_predict_and_evaluate_need_neither_torch_nor_transformers(finished):
    run, _ = finished
    script = (
        "import sys\n"
        "from xlmprune.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    path = "task.path=" + str(run.parent / "data" / "{language}.{split}.tsv")
    for arguments in (
        ["predict", str(run / "bundle"), "close the door"],
        ["evaluate", str(run / "bundle"), "--set", path],
    ):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_predict_reads_lines_and_json(finished, tmp_path):
    bundle = str(finished[0] / "bundle")
    file = tmp_path / "texts.txt"
    file.write_text('close the door\n{"text": "закрой дверь"}\n', encoding="utf-8")
    result = CliRunner().invoke(app, ["predict", bundle, "--file", str(file)])
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 2
    for row in rows:
        assert row["label"] in ("light", "temperature", "sleep", "door")
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    file.write_text('{"txt": "no"}\n')
    broken = CliRunner().invoke(app, ["predict", bundle, "--file", str(file)])
    assert broken.exit_code == 2
    assert f"{file}:1" in broken.stderr


def test_a_finished_run_is_left_alone(finished):
    run, _ = finished
    before = {
        path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "lock"
    }
    result = CliRunner().invoke(app, ["compress", str(run / "recipe.yaml"), "--out", str(run)])
    assert result.exit_code == 0
    assert "finished" in result.stderr
    assert before == {
        path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "lock"
    }


def test_another_recipe_in_the_folder_is_refused(finished):
    run, _ = finished
    result = CliRunner().invoke(
        app, ["compress", str(run / "recipe.yaml"), "--out", str(run), "--set", "seed=7"]
    )
    assert result.exit_code == 2
    assert "--fresh" in result.stderr


@pytest.mark.slow
def test_killed_it_ends_with_the_same_report(workplace, uninterrupted, interrupted_once, tmp_path):
    """SIGKILL after the first checkpoint, and again while the bundle is written; `campaigns/kills.py` draws the moments."""
    out, kills = tmp_path / "run", 0
    command = [
        sys.executable,
        "-m",
        "xlmprune",
        "compress",
        interrupted_once[0],
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    for moment in ("checkpoint/saved-*", ".xlmprune/bundle/*", "never"):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            while process.poll() is None and not list(out.glob(moment)):
                time.sleep(0.005)
            process.kill()
            errors = process.stderr.read()
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        kills += process.returncode != 0
    assert kills >= 1
    ours = report_of(out)
    assert ours["languages"] == uninterrupted["languages"]
    assert ours["layers"] == uninterrupted["layers"]
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    stages = [event["stage"] for event in events if event["event"] == "stage"]
    assert stages == [0, 1, 2, 3]


@pytest.mark.slow
def test_interrupted_within_a_stage_it_goes_on_within_it(workplace, tmp_path):
    recipe = write_recipe(workplace, name="often", training={"checkpoint_minutes": 1e-9})
    with stopped_at(stage=1, update=5):
        first = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run")])
    assert first.exit_code == 130
    assert "run the same command again to resume" in first.stderr
    second = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run")])
    assert second.exit_code == 0, second.output
    assert "resuming at stage 1, update 5" in second.stderr
    unbroken = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "whole")])
    assert unbroken.exit_code == 0
    assert report_of(tmp_path / "run")["layers"] == report_of(tmp_path / "whole")["layers"]
    assert report_of(tmp_path / "run")["languages"] == report_of(tmp_path / "whole")["languages"]


@pytest.mark.parametrize(
    "number", slow_but([signal.SIGTERM], [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
)
def test_asked_to_stop_it_saves_first_and_resumes_from_there(workplace, tmp_path, number):
    recipe = write_recipe(workplace, name="stopped", export={"onnx": []})
    with stopped_at(stage=0, update=9, stop=partial(os.kill, os.getpid(), number)):
        first = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run")])
    assert first.exit_code == 130
    second = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run")])
    assert second.exit_code == 0, second.output
    assert "resuming at stage 0, update 10" in second.stderr


@pytest.mark.parametrize("call", slow_but([1], [1, 3, 20]))
def test_asked_to_stop_while_languages_are_measured_it_does_not_wait_for_the_last(
    interrupted, uninterrupted, monkeypatch, call
):
    """`call`: of the model on a batch, counted from the first stage that is measured after the resume."""
    command, run = interrupted
    from xlmprune.training.stages import StageScores

    original, measured = StageScores.measure, []

    def ask(self, forward):
        calls = []

        def counted(*batch):
            calls.append(batch)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGTERM)
            measured.append(batch)
            return forward(*batch)

        original(self, counted)

    monkeypatch.setattr(StageScores, "measure", ask)
    stopped = CliRunner().invoke(app, [*command, "--set", "evaluation.batch_size=4"])
    assert stopped.exit_code == 130, stopped.output
    assert len(measured) <= call + 1, "it stopped at the next batch"
    assert "languages" not in json.loads((newest(run) / "state.json").read_text())["stages"][-1]
    monkeypatch.undo()
    resumed = CliRunner().invoke(app, [*command, "--set", "evaluation.batch_size=4"])
    assert resumed.exit_code == 0, resumed.output
    for what in ("languages", "layers"):
        assert report_of(run)[what] == uninterrupted[what]
    stages = [{**stage, "seconds": 0} for stage in report_of(run)["stages"]]
    assert stages == [{**stage, "seconds": 0} for stage in uninterrupted["stages"]]
    assert [e["stage"] for e in events_of(run) if e["event"] == "stage"] == [
        stage["stage"] for stage in stages
    ]


def newest(run):
    return max((run / "checkpoint").glob("saved-*"))


@pytest.fixture(scope="module")
def interrupted_once(workplace, tmp_path_factory):
    """(recipe, run folder) of a run that stopped in stage 1."""
    recipe = write_recipe(workplace, name="parts", export={"onnx": []})
    out = tmp_path_factory.mktemp("interrupted") / "run"
    with stopped_at(stage=1, update=3, stop=partial(os.kill, os.getpid(), signal.SIGTERM)):
        assert CliRunner().invoke(app, ["compress", str(recipe), "--out", str(out)]).exit_code == 130
    return str(recipe), out


@pytest.fixture
def interrupted(interrupted_once, tmp_path):
    """The command that resumes a copy of that run, and the copy."""
    recipe, out = interrupted_once
    shutil.copytree(out, tmp_path / "run")
    return ["compress", recipe, "--out", str(tmp_path / "run")], tmp_path / "run"


@pytest.fixture(scope="module")
def uninterrupted(interrupted_once, tmp_path_factory):
    recipe, _ = interrupted_once
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert CliRunner().invoke(app, ["compress", recipe, "--out", str(out)]).exit_code == 0
    return report_of(out)


def events_of(run):
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "file", ["newest/model.safetensors", "newest/dense.safetensors", "start/model.safetensors"]
)
def test_a_damaged_file_is_said_and_changes_no_result(interrupted, uninterrupted, file):
    command, run = interrupted
    newest = max((run / "checkpoint").glob("saved-*")).name
    flipped = run / "checkpoint" / file.replace("newest", newest)
    content = bytearray(flipped.read_bytes())
    content[-5] ^= 1
    flipped.write_bytes(content)
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "is damaged" in result.stderr
    assert [event["what"] for event in events_of(run) if event["event"] == "damaged"] == [
        "start" if file.startswith("start") else newest
    ]
    assert report_of(run)["languages"] == uninterrupted["languages"]
    assert report_of(run)["layers"] == uninterrupted["layers"]


def test_every_start_is_recorded_and_a_change_must_be_allowed(interrupted, uninterrupted, monkeypatch):
    command, run = interrupted
    before = contents(run)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert re.search(r"conditions changed.*threads 1 -> 3.*OMP_NUM_THREADS.*--allow-change", refused.stderr)
    after = contents(run)
    assert {path: after.get(path) for path in before} == before, "nothing was written"
    allowed = CliRunner().invoke(app, [*command, "--allow-change"])
    assert allowed.exit_code == 0, allowed.output
    assert "results may differ: threads 1 -> 3" in allowed.stderr
    start, resume = (e for e in events_of(run) if e["event"] in ("start", "resume"))
    assert start["conditions"]["threads"] == 1
    assert start["conditions"]["precision"] in ("fp32", "bf16")
    assert start["conditions"].keys() >= {
        "device",
        "device_name",
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
    }
    assert resume["conditions"] == {**start["conditions"], "threads": 3}
    assert resume["changed"] == {"threads": [1, 3]}
    report = report_of(run)
    assert report["changed_conditions"] == [
        {"stage": resume["stage"], "update": resume["update"], "changed": {"threads": [1, 3]}}
    ]
    for name in ("report.md", "report.html"):
        assert "under other conditions (threads 1" in (run / "bundle" / name).read_text()
    assert "changed_conditions" not in uninterrupted


def test_a_batch_may_be_split_further_where_that_is_allowed(interrupted, uninterrupted):
    """After memory was full, so that a run of days need not start over."""
    command, run = interrupted
    split = [*command, "--set", "training.gradient_accumulation=2"]
    refused = CliRunner().invoke(app, split)
    assert refused.exit_code == 2
    assert re.search(r"gradient_accumulation 1 -> 2.*--allow-change", refused.stderr)
    assert "gradient_accumulation: 1" in (run / "recipe.yaml").read_text()
    allowed = CliRunner().invoke(app, [*split, "--allow-change"])
    assert allowed.exit_code == 0, allowed.output
    assert "gradient_accumulation: 2" in (run / "recipe.yaml").read_text()
    (changed,) = report_of(run)["changed_conditions"]
    assert changed["changed"] == {"gradient_accumulation": [1, 2]}
    again = CliRunner().invoke(app, split)
    assert again.exit_code == 0, "finished"


def contents(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}


def test_precision_on_resume(interrupted, monkeypatch):
    """`auto` may mean another precision on another machine; so may another device."""
    command, _ = interrupted
    quick = computes_bf16_quickly(torch.device("cpu"))
    monkeypatch.setattr("xlmprune.core.device.computes_bf16_quickly", lambda _: not quick)
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert re.search('precision "(fp32|bf16)" -> "(fp32|bf16)"', refused.stderr)


def test_a_form_below_the_floor_is_not_shipped(workplace, tmp_path, monkeypatch):
    from xlmprune.export import writing

    recipe = write_recipe(
        workplace, name="floor", export={"onnx": ["fp32", "int8"], "floor": {"worst_language_drop": 1.0}}
    )
    original = writing._measure

    def worse(form, *arguments):
        measured = original(form, *arguments)
        if form.name == "int8":
            object.__setattr__(measured.scores["th"], "value", -50.0)
        return measured

    monkeypatch.setattr(writing, "_measure", worse)
    result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run")])
    assert result.exit_code == 3
    assert "th fell by" in result.stderr
    assert not (tmp_path / "run" / "bundle" / "model.int8.onnx").exists()
    assert (tmp_path / "run" / "bundle" / "model.onnx").exists()
    again = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run")])
    assert again.exit_code == 3


@pytest.mark.slow
def test_a_small_vocabulary_ships_and_a_timing_that_fails_stops_nothing(workplace, tmp_path, monkeypatch):
    export = {"onnx": ["fp32", "int8"], "triton": False}
    recipe = write_recipe(workplace, export=export)
    options = [f"model.vocabulary.files=[{workplace}/data/en.train.tsv]", "model.vocabulary.max_size=100"]
    options += ["training.epochs_per_stage=1", "training.dense_epochs=1"]
    arguments = ["compress", str(recipe), *(part for option in options for part in ("--set", option))]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "small")])
    assert result.exit_code == 0, result.output
    assert report_of(tmp_path / "small")["vocabulary"]["pieces"] <= 100
    assert set(report_of(tmp_path / "small")["speed"]) == {"model.onnx", "model.int8.onnx"}

    def fail(*_):
        raise BundleError("model.onnx cannot be opened in a process of its own")

    monkeypatch.setattr("xlmprune.bundle.bench.load_once", fail)
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "untimed")])
    assert result.exit_code == 0, result.output
    assert "were not timed: model.onnx cannot be opened" in result.stderr
    assert report_of(tmp_path / "untimed")["speed"] == {}


@pytest.mark.parametrize(
    ("lost", "floor", "said"),
    [
        ({"en": 9.0, "de": 0.0}, {"worst_language_drop": 1.0}, "en fell by 9.00 points"),
        ({"en": 9.0}, {"zero_shot_drop": 1.0}, "its en is 9.00 points lower"),
        ({"en": 9.0, "de": 0.0}, {"zero_shot_drop": 1.0}, None),
        ({"en": 0.0, "de": 9.0, "th": 1.0}, {"zero_shot_drop": 4.0}, "its zero-shot mean is 5.00 points"),
    ],
)
def test_the_floor_counts_the_train_language_too(tmp_path, lost, floor, said):
    from xlmprune.evaluation.agreement import Agreement
    from xlmprune.evaluation.scores import Score
    from xlmprune.export import writing
    from xlmprune.export.form import Written, form_named
    from xlmprune.recipe.schema import FloorRecipe

    def scores(drop):
        return {code: Score(90.0 - drop * points, {}, np.ones((1, 2))) for code, points in lost.items()}

    (tmp_path / "model.int8.onnx").touch()
    form = form_named("int8")
    measured = writing.MeasuredForm(form, Written(0, 0), scores(1), Agreement())
    refused = writing.refuse([measured], scores(0), FloorRecipe(**floor), "en", tmp_path)
    assert (tmp_path / "model.int8.onnx").exists() == (said is None)
    assert said is None or said in refused["int8"]


def test_int8_alone_knows_its_dense_sizes_and_writes_for_the_while_into_the_run_folder(
    workplace, tmp_path, monkeypatch
):
    recipe = write_recipe(workplace, name="while", export={"onnx": ["int8"]})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no such folder"))
    result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert not list((tmp_path / "run").rglob(".temporary-*"))
    report = report_of(tmp_path / "run")
    dense, parameters = report["dense_bytes"], report["model"]["parameters"]
    assert set(dense) == {"onnx_fp32", "onnx_int8", "safetensors"}, "fp32 too, though it was not asked for"
    assert dense["safetensors"] == 4 * parameters
    assert 4 * parameters <= dense["onnx_fp32"] < 4 * parameters + 1000, "equal tensors of a graph each count"
    assert "against" in (tmp_path / "run" / "bundle" / "report.md").read_text(encoding="utf-8")


def test_dry_run_prints_the_plan_and_trains_nothing(workplace, tmp_path):
    recipe = write_recipe(workplace)
    result = CliRunner().invoke(
        app, ["compress", str(recipe), "--out", str(tmp_path / "run"), "--dry-run", "--json"]
    )
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert [stage["updates"] for stage in plan["stages"]] == [16, 8, 8, 8]
    assert plan["stages"][-1]["encoder_density"] == pytest.approx(0.343)
    assert set(plan["languages"]) == set(LANGUAGES)
    assert 0 < plan["memory"]["optimizer"] <= 8 * plan["parameters"]
    assert plan["disk"]["checkpoint"] >= 4 * plan["parameters"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--set", "task.languages=[en, sw]"], "sw"),
        (["--set", "model.name=no/such-model"], "model.name: quickstart"),
        (["--set", "model.name=./nowhere"], "no such folder"),
        (["--set", "training.max_length=500"], "positions"),
        (["--set", "task.source=xglue"], "xglue"),
    ],
)
def test_bad_input_is_a_sentence(workplace, tmp_path, change, said):
    recipe = write_recipe(workplace)
    result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run"), *change])
    assert result.exit_code == 2, result.output
    assert said.lower() in result.stderr.lower()
    assert "Traceback" not in result.output


def test_a_model_of_an_unknown_type_is_refused_with_the_known_ones(workplace, tmp_path):
    from transformers import ElectraConfig, ElectraModel

    config = ElectraConfig(
        vocab_size=20,
        embedding_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    ElectraModel(config).save_pretrained(tmp_path / "electra")
    recipe = write_recipe(workplace)
    change = ["--set", f"model.name={tmp_path / 'electra'}"]
    result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run"), *change])
    assert result.exit_code == 2
    assert "'electra' are not supported; known types: xlm-roberta" in result.stderr


def test_damaged_data_names_file_and_line(workplace, tmp_path):
    write_data(tmp_path / "data")
    recipe = write_recipe(workplace, task={"name": "classification", "source": "files"})
    file = tmp_path / "data" / "ru.test.tsv"
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[4] = "one column only"
    file.write_text("\n".join(lines), encoding="utf-8")
    change = ["--set", f"task.path={tmp_path / 'data'}/{{language}}.{{split}}.tsv"]
    result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run"), *change])
    assert result.exit_code == 2
    assert f"{file}:5" in result.stderr


def test_diverging_training_keeps_the_checkpoint(workplace, tmp_path):
    recipe = write_recipe(
        workplace,
        name="wild",
        training={"learning_rate": 1e30, "dense_learning_rate": 1e-3, "gradient_clip": None},
    )
    result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "learning_rate" in result.stderr
    assert list((tmp_path / "run" / "checkpoint").glob("saved-*/state.json"))


def test_time_is_not_part_of_the_result(finished):
    assert time.strptime(report_of(finished[0])["created"], "%Y-%m-%dT%H:%M:%SZ")


def test_a_run_does_not_go_on_with_other_data(workplace, tmp_path):
    write_data(tmp_path / "data")
    recipe = write_recipe(
        workplace, name="changed", task={"path": str(tmp_path / "data" / "{language}.{split}.tsv")}
    )
    command = ["compress", str(recipe), "--out", str(tmp_path / "run")]
    with stopped_at(stage=1, update=5):
        assert CliRunner().invoke(app, command).exit_code == 130
    file = tmp_path / "data" / "th.test.tsv"
    file.write_text(file.read_text(encoding="utf-8").replace("door", "light"), encoding="utf-8")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "test th" in result.stderr
    assert "--fresh" in result.stderr


def test_a_corrected_recipe_may_take_a_folder_where_nothing_has_begun(workplace, tmp_path):
    recipe = write_recipe(workplace)
    wrong = [
        "compress",
        str(recipe),
        "--out",
        str(tmp_path / "run"),
        "--set",
        "task.path=nowhere/{language}.{split}.tsv",
    ]
    result = CliRunner().invoke(app, wrong)
    assert result.exit_code == 2
    assert "nowhere/{language}.{split}.tsv" in result.stderr
    right = ["compress", str(recipe), "--out", str(tmp_path / "run"), "--set", "task.languages=[en, xx]"]
    result = CliRunner().invoke(app, right)
    assert "another recipe" not in result.stderr
    assert "'xx'" in result.stderr


def test_without_dev_examples_the_remedy_is_named(workplace, tmp_path):
    write_data(tmp_path / "data")
    (tmp_path / "data" / "en.dev.tsv").unlink()
    path = f"task.path={tmp_path / 'data'}/{{language}}.{{split}}.tsv"
    command = [
        "compress",
        str(write_recipe(workplace)),
        "--out",
        str(tmp_path / "run"),
        "--set",
        path,
        "--dry-run",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "training.keep: last" in result.stderr
    assert CliRunner().invoke(app, [*command, "--set", "training.keep=last"]).exit_code == 0


def test_notes_in_the_report_hold_no_machine_path(workplace, tmp_path):
    folder = tmp_path / "data"
    write_data(folder)
    for file in folder.glob("*.test.tsv"):
        lines = file.read_text(encoding="utf-8").splitlines()
        file.write_text(
            "\n".join([lines[0] + "\tmood", *(line + "\tcalm" for line in lines[1:])]), encoding="utf-8"
        )
    recipe = write_recipe(workplace, name="notes", task={"path": str(folder / "{language}.{split}.tsv")})
    result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    report = report_of(tmp_path / "run")
    assert "mood" in json.dumps(report["task"]["notes"]), "else this test shows nothing"
    assert str(tmp_path) not in json.dumps(report)


@pytest.mark.slow
def test_a_model_already_fine_tuned_gets_a_new_head(workplace, tmp_path):
    tiny_model(labels=("one", "two")).save_pretrained(tmp_path / "tuned")
    save_tokenizer(tiny_tokenizer(), tmp_path / "tuned", 64)
    recipe = write_recipe(workplace, name="tuned", model={"name": str(tmp_path / "tuned")})
    result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output


def spoilt_data(workplace, folder, spoil):
    """The tiny data with one file changed."""
    shutil.copytree(workplace / "data", folder / "data")
    spoil(folder / "data")
    return str(folder / "data" / "{language}.{split}.tsv")


def strip_labels(folder):
    texts = [
        line.split("\t")[0] for line in (folder / "de.test.tsv").read_text(encoding="utf-8").splitlines()
    ]
    (folder / "de.test.tsv").write_text("\n".join(texts) + "\n", encoding="utf-8")


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_what_cannot_be_scored_is_told_before_anything_is_trained(workplace, tmp_path, options):
    path = spoilt_data(workplace, tmp_path, strip_labels)
    recipe = write_recipe(workplace, name="early", task={"path": path})
    result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run"), *options])
    assert result.exit_code == 2
    assert "de.test.tsv" in result.stderr
    assert "no labels" in result.stderr
    assert "stage 0" not in result.stderr


def test_a_plan_knows_how_many_positions_the_model_has(workplace, tmp_path):
    recipe = write_recipe(workplace, name="long", training={"max_length": 500})
    result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path), "--dry-run"])
    assert result.exit_code == 2
    assert "max_length is 500" in result.stderr


def test_brackets_in_labels_are_shown_as_they_are(workplace, tmp_path):
    def bracket(folder):
        for file in folder.iterdir():
            text = file.read_text(encoding="utf-8")
            file.write_text(
                text.replace("\tlight", "\t[/light]").replace("\tdoor", "\t[red]"), encoding="utf-8"
            )

    path = spoilt_data(workplace, tmp_path, bracket)
    recipe = write_recipe(workplace, name="brackets", task={"path": path})
    result = CliRunner().invoke(app, ["compress", str(recipe), "--out", str(tmp_path / "run"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "[/light], [red], sleep" in result.stdout


def test_one_language_can_be_evaluated_without_the_others(finished, workplace, tmp_path):
    """One's own customers' data, say, of which there is none in English."""
    (tmp_path / "de.test.tsv").write_bytes((workplace / "data" / "de.test.tsv").read_bytes())
    here = f"task.path={tmp_path}/{{language}}.{{split}}.tsv"
    command = ["evaluate", str(finished[0] / "bundle"), "--set", here, "--json", "--languages"]
    result = CliRunner().invoke(app, [*command, "de"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["languages"]
    assert list(found) == ["de"]
    assert found["de"]["score"] == report_of(finished[0])["languages"]["de"]["onnx_fp32"]
    missing = CliRunner().invoke(app, [*command, "de, th"])
    assert missing.exit_code == 2
    assert "th.test.tsv" in missing.stderr


def test_prediction_files_have_a_line_for_every_example(finished, workplace, tmp_path):
    """Also where the run was measured on fewer, and where there is nothing to score against."""
    path = spoilt_data(workplace, tmp_path, strip_labels)
    command = ["evaluate", str(finished[0] / "bundle"), "--set", f"task.path={path}", "--languages", "de,th"]
    result = CliRunner().invoke(
        app, [*command, "--set", "task.max_test_examples=3", "--predictions", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    assert "no labels" in result.stdout
    for language in ("de", "th"):
        file = tmp_path / "out" / "CLASSIFICATION" / f"{language}.prediction"
        assert len(file.read_text(encoding="utf-8").splitlines()) == 32
    capped = CliRunner().invoke(app, [*command[:-1], "th", "--set", "task.max_test_examples=3"])
    assert "a sample of 3 of each" in capped.stdout
    (tmp_path / "file").write_text("")
    refused = CliRunner().invoke(app, [*command, "--predictions", str(tmp_path / "file")])
    assert refused.exit_code == 2
    assert "expected a folder for predictions" in refused.stderr


def test_a_promise_must_be_a_number(finished, workplace):
    path = f"task.path={workplace}/data/{{language}}.{{split}}.tsv"
    command = ["evaluate", str(finished[0] / "bundle"), "--set", path, "--languages", "de", "--min", "de=nan"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "--min de=nan: expected WHAT=SCORE" in result.stderr


def test_empty_lines_are_counted(finished, tmp_path):
    (tmp_path / "texts.txt").write_text("turn on the light\n\nsleep\n\n", encoding="utf-8")
    result = CliRunner().invoke(
        app, ["predict", str(finished[0] / "bundle"), "--file", str(tmp_path / "texts.txt")]
    )
    assert len(result.stdout.splitlines()) == 2
    assert "2 empty lines left out" in result.stderr


def test_a_wrong_override_of_evaluate_is_a_sentence(finished):
    result = CliRunner().invoke(
        app, ["evaluate", str(finished[0] / "bundle"), "--set", "task.max_test_examples=many"]
    )
    assert result.exit_code == 2
    assert "--set task.max_test_examples=many: task.max_test_examples: " in result.stderr
    assert "found 'many'" in result.stderr


@pytest.mark.slow
def test_inside_a_bundle_the_module_is_a_command_too(finished):
    """A bundle has a folder `triton`, which Python would take for the package that PyTorch looks for."""
    command = [sys.executable, "-m", "xlmprune", "unpack", ".", "--out", str(finished[0].parent / "inside")]
    done = subprocess.run(command, cwd=finished[0] / "bundle", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_is_the_same_whatever_order_python_gives_sets(workplace, tmp_path):
    """Every process orders sets of strings anew; nothing that a run reads, removes or writes may follow that order."""
    recipe = write_recipe(
        workplace,
        task={
            **{
                "name": "classification",
                "source": "files",
                "languages": [code for code in LANGUAGES if code != "th"],
            },
            "path": str(workplace / "data" / "{language}.{split}.tsv"),
        },
        model={
            "name": str(workplace / "model"),
            "vocabulary": {"files": [str(workplace / "text" / "{language}.txt")]},
        },
        distillation={"teacher": "finetuned", "unlabelled": str(workplace / "text" / "{language}.txt")},
        pruning={"criterion": "pins", "reconstruct": {"texts": 40}},
    )
    runs = [tmp_path / str(seed) for seed in (1, 2)]
    for run in runs:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "xlmprune",
                "compress",
                str(recipe),
                "--out",
                str(run),
                "--device",
                "cpu",
                "--quiet",
            ],
            env={**os.environ, "PYTHONHASHSEED": run.name},
            check=True,
        )
    assert_same_weights(*runs)
    for name in ("model.onnx", "tokenizer.json"):
        one, other = (run / "bundle" / name for run in runs)
        assert one.read_bytes() == other.read_bytes(), name
    languages, others = (report_of(run)["languages"] for run in runs)
    assert languages == others
