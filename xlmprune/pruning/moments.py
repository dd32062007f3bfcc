"""Second moments of the inputs of a model's matrices, measured on unlabelled text, and their damped inverse.

Refitting (`reconstruction`), some criteria and the importance of structures rest on them. They are streamed over batches of
text that is drawn evenly over languages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xlmprune.core.errors import DataError, ModelError
from xlmprune.data.encoding import Encoded, pad

Moments = dict[str, Tensor]
"""Parameter name of a weight [out, in] to the second moment of its inputs, [in, in]: the mean of ``x x^T`` over tokens.
Weights that read the same input (query, key and value) hold the same tensor."""

Batch = Mapping[str, Tensor]
"""`input_ids` and `attention_mask`, [batch, tokens]; further entries are ignored."""

BLOCK = 512
"""Rows of a symmetric matrix that are computed at once."""


# --- text -------------------------------------------------------------------------------------------------------------


def draw_evenly(sizes: Mapping[str, int], texts: int, seed: int = 0) -> dict[str, list[int]]:
    """Draw rows evenly over languages; a language with too few gives all it has, and the others make up for it.

    Args:
        sizes: language to the number of its texts.
        texts: how many in all; all there are, if fewer.
        seed: of the draw; the same rows come whenever it is the same.

    Returns:
        Language to its rows, in random order.

    Raises:
        ValueError: ``texts`` is below 1.
    """
    if texts < 1:
        raise ValueError(f"{texts} texts asked for; expected at least 1")
    random = np.random.default_rng(seed)
    orders = {language: random.permutation(size).tolist() for language, size in sizes.items()}
    counts = dict.fromkeys(sizes, 0)
    left = min(texts, sum(sizes.values()))
    while left:
        for language, size in sizes.items():
            if left and counts[language] < size:
                counts[language] += 1
                left -= 1
    return {language: rows[: counts[language]] for language, rows in orders.items()}


def text_batches(parts: Mapping[str, Encoded], texts: int, batch_size: int = 64) -> list[dict[str, Tensor]]:
    """Draw texts evenly over languages and pad them in batches of like length.

    A language with too little text gives all it has, and the others make up for it.

    Args:
        parts: language to its encoded text; labels are not read.
        texts: how many in all; all there are, if fewer.
        batch_size: texts a batch.

    Returns:
        `input_ids` and `attention_mask` of every batch, shortest texts first; the same texts come every time.

    Raises:
        ValueError: ``texts`` is below 1.
    """
    rows = draw_evenly({language: len(part) for language, part in parts.items()}, texts)
    ids = [parts[language].input_ids[row] for language, mine in rows.items() for row in mine]
    if not ids:
        return []
    special = next(iter(parts.values())).special
    drawn = Encoded(sorted(ids, key=len), None, None, np.zeros(len(ids), dtype=bool), special=special)
    starts = range(0, len(drawn), batch_size)
    padded = [pad(drawn, range(start, min(start + batch_size, len(drawn)))) for start in starts]
    return [{key: torch.from_numpy(array) for key, array in batch.items()} for batch in padded]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Put a batch where the model is."""
    return {key: tensor.to(device) for key, tensor in batch.items()}


# --- second moments ---------------------------------------------------------------------------------------------------


def input_moments(model: nn.Module, weights: Iterable[str], batches: Iterable[Batch]) -> Moments:
    """Measure the second moment of the inputs of every named weight, over tokens that are not padding.

    The sums are float32: a matrix of 3,072 inputs takes 38 MB, all of XLM-R base 0.5 GB. Their rounding error of about 1e-6
    is far below any useful ridge; what is sensitive, the factorisation, is done in float64.

    Args:
        model: in eval mode; it is called with `input_ids` and `attention_mask`.
        weights: parameter names of `nn.Linear` weights, such as those of `model.prunable`.
        batches: as many as there are; every one is read once.

    Returns:
        One tensor per name, float32, symmetric, on the model's device.

    Raises:
        DataError: the batches hold no tokens.
        ModelError: an activation is NaN or infinite.
    """
    names = list(weights)
    linears = {name: model.get_submodule(name.removesuffix(".weight")) for name in names}
    leader: dict[str, str] = {}
    sums: Moments = {}
    tokens = 0
    for batch in batches:
        real = batch["attention_mask"].bool()
        counted = int(real.sum())
        if not counted:
            continue
        first = not leader
        # Held until the batch is over, so that no two inputs can be mistaken for one another.
        inputs: list[tuple[str, Tensor]] = []

        def observe(name: str, given: Tensor, real: Tensor, first: bool, inputs: list[Any]) -> None:
            if first:
                same = [other for other, tensor in inputs if tensor is given]
                leader[name] = same[0] if same else name
                inputs.append((leader[name], given))
                if same:
                    return
                sums[name] = torch.zeros(given.shape[-1], given.shape[-1], device=given.device)
            add_product(sums[name], given[real].float())

        watched = names if first else sorted(sums)
        with _watching(
            {name: linears[name] for name in watched},
            lambda name, given: observe(name, given, real, first, inputs),  # noqa: B023 - called within this batch
        ):
            _forward(model, batch)
        tokens += counted
    if not tokens:
        raise DataError("there is no unlabelled text to measure activations on: no batch holds a token")
    for name, total in sums.items():
        mirror(total.div_(tokens))
        _require_finite(name, total)
    return {name: sums[leader[name]] for name in names}


@contextmanager
def _watching(modules: Mapping[str, nn.Module], observe: Any) -> Iterator[None]:
    """Call ``observe(name, input)`` whenever one of the modules is called."""
    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: observe(name, given[0]))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _forward(model: nn.Module, batch: Batch) -> None:
    if model.training:
        raise ValueError("the model is in training mode; dropout would be measured with the activations")
    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


@torch.no_grad()
def add_product(total: Tensor, rows: Tensor) -> None:
    """Add ``rows^T rows`` to the upper triangle of ``total`` [n, n], in little more than half the time of all of it.

    What lies below the diagonal is undefined until `mirror`.
    """
    for start in range(0, len(total), BLOCK):
        stop = start + BLOCK
        total[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])


@torch.no_grad()
def mirror(total: Tensor) -> Tensor:
    """Copy the upper triangle onto the lower one, in place."""
    for start in range(0, len(total), BLOCK):
        stop = start + BLOCK
        corner = total[start:stop, start:stop].triu()
        total[start:stop, start:stop] = corner + corner.triu(1).T
        total[stop:, start:stop] = total[start:stop, stop:].T
    return total


def _require_finite(name: str, moment: Tensor) -> None:
    if not moment.isfinite().all():
        raise ModelError(
            f"{name}: the activations on unlabelled text are not finite (NaN or infinity); nothing can be fitted to them. "
            "The model has diverged; lower training.learning_rate, or set training.precision=fp32"
        )


def damped(moment: Tensor, ridge: float) -> Tensor:
    """Return ``moment + ridge * mean(diag(moment)) * I`` in float64, [in, in]: positive definite even where inputs are dead.

    Args:
        moment: [in, in], positive semidefinite.
        ridge: relative to the mean of the diagonal; above 0.

    Raises:
        ValueError: ``ridge`` is not above 0.
    """
    if not ridge > 0:
        raise ValueError(f"ridge {ridge} is not above 0; a moment of few texts cannot be inverted without it")
    wide = moment.to(torch.float64, copy=True)
    size = float(wide.diagonal().mean())
    wide.diagonal().add_(ridge * size or ridge)
    return wide


def inverse_factor(matrix: Tensor) -> Tensor:
    """Return the upper triangular U with ``matrix^-1 = U^T U``, [n, n].

    U is the inverse of R in ``matrix = R R^T`` with R upper triangular: one factorisation and one triangular inverse, where
    inverting and factorising again takes three times as long and is less accurate.

    Args:
        matrix: [n, n], positive definite, float64.

    Raises:
        ModelError: not positive definite.
    """
    lower, info = torch.linalg.cholesky_ex(matrix.flip(0, 1))
    if int(info):
        raise ModelError(
            "the second moment of activations is singular (not positive definite): raise the ridge, or measure it on more "
            "texts (pruning.reconstruct)"
        )
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)


def inverse_diagonal(moment: Tensor, ridge: float) -> Tensor:
    """Return the diagonal of the damped moment's inverse, [in], float64."""
    return inverse_factor(damped(moment, ridge)).square().sum(dim=0)
