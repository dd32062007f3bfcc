"""Device, precision and seeds of a run."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from xlmprune.core import gpu, machine, processes
from xlmprune.core.errors import MachineError, first_line
from xlmprune.core.formatting import size


def resolve_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:n``; each of several processes has the GPU of its number.

    Raises:
        MachineError: not a device this tool knows, a GPU that is not there, or one that PyTorch has no code for.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(0|[1-9][0-9]*))?", name)
    if not match:
        raise MachineError(f"--device {name}: expected auto, cpu, cuda or cuda:n, for example cuda:0")
    found = 0 if name == "cpu" else gpu.count()
    if name == "cpu" or (name == "auto" and not found):
        return torch.device("cpu")
    if int(match[1] or 0) >= found:
        raise MachineError(
            f"--device {name}: {_describe_found(found)}. Use --device cpu to run without a GPU"
        )
    name = "cuda" if name == "auto" else name
    number, here = processes.local()
    device = torch.device(_gpu_of_process(name, number, here, found) if here > 1 else name)
    gpu.require_code_for(device)
    return device


def _describe_found(found: int) -> str:
    if not found:
        return gpu.why_none() or f"PyTorch {torch.__version__} finds no GPU"
    named = "cuda:0" if found == 1 else f"cuda:0 to cuda:{found - 1}"
    return f"PyTorch {torch.__version__} finds {found} GPU{'s' if found > 1 else ''}, {named}"


def describe_device(device: torch.device, precision: str) -> str:
    """Say what a run computes with: the device, the card or processor, the precision, and the build of PyTorch.

    Args:
        precision: `training.precision`.
    """
    used = str(resolve_precision(precision, device)).removeprefix("torch.")
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        card = f"{found.name}, {size(found.total_memory)}, capability {found.major}.{found.minor}"
        return f"device: {device} ({card}), {used}, PyTorch {torch.__version__} (CUDA {torch.version.cuda})"
    threads = torch.get_num_threads()
    card = f"{machine.processor_name()}, {threads} thread{'s' if threads > 1 else ''}"
    return f"device: cpu ({card}), {used}, PyTorch {torch.__version__}"


def fallback(asked: str, device: torch.device) -> list[str]:
    """Warn if ``auto`` became the CPU on a machine with an NVIDIA driver; an empty list otherwise."""
    reason = gpu.why_none() if asked == "auto" and device.type == "cpu" else None
    return (
        []
        if reason is None
        else [f"the run uses the CPU: {reason}. To use the CPU without this warning: --device cpu"]
    )


def _gpu_of_process(name: str, number: int, here: int, found: int) -> str:
    """Name the GPU of the process ``number`` of the ``here`` that share this host."""
    if name != "cuda":
        raise MachineError(
            f"--device {name}: {here} processes on this host would share one GPU. Give --device cuda, and each takes the "
            "GPU of its number; CUDA_VISIBLE_DEVICES chooses which GPUs there are"
        )
    if here > found:
        raise MachineError(
            f"{here} processes were started on this host, which has {found} GPUs. Give torchrun --nproc-per-node "
            f"{max(1, found)}"
        )
    return f"cuda:{number}"


def computes_bf16_quickly(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 there; emulated bf16 is ten times slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of autocast in training: ``auto`` is bf16 where that is quick."""
    if precision == "auto":
        precision = "bf16" if computes_bf16_quickly(device) else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def derive_seed(*parts: int | str) -> int:
    """Derive a seed for one purpose, from the run's seed and what tells the purpose apart; the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"

FIXED_WORKSPACES = (":4096:8", ":16:8")
"""Settings of `WORKSPACE` under which matrix products on a GPU repeat their result."""


def require_fixed_workspace(device: torch.device) -> None:
    """Raise MachineError if the environment asks for a workspace of cuBLAS under which results do not repeat."""
    asked = os.environ.get(WORKSPACE, FIXED_WORKSPACES[0])
    if device.type == "cuda" and asked not in FIXED_WORKSPACES:
        raise MachineError(
            f"{WORKSPACE}={asked}: training.deterministic needs {' or '.join(FIXED_WORKSPACES)}. Unset it"
        )


@contextmanager
def deterministic(device: torch.device, wanted: bool) -> Iterator[None]:
    """Let PyTorch use algorithms on a GPU that repeat their result bit by bit, where that is wanted.

    Attention is the reason: by default the backward pass of its memory-efficient kernel adds in any order. A CPU needs
    nothing. An operation without such an algorithm raises RuntimeError.

    Raises:
        MachineError: the environment asks for another workspace of cuBLAS.
    """
    if device.type != "cuda" or not wanted:
        yield
        return
    require_fixed_workspace(device)
    os.environ.setdefault(WORKSPACE, FIXED_WORKSPACES[0])
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = (
        False  # it finds faults in kernels, and costs one more write of every tensor
    )
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


@contextmanager
def without_cudnn_attention(device: torch.device) -> Iterator[None]:
    """Keep PyTorch from choosing cuDNN's attention inside the ``with``.

    cuDNN plans every new shape of a batch, and texts have many lengths: on an H100, PyTorch chose cuDNN, and updates of
    XLM-R base took 240 ms, of which its GPU worked 15.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its handle needs memory too
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "cusolverDnCreate(handle)",  # reported as CUSOLVER_STATUS_INTERNAL_ERROR
    "can't allocate memory",
    "not enough memory",
)
"""What the messages of PyTorch and of NVIDIA's libraries say where memory is full; only some have a type of their own."""


@contextmanager
def explain_full_memory(device: torch.device) -> Iterator[None]:
    """Explain in a sentence that the memory of the device is full, and which keys of a recipe lower it.

    Raises:
        MachineError: an allocation failed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(mark in str(error) for mark in OUT_OF_MEMORY):
            raise
        which = "the GPU's memory" if device.type == "cuda" else "this machine's memory"
        said = first_line(error).rstrip(".")
        raise MachineError(
            f"{which} is full ({said}). The last checkpoint is kept. To resume from it with less memory in training, split "
            "each batch: --set training.gradient_accumulation=2 --allow-change, or compute layers twice: --set "
            "training.gradient_checkpointing=true; with less memory in measuring: --set evaluation.batch_size=16. A lower "
            "training.max_length or training.batch_size starts over with --fresh"
        ) from error
