"""Run parts of this package in a Python process of their own, whatever the current folder is."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

END_WITH_STDIN = "XLMPRUNE_END_WITH_STDIN"
"""A process that finds this variable set ends when its stdin closes, so that it never outlives its parent."""


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs ``module`` as a program.

    With `-P` nothing is imported from the current folder: a bundle is data, though it may hold an `onnxruntime.py`.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Our environment, in which the process finds this package also where it runs from a checkout."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def end_with_parent() -> None:
    """Send SIGTERM to this process when its stdin closes, if its parent asked for it."""
    if os.environ.pop(END_WITH_STDIN, ""):
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    # Not through sys.stdin, whose lock the interpreter wants when it ends.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
