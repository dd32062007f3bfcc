"""Which GPU PyTorch can use here, and why it uses none although the machine has one.

A run that falls back to the CPU may take weeks, so the reason is said: PyTorch without CUDA, a driver that is too old, a
container that was started without `--gpus all`.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from pathlib import Path

import torch

from xlmprune.core.errors import MachineError

DRIVER = Path("/proc/driver/nvidia/version")
"""The driver's version. Containers see this file too, also when they were given no GPU."""

CONTROL = Path("/dev/nvidiactl")
"""The driver's device. A container has it only if it was given a GPU."""


def count() -> int:
    """Return how many GPUs PyTorch can use; what PyTorch warns about is in `why_none`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def why_none() -> str | None:
    """Say in a sentence why PyTorch can use no GPU; None if the machine shows no NVIDIA driver, or the user hid the GPUs."""
    if not _has_driver() or _is_hidden():
        return None
    version = torch.__version__
    if torch.version.cuda is None:
        return (
            f"this machine has an NVIDIA driver, but PyTorch {version} is a build without CUDA. Install the other build: "
            "pip install --force-reinstall torch"
        )
    if DRIVER.exists() and not CONTROL.exists():
        return (
            "this machine has an NVIDIA driver, but this process may not use its GPUs. In Docker, start the container with "
            "--gpus all; the host needs the NVIDIA container toolkit"
        )
    return (
        f"this machine has an NVIDIA driver{_driver_version()}, but PyTorch {version} (CUDA {torch.version.cuda}) finds no "
        f"GPU: {_refusal()}. Check with nvidia-smi; a driver that is too old needs an update, or an older build of PyTorch"
    )


def _has_driver() -> bool:
    return DRIVER.exists() or CONTROL.exists() or shutil.which("nvidia-smi") is not None


def _is_hidden() -> bool:
    """Return whether the user asked for no GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles")


def _driver_version() -> str:
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", DRIVER.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return f" {found[0]}" if found else ""


def _refusal() -> str:
    """Return the first sentence of PyTorch's own reason."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return re.split(r"\.\s", str(error).strip(), maxsplit=1)[0].rstrip(".")
    return "it gives no reason"


def require_code_for(device: torch.device) -> None:
    """Raise MachineError if this build of PyTorch has no code for the card; each kernel would fail.

    A build has machine code (``sm_86``) for cards of the same major capability and at least this minor one, and may have
    intermediate code (``compute_90``) for every later card.
    """
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name) for name in torch.cuda.get_arch_list()]
    known = [(match[1], int(match[2]), int(match[3])) for match in built if match]
    major, minor = torch.cuda.get_device_capability(device)
    fits = any(
        (kind == "sm" and one == major and two <= minor)
        or (kind == "compute" and (one, two) <= (major, minor))
        for kind, one, two in known
    )
    if known and not fits:
        listed = ", ".join(sorted({f"{one}.{two}" for _, one, two in known}, key=float))
        build = f"PyTorch {torch.__version__} (CUDA {torch.version.cuda})"
        raise MachineError(
            f"{torch.cuda.get_device_name(device)} has the capability {major}.{minor}, and {build} has code for {listed} "
            "only. Install a build of PyTorch for this card, or use --device cpu"
        )
