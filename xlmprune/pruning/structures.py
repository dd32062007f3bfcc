"""Remove whole heads, FFN neurons and layers, so that the same dense kernels of any runtime do less work.

`choose` says what remains, given what every head and neuron is worth (`importance`). `slice_model` makes the matrices really
smaller, `slices` does the same to tensors of their shapes, and `Layout` is what config.json must hold so that the smaller
model can be loaded (`resize`).

Choose structures for time: unstructured zeros save bytes alone. Cut, and then refit with `reconstruction.reconstruct`, which
decides the result.

Source: Li et al. 2022 (arXiv:2204.02601) for multilingual models.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xlmprune.core.errors import ModelError
from xlmprune.models import architecture
from xlmprune.models.architecture import FFN, OUTPUTS, Layer
from xlmprune.pruning.importance import Importance

CONFIG_KEY = "structure"
"""Where config.json holds the `Layout`, if it is not that of a stock model."""


# --- choosing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerCut:
    """What remains of one layer."""

    source: int
    """Which layer of the whole model it was."""
    heads: tuple[int, ...]
    """Heads kept, in the order that they have in the smaller model."""
    neurons: tuple[int, ...]
    """Neurons kept, in the order that they have in the smaller model."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> LayerCut:
        """Build it from `dataclasses.asdict`, after a way through JSON."""
        return cls(int(record["source"]), tuple(record["heads"]), tuple(record["neurons"]))


Cut = tuple[LayerCut, ...]


def spaced_layers(total: int, keep: int) -> tuple[int, ...]:
    """``keep`` of ``total`` layers, evenly spaced from the first: 0, 2, 4, ... for half.

    Raises:
        ValueError: none, or more than there are.
    """
    if not 1 <= keep <= total:
        raise ValueError(f"{keep} layers asked for; the model has {total}, and at least 1 must remain")
    return tuple(number * total // keep for number in range(keep))


def choose(
    importance: Importance,
    layers: int | Sequence[int] | None = None,
    heads: float = 1.0,
    neurons: float = 1.0,
    multiple: int = 32,
    scope: Literal["layer", "global"] = "layer",
) -> Cut:
    """Choose what remains: the most important heads and neurons of the layers that stay.

    Args:
        importance: of every layer of the model.
        layers: how many, evenly spaced, or which; None for all.
        heads: share to keep, in (0, 1]; at least one head of a layer remains.
        neurons: share to keep, in (0, 1].
        multiple: neurons of a layer remain in multiples of this, at least one multiple: kernels are slow at odd widths.
        scope: `layer` keeps the same share of every layer; `global` ranks all layers as one, each one's importance divided
            by its 2-norm, and the layers become uneven.

    Raises:
        ValueError: a share outside (0, 1], a multiple that does not divide the neurons, or impossible layers.
    """
    total = len(importance.heads)
    if isinstance(layers, int) or layers is None:
        sources: Sequence[int] = spaced_layers(total, total if layers is None else layers)
    else:
        sources = _checked_layers(layers, total)
    for name, share in (("heads", heads), ("neurons", neurons)):
        if not 0 < share <= 1:
            raise ValueError(
                f"{name}: {share} is not in (0, 1]; at least one of every layer must remain (to drop a layer, use layers)"
            )
    kept_heads = _kept([importance.heads[source] for source in sources], heads, 1, scope)
    kept_neurons = _kept([importance.neurons[source] for source in sources], neurons, multiple, scope)
    return tuple(map(LayerCut, sources, kept_heads, kept_neurons))


def _checked_layers(layers: Sequence[int], total: int) -> Sequence[int]:
    rising = all(a < b for a, b in pairwise(layers))
    if not layers or not rising or layers[0] < 0 or layers[-1] >= total:
        raise ValueError(f"layers {list(layers)}: expected some of 0 to {total - 1}, rising, at least one")
    return layers


def _kept(scores: list[Tensor], share: float, multiple: int, scope: str) -> list[tuple[int, ...]]:
    for score in scores:
        if multiple < 1 or (share < 1 and len(score) % multiple):
            raise ValueError(f"a multiple of {multiple} does not divide the {len(score)} neurons of a layer")
        if score.isnan().any():
            raise ValueError("an importance is not a number")
    if scope not in ("layer", "global"):
        raise ValueError(f"scope {scope!r} is neither 'layer' nor 'global'")
    if share == 1:
        return [tuple(range(len(score))) for score in scores]
    wanted = [max(1, round(share * len(score) / multiple)) for score in scores]
    if scope == "global":
        wanted = _apportioned(scores, sum(wanted), multiple)
    return [
        tuple(sorted(score.argsort(descending=True, stable=True)[: count * multiple].tolist()))
        for score, count in zip(scores, wanted)
    ]


def _apportioned(scores: list[Tensor], total: int, multiple: int) -> list[int]:
    """How many multiples each layer keeps if all are ranked as one: the best, the first of every layer among them."""
    worth = []
    for number, score in enumerate(scores):
        ranked = (score / score.norm().clamp_min(1e-30)).sort(descending=True).values
        parts = ranked.view(-1, multiple).mean(dim=1).tolist()
        worth += [(-(float("inf") if place == 0 else part), number) for place, part in enumerate(parts)]
    counts = [0] * len(scores)
    for _, number in sorted(worth)[:total]:
        counts[number] += 1
    return counts


# --- slicing, and what a loader must know -----------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerLayout:
    """The size of one layer."""

    source: int
    heads: int
    neurons: int


@dataclass(frozen=True)
class Layout:
    """The sizes of all layers; what config.json holds of a cut model."""

    head_size: int
    layers: tuple[LayerLayout, ...]

    def record(self) -> dict[str, Any]:
        """As plain numbers and lists."""
        return {
            "head_size": self.head_size,
            "layers": [
                {"source": layer.source, "heads": layer.heads, "neurons": layer.neurons}
                for layer in self.layers
            ],
        }

    @classmethod
    def from_record(cls, record: Any) -> Layout:
        """Read what `record` gave.

        Raises:
            ModelError: something else.
        """
        try:
            layers = tuple(LayerLayout(**{k: int(v) for k, v in layer.items()}) for layer in record["layers"])
            layout = cls(int(record["head_size"]), layers)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"config.json: {CONFIG_KEY!r} does not give the sizes of layers: {error}"
            ) from error
        sizes = [layout.head_size, *(size for layer in layers for size in (layer.heads, layer.neurons))]
        if not layers or min(sizes) < 1:
            raise ModelError(f"config.json: {CONFIG_KEY!r} has no layers, or a size below 1")
        return layout

    def is_stock(self, config: Any) -> bool:
        """Can stock transformers build it: all heads in every layer, and neurons alike? Dropped layers do no harm."""
        full = config.num_attention_heads
        uniform = len({layer.neurons for layer in self.layers}) == 1
        return uniform and all(layer.heads == full for layer in self.layers)


def is_cut(model: nn.Module) -> bool:
    """Return whether structures were removed from the model."""
    return getattr(model.config, CONFIG_KEY, None) is not None


def layout_in(config: Mapping[str, Any]) -> Layout | None:
    """Return the layout that a config.json holds; None for a stock model.

    Raises:
        ModelError: it is damaged, or has more layers, heads or neurons than the rest of the config allows.
    """
    if config.get(CONFIG_KEY) is None:
        return None
    layout = Layout.from_record(config[CONFIG_KEY])
    heads, neurons = (int(config[key]) for key in ("num_attention_heads", "intermediate_size"))
    fits = all(layer.heads <= heads and layer.neurons <= neurons for layer in layout.layers)
    if not fits or len(layout.layers) != config["num_hidden_layers"]:
        raise ModelError(
            f"config.json: {CONFIG_KEY!r} does not fit num_hidden_layers, num_attention_heads and intermediate_size"
        )
    return layout


def whole_config(model: nn.Module, whole: Layout) -> Any:
    """Return a config of the model as it was before structures were removed, when its layout was ``whole``."""
    config: Any = copy.deepcopy(model.config)
    delattr(config, CONFIG_KEY)
    architecture.of(config).describe_layers(config, range(len(whole.layers)))
    config.intermediate_size = whole.layers[0].neurons
    return config


def layout_of(model: nn.Module) -> Layout:
    """Return the sizes that the model's layers have now, with the sources that its config remembers."""
    layers = architecture.of(model).layers(model)
    known = getattr(model.config, CONFIG_KEY, None)
    sources = [layer["source"] for layer in known["layers"]] if known else range(len(layers))
    return Layout(
        layers[0].head_size,
        tuple(LayerLayout(source, layer.heads, layer.neurons) for source, layer in zip(sources, layers)),
    )


@torch.no_grad()
def slice_model(model: nn.Module, cut: Cut) -> Layout:
    """Take what ``cut`` leaves out of the model, in place: its answers are those of the gated model, to rounding.

    The config says what became of it: `num_hidden_layers`, `intermediate_size` where all layers are alike, and `structure`.

    Raises:
        ValueError: a layer, head or neuron that the model does not have, or none left.
    """
    before = architecture.of(model).layers(model)
    sources = [layer.source for layer in layout_of(model).layers]
    for part in cut:
        _require_within(part, before)
    kept = [before[part.source] for part in cut]
    for layer, part in zip(kept, cut):
        _slice_layer(layer, part)
    architecture.of(model).keep_layers(model, [part.source for part in cut])
    layout = Layout(
        kept[0].head_size,
        tuple(LayerLayout(sources[part.source], len(part.heads), len(part.neurons)) for part in cut),
    )
    _describe(model.config, layout)
    return layout


def _require_within(part: LayerCut, layers: list[Layer]) -> None:
    if not 0 <= part.source < len(layers):
        raise ValueError(f"layer {part.source} asked for; the model has {len(layers)}")
    layer = layers[part.source]
    for what, kept, there in (("heads", part.heads, layer.heads), ("neurons", part.neurons, layer.neurons)):
        if not kept:
            raise ValueError(
                f"{layer.path}: the last of its {what} cannot be removed; drop the layer instead"
            )
        if len(set(kept)) != len(kept) or not 0 <= min(kept) <= max(kept) < there:
            raise ValueError(
                f"{layer.path} has {what} 0 to {there - 1}; not all of {list(kept)[:8]} are theirs"
            )


@dataclass(frozen=True)
class Piece:
    """What a matrix of the smaller model is of one of the whole model."""

    source: str
    """Name in the whole model."""
    dim: int
    """Whether rows (0) or columns (1) are kept."""
    kept: Tensor

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Take it out of tensors shaped like the whole model's weights."""
        whole = tensors[self.source]
        return whole.index_select(self.dim, self.kept.to(whole.device))


def _pieces_of(layer: Layer, part: LayerCut) -> dict[str, Piece]:
    """Return, by its name, what remains of each matrix of a layer."""
    device = layer.query.module.weight.device
    heads = torch.tensor(part.heads, device=device).unsqueeze(1) * layer.head_size
    channels = (heads + torch.arange(layer.head_size, device=device)).flatten()
    neurons = torch.tensor(part.neurons, device=device)
    dims: dict[str, int] = {}
    kept: dict[str, dict[int, Tensor]] = {}
    for role, matrix in layer.matrices().items():
        entries = neurons if role in FFN else channels
        dims[matrix.name] = 1 if role in OUTPUTS else 0
        start = 0 if role in OUTPUTS else matrix.rows.start
        kept.setdefault(matrix.name, {})[start] = start + entries
    # Roles of a fused matrix keep the order of their rows.
    return {
        name: Piece(name, dims[name], torch.cat([parts[start] for start in sorted(parts)]))
        for name, parts in kept.items()
    }


def _slice_layer(layer: Layer, part: LayerCut) -> None:
    modules = {matrix.name: matrix.module for matrix in layer.matrices().values()}
    for name, piece in _pieces_of(layer, part).items():
        (_keep_columns if piece.dim else _keep_rows)(modules[name], piece.kept)
    _count_heads(layer, len(part.heads))


def _count_heads(layer: Layer, heads: int) -> None:
    """Tell the attention how many heads it has; some families read it, others follow their matrices."""
    layer.attention.num_attention_heads = heads
    layer.attention.all_head_size = heads * layer.head_size


def pieces(model: nn.Module, cut: Cut) -> dict[str, Piece]:
    """Return, by its name in the model that ``cut`` leaves, where every prunable matrix comes from.

    Args:
        model: before `slice_model`.
    """
    before = architecture.of(model).layers(model)
    found = {}
    for number, part in enumerate(cut):
        layer = before[part.source]
        for name, piece in _pieces_of(layer, part).items():
            found[f"{layer.path.rpartition('.')[0]}.{number}{name.removeprefix(layer.path)}"] = piece
    return found


def _keep_rows(linear: nn.Linear, rows: Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight[rows].clone(), requires_grad=linear.weight.requires_grad)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[rows].clone(), requires_grad=linear.bias.requires_grad)
    linear.out_features = len(rows)


def _keep_columns(linear: nn.Linear, columns: Tensor) -> None:
    kept = linear.weight[:, columns].clone()
    linear.weight = nn.Parameter(kept, requires_grad=linear.weight.requires_grad)
    linear.in_features = len(columns)


def _describe(config: Any, layout: Layout) -> None:
    widths = {layer.neurons for layer in layout.layers}
    if len(widths) == 1:
        config.intermediate_size = widths.pop()
    setattr(config, CONFIG_KEY, layout.record())


@torch.no_grad()
def resize(model: nn.Module, layout: Layout) -> None:
    """Give a fresh model of the config's sizes the shapes of ``layout``, in place, before its tensors are read.

    What the matrices hold afterwards is not defined.

    Raises:
        ModelError: the model is smaller than the layout somewhere, or its heads are of another size.
    """
    layers = architecture.of(model).layers(model)
    if layers[0].head_size != layout.head_size:
        raise ModelError(f"heads of {layout.head_size} wanted; the model's are of {layers[0].head_size}")
    if len(layers) < len(layout.layers):
        raise ModelError(f"{len(layout.layers)} layers wanted; the model has {len(layers)}")
    for layer, wanted in zip(layers, layout.layers):
        _resize_layer(layer, wanted)
    if len(layers) != len(layout.layers):
        architecture.of(model).keep_layers(model, range(len(layout.layers)))
    _describe(model.config, layout)


def _resize_layer(layer: Layer, wanted: LayerLayout) -> None:
    hidden = layer.query.module.in_features
    rows: dict[nn.Linear, int] = {}
    for role, matrix in layer.matrices().items():
        entries = wanted.neurons if role in FFN else wanted.heads * layer.head_size
        if role in OUTPUTS:
            _shape(matrix.module, hidden, entries)
        else:
            rows[matrix.module] = rows.get(matrix.module, 0) + entries
    for linear, count in rows.items():
        _shape(linear, count, hidden)
    _count_heads(layer, wanted.heads)


def _shape(linear: nn.Linear, rows: int, columns: int) -> None:
    if linear.weight.shape == (rows, columns):
        return
    linear.weight = nn.Parameter(linear.weight.new_zeros(rows, columns))
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.new_zeros(rows))
    linear.out_features, linear.in_features = rows, columns
