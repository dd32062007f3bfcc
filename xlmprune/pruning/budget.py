"""Choose layers, heads and neurons for a budget of milliseconds, speed-up or bytes, before anything is trained.

What a size costs comes from a `SizeTable`: a few files that were written and timed. The latency of an encoder is a fixed
part and, for each layer, a part for its heads and a part for its neurons; its bytes are linear in the same. `search` looks
at every size and takes the one that keeps most.

What "most" means must be known before training, when no importance is. `worth` stands in for it, see there. The importance
of single heads and neurons decides later which of them remain.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlmprune.core.errors import ModelError, RecipeError
from xlmprune.core.files import write_atomically
from xlmprune.core.formatting import count_of
from xlmprune.core.formatting import size as bytes_in_words
from xlmprune.recipe.schema import StructureRecipe


@dataclass(frozen=True)
class Size:
    """How large an encoder is whose layers are alike."""

    layers: int
    heads: int
    """Of every layer."""
    neurons: int
    """Of every layer."""

    def __str__(self) -> str:
        layers, heads = count_of(self.layers, "layer"), count_of(self.heads, "head")
        return f"{layers} with {heads} and {count_of(self.neurons, 'FFN neuron')} each"


# --- what a size costs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SizedFile:
    """A file that was written to learn what its size costs."""

    size: Size
    rows: int
    """Word embeddings in it."""
    bytes: int


@dataclass(frozen=True)
class Timing:
    """How long one call of each file took."""

    batch: int
    tokens: int
    threads: int
    ms: tuple[float, ...]
    """Median of each file of the table."""
    dense_ms: float
    """Median of the whole model's dense fp32 file."""

    @property
    def conditions(self) -> str:
        """In words."""
        return f"batch {self.batch}, {count_of(self.tokens, 'token')}, {count_of(self.threads, 'thread')}"


@dataclass(frozen=True)
class SizeTable:
    """What sizes of one model cost, in one form, on one machine."""

    model: Mapping[str, Any]
    """`name`, and what makes it that model: `type`, `hidden`, `layers`, `heads`, `neurons`."""
    form: str
    opset: int
    embeddings: str
    """Bits of the word embeddings, in forms that quantize them."""
    machine: Mapping[str, Any]
    """Processor, its instructions, and the version of ONNX Runtime."""
    files: tuple[SizedFile, ...]
    timings: tuple[Timing, ...]

    @property
    def whole(self) -> Size:
        """Size of the whole model."""
        return Size(*(int(self.model[key]) for key in ("layers", "heads", "neurons")))

    def record(self) -> dict[str, Any]:
        """Return it as plain numbers and lists."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Any) -> SizeTable:
        """Build it from what `record` gave, after a way through JSON.

        Raises:
            ValueError: something else, or a number that cannot be right.
        """
        try:
            files = tuple(SizedFile(**{**file, "size": Size(**file["size"])}) for file in record["files"])
            timings = tuple(Timing(**{**entry, "ms": tuple(entry["ms"])}) for entry in record["timings"])
            table = cls(**{**record, "files": files, "timings": timings})
            numbers = [
                number for file in files for number in (*asdict(file.size).values(), file.rows, file.bytes)
            ]
            numbers += [number for entry in timings for number in (*entry.ms, entry.dense_ms)]
            numbers += [*asdict(table.whole).values()]
            right = bool(files) and all(map(_is_amount, numbers))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"it is not a table of sizes: {error}") from error
        if not right or any(len(entry.ms) != len(files) for entry in timings):
            raise ValueError("it is not a table of sizes: a number is missing, or not above 0")
        return table

    def timing(self, batch: int, tokens: int, threads: int) -> Timing:
        """Return the timing under these conditions.

        Raises:
            RecipeError: there is none; names those that there are.
        """
        for entry in self.timings:
            if (entry.batch, entry.tokens, entry.threads) == (batch, tokens, threads):
                return entry
        known = "; ".join(entry.conditions for entry in self.timings) or "nothing"
        asked = Timing(batch, tokens, threads, (), 1.0).conditions
        raise RecipeError(f"pruning.structure.budget: {asked} asked for; the table has {known}")


def _is_amount(value: Any) -> bool:
    """Return whether a value read from a file is a number above 0 that can be computed with."""
    return type(value) in (int, float) and 0 < value < 2.0**60


Sizes = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Layers, heads and neurons, arrays of one shape."""


class Latency:
    """Predicts milliseconds: ``fixed + layers * (attention(heads) + ffn(neurons))``.

    `attention` and `ffn` are linear between the widths that were measured, and beyond them. All unknowns are fitted at once
    by least squares of relative errors. Where noise makes a larger width faster, both count as equally fast.

    Args:
        sizes: that were measured.
        ms: how long each took.
    """

    def __init__(self, sizes: Sequence[Size], ms: Sequence[float]) -> None:
        self._heads = sorted({size.heads for size in sizes})
        self._neurons = sorted({size.neurons for size in sizes})
        layers, heads, neurons = arrays(sizes)
        weights = np.concatenate([_hats(self._heads, heads), _hats(self._neurons, neurons)], axis=1)
        design = np.concatenate([np.ones((len(sizes), 1)), layers[:, None] * weights], axis=1)
        taken = np.asarray(ms, dtype=float)
        found = np.linalg.lstsq(design / taken[:, None], np.ones(len(taken)), rcond=None)[0]
        split = 1 + len(self._heads)
        self._fixed = found[0]
        self._attention = np.maximum.accumulate(found[1:split])
        self._ffn = np.maximum.accumulate(found[split:])

    def __call__(self, sizes: Sizes) -> np.ndarray:
        """Return milliseconds, shaped like each of the arrays."""
        layers, heads, neurons = sizes
        attention = _hats(self._heads, heads) @ self._attention
        return self._fixed + layers * (attention + _hats(self._neurons, neurons) @ self._ffn)


def _hats(levels: Sequence[int], values: np.ndarray) -> np.ndarray:
    """Return the weight of each level in linear interpolation, [..., levels]; the outer pieces go on beyond the ends."""
    if len(levels) == 1:
        return np.ones((*values.shape, 1))
    left = np.clip(np.searchsorted(levels, values, side="right") - 1, 0, len(levels) - 2)
    low, high = np.take(levels, left), np.take(levels, left + 1)
    share = ((values - low) / (high - low))[..., None]
    return (1 - share) * np.eye(len(levels))[left] + share * np.eye(len(levels))[left + 1]


class Bytes:
    """Predicts the bytes of a file: linear in embedding rows, layers, and heads and neurons of all layers.

    Args:
        files: that were written.
        rows: word embeddings of the model whose size is asked for.
    """

    def __init__(self, files: Sequence[SizedFile], rows: int) -> None:
        self._rows = rows
        design = self._design(arrays([file.size for file in files]), np.array([file.rows for file in files]))
        self._found = np.linalg.lstsq(design, np.array([float(file.bytes) for file in files]), rcond=None)[0]

    def __call__(self, sizes: Sizes) -> np.ndarray:
        """Return bytes, shaped like each of the arrays."""
        return self._design(sizes, np.full_like(sizes[0], self._rows)) @ self._found

    @staticmethod
    def _design(sizes: Sizes, rows: np.ndarray) -> np.ndarray:
        layers, heads, neurons = sizes
        return np.stack([np.ones(layers.shape), rows, layers, layers * heads, layers * neurons], axis=-1)


def arrays(sizes: Sequence[Size]) -> Sizes:
    """Return layers, heads and neurons of several sizes as arrays."""
    layers, heads, neurons = np.array([(size.layers, size.heads, size.neurons) for size in sizes]).T
    return layers, heads, neurons


# --- what a size is worth ---------------------------------------------------------------------------------------------


def worth(sizes: Sizes, whole: Size) -> np.ndarray:
    """Return ``depth ** 2 * sqrt(heads * neurons)``, each as a share of the whole model: 1 for the whole model.

    A rule for choosing before training. It orders five sizes of the quickstart model as their zero-shot means do after
    reconstruction and short distillation (one dense model; 74.8 without cuts): all layers at half width 74.3, half the
    layers at full width 74.2, at half width 73.2, at quarter width 72.0, and a third of the layers at half width 71.1. So
    layers count more than width. Heads and neurons count alike, which nothing has tested.
    """
    layers, heads, neurons = sizes
    return (layers / whole.layers) ** 2 * np.sqrt(heads / whole.heads * neurons / whole.neurons)


# --- the search -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What a size must not exceed; None where there is no limit."""

    latency_ms: float | None = None
    speedup: float | None = None
    """At least; over the whole model's dense fp32 file."""
    bytes: int | None = None


@dataclass(frozen=True)
class Choice:
    """The size that a budget leaves, and what it is predicted to cost."""

    size: Size
    latency_ms: float | None
    """None where nothing was timed."""
    speedup: float | None
    bytes: int


def search(limits: Limits, table: SizeTable, timing: Timing | None, rows: int, multiple: int) -> Choice:
    """Return the size of the largest `worth` within the limits; of several the fastest, and then the smallest.

    Args:
        timing: of ``table``; None where only bytes are limited.
        rows: word embeddings of the model.
        multiple: neurons remain in multiples of this.

    Raises:
        RecipeError: no size is within the limits, which names the best that can be reached; the whole model is within them;
            or ``multiple`` does not divide its neurons.
    """
    whole = table.whole
    if whole.neurons % multiple:
        raise RecipeError(
            f"pruning.structure.multiple: {multiple} does not divide the {whole.neurons} neurons of a layer"
        )
    axes = [
        range(1, whole.layers + 1),
        range(1, whole.heads + 1),
        range(multiple, whole.neurons + 1, multiple),
    ]
    layers, heads, neurons = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    sizes = (layers, heads, neurons)
    weights = Bytes(table.files, rows)(sizes)
    ms = np.zeros(len(layers))
    if timing is not None:
        ms = Latency([file.size for file in table.files], timing.ms)(sizes)
    fits = np.ones(len(layers), dtype=bool)
    if limits.bytes is not None:
        fits &= weights <= limits.bytes
    most_ms = _most_ms(limits, timing)
    fits &= ms <= most_ms
    if not fits.any():
        raise RecipeError(_unreachable(limits, timing, sizes, ms, weights))
    # Rounded, so that sizes of one worth do not differ by the last bit.
    order = np.lexsort((weights, ms, -worth(sizes, whole).round(12), ~fits))
    best = int(order[0])
    size = Size(int(layers[best]), int(heads[best]), int(neurons[best]))
    if size == whole:
        raise RecipeError(
            "pruning.structure.budget: the whole model meets it already; leave pruning.structure out"
        )
    taken = float(ms[best])
    return Choice(
        size,
        None if timing is None else taken,
        None if timing is None else timing.dense_ms / taken,
        round(float(weights[best])),
    )


def _most_ms(limits: Limits, timing: Timing | None) -> float:
    most = [float("inf")]
    if limits.latency_ms is not None:
        most.append(limits.latency_ms)
    if limits.speedup is not None and timing is not None:
        most.append(timing.dense_ms / limits.speedup)
    return min(most)


def _unreachable(
    limits: Limits, timing: Timing | None, sizes: Sizes, ms: np.ndarray, weights: np.ndarray
) -> str:
    """Say which limit no size keeps and the best that one reaches; if each alone can be kept, that all cannot."""
    fastest, smallest = int(ms.argmin()), int(weights.argmin())
    faults = []
    if limits.latency_ms is not None and ms[fastest] > limits.latency_ms:
        faults.append(
            f"latency_ms {limits.latency_ms:g} cannot be met; the best possible is {ms[fastest]:.3g} ms, with "
            f"{_size_at(sizes, fastest)}"
        )
    if limits.speedup is not None and timing is not None and timing.dense_ms < limits.speedup * ms[fastest]:
        faults.append(
            f"speedup {limits.speedup:g} cannot be met; the best possible is {timing.dense_ms / ms[fastest]:.3g} (dense "
            f"fp32 {timing.dense_ms:.3g} ms, this {ms[fastest]:.3g} ms), with {_size_at(sizes, fastest)}"
        )
    if limits.bytes is not None and weights[smallest] > limits.bytes:
        faults.append(
            f"bytes {bytes_in_words(limits.bytes)} cannot be met; the best possible is "
            f"{bytes_in_words(float(weights[smallest]))}, with {_size_at(sizes, smallest)}. Most of these bytes are "
            "embeddings: trim the vocabulary further (model.vocabulary, with a lower max_size), or set export.embeddings: "
            "int4"
        )
    faults = faults or ["each limit can be met alone, but no size meets all of them; relax one"]
    return "pruning.structure.budget: " + "; ".join(faults)


def _size_at(sizes: Sizes, index: int) -> Size:
    return Size(*(int(axis[index]) for axis in sizes))


# --- what a run keeps -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settled:
    """What a budget became."""

    asked: Mapping[str, Any]
    """The limits, and under which conditions."""
    whole: Size
    choice: Choice
    dense_ms: float | None
    """Of the whole model's dense fp32 file; None where nothing was timed."""
    table: Mapping[str, Any]
    """Record of the `SizeTable` that decided."""

    def applied(self, structure: StructureRecipe) -> StructureRecipe:
        """Return the section with layers, heads and neurons in place of the budget."""
        size, whole = self.choice.size, self.whole
        return structure.model_copy(
            update={
                "budget": None,
                "layers": size.layers,
                "heads": size.heads / whole.heads,
                "neurons": size.neurons / whole.neurons,
            }
        )

    def facts(self) -> dict[str, Any]:
        """Return what the report says."""
        return {
            "asked": dict(self.asked),
            "chosen": asdict(self.choice.size),
            "predicted": {
                "latency_ms": self.choice.latency_ms,
                "speedup": self.choice.speedup,
                "bytes": self.choice.bytes,
                "dense_ms": self.dense_ms,
            },
        }

    def sentence(self) -> str:
        """Say what was chosen and what it should cost."""
        choice, form = self.choice, self.asked["form"]
        costs = [f"{bytes_in_words(choice.bytes)} without packing"]
        if choice.latency_ms is not None and choice.speedup is not None:
            costs = [
                f"{choice.latency_ms:.3g} ms",
                f"{choice.speedup:.3g} times as fast as dense fp32",
                *costs,
            ]
        return f"the budget keeps {choice.size}; predicted for {form}: {', '.join(costs)}"

    def write(self, path: Path) -> None:
        """Write it as JSON, so that a resumed run measures nothing."""
        write_atomically(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Settled:
        """Read what `write` wrote.

        Raises:
            ModelError: the file is damaged.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            choice = {**record["choice"], "size": Size(**record["choice"]["size"])}
            return cls(**{**record, "whole": Size(**record["whole"]), "choice": Choice(**choice)})
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelError(f"{path}: is damaged ({error}); use --fresh to start over") from error


def settle_once(file: Path, settle: Callable[[], Settled | None]) -> Settled | None:
    """Return what ``file`` holds; where there is none, settle the budget and write it. None without a budget."""
    if file.is_file():
        return Settled.read(file)
    settled = settle()
    if settled is not None:
        settled.write(file)
    return settled
