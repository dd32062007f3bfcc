"""Fill the disk at a random moment of a run; with room again it must resume and end the same.

    python tests/campaigns/full_disks.py --count 50 --seed 0

As root the disk is a small tmpfs, which grows for the second try; otherwise a limit on the size of files stands for it.
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from campaign import Runs, campaign
from golden import RUNS


def mount(folder: Path, size: int, remount: bool = False) -> bool:
    """Make a file system of so many bytes, or give one that size; return whether that is allowed here."""
    folder.mkdir(exist_ok=True)
    options = f"{'remount,' if remount else ''}size={size}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def limit_files(size: int) -> Callable[[], None]:
    """Let no file of the process grow beyond so many bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def case(random: random.Random, runs: Runs) -> str | None:
    name = random.choice(list(RUNS))
    runs.expected(name)
    out = runs.new_folder()
    size = int(10 ** random.uniform(4, 6.7))
    mounted = mount(out, size)
    try:
        code = runs.wait(runs.start(name, out, *([] if mounted else [limit_files(size)])))
        runs.count(f"{'disk' if mounted else 'file'} {'too small' if code else 'large enough'}")
        if code not in (0, 2) or (
            code == 2 and ("disk is full" if mounted else "ulimit -f") not in runs.said
        ):
            return f"{name}, {size} bytes: exit code {code}: {runs.said[-300:]}"
        if mounted:
            mount(out, 10**9, remount=True)
        return runs.finish(name, out)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(out)], check=True)


if __name__ == "__main__":
    campaign(__doc__, 30, case)
