"""Parts of this package in a Python process of their own, whatever folder one stands in."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs ``module`` as a program.

    With `-P` nothing is imported from the current folder: a bundle is data, though it may hold an `onnxruntime.py`.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Our environment, in which the process finds this package also where it runs from a checkout."""
    places = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
