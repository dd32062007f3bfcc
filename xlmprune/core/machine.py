"""What this machine has: processor, memory, installed packages. Every command that names hardware asks here.

Importing this module is quick; PyTorch is imported only where a fact needs it.
"""

from __future__ import annotations

import math
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlmprune._version import __version__
from xlmprune.core import processes

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers", "tokenizers", "onnx", "onnxruntime", "safetensors", "numpy")
"""Packages whose versions a report names."""

INSTRUCTIONS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
"""Processor features that decide how fast integer and half-precision products are."""


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None where there is none."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def platform_name() -> str:
    """Return system and architecture, such as ``Linux x86_64``."""
    return f"{platform.system()} {platform.machine()}"


def processors() -> int:
    """Return the number of processors this process may use, by its affinity and the quota of its container."""
    quota = processor_quota()
    return allowed_processors() if quota is None else min(allowed_processors(), max(1, math.ceil(quota)))


def allowed_processors() -> int:
    """Return the number of processors this process may run on. A quota may give it less of their time."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


MOST_THREADS = 1024
"""Threads that ONNX Runtime may be given. It starts them all at once, and thousands take minutes."""


def chosen_threads() -> int | None:
    """Return the threads that OMP_NUM_THREADS asks for, at most one for each processor; None where it asks for none.

    PyTorch takes no more than that either.
    """
    # OpenMP allows a list, a number for each level.
    own = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(int(own), processors()) if re.fullmatch(r"0*[1-9][0-9]{0,17}", own) else None


def runtime_threads() -> int:
    """Return the number of threads for ONNX Runtime, which reads neither OMP_NUM_THREADS nor limits by itself.

    OMP_NUM_THREADS decides if it is set, as it does for PyTorch: `compare --jobs` gives each run its share by it.
    Otherwise the processors that a quota or the process's affinity leaves. 0 where nothing limits: the runtime then takes
    one for each core.
    """
    if (chosen := chosen_threads()) is not None:
        return chosen
    return processors() if processors() < (os.cpu_count() or 1) else 0


def processor_quota(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Return how many processors' time the container has, as in `docker run --cpus 1.5`; None without a limit.

    Args:
        root: where the control groups are mounted, of version 2 or 1.
        own: names the control groups of this process.
    """
    quotas = []
    for group, fields in _control_groups(root, own):
        try:
            used, period = (
                float(word) for word in " ".join((group / field).read_text() for field in fields).split()
            )
        except (OSError, ValueError):  # "max 100000", or a group without the controller
            continue
        if used > 0 < period:
            quotas.append(used / period)
    return min(quotas, default=None)


def _control_groups(root: Path, own: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the process's groups with all that are around them, and the files of their quota."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    fields: tuple[str, ...]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            top, fields = root, ("cpu.max",)
        elif "cpu" in controllers.split(","):
            top, fields = root / controllers, ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        group = top / path.strip("/")
        yield from ((folder, fields) for folder in (group, *group.parents) if folder.is_relative_to(top))


WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "4000"}
"""How threads wait for each other: libgomp's count to 4,000 and then sleep. docs/runs.md has the measurements."""


def limit_threads() -> None:
    """Set what OpenMP reads when PyTorch is loaded, unless the user has set it.

    Threads that wait spin for some microseconds and then give their processor away. Spinning for longer, which is OpenMP's
    default, makes an update several times slower where other work runs on the machine; not spinning at all makes it a third
    slower where none does. And there are as many threads as the container's quota allows, not as the host has processors.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in WAITING.items():
            os.environ.setdefault(name, value)
    if processors() < allowed_processors() and chosen_threads() is None:
        os.environ["OMP_NUM_THREADS"] = str(processors())


def processor_name() -> str:
    """Return the processor's model name."""
    return _processor_line("model name") or platform.processor() or platform.machine()


def instructions() -> list[str]:
    """Return those of `INSTRUCTIONS` that the processor has; Linux only."""
    flags = set((_processor_line("flags") or _processor_line("Features")).split())
    return [name for name in INSTRUCTIONS if name in flags]


def memory_bytes() -> int | None:
    """Return the physical memory, or the container's limit where that is lower."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return min(physical, int(limit)) if limit.isdigit() else physical


def process_memory() -> tuple[int | None, int | None]:
    """Return (bytes of this process in memory now, its peak so far); None where the system does not tell.

    Not `getrusage` on Linux: there a process begins with the peak of the one that started it.
    """
    status = _fields(_read("/proc/self/status"))
    if status:
        now, peak = (1024 * int(status[key].split()[0]) for key in ("VmRSS", "VmHWM"))
        return now, peak
    try:
        import resource
    except ImportError:  # Windows
        return None, None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak


def describe() -> dict[str, Any]:
    """Return ``processor``, ``processors`` and ``instructions`` of this machine."""
    return {
        "processor": processor_name(),
        "processors": processors(),
        "instructions": instructions(),
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions and hardware of this run, for the report; no host name and no path."""
    import torch

    facts: dict[str, Any] = {
        "xlmprune": __version__,
        "python": platform.python_version(),
        **{package: version_of(package) for package in PACKAGES},
        "platform": platform_name(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "processes": processes.launched(),
    }
    if device.type == "cuda":
        facts["device_name"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def _processor_line(key: str) -> str:
    return _fields(_read("/proc/cpuinfo")).get(key, "")


def _fields(text: str) -> dict[str, str]:
    """Read lines ``key: value``; the first of several equal keys counts."""
    pairs = [line.split(":", 1) for line in text.splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, value in reversed(pairs)}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
