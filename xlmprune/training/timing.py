"""Estimate how long a run takes: the run's own loop makes a few updates, with random weights and random ids.

Nothing is downloaded or tokenized, so the lengths of texts follow from their characters. The estimate holds for this
machine, as busy as it is now.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch

from xlmprune.core.machine import memory_bytes
from xlmprune.core.progress import Advance, Reporter, silent_reporter
from xlmprune.data.encoding import Encoded, batches_by_length, pad
from xlmprune.data.examples import Examples, Kind
from xlmprune.data.lengths import estimate_tokens
from xlmprune.data.special import SpecialTokens
from xlmprune.models.loading import forward_of, head_class
from xlmprune.pruning.moments import to_device
from xlmprune.recipe.schema import Recipe
from xlmprune.training.datasets import Texts
from xlmprune.training.loop import FinePruning, Step
from xlmprune.training.method import Method
from xlmprune.training.teaching import Teaching

UPDATES = 4
"""Of each stage that is timed. The first one prunes and warms up, and does not count."""

MOST_TEXTS = 20_000
"""Random texts in a set, at most; as many rows of the embeddings are trained as the real texts have distinct words."""

MEASURED_BATCHES = 4
"""Of `evaluation.batch_size` texts, to time a forward pass."""

SPECIAL = SpecialTokens({}, pad=1, unknown=3, separator=2, single=2, pair=4, segments=False, word_start=None)


@dataclass(frozen=True)
class Duration:
    """Seconds that the parts of a run take."""

    updates: tuple[float, ...]
    """Of an update, by stage; stages after the first that prunes are taken to be as slow as that one."""
    training: float
    measuring: float
    """Scores of all languages: in PyTorch after the stages that are measured, and of each ONNX file."""

    def facts(self) -> dict[str, Any]:
        """Return the numbers for the plan."""
        return {"update": list(self.updates), "training": self.training, "measuring": self.measuring}


def estimate_duration(
    recipe: Recipe,
    method: Method,
    config: Any,
    texts: Texts,
    stages: Sequence[int],
    words: int,
    device: torch.device,
    memory: int,
    reporter: Reporter | None = None,
    trains_dense: bool = True,
) -> Duration | None:
    """Estimate how long a run takes, by a few updates on this machine.

    Args:
        config: of the model, in transformers.
        stages: number of updates, by stage.
        words: distinct words of the training and unlabelled text.
        memory: bytes that training is estimated to hold.
        reporter: shows how far the timing is; None: nothing does.
        trains_dense: whether stage 0 is trained and scored; another run may have done that.

    Returns:
        None where there is not twice as much memory.
    """
    room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_bytes()
    if room is None or 2 * memory > room:
        return None
    reporter = reporter or silent_reporter()
    reporter.say("timing a few updates with random weights, to estimate how long the run takes")
    random = np.random.default_rng(0)
    kind = texts.task.kind
    torch.manual_seed(0)
    model = head_class(config, kind)(config).to(device)
    length = recipe.training.max_length
    pool = min(max(words, 1), config.vocab_size - SPECIAL.pair)

    def invent(sets: Sequence[Examples], labels: int = 0) -> Encoded:
        return _invented(sets, length, pool, labels, kind, random)

    train = invent([texts.train], len(texts.task.labels))
    tests = invent(list(texts.tests.values()))
    measuring = _seconds_per_text(model, tests, recipe.evaluation.batch_size, device)
    teaching = None
    if recipe.distillation is not None:
        unlabelled = invent(list(texts.unlabelled.values())) if texts.unlabelled else None
        keeping = recipe.training.frozen_weights
        teaching = Teaching(recipe.distillation, unlabelled, recipe.training.batch_size, recipe.seed, keeping)
    timed = sum(min(UPDATES, count) for count in stages[:2])
    with reporter.counting("timing updates", timed) as advance:
        updates = _seconds_per_update(recipe, method, model, train, teaching, device, advance)
    by_stage = [updates[min(stage, len(updates) - 1)] for stage in range(len(stages))]
    taken = [seconds * count for seconds, count in zip(by_stage, stages, strict=True)]
    sizes = [len(test) for test in texts.tests.values()]
    return Duration(
        tuple(by_stage),
        sum(taken if trains_dense else taken[1:]),
        measuring * texts_measured(recipe, sizes, len(stages), trains_dense),
    )


def _seconds_per_update(
    recipe: Recipe,
    method: Method,
    model: torch.nn.Module,
    train: Encoded,
    teaching: Teaching | None,
    device: torch.device,
    advance: Advance,
) -> list[float]:
    """Return the seconds of an update before and after the first pruning; none where a stage has no update."""
    structure = method.structure
    if structure is not None:
        # Refitting and ranking are steps of their own, and do not change how long an update takes.
        structure = structure.model_copy(update={"importance": "magnitude"})
    short = replace(method, densities=method.densities[:2], reconstruct=None, structure=structure)
    settings = recipe.training.model_copy(
        update={"max_updates_per_stage": UPDATES, "keep": "last", "compile": False, "cuda_graphs": False}
    )
    batch = {name: torch.from_numpy(ids) for name, ids in pad(train, range(min(len(train), 8))).items()}
    start = {name: value.detach().clone() for name, value in model.state_dict().items()}
    loop = FinePruning(
        model,
        train,
        short,
        settings,
        recipe.seed,
        teaching=teaching,
        start=lambda: start,
        moment_text=[to_device(batch, device)],
    )
    taken: list[list[float]] = [[] for _ in short.densities]
    for stage, seconds in _timed(loop, device):
        taken[stage].append(seconds)
        advance(1)
    return [fmean(seconds[1:] or seconds) if seconds else 0.0 for seconds in taken]


def _timed(loop: FinePruning, device: torch.device) -> Iterator[tuple[int, float]]:
    """Yield stage and seconds of every update."""
    begun = time.perf_counter()
    for event in loop.run():
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if isinstance(event, Step):
            yield event.stage, now - begun
        begun = time.perf_counter()


def _seconds_per_text(model: torch.nn.Module, tests: Encoded, batch_size: int, device: torch.device) -> float:
    forward, batches = forward_of(model, device), batches_by_length(tests, batch_size)
    chosen = batches[:: -(-len(batches) // MEASURED_BATCHES)]
    begun = time.perf_counter()
    for rows in chosen:
        batch = pad(tests, rows)
        forward(batch["input_ids"], batch["attention_mask"])
    return (time.perf_counter() - begun) / sum(map(len, chosen))


def texts_measured(recipe: Recipe, tests: Sequence[int], stages: int, dense: bool = True) -> int:
    """Return how many texts are scored: all of them dense, pruned and in every ONNX form, and a share in between.

    Args:
        tests: number of test texts, by language.
        dense: whether the dense model is scored.
    """
    settings = recipe.evaluation
    between = sum(stage % settings.stage_interval == 0 for stage in range(1, stages - 1))
    cap = settings.max_stage_examples or max(tests)
    return sum(tests) * (1 + dense + len(recipe.export.onnx)) + between * sum(
        min(size, cap) for size in tests
    )


def _invented(
    sets: Sequence[Examples], length: int, pool: int, labels: int, kind: Kind, random: np.random.Generator
) -> Encoded:
    """Return random ids of the texts' lengths; without labels where there are none to draw from."""
    lengths = np.array([min(_pieces(*pair), length) for part in sets for pair in _pairs(part)][:MOST_TEXTS])
    ids = [random.integers(SPECIAL.pair, SPECIAL.pair + pool, count) for count in lengths]
    drawn: Any = None
    if labels:
        drawn = random.integers(0, labels, len(ids))
        if kind == "tokens":
            drawn = [random.integers(0, labels, count) for count in lengths]
    return Encoded(ids, drawn, None, np.zeros(len(ids), dtype=bool), special=SPECIAL)


def _pairs(examples: Examples) -> Iterator[tuple[str, str]]:
    second = examples.second or [""] * len(examples)
    for text, other in zip(examples.first, second, strict=True):
        yield (text if isinstance(text, str) else " ".join(text)), other


def _pieces(first: str, second: str) -> int:
    special = SPECIAL.pair if second else SPECIAL.single
    return special + max(1, round(estimate_tokens(first + second)))
