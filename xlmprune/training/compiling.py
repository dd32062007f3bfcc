"""Compile the encoder's layers for the updates of a run: `training.compile`.

Every layer is compiled on its own, so layers of equal widths share the compiled code, and the number of texts and tokens
may change. Only gradients of training batches are computed by compiled layers. Scores, pruning, refitting and export use
the plain modules: hooks that measure activations do not act inside compiled code, and files are traced from plain modules.

Nothing falls back to plain layers silently: what cannot be compiled is an error.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from xlmprune.core.device import OUT_OF_MEMORY
from xlmprune.core.errors import MachineError, first_line
from xlmprune.models import architecture

BACKEND = "inductor"

VERSIONS_PER_LAYER = 16
"""Compiled versions of a layer, at most: with and without padding, one text and several, teacher and student, and as many
again where PyTorch first takes two lengths to be equal. PyTorch's own limit is 8 for all layers together."""

Widths = tuple[tuple[int, int], ...]
"""Attention heads and FFN neurons, layer by layer."""


class CompiledLayers:
    """The encoder layers of some models in a second, compiled form. The models themselves stay as they are."""

    def __init__(self) -> None:
        self._calls: dict[nn.Module, Callable[..., Any]] = {}
        self._widths: Widths = ()

    @contextmanager
    def used(self, models: Sequence[nn.Module]) -> Iterator[None]:
        """Let these models call the compiled layers inside the ``with``. Code is compiled when it is first called.

        Raises:
            MachineError: PyTorch cannot compile a layer here.
        """
        from torch import _dynamo, compiler

        layers = [layer for model in models for layer in architecture.of(model).layers(model)]
        widths = tuple((layer.heads, layer.neurons) for layer in layers)
        modules = [layer.module for layer in layers]
        if widths != self._widths:
            compiler.reset()  # type: ignore[no-untyped-call]  # code for other widths is of no use any more
        self._widths = widths
        self._calls = {module: self._calls.get(module) or _compiled(module) for module in modules}
        limit = int(VERSIONS_PER_LAYER * len(modules))
        config: Any = _dynamo.config
        with (
            explain_compiler(),
            warnings.catch_warnings(),
            config.patch(
                suppress_errors=False,
                fail_on_recompile_limit_hit=True,
                recompile_limit=limit,
                accumulated_recompile_limit=limit,
            ),
        ):
            # PyTorch's own look at hidden states while it traces; nothing of ours reads their gradients.
            warnings.filterwarnings(
                "ignore", r"The \.grad attribute of a Tensor that is not a leaf", UserWarning
            )
            # PyTorch's advice to round fp32 products to TF32: the recipe asked for fp32.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
            try:
                for module, call in self._calls.items():
                    module.forward = call
                yield
            finally:
                for module in modules:
                    module.__dict__.pop("forward", None)


def _compiled(module: nn.Module) -> Callable[..., Any]:
    """Return the compiled forward pass of a layer; the layer keeps its plain one."""
    import torch

    compiled = torch.compile(module.forward, backend=BACKEND, fullgraph=True, dynamic=True)

    def call(*given: Any, **named: Any) -> Any:
        # Transformers records attention by hooks inside the layer, which cannot be traced; nobody reads it here.
        hooked = [(part, part._forward_hooks) for part in module.modules() if part._forward_hooks]
        for part, _ in hooked:
            part._forward_hooks = OrderedDict()
        try:
            return compiled(*given, **named)
        finally:
            for part, hooks in hooked:
                part._forward_hooks = hooks

    return call


@contextmanager
def explain_compiler() -> Iterator[None]:
    """Explain in a sentence that PyTorch could not compile a layer, and what to do.

    Raises:
        MachineError: the compiler failed. Full memory keeps its own error.
    """
    try:
        yield
    except Exception as error:
        cause = getattr(error, "inner_exception", None) or error
        if not _is_of_compiler(error) or any(mark in str(error) for mark in OUT_OF_MEMORY):
            raise
        said = f"{type(cause).__name__}: {first_line(cause).rstrip('.: ')}"
        raise MachineError(
            f"training.compile: PyTorch cannot compile the model's layers on this machine ({said}). It needs a C++ "
            "compiler, such as g++, and for a GPU the package triton. Install what is missing and run the same command "
            "again, or train without compiling: --set training.compile=false --allow-change. The last checkpoint is kept"
        ) from error


def _is_of_compiler(error: Exception) -> bool:
    kinds = {kind.__module__.partition(".")[2].partition(".")[0] for kind in type(error).__mro__}
    return bool(kinds & {"_dynamo", "_inductor", "_functorch"}) or type(error).__module__.startswith("triton")
