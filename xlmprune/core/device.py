"""Device, precision and seeds of a run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from xlmprune.core import processes
from xlmprune.core.errors import MachineError


def resolve_device(name: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:n``; of several processes, each takes the GPU of its number.

    Raises:
        MachineError: not a device this tool knows, or a GPU that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", name):
        raise MachineError(f"--device {name}: expected auto, cpu, cuda or cuda:n")
    number, here = processes.local()
    if here > 1 and name.startswith("cuda"):
        name = _gpu_of_process(name, number, here)
    kind, _, index = name.partition(":")
    if kind == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= found:
            raise MachineError(
                f"--device {name}: {found} CUDA devices found by PyTorch {torch.__version__}. Use --device cpu, or "
                "check the driver with `nvidia-smi`, and in Docker that `--gpus all` was given"
            )
    return torch.device(name)


def _gpu_of_process(name: str, number: int, here: int) -> str:
    """Name the GPU of the process ``number`` of the ``here`` that share this host."""
    if name != "cuda":
        raise MachineError(
            f"--device {name}: {here} processes on this host would share one GPU. Give --device cuda, and each takes the "
            "GPU of its number; CUDA_VISIBLE_DEVICES chooses which GPUs there are"
        )
    found = torch.cuda.device_count()
    if here > found:
        raise MachineError(
            f"{here} processes were started on this host, which has {found} CUDA devices. Give torchrun --nproc-per-node "
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
