"""The tables of names, and `load`, which imports what a name stands for.

A new component is one file and one line here. Its module is imported only when a recipe asks for it, so that
`xlmprune --help` does not wait for PyTorch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from xlmprune.core.errors import RecipeError

CRITERIA = {
    "magnitude": "xlmprune.pruning.criteria.magnitude:Magnitude",
    "random": "xlmprune.pruning.criteria.random:Random",
    "gradient": "xlmprune.pruning.criteria.gradient:Gradient",
    "lookahead": "xlmprune.pruning.criteria.lookahead:Lookahead",
    "lamp": "xlmprune.pruning.criteria.lamp:Lamp",
    "eq6": "xlmprune.pruning.criteria.eq6:Eq6",
    "l0": "xlmprune.pruning.criteria.l0:L0",
    "movement": "xlmprune.pruning.criteria.movement:Movement",
    "platon": "xlmprune.pruning.criteria.platon:Platon",
    "pins": "xlmprune.pruning.criteria.pins:Pins",
    "obert": "xlmprune.pruning.criteria.obert:Obert",
    "wanda": "xlmprune.pruning.criteria.wanda:Wanda",
    "sparsegpt": "xlmprune.pruning.criteria.sparsegpt:SparseGpt",
}

REGULARIZERS = {
    "none": "xlmprune.pruning.regularizers.none:NoRegularizer",
    "l2": "xlmprune.pruning.regularizers.l2:L2",
    "cosine": "xlmprune.pruning.regularizers.cosine:Cosine",
    "cosine_layer": "xlmprune.pruning.regularizers.cosine_layer:CosineLayer",
    "frobenius": "xlmprune.pruning.regularizers.frobenius:Frobenius",
    "both": "xlmprune.pruning.regularizers.both:Both",
}

SCHEDULES = {
    "geometric": "xlmprune.pruning.schedules:Geometric",
    "linear": "xlmprune.pruning.schedules:Linear",
    "explicit": "xlmprune.pruning.schedules:Explicit",
    "cubic": "xlmprune.pruning.schedules:Cubic",
    "continuous": "xlmprune.pruning.schedules:Continuous",
}

IMPORTANCES = {
    "fisher": "xlmprune.pruning.measures:Fisher",
    "gradient": "xlmprune.pruning.measures:Gradient",
    "taylor": "xlmprune.pruning.measures:Taylor",
    "magnitude": "xlmprune.pruning.measures:Magnitude",
    "obs": "xlmprune.pruning.measures:Obs",
    "criterion": "xlmprune.pruning.measures:Pooled",
}
"""How heads and neurons are ranked."""

TASKS = {
    "quickstart": "xlmprune.quickstart.task:Quickstart",
    "xnli": "xlmprune.tasks.xnli:Xnli",
    "nc": "xlmprune.tasks.nc:Nc",
    "ner": "xlmprune.tasks.ner:Ner",
    "pos": "xlmprune.tasks.pos:Pos",
    "pawsx": "xlmprune.tasks.pawsx:Pawsx",
    "qam": "xlmprune.tasks.qam:Qam",
    "qadsm": "xlmprune.tasks.qadsm:Qadsm",
    "wpr": "xlmprune.tasks.wpr:Wpr",
    "classification": "xlmprune.tasks.classification:Classification",
    "pair_classification": "xlmprune.tasks.classification:PairClassification",
    "tagging": "xlmprune.tasks.tagging:Tagging",
    "ranking": "xlmprune.tasks.ranking:Ranking",
}

FORMS = {
    "fp32": "xlmprune.export.fp32:Fp32",
    "fp16": "xlmprune.export.fp16:Fp16",
    "int8": "xlmprune.export.int8:Int8",
}
"""ONNX forms. The first one is what the others are compared with."""

USUAL_FORMS = ("fp32", "int8")
"""What a recipe exports that does not say."""

FAMILIES = {
    "xlm-roberta": "xlmprune.models.xlm_roberta:XLM_ROBERTA",
    "xlm-roberta-xl": "xlmprune.models.xlm_roberta:XLM_ROBERTA_XL",
    "bert": "xlmprune.models.bert:BERT",
    "modernbert": "xlmprune.models.modernbert:MODERNBERT",
}
"""Model families by the `model_type` of their config.json."""

MODELS = {"quickstart": "xlmprune.quickstart.model:ensure_model"}
"""Models that are made on this machine, by the name a recipe has for them; each is a function that returns a folder."""

TRACKERS = {
    "tensorboard": "xlmprune.training.tracking:TensorBoard",
    "mlflow": "xlmprune.training.tracking:MLflow",
    "wandb": "xlmprune.training.tracking:WandB",
}
"""Where a run can report to, beside its own log."""

TABLES = {
    "criterion": CRITERIA,
    "regularizer": REGULARIZERS,
    "schedule": SCHEDULES,
    "importance": IMPORTANCES,
    "task": TASKS,
    "form": FORMS,
    "family": FAMILIES,
    "model": MODELS,
    "tracker": TRACKERS,
}


def nearest(name: str, known: Sequence[str]) -> str:
    """Say ``did you mean 'x'?`` for a misspelt name, or list the known names."""
    close = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {listed(known)}"


def listed(names: Iterable[str]) -> str:
    """Join names by commas; those that hold a comma themselves are in quotes."""
    return ", ".join(repr(name) if "," in name else name for name in names)


def load(table: str, name: str) -> Any:
    """Import the component ``name`` of ``TABLES[table]``.

    Raises:
        RecipeError: no component of that name.
    """
    entries = TABLES[table]
    if name not in entries:
        raise RecipeError(f"no {table} is called {name!r:.100}; {nearest(name, list(entries))}")
    module, _, attribute = entries[name].partition(":")
    return getattr(import_module(module), attribute)
