"""Choose the version of the ONNX operators: the recipe's number, or the one whose file is faster on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import onnx

from xlmprune.core.files import temporary_folder
from xlmprune.export.form import Form
from xlmprune.export.graph import save_onnx
from xlmprune.export.timing import SECONDS, time_in_turns
from xlmprune.recipe.schema import Embeddings

CANDIDATES = (20, 23)
"""From 20 on GELU is one node, and from 23 on attention is, which older runtimes cannot open. Others change no node."""

TOKENS = 64
"""Length of the text with which versions are timed; shorter where a model or task takes less."""

GAIN = 0.02
"""Share of the time that a newer version must save: an older one is opened by more runtimes."""


def graph_of_opset(
    wanted: int | Literal["auto"],
    graph_of: Callable[[int], onnx.ModelProto],
    form: Form,
    embeddings: Embeddings,
    tokens: int,
    say: Callable[[str], None] = lambda text: None,
    seconds: float = SECONDS,
) -> onnx.ModelProto:
    """Return the graph with the wanted version of the operators.

    Args:
        wanted: a version, or `auto` for the fastest of the candidates: one text, one thread.
        graph_of: exports the fp32 graph with a version.
        form: in which the graphs are timed.
        tokens: length of the text.
        say: told what was measured.
        seconds: for timing.
    """
    if wanted != "auto":
        return graph_of(wanted)
    graphs = {str(opset): graph_of(opset) for opset in CANDIDATES}
    with temporary_folder() as folder:
        paths = {name: folder / f"opset{name}.onnx" for name in graphs}
        for name, path in paths.items():
            save_onnx(form.sample(graphs[name], embeddings), path)
        taken = time_in_turns(paths, 1, tokens, 1, seconds)
    fastest = min(taken.values())
    chosen = next(name for name in graphs if taken[name] * (1 - GAIN) <= fastest)
    measured = ", ".join(f"{milliseconds:.2f} ms with {name}" for name, milliseconds in taken.items())
    say(
        f"export.opset auto chose {chosen}: one text of {tokens} tokens takes {measured} ({form.name}, one thread)"
    )
    return graphs[chosen]
