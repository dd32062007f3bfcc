"""Refit weights by least squares on unlabelled text, so that what remains makes up for what was removed.

One idea in two forms. After unstructured pruning, the weights that remain in each row are adjusted so that the matrix still
maps its own inputs to nearly the same outputs (`refit`): least squares given the mask, which the updates of the optimal
brain surgeon, one weight after the other, only approach. After structured pruning, and by option after the refit, the
output projections of every layer are solved anew, layer by layer, so that the smaller network follows the hidden states of
the larger one (`reconstruct`). Both read second moments of activations, which are streamed over batches of text.

Choose it wherever there is unlabelled text of the languages to serve: it costs seconds and reads no labels. With English
text alone it preserves English alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xlmprune.core.errors import DataError, ModelError
from xlmprune.models import architecture
from xlmprune.models.architecture import Layer
from xlmprune.pruning.masks import Masks, Weights
from xlmprune.pruning.moments import Batch, Moments, add_product, damped, mirror

STEPS = 10
"""Of conjugate gradients in `refit`."""

STEPS_OF_DRIFT = 30
"""The same where targets hold what the model has strayed by, so that the start is farther from the solution."""

TOLERANCE = 1e-6
"""`descend` is done with a row when its preconditioned gradient has fallen by this factor."""


# --- unstructured: refit what remains of every row --------------------------------------------------------------------


@torch.no_grad()
def descend(weight: Tensor, start: Tensor, mask: Tensor, matrix: Tensor, steps: int) -> Tensor:
    """Lower ``|(W - weight) X|^2`` by conjugate gradients over the remaining weights, all rows at once.

    Every step takes one product [out, in] x [in, in] and never raises the error. As many steps as a row has remaining
    weights give the least squares solution in exact arithmetic. At 31 % of real weights and a ridge of 0.01, ten steps end
    within 4 % of the least error, twenty within 0.2 %; starting from SparseGPT's solution does not help.

    Args:
        weight: [out, in], before pruning: what is to be imitated.
        start: [out, in], zero where the mask is false, such as the masked weight.
        mask: boolean [out, in]; true remains.
        matrix: [in, in], the `damped` second moment of the inputs.
        steps: at most so many.

    Returns:
        [out, in], zero where the mask is false.
    """
    dtype = _precision(weight)
    target, found, second = weight.detach().to(dtype), start.detach().to(dtype).clone(), matrix.to(dtype)
    scale = mask / second.diagonal()  # Jacobi; zero where pruned
    residual = ((target - found) @ second) * mask
    direction = residual * scale
    size = (residual * direction).sum(dim=1, keepdim=True)
    least = size * TOLERANCE**2
    for _ in range(steps):
        pushed = direction @ second
        curvature = (direction * pushed).sum(dim=1, keepdim=True)
        length = torch.where((size > least) & (curvature > 0), size / curvature, 0.0)
        if not length.any():
            break
        found.addcmul_(direction, length)
        residual.addcmul_(pushed.mul_(mask), length, value=-1)
        conditioned = residual * scale
        fresh = (residual * conditioned).sum(dim=1, keepdim=True)
        direction = direction.mul_(torch.where(size > 0, fresh / size, 0.0)).add_(conditioned)
        size = fresh
    return found.masked_fill_(~mask, 0.0).to(weight.dtype)


@torch.no_grad()
def refit(weights: Weights, masks: Masks, moments: Moments, ridge: float = 0.01) -> None:
    """Set pruned weights to zero and adjust the remaining ones so that outputs change least, in place.

    Per row and matrix it lowers ``|(W' - W) X|^2 + ridge * mean(diag(X X^T)) |W' - W|^2`` over the remaining weights.
    Weights that read the same input are treated as one taller matrix. Masks, of whatever pattern, stay as they are.

    Args:
        weights: [out, in] each, as they are before pruning.
        masks: what remains; one for each of ``weights``.
        moments: of the inputs; one for each of ``weights``.
        ridge: relative to the mean square of an input.

    Raises:
        ValueError: names differ, or shapes do not fit.
    """
    _require_matching(weights, masks, moments)
    for names in _sharing(weights, moments):
        before = torch.cat([weights[name].detach() for name in names])
        mask = torch.cat([masks[name] for name in names])
        after = descend(before, before * mask, mask, damped(moments[names[0]], ridge), STEPS)
        for name, part in zip(names, after.split([len(weights[name]) for name in names])):
            weights[name].copy_(part)


def _require_matching(weights: Weights, masks: Masks, moments: Moments) -> None:
    if set(weights) != set(masks) or not set(weights) <= set(moments):
        strange = (set(weights) ^ set(masks)) | (set(weights) - set(moments))
        raise ValueError(f"weights, masks and moments name different weights: {sorted(strange)[:4]}")
    for name, weight in weights.items():
        if masks[name].shape != weight.shape or len(moments[name]) != weight.shape[1]:
            raise ValueError(
                f"{name}: weight {tuple(weight.shape)}, mask {tuple(masks[name].shape)} and moment "
                f"{tuple(moments[name].shape)} do not fit together"
            )


def _sharing(weights: Weights, moments: Moments) -> list[list[str]]:
    """Return the names of ``weights``, those of one moment together."""
    groups: dict[int, list[str]] = {}
    for name in weights:
        groups.setdefault(id(moments[name]), []).append(name)
    return list(groups.values())


def _precision(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


# --- structured: solve the output projections anew --------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """How well one output projection of the smaller model follows the larger one."""

    layer: int
    """Of the smaller model."""
    projection: Literal["attention_output", "ffn_out"]
    before: float
    """Squared distance of the two residual streams, relative to the larger one's square, before it was solved."""
    after: float


class Normal:
    """Normal equations of ``min |[X 1] P - T|^2 + lam |P - P_0|^2`` for a linear layer, streamed over rows.

    Products are taken in float32 and summed in float64. Rows may hold the first inputs only, as those of a smaller model do
    whose matrix is the first columns of this one: the inputs that they lack count as zero.

    Args:
        linear: whose weight and bias are P_0, and are replaced by `solve`.
    """

    def __init__(self, linear: nn.Linear) -> None:
        size, out, device = linear.in_features + 1, linear.out_features, linear.weight.device
        self.linear = linear
        self._gram = torch.zeros(size, size, dtype=torch.float64, device=device)
        self._cross = torch.zeros(size, out, dtype=torch.float64, device=device)
        self._targets = self._errors = self._size = 0.0
        self.rows = 0

    @torch.no_grad()
    def add(self, inputs: Tensor, targets: Tensor, size: float | None = None) -> None:
        """Take in rows.

        Args:
            inputs: [rows, in], or fewer columns.
            targets: [rows, out].
            size: what errors are reported relative to; the square of ``targets`` if None.
        """
        wide = torch.cat([inputs.float(), inputs.new_ones(len(inputs), 1)], dim=1)
        product = torch.zeros(wide.shape[1], wide.shape[1], device=wide.device)
        add_product(product, wide)
        cross, width = wide.T @ targets.float(), inputs.shape[1]
        # The bias stands last in both; the columns between are those of inputs that these rows lack.
        for columns in (slice(0, width), slice(-1, None)):
            self._gram[:width, columns] += product[:width, columns]
            self._cross[columns] += cross[columns]
        self._gram[-1, -1] += product[-1, -1]
        squares = float(targets.double().square().sum())
        self._targets += squares
        self._size += squares if size is None else size
        self.rows += len(inputs)

    @torch.no_grad()
    def solve(self, ridge: float, mask: Tensor | None = None) -> tuple[float, float]:
        """Set weight and bias to the solution; returns the relative squared error before and after.

        Args:
            ridge: lam relative to the mean of the diagonal of ``X^T X``; the bias is held a thousandth as tightly.
            mask: boolean [out, in], the weights that remain; the others are zero and stay so. None: all remain.

        Raises:
            DataError: no rows were added.
            ModelError: rows that are NaN or infinite, or too little ridge for so few rows.
        """
        if not ridge > 0:
            raise ValueError(
                f"ridge {ridge} is not above 0; a Gram matrix of few texts cannot be inverted without it"
            )
        if not self.rows:
            raise DataError(
                "there is no unlabelled text to fit output projections to: no batch holds a token"
            )
        gram = mirror(self._gram)
        if not (gram.isfinite().all() and self._cross.isfinite().all()):
            raise ModelError(
                "activations on unlabelled text are not finite (NaN or infinity): the model has diverged"
            )
        linear = self.linear
        start = torch.cat([linear.weight.double(), linear.bias.double().unsqueeze(1)], dim=1).T
        diagonal = gram.diagonal()[:-1]
        held = torch.full_like(start[:, 0], ridge * float(diagonal.mean()) or ridge)
        held[-1] = ridge * self.rows / 1000
        matrix, residual = gram + held.diag(), self._cross - gram @ start
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            raise ModelError(
                "the Gram matrix of activations is singular (not positive definite): raise pruning.reconstruct.ridge, or "
                "use more texts"
            )
        solution = start + torch.cholesky_solve(residual, factor)
        if mask is not None:
            solution = _among(mask, solution, start, matrix / self.rows)
        before, after = self._error(start, gram), self._error(solution, gram)
        linear.weight.copy_(solution[:-1].T)
        linear.bias.copy_(solution[-1])
        return before, after

    def _error(self, solution: Tensor, gram: Tensor) -> float:
        fitted = (solution * (gram @ solution - 2 * self._cross)).sum()
        return max(0.0, self._targets + float(fitted)) / max(self._size, 1e-30)


def _among(mask: Tensor, best: Tensor, start: Tensor, matrix: Tensor) -> Tensor:
    """Return the solution among weights under a mask: the one nearest to the ``best`` of all, as errors are measured.

    Args:
        mask: boolean [out, in].
        best: [in + 1, out], the bias last.
        start: [in + 1, out], zero where the mask is false.
        matrix: [in + 1, in + 1], whose quadratic form of the distance to ``best`` is the rise of the error.
    """
    # The bias is free, so it is eliminated; conjugate gradients are slow in its direction.
    edge, corner = matrix[:-1, -1], matrix[-1, -1]
    inner = matrix[:-1, :-1] - torch.outer(edge, edge) / corner
    weight = descend(best[:-1].T, start[:-1].T, mask, inner, STEPS_OF_DRIFT)
    bias = best[-1] - (weight - best[:-1].T) @ edge / corner
    return torch.cat([weight.T, bias.unsqueeze(0)])


@torch.no_grad()
def reconstruct(
    dense: nn.Module,
    cut: nn.Module,
    batches: Iterable[Batch],
    sources: Sequence[int],
    ridge: float = 0.01,
    prefixes: Sequence[nn.Module] = (),
    masks: Masks | None = None,
) -> list[Fit]:
    """Solve the output projections of a smaller model, layer by layer, so that it follows the dense one's residual stream.

    Both models walk through the same texts. The targets hold what the smaller model has strayed by so far, so that each
    projection makes up for the ones before it. Where layers were dropped, the FFN's projection of a layer is fitted to the
    last dense layer of the block that it stands for, and takes that layer's LayerNorm.

    Smaller models that are views of the cut one (`nesting.view_of`) are solved together with it: one matrix for all, which
    makes up for what each of them has strayed by.

    Arrays of hidden states are held, ``4 bytes * tokens * hidden`` each, one and two for each model that is solved (padding
    included: sort texts by length).

    Args:
        dense: the whole model, in eval mode.
        cut: what is left of it, in eval mode; its output projections are set, and LayerNorms after dropped layers.
        batches: text, as many languages as are served; 3,000 sentences do better than 600, and 100 are too few.
        sources: for each layer of ``cut``, which layer of ``dense`` it was; rising.
        ridge: how much solutions are held to what was there; 0.1 with few texts.
        prefixes: smaller models that use the first columns of the same matrices, in eval mode.
        masks: the single weights of ``cut`` that remain, by name; pruned ones are zero and stay so. None: all remain.

    Returns:
        Two fits for every layer of ``cut``, over all models that are solved.

    Raises:
        DataError: no text.
        ModelError: activations that are not finite.
    """
    whole, students = _following_norms(dense), [cut, *prefixes]
    layers = list(zip(*map(_following_norms, students), strict=True))
    _require_sources(sources, len(layers), len(whole))
    ends = [*(source - 1 for source in sources[1:]), len(whole) - 1]
    # A block that starts before the first source belongs to the first layer.
    starts = [0, *sources[1:]]
    streams = [_Stream.enter(dense, students, batch) for batch in batches]
    fits = []
    for number, (parts, source, first, last) in enumerate(zip(layers, sources, starts, ends)):
        block, layer = whole[first : last + 1], parts[0]
        normal = Normal(layer.attention_output.module)
        for stream in streams:
            stream.mix(parts, block, source - first, normal)
        mask = None if masks is None else masks[layer.attention_output.name]
        fits.append(Fit(number, "attention_output", *normal.solve(ridge, mask)))
        normal = Normal(layer.ffn_out.module)
        for stream in streams:
            stream.expand(parts, normal)
        mask = None if masks is None else masks[layer.ffn_out.name]
        fits.append(Fit(number, "ffn_out", *normal.solve(ridge, mask)))
        if last != source:
            layer.ffn_norm.load_state_dict(block[-1].ffn_norm.state_dict())
        for stream in streams:
            stream.leave(parts, block[-1])
    return fits


def _require_sources(sources: Sequence[int], layers: int, total: int) -> None:
    rising = all(a < b for a, b in pairwise(sources))
    if len(sources) != layers or not layers or not rising or not 0 <= sources[0] <= sources[-1] < total:
        raise ValueError(
            f"sources {list(sources)}: expected {layers} rising numbers of layers from 0 to {total - 1}"
        )


@dataclass
class _Stream:
    """One batch on its way through all models."""

    real: Tensor
    """Boolean [batch, tokens]."""
    mask: Tensor | None
    """As the attention takes it."""
    dense: Tensor
    """Hidden states of the dense model; between `mix` and `leave`, its residual sum after the last FFN of the block."""
    cut: list[Tensor]
    """Hidden states of each model that is solved; between `expand` and `leave`, those after its attention."""
    mixed: list[Tensor]
    """What enters the attention output of each."""

    @classmethod
    def enter(cls, dense: nn.Module, students: Sequence[nn.Module], batch: Batch) -> _Stream:
        given = batch["input_ids"], batch["attention_mask"]
        hidden, mask = _enter(dense, *given)
        entered = [_enter(student, *given)[0] for student in students]
        return cls(batch["attention_mask"].bool(), mask, hidden, entered, list(entered))

    def mix(self, layers: Sequence[Layer], block: Sequence[Layer], place: int, normal: Normal) -> None:
        """Walk the dense model through the block; fit the attention's output to that of the layer at ``place``."""
        hidden = self.dense
        for number, whole in enumerate(block):
            attended = whole.attention_output.module(_mixed(whole, hidden, self.mask)) + hidden
            if number == place:
                wanted = attended
            between = whole.attention_norm(attended)
            self.dense = whole.ffn_out.module(whole.expand(between)) + between
            hidden = whole.ffn_norm(self.dense)
        size = float(wanted[self.real].square().sum())
        for index, layer in enumerate(layers):
            self.mixed[index] = _mixed(layer, self.cut[index], self.mask)
            normal.add(self.mixed[index][self.real], (wanted - self.cut[index])[self.real], size)

    def expand(self, layers: Sequence[Layer], normal: Normal) -> None:
        """Fit the FFN's output to the residual sum at the block's end."""
        size = float(self.dense[self.real].square().sum())
        for index, layer in enumerate(layers):
            attended = layer.attention_output.module(self.mixed[index]) + self.cut[index]
            self.cut[index] = layer.attention_norm(attended)
            self.mixed[index] = self.cut[index]  # the wide one is no longer needed
            target = (self.dense - self.cut[index])[self.real]
            normal.add(layer.expand(self.cut[index])[self.real], target, size)

    def leave(self, layers: Sequence[Layer], last: Layer) -> None:
        """Go on to the next block."""
        for index, layer in enumerate(layers):
            left = layer.ffn_out.module(layer.expand(self.cut[index])) + self.cut[index]
            self.cut[index] = layer.ffn_norm(left)
        self.dense = last.ffn_norm(self.dense)


def _mixed(layer: Layer, hidden: Tensor, mask: Tensor | None) -> Tensor:
    return layer.attention(hidden, mask)[0]


def _following_norms(model: nn.Module) -> list[Layer]:
    family = architecture.of(model)
    if family.norm_first:
        raise ModelError(
            f"models of type {family.model_type!r} normalise before each part of a layer; output projections are fitted "
            "only where LayerNorm follows"
        )
    return family.layers(model)


class _Caught(Exception):
    """Raised to leave a forward pass before its first layer."""


@torch.no_grad()
def _enter(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return what the first layer is given: hidden states [batch, tokens, hidden], and the mask as attention takes it."""
    caught: list[Any] = []

    def catch(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        mask = named.get("attention_mask", given[1] if len(given) > 1 else None)
        caught.append((given[0] if given else named["hidden_states"], mask))
        raise _Caught

    first = architecture.of(model).layers(model)[0].module
    hook = first.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(input_ids=input_ids, attention_mask=attention_mask)
    except _Caught:
        pass
    finally:
        hook.remove()
    return caught[0]
