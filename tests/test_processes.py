"""Several processes that make one run: what they tell each other, and that together they do what one does."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import golden
import launch
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_run import merged
from typer.testing import CliRunner

from xlmprune import cli, pipeline
from xlmprune.cli import app
from xlmprune.core import gpu, processes
from xlmprune.core.device import resolve_device
from xlmprune.core.errors import MachineError, ProcessesError
from xlmprune.core.stopping import StopRequest
from xlmprune.recipe.loading import recipe_of
from xlmprune.training.loop import FinePruning

CPU = torch.device("cpu")


def together(count, check):
    """Call ``check(rank)`` in processes that have joined; it fails where it raises."""

    def work(rank):
        with processes.joined(CPU):
            check(rank)

    assert launch.fork(count, work) == [0] * count


# --- what they tell each other ----------------------------------------------------------------------------------------


def test_one_process_is_alone():
    assert (processes.launched(), processes.count(), processes.rank(), processes.is_first()) == (
        1,
        1,
        0,
        True,
    )
    items = [3, 1, 2]
    assert processes.own(items) is items
    assert processes.spread(items, str) == ["3", "1", "2"]
    assert processes.either(True, False) == (True, False)
    assert processes.from_first(lambda: items) is items
    weight = torch.nn.Parameter(torch.ones(2))
    assert processes.sum_gradients([weight], torch.tensor(0.5)) == 0.5
    assert weight.grad is None
    processes.require_same("recipe", 1)
    processes.require_one("a command")


def test_whoever_serves_a_bundle_imports_no_torch():
    code = "import sys; from xlmprune.core import processes; processes.count(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("count", [2, 3])
def test_work_is_spread_and_comes_back_in_order(count):
    def check(rank):
        done = []
        for items in ([], [7], list(range(8))):
            found = processes.spread(items, lambda item: (done.append(item), {"of": item})[1])
            assert found == [{"of": item} for item in items]
        assert done == ([7] if rank == 0 else []) + list(range(8))[rank::count]

    together(count, check)


LEAVING = """
import launch, psutil, torch
from xlmprune.core import processes

def ends(rank):
    before = psutil.Process().num_threads()
    with processes.joined(torch.device("cpu")):
        from torch.distributed import nn  # as libraries do, at some time
        processes.spread([1, 2], str)
        assert psutil.Process().num_threads() > before
    assert psutil.Process().num_threads() == before

def first_fails(rank):
    before = psutil.Process().num_threads()
    try:
        with processes.joined(torch.device("cpu")):
            processes.spread([1, 2], str)  # both have joined
            processes.from_first(lambda: [][0])
    except (IndexError, processes.ProcessesError) as error:
        assert isinstance(error, IndexError) == (rank == 0)
    assert rank == 0 or psutil.Process().num_threads() == before

raise SystemExit(max(launch.fork(2, ends) + launch.fork(2, first_fails)))
"""


def test_no_thread_of_the_group_outlives_it():
    """One that works while the interpreter ends can abort the process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(launch.__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LEAVING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_gradients_and_losses_are_added_up(monkeypatch):
    monkeypatch.setattr(
        processes, "BUCKET", 5
    )  # so that there are several messages, and one of a large parameter

    def check(rank):
        weights = [torch.nn.Parameter(torch.zeros(size)) for size in (2, 3, 7, 1, 2)]
        weights.append(torch.nn.Parameter(torch.zeros(2), requires_grad=False))
        for number, weight in enumerate(weights[:3]):
            weight.grad = torch.full_like(weight, 10.0**number * (rank + 1))
        if rank == 1:
            weights[3].grad = torch.ones(1)
        loss = processes.sum_gradients(weights, torch.tensor(0.1 * (rank + 1), dtype=torch.float64))
        assert loss == 0.1 + 0.2  # as Python adds them
        for number, weight in enumerate(weights[:3]):
            assert weight.grad.tolist() == [10.0**number * 3] * len(weight)
        assert weights[3].grad.tolist() == [1.0]
        assert weights[4].grad is None
        assert weights[5].grad is None

    together(2, check)


def test_gradients_of_an_empty_share_are_those_of_the_others():
    def check(rank):
        weight = torch.nn.Parameter(torch.zeros(2, 2))
        if rank == 0:
            weight.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T
        assert processes.sum_gradients([weight], torch.tensor(float(rank == 0))) == 1.0
        assert weight.grad.tolist() == [[1.0, 3.0], [2.0, 4.0]]

    together(3, check)


def test_what_the_first_one_has_arrives_as_it_is():
    """Tensors are shared where they were, parameters are parameters, and the others call nothing."""

    def make():
        assert processes.rank() == 0
        assert processes.count() == 1  # whatever it calls, nobody else takes part
        shared = torch.arange(6.0).view(2, 3)
        model = torch.nn.Linear(3, 2)
        with torch.no_grad():
            model.weight.copy_(shared)
        tensors = [
            shared,
            shared,
            shared.T,
            torch.tensor(True),
            torch.empty(0),
            torch.tensor(3, dtype=torch.int64),
        ]
        return {"tensors": tensors, "model": model.requires_grad_(False), "word": "drei"}

    def check(rank):
        found = processes.from_first(make)
        shared, again, turned, truth, empty, three = found["tensors"]
        assert shared is again
        assert shared.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert turned.tolist() == [[0, 3], [1, 4], [2, 5]]
        assert (truth.dtype, bool(truth), empty.shape, three.item()) == (torch.bool, True, (0,), 3)
        assert isinstance(found["model"].weight, torch.nn.Parameter)
        assert not found["model"].weight.requires_grad
        assert torch.equal(found["model"].weight, shared)
        assert found["word"] == "drei"
        assert processes.count() == 2

    together(2, check)


def test_tensors_are_overwritten_in_place():
    def check(rank):
        held = torch.full((2, 3), float(rank))
        processes.copy_from_first([held.T, held[0]])
        assert held.eq(0).all()

    together(2, check)


def test_a_flag_of_one_is_a_flag_of_all():
    together(3, lambda rank: _equal(processes.either(rank == 2, False), (True, False)))


def _equal(found, expected):
    assert found == expected


def test_a_difference_is_named():
    def check(rank):
        processes.require_same("conditions", {"threads": 1})
        with pytest.raises(
            ProcessesError, match="process 1 differs from process 0 in its conditions: threads 2, expected 1"
        ):
            processes.require_same("conditions", {"device": "cpu", "threads": 1 + (rank == 1)})
        with pytest.raises(
            ProcessesError, match="process 1 differs from process 0 in its seed: 1, expected 0"
        ):
            processes.require_same("seed", rank)

    together(2, check)


def test_checksums_see_every_bit_and_every_place():
    tensor = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (before,) = processes.checksums([tensor])
    assert processes.checksums([tensor.clone()]) == [before]
    assert processes.checksums([tensor[[0, 1, 4, 3, 2]]]) != [before]
    assert processes.checksums([torch.nextafter(tensor, tensor + 1)]) != [before]
    mask = torch.zeros(9, dtype=torch.bool)
    (empty,) = processes.checksums([mask])
    mask[8] = True
    assert processes.checksums([mask]) != [empty]
    assert processes.checksums([]) == []


def test_a_process_that_ends_is_noticed_at_once():
    def meet_again():
        processes.wait()  # both have joined
        processes.wait()

    def work(rank):
        if rank == 1:
            with processes.joined(CPU):
                processes.wait()
                os._exit(7)
        started = time.monotonic()
        with pytest.raises(ProcessesError, match="another process of this run ended"), processes.joined(CPU):
            meet_again()
        assert time.monotonic() - started < 20
        assert processes.count() == 1

    assert launch.fork(2, work) == [0, 7]


def test_each_draws_its_own_dropout_and_the_first_that_of_one_process():
    class Loop:
        seed = 5

        class state:
            class at:
                stage, update = 1, 2

    def check(rank):
        torch.manual_seed(3)
        FinePruning._draw_apart(Loop())
        drawn = processes.spread([0, 1], lambda _: torch.rand(4).tolist())
        torch.manual_seed(3)
        assert drawn[0] == torch.rand(4).tolist()
        assert drawn[1] != drawn[0]

    together(2, check)


def test_recipes_and_conditions_must_be_equal():
    values = {"task": {"name": "classification", "source": "files", "path": "data/{language}.{split}.tsv"}}

    def check(rank):
        recipe = recipe_of({**values, "name": "mine", "model": {"name": "quickstart"}}, {})
        assert pipeline.agreed(recipe, CPU, None) == recipe
        elsewhere = recipe.task.model_copy(update={"path": f"/data-{rank}/{{language}}.{{split}}.tsv"})
        assert pipeline.agreed(recipe.model_copy(update={"task": elsewhere}), CPU, None).task.path[6] == "0"
        with pytest.raises(ProcessesError, match="in its recipe: seed 1, expected 0"):
            pipeline.agreed(recipe.model_copy(update={"seed": rank}), CPU, None)
        torch.set_num_threads(1 + rank)
        with pytest.raises(ProcessesError, match="in its conditions: threads 2, expected 1"):
            pipeline.agreed(recipe, CPU, None)

    together(2, check)


# --- how they are started ---------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """Return a function that makes this process one of several."""

    def start(rank, count, host=None):
        for name, value in launch.variables(rank, count, host=host).items():
            monkeypatch.setenv(name, value)

    return start


@pytest.mark.parametrize("missing", processes.VARIABLES)
def test_a_variable_of_somebody_else_starts_nothing(started, monkeypatch, missing):
    started(1, 2)
    assert (processes.launched(), processes.is_first()) == (2, False)
    monkeypatch.delenv(missing)
    assert (processes.launched(), processes.is_first()) == (1, True)


def test_each_takes_the_gpu_of_its_number(started, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(gpu, "require_code_for", lambda device: None)
    started(3, 4, host=2)
    assert resolve_device("auto") == torch.device("cuda:1")
    assert resolve_device("cuda") == torch.device("cuda:1")
    assert resolve_device("cpu") == CPU
    with pytest.raises(MachineError, match="2 processes on this host would share one GPU"):
        resolve_device("cuda:1")
    started(2, 3)
    with pytest.raises(MachineError, match="3 processes were started on this host, which has 2 GPUs"):
        resolve_device("auto")
    started(1, 2, host=1)
    assert resolve_device("cuda:1") == torch.device("cuda:1"), "alone on its host"


def test_a_second_signal_does_not_stop_several_at_once(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked


@pytest.mark.parametrize("arguments", [["compare", "quickstart_methods"], ["export", "runs/mine"]])
def test_other_commands_run_in_one_process(started, arguments):
    started(0, 2)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert f"xlmprune {arguments[0]} runs in one process; start it without torchrun" in result.output
    started(1, 2)
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.output) == (2, "")


def test_an_error_of_one_says_whose_it_is(started):
    started(1, 2)
    result = CliRunner().invoke(app, ["compress", "quickstart", "--device", "tpu"])
    assert result.exit_code == 2
    assert result.output.startswith("xlmprune: process 1 of 2: --device tpu: expected")


# --- whole runs -------------------------------------------------------------------------------------------------------

PLAIN = {
    "task": {"languages": ["de", "th"]},
    "training": {"precision": "fp32", "dense_epochs": 1},
    "export": {"onnx": []},
}
"""Over those of `golden.RUNS`."""

MORE = {
    "obert": {
        **golden.RUNS["obert"],
        "pruning": {**golden.RUNS["obert"]["pruning"], "criterion": {"name": "obert", "batches": 8}},
    },
    "movement": {
        "task": golden.TEXT,
        "pruning": {
            "criterion": "movement",
            "regrow": True,
            "schedule": {"name": "continuous", "final_density": 0.4, "every": 2, "restart": True},
        },
    },
    "l0": {"task": golden.TEXT, "pruning": {**golden.BASE["pruning"], "criterion": "l0"}},
    "refit": {
        "task": golden.TEXT,
        "distillation": {"unlabelled": "unlabelled/{language}.txt"},
        "pruning": {
            **golden.BASE["pruning"],
            "criterion": "wanda",
            "reconstruct": {"texts": 20, "ridge": 1.0, "correct_drift": True},
        },
    },
    "cut": {
        "task": golden.TEXT,
        "distillation": {"unlabelled": "unlabelled/{language}.txt", "hidden": 1.0},
        "pruning": {
            "pattern": "structured",
            "structure": {"heads": 0.5, "neurons": 0.5, "multiple": 4, "rounds": 2},
            "reconstruct": {"texts": 20},
        },
    },
    "sizes": {
        "task": golden.TEXT,
        "pruning": {
            "pattern": "structured",
            "structure": {"heads": 1.0, "neurons": 1.0, "multiple": 4, "smallest": 0.5},
        },
        "export": {"sizes": [1, 0.5]},
    },
}
"""Runs of what `golden.RUNS` has none of, and a shorter one."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the inputs of the golden runs, and a model without dropout, so that parts of a batch do not matter."""
    folder = tmp_path_factory.mktemp("processes")
    golden.write_inputs(folder)
    file = folder / "model" / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    file.write_text(json.dumps({**values, **still}), encoding="utf-8")
    return folder


def write_recipe(folder, name, **sections):
    values = {"name": name, **golden.BASE, **{**golden.RUNS, **MORE}[name]}
    values = merged(values, {**PLAIN, **sections})
    values["model"] = {"name": "./model", **values.get("model", {})}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file.name


def compress(folder, recipe, runs):
    """Make runs of a recipe: the folder of each, and its number of processes with further options."""
    jobs = [f"{count} compress {recipe} --out {out} {' '.join(more)}" for out, (count, *more) in runs.items()]
    command = [sys.executable, launch.__file__, *jobs]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [folder / out for out in runs]


def saved(run, file):
    """Return tensors of the last checkpoint."""
    last = max((run / "checkpoint").glob("saved-*"))
    return load_file(last / f"{file}.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def distance(first, second):
    """Return the largest distance of two models' matrices, relative to each one's norm.

    Biases are left out: rounding is all of the gradient of a key's bias, and AdamW makes a step of it.
    """
    return max(
        float((first[key] - matrix).norm() / matrix.norm())
        for key, matrix in second.items()
        if matrix.ndim == 2
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, autograd does not survive a fork")
def test_two_processes_are_two_micro_batches(workplace, monkeypatch):
    """Bit for bit, since both add up the same two gradients."""
    recipe = write_recipe(workplace, "cosine", evaluation={"batch_size": 5})
    with contextlib.chdir(workplace):
        options = ["--device", "cpu", "--set", "training.gradient_accumulation=2"]
        done = CliRunner().invoke(app, ["compress", recipe, "--out", "parts", *options])
        assert done.exit_code == 0, done.output
        monkeypatch.setattr(sys, "argv", ["xlmprune", "compress", recipe, "--out", "two", "--device", "cpu"])
        assert launch.fork(2, lambda rank: cli.main()) == [0, 0]
    two, parts = workplace / "two", workplace / "parts"
    for file in ("model", "masks", "dense", "observed"):
        assert same(saved(two, file), saved(parts, file)), file
    reports = [
        json.loads((run / "bundle" / "report.json").read_text(encoding="utf-8")) for run in (two, parts)
    ]
    assert reports[0]["languages"] == reports[1]["languages"]
    assert [stage["loss"] for stage in reports[0]["stages"]] == [
        stage["loss"] for stage in reports[1]["stages"]
    ]
    assert [report["environment"]["processes"] for report in reports] == [2, 1]


ALL = ["pins", "tokens", "obert", "movement", "l0", "refit", "cut", "sizes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "batch"), [*((name, 2, 8) for name in ALL), ("cosine", 3, 8), ("pins", 3, 2)]
)
def test_several_processes_do_what_one_does(workplace, name, count, batch):
    """Up to the order of sums. Three do not divide a batch of eight, and of a batch of two the third has nothing."""
    recipe = write_recipe(workplace, name, training={**PLAIN["training"], "batch_size": batch})
    parts = f"--set training.gradient_accumulation={min(count, batch)}"
    several, one = compress(
        workplace, recipe, {f"{name}-{count}": [count], f"{name}-1-of-{count}": [1, parts]}
    )
    assert same(saved(several, "masks"), saved(one, "masks"))
    assert distance(saved(several, "model"), saved(one, "model")) < 1e-3


@pytest.mark.slow
def test_a_batch_in_two_processes_is_the_batch_in_one(workplace):
    recipe = write_recipe(workplace, "cosine")
    two, one = compress(workplace, recipe, {"halves": [2], "whole": [1]})
    assert same(saved(two, "masks"), saved(one, "masks"))
    assert distance(saved(two, "model"), saved(one, "model")) < 1e-4


# --- as a user starts them ----------------------------------------------------------------------------------------------


def torchrun(folder, recipe, out, *options, count=2):
    """Start a run as a user does."""
    command = ["torch.distributed.run", "--nproc-per-node", str(count), "-m", "xlmprune", "compress", recipe]
    return subprocess.Popen(
        [sys.executable, "-m", *command, "--out", out, *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes_of(run):
    """Return the processes that torchrun started, by rank, as soon as they train."""
    found = {child.environ()["RANK"]: child for child in psutil.Process(run.pid).children()}
    return [found[rank] for rank in sorted(found)]


def until_training(run, events):
    """Wait until a run that was just started has logged an update."""
    started = time.time()
    while run.poll() is None:
        if events.is_file() and events.stat().st_mtime > started:
            *_, last = events.read_text(encoding="utf-8").splitlines() or [""]
            if '"event": "update"' in last or '"event": "stage"' in last:
                return
        time.sleep(0.05)
    raise AssertionError(run.stdout.read())


@pytest.mark.slow
def test_killed_stopped_and_resumed_it_ends_the_same(workplace):
    """Any of the processes may die, and all end at once; a signal saves once; another number of processes is refused."""
    training = {**PLAIN["training"], "dense_epochs": 40, "checkpoint_minutes": 0.001}
    recipe = write_recipe(workplace, "cosine", training=training)
    whole = torchrun(workplace, recipe, "uninterrupted")
    said, _ = whole.communicate()
    assert whole.returncode == 0, said
    events = workplace / "interrupted" / "events.jsonl"

    for victim in (1, 0):
        run = torchrun(workplace, recipe, "interrupted")
        until_training(run, events)
        workers = processes_of(run)
        workers[victim].kill()
        gone, left = psutil.wait_procs(workers, timeout=20)
        assert (len(gone), left) == (2, [])
        said, _ = run.communicate()
        assert run.returncode == 1
        assert ("xlmprune: another process of this run ended" in said) == (victim == 1)

    run = torchrun(workplace, recipe, "interrupted")
    until_training(run, events)
    run.send_signal(signal.SIGTERM)
    for worker in processes_of(run):
        worker.send_signal(signal.SIGTERM)  # as well, as a scheduler does
    said, _ = run.communicate()
    assert said.count("xlmprune: interrupted; run the same command again") == 1
    checkpoints = sorted(path.name for path in (workplace / "interrupted" / "checkpoint").glob("saved-*"))
    assert not list((workplace / "interrupted" / "checkpoint").glob(".partial-*"))

    one = subprocess.run(
        [sys.executable, "-m", "xlmprune", "compress", recipe, "--out", "interrupted"],
        cwd=workplace,
        capture_output=True,
        text=True,
        check=False,
    )
    assert one.returncode == 2
    assert "processes 2 -> 1" in one.stderr
    assert sorted(p.name for p in (workplace / "interrupted" / "checkpoint").glob("saved-*")) == checkpoints

    run = torchrun(workplace, recipe, "interrupted")
    said, _ = run.communicate()
    assert run.returncode == 0, said
    assert golden.digests(workplace / "interrupted") == golden.digests(workplace / "uninterrupted")
    logged = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    stages = [event for event in logged if event["event"] == "stage"]
    assert [event["stage"] for event in stages] == [0, 1, 2, 3], "each is written once"

    run = torchrun(workplace, recipe, "interrupted")
    said, _ = run.communicate()
    assert run.returncode == 0
    assert said.count("this run is finished; nothing to do") == 1


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_where_that_is_allowed(workplace):
    recipe = write_recipe(workplace, "cosine", training={**PLAIN["training"], "dense_epochs": 40})
    run = torchrun(workplace, recipe, "changed")
    until_training(run, workplace / "changed" / "events.jsonl")
    run.send_signal(signal.SIGINT)
    run.communicate()
    run = torchrun(workplace, recipe, "changed", "--allow-change", count=3)
    said, _ = run.communicate()
    assert run.returncode == 0, said
    report = json.loads((workplace / "changed" / "bundle" / "report.json").read_text(encoding="utf-8"))
    assert report["changed_conditions"][0]["changed"] == {"processes": [2, 3]}
    assert report["environment"]["processes"] == 3


@pytest.mark.slow
def test_bad_input_is_one_sentence_of_the_first(workplace):
    recipe = write_recipe(workplace, "cosine", task={"path": "nowhere/{language}.{split}.tsv"})
    run = torchrun(workplace, recipe, "nothing")
    said, _ = run.communicate()
    assert run.returncode == 1
    assert [line for line in said.splitlines() if line.startswith("xlmprune: ")] == [
        line for line in said.splitlines() if "no test file of any language" in line
    ]


@pytest.mark.slow
def test_the_second_host_needs_the_recipe_alone(workplace, tmp_path):
    recipe = write_recipe(workplace, "cosine")
    shutil.copy(workplace / recipe, tmp_path)
    port = str(launch.free_port())
    hosts = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(number)),
                *("--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port),
                *("-m", "xlmprune", "compress", recipe, "--out", "hosts"),
            ],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, folder in enumerate((workplace, tmp_path))
    ]
    said = [host.communicate()[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert (workplace / "hosts" / "bundle" / "report.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [recipe]
    assert "stage 3/3" in said[0]
    assert "stage" not in said[1]


@pytest.mark.slow
def test_the_job_array_of_the_documentation(workplace, tmp_path):
    """Every entry of a plan in a job of its own, with a stand-in for srun; then `compare` has nothing to run."""
    page = (Path(__file__).parents[1] / "docs" / "clusters.md").read_text(encoding="utf-8")
    script = next(
        block for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "ARRAY_TASK_ID" in block
    )
    (tmp_path / "cells.sh").write_text(script, encoding="utf-8")
    for name, line in (("srun", 'exec "$@"'), ("xlmprune", f'exec {sys.executable} -m xlmprune "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    recipe = write_recipe(workplace, "cosine", training={**PLAIN["training"], "regularize_dense": False})
    out = tmp_path / "out"
    (out / "recipes").mkdir(parents=True)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(out)}

    def run(*command, **variables):
        done = subprocess.run(
            command, cwd=workplace, env=environment | variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done

    compare = ("xlmprune", "compare", recipe, "--vary", "regularizer=none,cosine")
    plan = run(*compare, "--dry-run", "--json").stdout
    (out / "plan.json").write_text(plan, encoding="utf-8")
    run(*compare, "--out", str(out), "--only", json.loads(plan)[0]["method"])
    for number in range(2):
        run("bash", str(tmp_path / "cells.sh"), SLURM_ARRAY_TASK_ID=str(number))
    events = (out / json.loads(plan)[1]["name"] / "events.jsonl").read_text(encoding="utf-8")
    assert "dense_shared" in events
    assert "2 cells, 2 finished already, 0 processes to run" in run(*compare, "--out", str(out)).stderr
