"""What every attention head and FFN neuron is worth: by gates on what enters a layer's output projections, or by weights.

`gate_importance` reads gradients of gates, `obs_importance` what least squares cannot make up for, and
`magnitude_importance` the weights alone. `pool` sums any score of single weights over those that a head or neuron owns.

Source: Michel et al. 2019 (arXiv:1905.10650) and Li et al. 2022 (arXiv:2204.02601) for gates on heads and neurons.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from xlmprune.core.errors import DataError, ModelError
from xlmprune.data.encoding import IGNORE
from xlmprune.models import architecture
from xlmprune.models.architecture import FFN, OUTPUTS, Layer
from xlmprune.pruning.masks import Scores
from xlmprune.pruning.moments import Moments, damped


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
    """Return the 2-norm of all weights (not biases) that a head or neuron owns."""
    weights = architecture.of(model).prunable(model)
    squares = {name: weight.detach().float().square() for name, weight in weights.items()}
    pooled = pool(squares, model)
    return Importance([part.sqrt() for part in pooled.heads], [part.sqrt() for part in pooled.neurons])


@torch.no_grad()
def pool(scores: Scores, model: nn.Module) -> Importance:
    """Sum scores of single weights over the weights that each head and neuron owns.

    A head owns its rows of query, key and value and its columns of the attention's output; a neuron its row of the FFN's
    first matrix, that of the gate where there is one, and its column of the last.

    Args:
        scores: of any criterion, shaped like the weights; scores of all weights of every layer.

    Returns:
        Sums in float64: products of small numbers may be below what float32 can hold.
    """
    heads, neurons = [], []
    for layer in architecture.of(model).layers(model):
        owned = {
            role: scores[matrix.name].sum(dim=0, dtype=torch.float64)
            if role in OUTPUTS
            else scores[matrix.name][matrix.rows].sum(dim=1, dtype=torch.float64)
            for role, matrix in layer.matrices().items()
        }
        channels = [sums for role, sums in owned.items() if role not in FFN]
        heads.append(torch.stack(channels).sum(dim=0).view(layer.heads, layer.head_size).sum(dim=1))
        neurons.append(torch.stack([sums for role, sums in owned.items() if role in FFN]).sum(dim=0))
    return Importance(heads, neurons)


@torch.no_grad()
def obs_importance(
    model: nn.Module, moments: Moments, ridge: float = 0.01, fraction: float = 0.02
) -> Importance:
    """Remove heads and neurons one after the other where least squares loses least.

    The output projection makes up for what goes, after every removal, so that of two neurons that do the same one stays.

    Args:
        moments: second moments of the inputs, of both output projections of every layer at least.
        ridge: relative to the mean square of an input.
        fraction: share of the remaining neurons removed between two updates; heads go one by one.

    Returns:
        For each, the squared error of the layer's output once it and all before it are gone.

    Source: Kurtic et al. 2023, ZipLM (arXiv:2302.04089), Eqs. 2 and 3.
    """
    heads, neurons = [], []
    for layer in architecture.of(model).layers(model):
        names = _names(layer)
        heads.append(
            removal_errors(
                layer.attention_output.module.weight,
                moments[names["attention_output"]],
                layer.head_size,
                ridge,
            )
        )
        neurons.append(
            removal_errors(layer.ffn_out.module.weight, moments[names["ffn_out"]], 1, ridge, fraction)
        )
    return Importance(heads, neurons)


@torch.no_grad()
def removal_errors(
    weight: Tensor, moment: Tensor, group: int, ridge: float = 0.01, fraction: float = 0.0
) -> Tensor:
    """Remove groups of input columns one after the other, the rest refitted every time, and return the error after each.

    A group S costs ``sum over rows of w_S [H^-1]_SS^-1 w_S^T``; the cheapest goes, and weights and H^-1 follow.

    Args:
        weight: [out, in].
        moment: [in, in], second moment of its inputs.
        group: consecutive columns that go together; divides ``in``.
        fraction: of the remaining groups, removed at once; at least one.

    Returns:
        [in / group], float64: the squared error of the outputs once a group and all before it are gone, with the ridge. It
        rises in the order of removal.
    """
    rest = weight.detach().double().clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(moment, ridge)))
    count = weight.shape[1] // group
    errors = torch.zeros(count, dtype=torch.float64, device=weight.device)
    left = torch.arange(count, device=weight.device)
    error = 0.0
    while len(left):
        costs = _removal_costs(rest, inverse, group)
        cheapest = costs.argsort(stable=True)[: max(1, int(fraction * len(left)))]
        errors[left[cheapest]] = error + costs[cheapest].clamp_min(0).cumsum(0)
        error = float(errors[left[cheapest[-1]]])
        stay = torch.ones(len(left), dtype=torch.bool, device=weight.device)
        stay[cheapest] = False
        rest, inverse = _without(rest, inverse, ~stay.repeat_interleave(group))
        left = left[stay]
    return errors


def _removal_costs(weight: Tensor, inverse: Tensor, group: int) -> Tensor:
    """Return what removing each group costs, [groups]."""
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
