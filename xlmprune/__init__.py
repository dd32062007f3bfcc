"""Prune XLM-RoBERTa on English labels and say what every other language lost.

``xlmprune.load(bundle)`` gives the PyTorch model of an exported bundle. It and everything heavy are imported
when first asked for, so that ``import xlmprune`` and ``xlmprune --help`` stay quick.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from xlmprune._version import __version__

if TYPE_CHECKING:
    from xlmprune.export.sparse import load as load

# ONNX Runtime 1.31 sends usage data to its maker unless this is set before it is imported; 0 in the environment is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from xlmprune.export.sparse import load

        return load
    raise AttributeError(f"module 'xlmprune' has no attribute {name!r}")
