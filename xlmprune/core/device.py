"""Device, precision and seeds of a run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from xlmprune.core import gpu, machine
from xlmprune.core.errors import MachineError
from xlmprune.core.formatting import size


def resolve_device(name: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:n``.

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
    device = torch.device("cuda" if name == "auto" else name)
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


def computes_bf16_quickly(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 there; emulated bf16 is ten times slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast in training: ``auto`` is bf16 where that is quick."""
    if precision == "auto":
        precision = "bf16" if computes_bf16_quickly(device) else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def derive_seed(*parts: int | str) -> int:
    """A seed for one purpose, from the run's seed and what tells the purpose apart; the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def explain_full_gpu() -> Iterator[None]:
    """Explain in a sentence that the GPU's memory is full.

    Raises:
        MachineError: PyTorch could not allocate GPU memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MachineError(
            f"the GPU's memory is full ({str(error).split(chr(10))[0]}) The last checkpoint is kept. Raise "
            "training.gradient_accumulation (the result stays that of the whole batch), or lower training.batch_size, "
            "training.max_length or evaluation.batch_size; a changed recipe starts over with --fresh"
        ) from error
