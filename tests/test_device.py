"""Which device a run uses, and what it says where that is not the GPU that the machine has."""

import os
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import golden
import pytest
import torch
import transformers
from typer.testing import CliRunner

from xlmprune import pipeline
from xlmprune.cli import app
from xlmprune.core import device, doctor, gpu
from xlmprune.core.errors import MachineError
from xlmprune.recipe.effects import MAY_CHANGE, effect_of
from xlmprune.recipe.loading import load_recipe
from xlmprune.training import planning

H100 = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=85_000_000_000)
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """A machine with the files of an NVIDIA driver, and a PyTorch built with CUDA."""
    version, control = tmp_path / "version", tmp_path / "nvidiactl"
    version.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13\n", encoding="utf-8"
    )
    control.touch()
    monkeypatch.setattr(gpu, "DRIVER", version)
    monkeypatch.setattr(gpu, "CONTROL", control)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return SimpleNamespace(version=version, control=control)


@pytest.fixture
def cards(monkeypatch):
    """Give PyTorch some cards of a kind."""

    def install(count, card=H100, architectures=ARCHITECTURES):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(architectures))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (card.major, card.minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: card.name)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)

    return install


def test_auto_takes_a_gpu_and_says_which(cards):
    cards(2)
    found = device.resolve_device("auto")
    assert found == torch.device("cuda")
    assert device.resolve_device("cuda:1") == torch.device("cuda:1")
    said = device.describe_device(found, "auto")
    assert said.startswith(
        "device: cuda (NVIDIA H100 80GB HBM3, 85.0 GB, capability 9.0), bfloat16, PyTorch "
    )
    assert device.fallback("auto", found) == []


def test_a_run_on_a_cpu_names_processor_threads_and_precision():
    said = device.describe_device(torch.device("cpu"), "fp32")
    assert said.startswith("device: cpu (")
    assert ("1 thread)" in said) == (torch.get_num_threads() == 1)
    assert f"float32, PyTorch {torch.__version__}" in said


@pytest.mark.parametrize(
    "name", ["cuda:01", "cuda:-1", "cuda: 1", "cuda:", "CUDA", "gpu", "", "cuda:1x", "cuda:٣"]
)
def test_a_device_of_another_form_is_refused(cards, name):
    cards(2)
    with pytest.raises(MachineError, match="expected auto, cpu, cuda or cuda:n"):
        device.resolve_device(name)


@pytest.mark.parametrize("name", ["cuda:2", "cuda:9", "cuda:99999999999999999999"])
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(cards, name):
    cards(2)
    with pytest.raises(MachineError, match="2 GPUs, cuda:0 to cuda:1"):
        device.resolve_device(name)


def test_a_cpu_build_is_the_reason(monkeypatch, driver, cards):
    cards(0)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "a build without CUDA" in gpu.why_none()
    (warning,) = device.fallback("auto", device.resolve_device("auto"))
    assert "the run uses the CPU" in warning
    assert "--device cpu" in warning
    assert device.fallback("cpu", device.resolve_device("cpu")) == []
    with pytest.raises(MachineError, match="a build without CUDA"):
        device.resolve_device("cuda")


def test_a_container_without_gpus_is_the_reason(driver, cards):
    cards(0)
    driver.control.unlink()
    assert "--gpus all" in gpu.why_none()


def test_an_old_driver_is_the_reason(monkeypatch, driver, cards):
    cards(0)

    def init():
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
            "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
        )

    monkeypatch.setattr(torch.cuda, "init", init)
    said = gpu.why_none()
    assert "driver 470.57.02" in said
    assert "(CUDA 13.0)" in said
    assert "too old (found version 11040). Check with nvidia-smi" in said
    assert "Download" not in said


def test_a_user_who_hides_the_gpus_is_not_warned(monkeypatch, driver, cards):
    cards(0)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert gpu.why_none() is None


def test_a_machine_without_a_driver_is_not_warned(monkeypatch, driver, cards):
    cards(0)
    driver.version.unlink()
    driver.control.unlink()
    monkeypatch.setattr(gpu.shutil, "which", lambda _: None)
    assert gpu.why_none() is None


def test_pytorchs_own_warning_about_the_driver_is_not_printed_twice(monkeypatch):
    def is_available():
        warnings.warn("CUDA initialization: the driver is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    assert gpu.count() == 0


@pytest.mark.parametrize(
    ("capability", "architectures", "fits"),
    [
        ((9, 0), ARCHITECTURES, True),
        ((8, 9), ARCHITECTURES, True),  # a later minor of sm_86
        ((6, 1), ARCHITECTURES, False),
        ((7, 0), ARCHITECTURES, False),  # sm_75 is later
        ((12, 1), ARCHITECTURES, True),
        ((13, 0), ARCHITECTURES, True),  # compute_120 is compiled for it
        ((13, 0), ["sm_90", "sm_90a"], False),
        ((9, 0), ["sm_80", "sm_90a"], True),
        ((9, 0), ["gfx942"], True),  # a build for other makes of cards; nothing is known of them
    ],
)
def test_a_card_that_this_build_has_no_code_for_is_refused(cards, capability, architectures, fits):
    card = SimpleNamespace(name="NVIDIA Test", major=capability[0], minor=capability[1], total_memory=1)
    cards(1, card, architectures)
    if fits:
        assert device.resolve_device("auto").type == "cuda"
        return
    for name in ("auto", "cuda:0"):
        with pytest.raises(MachineError, match=r"NVIDIA Test has the capability .* has code for .* only"):
            device.resolve_device(name)


def test_a_plan_and_doctor_warn_of_the_cpu(tmp_path, monkeypatch, driver, cards):
    golden.write_inputs(tmp_path)
    recipe = golden.write_recipe(tmp_path, "cosine")
    cards(0)
    driver.control.unlink()
    facts = doctor.diagnose()
    assert any("--gpus all" in line for line in facts["advice"])
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["compress", str(recipe), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "--gpus all" in result.stdout


@pytest.mark.slow
def test_the_first_line_of_a_run_is_its_device(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "task: {name: classification, source: files, path: 'none/{language}.{split}.tsv'}\n", encoding="utf-8"
    )
    command = [
        sys.executable,
        "-m",
        "xlmprune",
        "compress",
        str(recipe),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "run"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    first = result.stderr.splitlines()[0]
    assert " device: cpu (" in first
    assert "PyTorch" in first


def test_days_of_training_on_a_cpu_are_a_warning(monkeypatch):
    monkeypatch.setattr(planning, "processors", lambda: 2)
    recipe = load_recipe("xnli_cosine")
    config = transformers.XLMRobertaConfig(
        vocab_size=250_002,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
    )
    with torch.device("meta"):
        base = transformers.XLMRobertaForSequenceClassification(config)
    cpu = torch.device("cpu")
    (warning,) = planning.slow_on_cpu(recipe, base, 2_200_000, cpu)
    assert re.match(r"training takes about 1\d\d days on this CPU: 2,200,000 updates", warning)
    # 12 stages: a day has room for 2,200,000 / 130 / 12 updates in each.
    assert "--set training.max_updates_per_stage=1000 takes about a day" in warning
    assert planning.slow_on_cpu(recipe, base, 2_000, cpu) == []
    assert planning.slow_on_cpu(recipe, base, 2_200_000, torch.device("cuda")) == []


@pytest.mark.parametrize(
    ("where", "wanted", "on"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_deterministic_algorithms_are_on_inside_and_off_after(monkeypatch, where, wanted, on):
    monkeypatch.setenv(device.WORKSPACE, "")  # so that it is put back after the test
    monkeypatch.delenv(device.WORKSPACE)
    with device.deterministic(torch.device(where), wanted):
        assert torch.are_deterministic_algorithms_enabled() is on
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ.get(device.WORKSPACE) == (":4096:8" if on else None)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_another_workspace_of_cublas_is_refused(monkeypatch):
    monkeypatch.setenv(device.WORKSPACE, ":1:2")
    with pytest.raises(MachineError, match=":4096:8"), device.deterministic(torch.device("cuda"), True):
        pass


def test_a_run_trains_with_the_algorithms_that_its_recipe_asks_for(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(pipeline, "describe_device", lambda *_: "device: a fake")
    monkeypatch.setenv(device.WORKSPACE, ":16:8")
    seen = []

    def train(*_, **__):
        seen.append(torch.are_deterministic_algorithms_enabled())
        raise MachineError("enough")

    monkeypatch.setattr(pipeline, "Training", train)
    for wanted in (True, False):
        with pytest.raises(MachineError, match="enough"):
            pipeline.compress("quickstart", tmp_path / str(wanted), training={"deterministic": wanted})
    assert seen == [True, False]


CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"),
        RuntimeError(CUBLAS),
        RuntimeError(
            "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`. If you keep seeing"
        ),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        MemoryError(),
    ],
)
def test_full_memory_is_a_sentence_with_keys_that_may_change(error):
    with pytest.raises(MachineError) as caught, device.explain_full_memory(torch.device("cuda")):
        raise error
    said = str(caught.value)
    assert said.startswith("the GPU's memory is full (")
    assert "\n" not in said
    named = re.findall(r"--set ([\w.]+)=(\d+)", said)
    assert len(named) > 1
    assert {effect_of(tuple(key.split("."))) for key, _ in named} <= set(MAY_CHANGE)
    load_recipe("quickstart", [f"{key}={value}" for key, value in named])


def test_another_runtime_error_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shape"), device.explain_full_memory(torch.device("cpu")):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied: shape")
