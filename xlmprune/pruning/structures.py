"""Remove whole heads, FFN neurons and layers, so that the same dense kernels of any runtime do less work.

Importance of heads and neurons is measured by gates on what enters a layer's two output projections (`gate_importance`), by
weights, or pooled from any score of single weights. `choose` says what remains, `slice_model` makes the matrices really
smaller, and `Layout` is what config.json must hold so that the smaller model can be loaded (`resize`).

Choose structures for time: unstructured zeros save bytes alone. Cut, and then refit with `reconstruction.reconstruct`, which
decides the result.

Source: Michel et al. 2019 (arXiv:1905.10650) and Li et al. 2022 (arXiv:2204.02601) for gates on heads and neurons.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from xlmprune.core.errors import DataError, ModelError
from xlmprune.data.encoding import IGNORE
from xlmprune.models import architecture
from xlmprune.models.architecture import Layer
from xlmprune.pruning.masks import Scores
from xlmprune.pruning.reconstruction import Moments, damped

CONFIG_KEY = "structure"
"""Where config.json holds the `Layout`, if it is not that of a stock model."""


@dataclass(frozen=True)
class Importance:
    """What every head and neuron is worth; higher is kept longer."""

    heads: list[Tensor]
    """One [heads] per layer."""
    neurons: list[Tensor]
    """One [neurons] per layer."""


def _names(layer: Layer) -> dict[str, str]:
    return {role: matrix.name for role, matrix in layer.matrices().items()}


# --- gates ------------------------------------------------------------------------------------------------------------


def full_gates(model: nn.Module, batch: int | None = None) -> Importance:
    """Gates that let everything through: ones, [heads] and [neurons] per layer, or [batch, heads] and [batch, neurons]."""
    like = next(model.parameters())
    lead = () if batch is None else (batch,)
    layers = architecture.of(model).layers(model)
    return Importance(
        [torch.ones(*lead, layer.heads, device=like.device) for layer in layers],
        [torch.ones(*lead, layer.neurons, device=like.device) for layer in layers],
    )


@contextmanager
def gated(model: nn.Module, gates: Importance) -> Iterator[None]:
    """Multiply what enters the output projections by gates, as long as the context lasts.

    Args:
        gates: per layer [heads] and [neurons], or one row for every example of the batch.

    Raises:
        ValueError: not one gate for every head and neuron.
    """
    layers = architecture.of(model).layers(model)
    hooks = []
    try:
        for layer, heads, neurons in zip(layers, gates.heads, gates.neurons, strict=True):
            if heads.shape[-1] != layer.heads or neurons.shape[-1] != layer.neurons:
                raise ValueError(
                    f"{layer.path} has {layer.heads} heads and {layer.neurons} neurons; there are gates for "
                    f"{heads.shape[-1]} and {neurons.shape[-1]}"
                )
            wide = heads.repeat_interleave(layer.head_size, dim=-1)
            hooks.append(layer.attention_output.module.register_forward_pre_hook(_gate(wide)))
            hooks.append(layer.ffn_out.module.register_forward_pre_hook(_gate(neurons)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _gate(gate: Tensor) -> Any:
    shaped = gate if gate.dim() == 1 else gate.unsqueeze(1)
    return lambda module, given: (given[0] * shaped, *given[1:])


# --- importance -------------------------------------------------------------------------------------------------------

Kind = Literal["fisher", "gradient", "taylor"]


def gate_importance(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    kind: Kind = "fisher",
    temperature: float = 1.0,
    seed: int = 0,
) -> Importance:
    """Measure how the loss depends on every gate; weights get no gradients.

    `fisher` draws each answer from the model itself, ``y ~ softmax(z / temperature)``, so that it needs no labels and
    unlabelled text of all languages will do; it is the mean over examples of the squared gradient. (The gradient of the
    model's cross-entropy against its own soft answer is zero.) `gradient` is the mean of the absolute gradient, `taylor` the
    absolute value of the mean gradient; both read `labels`.

    Args:
        model: in eval mode.
        batches: `input_ids`, `attention_mask`, and `labels` but for `fisher`.
        temperature: for `fisher`; higher also asks about answers the model thinks unlikely.
        seed: of the drawn answers.

    Raises:
        DataError: no examples, or no labels.
        ModelError: a gradient is NaN or infinite.

    Source: Michel et al. 2019, Eq. 2 (`gradient`); Kwon et al. 2022 (arXiv:2204.09656), Eq. 9 (`fisher`, with labels there).
    """
    if model.training:
        raise ValueError("the model is in training mode; dropout would be measured with the gates")
    draw = torch.Generator().manual_seed(seed)
    totals: list[Tensor] = []
    examples = 0
    for batch in batches:
        size = len(batch["input_ids"])
        gates = full_gates(model, batch=size)
        leaves = [gate.requires_grad_() for gate in (*gates.heads, *gates.neurons)]
        with gated(model, gates), torch.enable_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss = _losses(logits.float(), batch, kind, temperature, draw)
            gradients = torch.autograd.grad(loss, leaves)
        found = [_pooled_over_examples(gradient, kind) for gradient in gradients]
        totals = [total + new for total, new in zip(totals, found, strict=True)] if totals else found
        examples += size
    if not examples:
        raise DataError("there are no examples to measure the importance of heads and neurons on")
    means = [(total / examples).abs() for total in totals]
    if not all(bool(mean.isfinite().all()) for mean in means):
        raise ModelError("the gradient of a gate is not finite (NaN or infinity): the model has diverged")
    count = len(means) // 2
    return Importance(means[:count], means[count:])


def _losses(
    logits: Tensor, batch: Mapping[str, Tensor], kind: Kind, temperature: float, draw: torch.Generator
) -> Tensor:
    """Sum over examples of each one's loss; for token tasks, an example's loss is the mean over its tokens."""
    flat = logits.reshape(-1, logits.shape[-1])
    if kind == "fisher":
        chances = (flat.detach() / temperature).softmax(-1).cpu()
        labels = torch.multinomial(chances, 1, generator=draw).squeeze(1).to(flat.device)
        if logits.dim() == 3:
            labels = labels.masked_fill(batch["attention_mask"].reshape(-1) == 0, IGNORE)
        flat = flat / temperature
    elif "labels" in batch:
        labels = batch["labels"].reshape(-1)
    else:
        raise DataError(f"importance by {kind} reads labels, and this text has none; use fisher")
    losses = functional.cross_entropy(flat, labels, ignore_index=IGNORE, reduction="none")
    per_example = losses.view(len(logits), -1)
    counted = (labels != IGNORE).view(len(logits), -1).sum(dim=1).clamp_min(1)
    return (per_example.sum(dim=1) / counted).sum()


def _pooled_over_examples(gradient: Tensor, kind: Kind) -> Tensor:
    if kind == "fisher":
        return gradient.square().sum(dim=0)
    return gradient.abs().sum(dim=0) if kind == "gradient" else gradient.sum(dim=0)


@torch.no_grad()
def magnitude_importance(model: nn.Module) -> Importance:
    """The 2-norm of all weights (not biases) that a head or neuron owns."""
    squares = {name: weight.detach().float().square() for name, weight in _weights(model).items()}
    pooled = pool(squares, model)
    return Importance([part.sqrt() for part in pooled.heads], [part.sqrt() for part in pooled.neurons])


@torch.no_grad()
def pool(scores: Scores, model: nn.Module) -> Importance:
    """Sum scores of single weights over the weights that each head and neuron owns.

    A head owns its rows of query, key and value and its columns of the attention's output; a neuron its row of the FFN's
    first matrix and its column of the second.

    Args:
        scores: of any criterion, shaped like the weights; scores of all six weights of every layer.
    """
    heads, neurons = [], []
    for layer in architecture.of(model).layers(model):
        names = _names(layer)
        rows = sum(scores[names[role]].float().sum(dim=1) for role in ("query", "key", "value"))
        owned = rows + scores[names["attention_output"]].float().sum(dim=0)
        heads.append(owned.view(layer.heads, layer.head_size).sum(dim=1))
        neurons.append(
            scores[names["ffn_in"]].float().sum(dim=1) + scores[names["ffn_out"]].float().sum(dim=0)
        )
    return Importance(heads, neurons)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {
        name: parameters[name]
        for layer in architecture.of(model).layers(model)
        for name in _names(layer).values()
    }


@torch.no_grad()
def obs_importance(
    model: nn.Module, moments: Moments, ridge: float = 0.01, fraction: float = 0.02
) -> Importance:
    """Remove heads and neurons one after the other where least squares loses least; importance is the order of removal.

    The output projection makes up for what goes, after every removal, so that of two neurons that do the same one stays.

    Args:
        moments: second moments of the inputs, of both output projections of every layer at least.
        ridge: relative to the mean square of an input.
        fraction: share of the remaining neurons removed between two updates; heads go one by one.

    Returns:
        0 for the first to go, counting upwards.

    Source: Kurtic et al. 2023, ZipLM (arXiv:2302.04089), Eqs. 2 and 3.
    """
    heads, neurons = [], []
    for layer in architecture.of(model).layers(model):
        names = _names(layer)
        heads.append(
            removal_order(
                layer.attention_output.module.weight,
                moments[names["attention_output"]],
                layer.head_size,
                ridge,
            )
        )
        neurons.append(
            removal_order(layer.ffn_out.module.weight, moments[names["ffn_out"]], 1, ridge, fraction)
        )
    return Importance(heads, neurons)


@torch.no_grad()
def removal_order(
    weight: Tensor, moment: Tensor, group: int, ridge: float = 0.01, fraction: float = 0.0
) -> Tensor:
    """In what order groups of input columns go when the rest is refitted after every removal.

    A group S costs ``sum over rows of w_S [H^-1]_SS^-1 w_S^T``; the cheapest goes, and weights and H^-1 follow.

    Args:
        weight: [out, in].
        moment: [in, in], second moment of its inputs.
        group: consecutive columns that go together; divides ``in``.
        fraction: of the remaining groups, removed at once; at least one.

    Returns:
        [in / group], float32: 0 for the first to go.
    """
    rest = weight.detach().double().clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(moment, ridge)))
    count = weight.shape[1] // group
    order = torch.zeros(count, device=weight.device)
    left = torch.arange(count, device=weight.device)
    gone = 0
    while len(left):
        costs = _removal_costs(rest, inverse, group)
        cheapest = costs.argsort(stable=True)[: max(1, int(fraction * len(left)))]
        order[left[cheapest]] = torch.arange(gone, gone + len(cheapest), device=weight.device).float()
        gone += len(cheapest)
        stay = torch.ones(len(left), dtype=torch.bool, device=weight.device)
        stay[cheapest] = False
        rest, inverse = _without(rest, inverse, ~stay.repeat_interleave(group))
        left = left[stay]
    return order


def _removal_costs(weight: Tensor, inverse: Tensor, group: int) -> Tensor:
    """[groups], what removing each of them costs."""
    if group == 1:
        return weight.square().sum(dim=0) / inverse.diagonal()
    count = weight.shape[1] // group
    blocks = inverse.view(count, group, count, group).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    parts = weight.view(len(weight), count, group).permute(1, 2, 0)  # [groups, group, out]
    return (parts * torch.linalg.solve(blocks, parts)).sum(dim=(1, 2))


def _without(weight: Tensor, inverse: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and H^-1 of the columns that stay, after the exact update for the columns that go."""
    stays = ~removed
    shared = torch.linalg.solve(inverse[removed][:, removed], inverse[removed][:, stays])
    after = weight[:, stays] - weight[:, removed] @ shared
    return after, inverse[stays][:, stays] - inverse[stays][:, removed] @ shared


# --- choosing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerCut:
    """What remains of one layer."""

    source: int
    """Which layer of the whole model it was."""
    heads: tuple[int, ...]
    """Heads kept, ascending."""
    neurons: tuple[int, ...]
    """Neurons kept, ascending."""


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
        if multiple < 1 or len(score) % multiple:
            raise ValueError(f"a multiple of {multiple} does not divide the {len(score)} neurons of a layer")
        if score.isnan().any():
            raise ValueError("an importance is not a number")
    sizes = [len(score) // multiple for score in scores]
    wanted = [max(1, round(share * size)) for size in sizes]
    if scope == "global":
        wanted = _apportioned(scores, sum(wanted), multiple)
    elif scope != "layer":
        raise ValueError(f"scope {scope!r} is neither 'layer' nor 'global'")
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
        """What `record` gave.

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


def layout_of(model: nn.Module) -> Layout:
    """The sizes that the model's layers have now, with the sources that its config remembers."""
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
    architecture.of(model).replace_layers(model, [layer.module for layer in kept])
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


def _slice_layer(layer: Layer, part: LayerCut) -> None:
    device = layer.query.module.weight.device
    heads = torch.tensor(part.heads, device=device)
    columns = (heads.unsqueeze(1) * layer.head_size + torch.arange(layer.head_size, device=device)).flatten()
    neurons = torch.tensor(part.neurons, device=device)
    for linear in (layer.query.module, layer.key.module, layer.value.module):
        _keep_rows(linear, columns)
    _keep_columns(layer.attention_output.module, columns)
    _keep_rows(layer.ffn_in.module, neurons)
    _keep_columns(layer.ffn_out.module, neurons)
    layer.attention.num_attention_heads = len(heads)
    layer.attention.all_head_size = len(columns)


def _keep_rows(linear: nn.Linear, rows: Tensor) -> None:
    linear.weight = nn.Parameter(linear.weight[rows].clone(), requires_grad=linear.weight.requires_grad)
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
        width = wanted.heads * layout.head_size
        hidden = layer.query.module.in_features
        for linear in (layer.query.module, layer.key.module, layer.value.module):
            _shape(linear, width, hidden)
        _shape(layer.attention_output.module, hidden, width)
        _shape(layer.ffn_in.module, wanted.neurons, hidden)
        _shape(layer.ffn_out.module, hidden, wanted.neurons)
        layer.attention.num_attention_heads = wanted.heads
        layer.attention.all_head_size = width
    if len(layers) != len(layout.layers):
        architecture.of(model).replace_layers(model, [layer.module for layer in layers[: len(layout.layers)]])
    _describe(model.config, layout)


def _shape(linear: nn.Linear, rows: int, columns: int) -> None:
    if linear.weight.shape == (rows, columns):
        return
    linear.weight = nn.Parameter(linear.weight.new_zeros(rows, columns))
    linear.bias = nn.Parameter(linear.bias.new_zeros(rows))
    linear.out_features, linear.in_features = rows, columns
