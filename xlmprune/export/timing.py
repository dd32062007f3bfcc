"""Time ONNX files in turns, so that their times can be compared.

On a machine that others use too, a file measured now and another a minute later differ by what happened between. Here all
files are open at once and take turns, one call each, in an order that reverses every round.

Needs numpy and onnxruntime.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xlmprune.core.errors import BundleError
from xlmprune.export.runtime import open_session

FIRST_ID = 4
"""The first token id that is no special token."""

TOKEN_IDS = 200
"""Ids drawn from in the texts made up for measuring; fewer where a model's vocabulary is smaller."""

LEAST_ROUNDS = 5

SECONDS = 5.0
"""For all files together, unless told otherwise."""


class Session(Protocol):
    """An opened file: what this module uses of a session of ONNX Runtime."""

    def get_inputs(self) -> Sequence[Any]:
        """Return the inputs, each with `name` and `type`, such as ``tensor(int64)``."""

    def run(self, outputs: Any, inputs: Any, /) -> Any:
        """Return the arrays of the outputs."""


def time_in_turns(
    files: Mapping[str, Path], batch: int, tokens: int, threads: int, seconds: float = SECONDS
) -> dict[str, float]:
    """Open files, call them in turns, and return the median milliseconds of a call of each.

    Raises:
        BundleError: a file cannot be opened, or does not take so many tokens.
    """
    sessions = {name: open_session(path, threads, spinning=False) for name, path in files.items()}
    rounds = time_rounds(sessions, batch, tokens, 1000, seconds, ids_known(sessions))
    return {name: float(np.median(taken)) for name, taken in rounds.items()}


def time_rounds(
    sessions: Mapping[str, Session],
    batch: int,
    tokens: int,
    repeats: int,
    seconds: float,
    ids: int = TOKEN_IDS,
) -> dict[str, np.ndarray]:
    """Measure the milliseconds of every call, [rounds] for each file; entries of one index are of one round.

    Args:
        repeats: rounds at most, after one to warm up.
        seconds: after which no round begins once there are five.

    Raises:
        BundleError: a file does not take so many tokens.
    """
    for form, session in sessions.items():
        if not takes(session, tokens, ids):
            raise BundleError(f"{form} does not accept texts of {tokens} tokens; try shorter texts")
    inputs = {form: make_inputs(session, batch, tokens, ids) for form, session in sessions.items()}
    order = list(sessions)
    taken: dict[str, list[float]] = {form: [] for form in order}
    for form in order:
        sessions[form].run(None, inputs[form])
    end = time.perf_counter() + seconds
    for turn in range(repeats):
        if turn >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for form in order if turn % 2 == 0 else reversed(order):
            start = time.perf_counter()
            sessions[form].run(None, inputs[form])
            taken[form].append(1e3 * (time.perf_counter() - start))
    return {form: np.array(values) for form, values in taken.items()}


def make_inputs(session: Session, batch: int, tokens: int, ids: int = TOKEN_IDS) -> dict[str, np.ndarray]:
    """Make random texts of ids below ``ids``, without padding, for every input that the file has."""
    drawn = np.random.default_rng(0).integers(FIRST_ID, ids, (batch, tokens))
    inputs = {}
    for entry in session.get_inputs():
        values = np.ones_like(drawn) if "mask" in entry.name else np.zeros_like(drawn)
        if entry.name == "input_ids":
            values = drawn
        inputs[entry.name] = values.astype(np.int32 if "int32" in entry.type else np.int64)
    return inputs


def ids_known(sessions: Mapping[str, Session]) -> int:
    """Return below which number every model knows the ids: `TOKEN_IDS`, halved while one refuses."""
    ids = TOKEN_IDS
    while ids > FIRST_ID + 1 and not all(_knows(session, ids) for session in sessions.values()):
        ids = max(ids // 2, FIRST_ID + 1)
    return ids


def takes(session: Session, tokens: int, ids: int) -> bool:
    """Return whether the model accepts a text of so many tokens."""
    return _runs(session, make_inputs(session, 1, tokens, ids))


def _knows(session: Session, ids: int) -> bool:
    inputs = make_inputs(session, 1, 1)
    inputs["input_ids"][:] = ids - 1
    return _runs(session, inputs)


def _runs(session: Session, inputs: dict[str, np.ndarray]) -> bool:
    try:
        session.run(None, inputs)
    except Exception:  # ONNX Runtime raises several types for an input that it refuses
        return False
    return True
