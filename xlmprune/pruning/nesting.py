"""One model that holds every smaller model as a prefix: the first heads and the first neurons of each layer.

`ranked` puts the most important heads and neurons first, which changes no answer. `prefix` says what a size leaves.
`view_of` makes the smaller model without copying a weight, and `Prefix` trains it inside the larger one. `Nest` says which
sizes learn in an update: the largest, the smallest and one in between.

Choose it where one training run must serve machines of several speeds.

Source: our own design, in the spirit of Dynamic Sparsification (Li et al. 2022, arXiv:2204.02601), of slimmable networks (Yu
and Huang 2019, arXiv:1903.05134: the sandwich rule) and of MatFormer (Devvrit et al. 2023, arXiv:2310.07707).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xlmprune.core.device import derive_seed
from xlmprune.models import architecture
from xlmprune.pruning.importance import Importance
from xlmprune.pruning.structures import Cut, LayerCut, slice_model


def ranked(cut: Cut, importance: Importance) -> Cut:
    """Put the most important heads and neurons of each layer first."""
    return tuple(
        LayerCut(
            part.source,
            _by_worth(part.heads, importance.heads[part.source]),
            _by_worth(part.neurons, importance.neurons[part.source]),
        )
        for part in cut
    )


def _by_worth(kept: Sequence[int], worth: Tensor) -> tuple[int, ...]:
    order = worth[list(kept)].argsort(descending=True, stable=True)
    return tuple(kept[place] for place in order.tolist())


def prefix(model: nn.Module, size: float, multiple: int = 32) -> Cut:
    """Return what a size leaves of a model: the first heads and neurons of every layer.

    Args:
        size: share of the heads and neurons, in (0, 1]. At least one head remains.
        multiple: neurons remain in multiples of this, at least one multiple.

    Raises:
        ValueError: a size outside (0, 1].
    """
    if not 0 < size <= 1:
        raise ValueError(f"size {size} is not in (0, 1]")
    return tuple(
        LayerCut(
            layer.index,
            tuple(range(max(1, round(size * layer.heads)))),
            tuple(range(multiple * max(1, round(size * layer.neurons / multiple)))),
        )
        for layer in architecture.of(model).layers(model)
    )


def view_of(model: nn.Module, cut: Cut) -> nn.Module:
    """Make a smaller model whose parameters are views: what changes in the model changes in it too.

    Args:
        model: parameters that are not cut are shared as they are, embeddings as a whole module.
        cut: what `prefix` returns.
    """
    shared = architecture.of(model).embeddings(model)
    known: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    smaller = copy.deepcopy(model, known | {id(shared): shared})
    slice_model(smaller, cut)
    whole = dict(model.named_parameters())
    for name, parameter in smaller.named_parameters():
        if parameter is not whole[name]:
            parameter.data = _first(whole[name].data, parameter)
    return smaller


def _first(whole: Tensor, part: Tensor) -> Tensor:
    """Take the first rows and columns, as many as ``part`` has."""
    return whole[tuple(slice(0, length) for length in part.shape)]


class Prefix:
    """A size of a model, for training: its gradients reach the parameters of the whole model.

    Args:
        whole: the model.
        cut: what `prefix` returns.
    """

    def __init__(self, whole: nn.Module, cut: Cut) -> None:
        self.whole, self.model = whole, view_of(whole, cut)

    def __call__(self, **inputs: Any) -> Any:
        """Call the smaller model, with dropout where the whole one is in training mode."""
        self.model.train(self.whole.training)
        whole, parts = dict(self.whole.named_parameters()), self.model.named_parameters()
        views = {name: _first(whole[name], part) for name, part in parts}
        return torch.func.functional_call(self.model, views, (), inputs)


class Nest:
    """The sizes of a model that learn together.

    Args:
        model: its heads and neurons are `ranked` before the first size is asked for.
        smallest: the smallest size.
        multiple: neurons of a size come in multiples of this.
        seed: the run's.
    """

    def __init__(self, model: nn.Module, smallest: float, multiple: int, seed: int) -> None:
        self.model, self.smallest, self.multiple, self.seed = model, smallest, multiple, seed
        self._known: dict[Cut, Prefix] = {}

    def at(self, size: float) -> Prefix:
        """Return the model at a size; sizes that round to the same widths are one."""
        cut = prefix(self.model, size, self.multiple)
        if cut not in self._known:
            self._known[cut] = Prefix(self.model, cut)
        return self._known[cut]

    def learners(self, stage: int, update: int) -> list[Any]:
        """Return the models of an update: the whole one, the smallest, and one of a random size between them."""
        random = np.random.default_rng(derive_seed(self.seed, "size", stage, update))
        return [self.model, self.at(self.smallest), self.at(random.uniform(self.smallest, 1))]


def spread(smallest: float, count: int = 4) -> list[float]:
    """Return sizes evenly spaced from 1 to the smallest."""
    return np.linspace(1, smallest, count).tolist()
