"""Compiled layers: the weights and masks of plain ones, through everything that changes a model in a run."""

import json
import re

import pytest
import torch
from test_fine_pruning import drive, examples, make_pruner, make_recipe, tiny_classifier
from tiny_run import report_of, write_recipe
from typer.testing import CliRunner

from xlmprune.cli import app
from xlmprune.core.errors import MachineError, RecipeError
from xlmprune.models import architecture
from xlmprune.recipe.loading import recipe_of
from xlmprune.training import compiling
from xlmprune.training.conditions import changes
from xlmprune.training.loop import StageEnd, Step
from xlmprune.training.teaching import Teaching

DISTANCE = 2e-5
"""Between two weights, or between two losses, of a compiled and a plain run; the weights move by 1e-2 and more."""


@pytest.fixture
def traced(monkeypatch):
    """Compile without the C++ compiler, which takes minutes: what is traced runs as PyTorch's own operators."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")


def run_of(compiled, stages=2, interrupted=None, **sections):
    """Train with a teacher while layers, heads and neurons go; return the run and its steps."""
    structure = {"layers": 1, "heads": 0.5, "neurons": 0.5, "multiple": 4, "importance": "magnitude"}
    recipe = make_recipe(
        distillation={"weight": 0.5, "hidden": 0.1, "teacher": "finetuned"},
        pruning={
            "structure": structure,
            "schedule": {"name": "geometric", "step_fraction": 0.3, "stages": stages},
        },
        **{
            **sections,
            "training": {"compile": compiled, "epochs_per_stage": 1, **sections.get("training", {})},
        },
    )

    def start():
        training = recipe.training
        teaching = Teaching(
            recipe.distillation,
            examples(10, seed=1),
            training.batch_size,
            recipe.seed,
            training.frozen_weights,
        )
        return make_pruner(recipe, tiny_classifier(), examples(), dev=lambda: 50.0, teaching=teaching)

    pruner, events = start(), []
    if interrupted is not None:
        events = drive(pruner, interrupted)
        tensors, progress = pruner.state.tensors(), pruner.state.progress()
        pruner = start()
        pruner.state.restore(tensors, progress, pruner.settings)
    return pruner, [*events, *drive(pruner)]


def assert_alike(compiled, plain, distance=DISTANCE):
    (one, events), (other, others) = compiled, plain
    for mine, theirs in zip(one.model.named_parameters(), other.model.named_parameters(), strict=True):
        assert mine[0] == theirs[0]
        assert torch.allclose(mine[1], theirs[1], rtol=0, atol=distance), mine[0]
    for name, mask in one.state.masks.items():
        assert torch.equal(mask, other.state.masks[name]), name
    losses = [[e.loss for e in part if isinstance(e, Step)] for part in (events, others)]
    assert losses[0] == pytest.approx(losses[1], abs=distance)


@pytest.mark.slow
def test_a_compiled_run_is_the_plain_run(traced):
    """Through dropped layers, narrower layers, the table of trained rows, the teacher, and dropout."""
    pruner, events = run_of(True)
    assert_alike((pruner, events), run_of(False))
    assert [type(event) for event in events].count(StageEnd) == 4
    assert pruner.gradients.compiled is not None
    assert len(pruner.gradients.compiled._calls) == 1 + 2, "the student's layer and the teacher's two"
    for layer in architecture.of(pruner.model).layers(pruner.model):
        assert "forward" not in vars(layer.module), "plain outside the updates"


@pytest.mark.slow
def test_a_compiled_run_resumes(traced):
    whole = run_of(True)
    assert_alike(run_of(True, interrupted=6), whole, distance=0)


@pytest.mark.slow
def test_compiled_in_bf16(traced):
    bf16 = {"training": {"precision": "bf16"}}
    assert_alike(run_of(True, stages=1, **bf16), run_of(False, stages=1, **bf16), distance=1e-2)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_real_compiler_gives_the_plain_run(monkeypatch):
    """Half a minute for every version of a layer. Its random numbers are others unless it is told to draw PyTorch's."""
    from torch._inductor import config

    with config.patch(fallback_random=True):
        compiled = run_of(True)
    assert_alike(compiled, run_of(False))


# --- what can fail ---------------------------------------------------------------------------------------------------


def test_a_compiler_that_fails_is_a_sentence(monkeypatch):
    monkeypatch.setattr("torch.compile", compiler_that_fails)
    expected = r"training\.compile: .*\(OSError: no compiler here\).*g\+\+.*training\.compile=false.*checkpoint is kept"
    pruner = make_pruner(make_recipe(training={"compile": True}), tiny_classifier(), examples())
    with pytest.raises(MachineError, match=expected) as caught:
        drive(pruner)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def compiler_that_fails(function, **options):
    """As `torch.compile`: nothing happens before the first call, where PyTorch wraps what its backend raised."""
    assert options == {"backend": "inductor", "fullgraph": True, "dynamic": True}

    def call(*given, **named):
        cause = OSError("no compiler here\nand more")
        error = torch._dynamo.exc.TorchDynamoException("backend='inductor' raised:")
        error.inner_exception = cause
        raise error from cause

    return call


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_missing_c_compiler_is_a_sentence(monkeypatch):
    """What PyTorch itself says where there is none."""
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        pruner = make_pruner(make_recipe(training={"compile": True}), tiny_classifier(), examples())
        with pytest.raises(MachineError, match=r"training\.compile: .*\(InvalidCxxCompiler: "):
            drive(pruner)


@pytest.mark.slow
def test_a_layer_that_never_settles_is_a_sentence_and_not_a_plain_layer(monkeypatch):
    """PyTorch itself would compute plain layers from the ninth version on, and write a line in a log."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    monkeypatch.setattr(
        compiling, "VERSIONS_PER_LAYER", 0.5
    )  # one for two layers, and a single text needs its own
    settings = {"compile": True, "batch_size": 2, "epochs_per_stage": 2}
    pruner = make_pruner(make_recipe(training=settings), tiny_classifier(), examples(5))
    with pytest.raises(MachineError, match=r"training\.compile: .*\(FailOnRecompileLimitHit: "):
        drive(pruner)


def test_full_memory_keeps_its_own_error():
    with pytest.raises(RuntimeError, match="out of memory"), compiling.explain_compiler():
        raise torch._dynamo.exc.TorchRuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(ValueError, match="ours"), compiling.explain_compiler():
        raise ValueError("ours")


def test_sizes_of_a_model_are_not_compiled(tmp_path):
    with pytest.raises(RecipeError, match=r"training\.compile=true: every size .* leave compile or"):
        recipe_of("quickstart_dynamic", {"training": {"compile": True}})


# --- the conditions of a run -----------------------------------------------------------------------------------------


def test_a_run_that_an_older_version_began_was_not_compiled():
    assert changes({"processes": 1}, {"processes": 1, "compile": False, "cuda_graphs": False}) == {}
    assert changes({"processes": 1}, {"processes": 1, "compile": True, "cuda_graphs": False}) == {
        "compile": (False, True)
    }


def test_a_run_goes_on_without_the_compiler_that_failed(workplace, tmp_path, monkeypatch):
    """The way out that the message names, from the last checkpoint."""
    recipe = write_recipe(workplace, export={"onnx": [], "triton": False})
    command = ["compress", str(recipe), "--out", str(tmp_path / "run"), "--set"]
    calls = []

    def fails_later(function, **options):
        def call(*given, **named):
            calls.append(given)
            return (function if len(calls) < 40 else compiler_that_fails(function, **options))(
                *given, **named
            )

        return call

    monkeypatch.setattr("torch.compile", fails_later)
    failed = CliRunner().invoke(app, [*command, "training.compile=true"])
    assert failed.exit_code == 2, failed.output
    assert "first updates compile" in failed.stderr
    assert "training.compile: PyTorch cannot compile" in failed.stderr
    refused = CliRunner().invoke(app, [*command, "training.compile=false"])
    assert refused.exit_code == 2
    assert re.search(r"compile true -> false.*--allow-change", refused.stderr)
    allowed = CliRunner().invoke(app, [*command, "training.compile=false", "--allow-change"])
    assert allowed.exit_code == 0, allowed.output
    (changed,) = report_of(tmp_path / "run")["changed_conditions"]
    assert changed["changed"] == {"compile": [True, False]}
    start = json.loads((tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert start["conditions"]["compile"] is True
