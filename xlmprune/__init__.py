"""Fine-tune and prune a multilingual model on English labels, measure every language, and export a small model.

    report = xlmprune.compress("recipe.yaml", "runs/mine")        train, prune, export
    answers = xlmprune.Predictor("runs/mine/bundle")(["a text"])  label texts, without PyTorch
    scores = xlmprune.evaluate("runs/mine/bundle")                measure a bundle in every language
    model = xlmprune.load("runs/mine/bundle")                     the PyTorch model

Each name is imported when it is first used, so that ``import xlmprune`` and ``xlmprune --help`` stay quick.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from xlmprune._version import __version__

if TYPE_CHECKING:
    from xlmprune.bundle.evaluate import evaluate as evaluate
    from xlmprune.bundle.predictor import Prediction as Prediction
    from xlmprune.bundle.predictor import Predictor as Predictor
    from xlmprune.bundle.predictor import Tagged as Tagged
    from xlmprune.core.errors import XlmpruneError as XlmpruneError
    from xlmprune.export.sparse import load as load
    from xlmprune.pipeline import compress as compress

# ONNX Runtime 1.31 sends usage data to its maker unless this is set before it is imported; 0 in the environment is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MODULES = {
    "Prediction": "xlmprune.bundle.predictor",
    "Predictor": "xlmprune.bundle.predictor",
    "Tagged": "xlmprune.bundle.predictor",
    "XlmpruneError": "xlmprune.core.errors",
    "compress": "xlmprune.pipeline",
    "evaluate": "xlmprune.bundle.evaluate",
    "load": "xlmprune.export.sparse",
}

__all__ = [
    "Prediction",
    "Predictor",
    "Tagged",
    "XlmpruneError",
    "__version__",
    "compress",
    "evaluate",
    "load",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'xlmprune' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
