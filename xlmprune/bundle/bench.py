"""Latency, throughput, load time, peak memory and bytes of ONNX files side by side, so that the ratios can be trusted.

On a machine that others use too, a form measured now and another a minute later differ by what happened between. Here all
forms are open at once and take turns, one call each, in an order that reverses every round; a ratio is the median of the
ratios within rounds. Load time and memory come from a process of its own for every form and every time.

Needs numpy and onnxruntime; rich to `render`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xlmprune.core import own_process
from xlmprune.core.errors import BundleError

if TYPE_CHECKING:
    import onnxruntime
    from rich.console import RenderableType

FIRST_ID = 4
"""The first token id that is no special token."""

TOKEN_IDS = 200
"""Ids drawn from in the texts made up for measuring; fewer where a model's vocabulary is smaller."""

LEAST_ROUNDS = 5
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")
"""Processor features that decide how fast INT8 is."""


def bench(
    files: Mapping[str, Path],
    batches: Sequence[int] = (1, 8),
    lengths: Sequence[int] = (64, 128),
    threads: int | None = None,
    repeats: int = 30,
    seconds: float = 10.0,
    loads: int = 3,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure forms side by side; the first one is what the others are compared with.

    Args:
        files: ONNX files by the name they are shown under.
        batches: texts in a call.
        lengths: tokens of every text.
        threads: of ONNX Runtime, for every form; all processors that this process may use if None.
        repeats: rounds at most for each batch and length, after one to warm up.
        seconds: for each batch and length, after which no round begins once there are five.
        loads: how often each form is opened in a fresh process.
        say: told what is measured next.

    Returns:
        `threads`, `machine`, `onnxruntime`, `first`; `files` {form: file, bytes, load_seconds, peak_bytes,
        loaded_bytes}; `speed`, a list of {form, batch, tokens, rounds, median_ms, p95_ms, texts_per_second, speedup},
        where `speedup` is how many times faster than the first form. Memory is what the process gained from before
        the file was opened: at most while loading, and after it; None on systems that do not tell.

    Raises:
        BundleError: a file is missing, cannot be opened, or does not take so many tokens.
    """
    for path in files.values():
        if not Path(path).is_file():
            raise BundleError(f"{path} is not there; expected an ONNX file")
    threads = threads or processors()
    facts: dict[str, Any] = {
        "threads": threads,
        "machine": machine(),
        "onnxruntime": _onnxruntime().__version__,
        "first": next(iter(files)),
        "files": _loads(files, threads, loads, say),
        "speed": [],
    }
    sessions = {form: open_session(path, threads) for form, path in files.items()}
    ids = _ids_known(sessions)
    for batch in batches:
        for tokens in lengths:
            say(f"{batch} x {tokens} tokens")
            rounds = _rounds(sessions, batch, tokens, repeats, seconds, ids)
            facts["speed"] += [_speed(form, rounds, batch, tokens) for form in rounds]
    return facts


def quick(
    files: Mapping[str, Path], tokens: int = 64, seconds: float = 2.0, threads: int | None = None
) -> dict[str, dict[str, Any]]:
    """Latency of one text in every form, taking turns, and one opening of each, in a few seconds; for the report.

    Args:
        files: ONNX files by name, the one to compare with first.
        tokens: length of the text; halved until every model's positions allow it.
        seconds: for all calls together.

    Returns:
        by name: `batch` 1, `tokens`, `median_ms`, `p95_ms`, `texts_per_second`, `speedup` against the first,
        `load_seconds`, `peak_bytes` and `loaded_bytes` (see `bench`).
    """
    threads = threads or processors()
    sessions = {form: open_session(path, threads) for form, path in files.items()}
    ids = _ids_known(sessions)
    while not all(_takes(session, tokens, ids) for session in sessions.values()):
        if tokens == 1:
            raise BundleError(
                f"{', '.join(map(str, files.values()))}: not even one token is taken; expected models of xlmprune"
            )
        tokens //= 2
    rounds = _rounds(sessions, 1, tokens, repeats=1000, seconds=seconds, ids=ids)
    del sessions
    facts = {}
    for form, path in files.items():
        speed = _speed(form, rounds, 1, tokens)
        facts[form] = {key: value for key, value in speed.items() if key not in ("form", "rounds")}
        facts[form] |= load_once(path, threads)
    return facts


# --- speed -----------------------------------------------------------------------------------------------------------


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session on the processor whose threads rest between calls, so that forms do not disturb one another.

    Raises:
        BundleError: ONNX Runtime does not accept the file.
    """
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is said once, by the exception
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class below Exception
        raise BundleError(
            f"{path} cannot be opened by ONNX Runtime {runtime.__version__}: {error}"
        ) from error


def _onnxruntime() -> Any:
    import onnxruntime

    return onnxruntime


def make_inputs(
    session: onnxruntime.InferenceSession, batch: int, tokens: int, ids: int = TOKEN_IDS
) -> dict[str, np.ndarray]:
    """Random texts of ids below ``ids``, without padding, for every input that the file has."""
    drawn = np.random.default_rng(0).integers(FIRST_ID, ids, (batch, tokens))
    inputs = {}
    for entry in session.get_inputs():
        values = np.ones_like(drawn) if "mask" in entry.name else np.zeros_like(drawn)
        if entry.name == "input_ids":
            values = drawn
        inputs[entry.name] = values.astype(np.int32 if "int32" in entry.type else np.int64)
    return inputs


def _ids_known(sessions: Mapping[str, onnxruntime.InferenceSession]) -> int:
    """Below which number every model knows the ids, as far as is asked for: `TOKEN_IDS`, halved while one refuses."""
    ids = TOKEN_IDS
    while ids > FIRST_ID + 1 and not all(_knows(session, ids) for session in sessions.values()):
        ids = max(ids // 2, FIRST_ID + 1)
    return ids


def _knows(session: onnxruntime.InferenceSession, ids: int) -> bool:
    inputs = make_inputs(session, 1, 1)
    inputs["input_ids"][:] = ids - 1
    return _runs(session, inputs)


def _takes(session: onnxruntime.InferenceSession, tokens: int, ids: int) -> bool:
    return _runs(session, make_inputs(session, 1, tokens, ids))


def _runs(session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> bool:
    try:
        session.run(None, inputs)
    except Exception:  # as above
        return False
    return True


def _rounds(
    sessions: Mapping[str, onnxruntime.InferenceSession],
    batch: int,
    tokens: int,
    repeats: int,
    seconds: float,
    ids: int = TOKEN_IDS,
) -> dict[str, np.ndarray]:
    """Milliseconds of every call, [rounds] for each form; entries of one place were measured in one round."""
    for form, session in sessions.items():
        if not _takes(session, tokens, ids):
            raise BundleError(f"{form} does not take texts of {tokens} tokens; try shorter ones")
    inputs = {form: make_inputs(session, batch, tokens, ids) for form, session in sessions.items()}
    order = list(sessions)
    taken: dict[str, list[float]] = {form: [] for form in order}
    for form in order:
        sessions[form].run(None, inputs[form])
    end = time.perf_counter() + seconds
    for number in range(repeats):
        if number >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for form in order if number % 2 == 0 else reversed(order):
            start = time.perf_counter()
            sessions[form].run(None, inputs[form])
            taken[form].append(1e3 * (time.perf_counter() - start))
    return {form: np.array(values) for form, values in taken.items()}


def _speed(form: str, rounds: Mapping[str, np.ndarray], batch: int, tokens: int) -> dict[str, Any]:
    taken, first = rounds[form], next(iter(rounds.values()))
    median, high = np.percentile(taken, [50, 95])
    return {
        "form": form,
        "batch": batch,
        "tokens": tokens,
        "rounds": len(taken),
        "median_ms": round(float(median), 3),
        "p95_ms": round(float(high), 3),
        "texts_per_second": round(1e3 * batch / float(median), 2),
        "speedup": round(float(np.median(first / taken)), 3),
    }


# --- loading ---------------------------------------------------------------------------------------------------------


def _loads(
    files: Mapping[str, Path], threads: int, loads: int, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    measured: dict[str, list[dict[str, Any]]] = {form: [] for form in files}
    for number in range(loads):
        for form in list(files) if number % 2 == 0 else reversed(list(files)):
            say(f"loading {form}")
            measured[form].append(load_once(files[form], threads))
    facts = {}
    for form, path in files.items():
        facts[form] = {"file": Path(path).name, "bytes": bytes_of(path)}
        for key in ("load_seconds", "peak_bytes", "loaded_bytes"):
            values = [entry[key] for entry in measured[form] if entry[key] is not None]
            facts[form][key] = type(values[0])(np.median(values)) if values else None
    return facts


def bytes_of(path: Path) -> int:
    """Bytes of an ONNX file and of the weights beside it, if it has any there."""
    beside = path.with_name(path.name + ".data")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def load_once(path: Path, threads: int) -> dict[str, Any]:
    """Open a file in a fresh process: `load_seconds`, `peak_bytes`, `loaded_bytes` (see `bench`)."""
    command = own_process.command("xlmprune.bundle.bench", str(path), str(threads))
    done = subprocess.run(command, capture_output=True, text=True, env=own_process.environment(), check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise BundleError(f"{path} cannot be opened in a process of its own: {reason[0]}")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _load_here(path: Path, threads: int) -> dict[str, Any]:
    _onnxruntime()  # what importing it takes does not count
    before = memory()
    start = time.perf_counter()
    session = open_session(path, threads)
    seconds = time.perf_counter() - start
    after = memory()
    del session
    gained = [
        None if now is None or before[0] is None else max(now - before[0], 0) for now in (after[1], after[0])
    ]
    return {"load_seconds": round(seconds, 3), "peak_bytes": gained[0], "loaded_bytes": gained[1]}


def memory() -> tuple[int | None, int | None]:
    """(bytes of this process in memory now, at most so far); None where the system does not tell.

    Not `getrusage` on Linux: there a process begins with the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return tuple(1024 * int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    try:
        import resource
    except ImportError:  # Windows
        return None, None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak


# --- the machine -----------------------------------------------------------------------------------------------------


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """`processor`, `processors`, and those of its `instructions` that INT8 depends on (Linux only)."""
    facts: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "processors": processors(),
    }
    file = Path("/proc/cpuinfo")
    if file.is_file():
        lines = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        entries = {key.strip(): value.strip() for key, value in lines.items()}
        facts["processor"] = entries.get("model name", facts["processor"])
        flags = (entries.get("flags") or entries.get("Features") or "").split()
        facts["instructions"] = [name for name in INSTRUCTIONS if name in flags]
    return facts


# --- for people ------------------------------------------------------------------------------------------------------


def render(facts: Mapping[str, Any]) -> RenderableType:
    """Two tables: files (bytes, load, memory) and speed by batch and length."""
    from rich.console import Group
    from rich.table import Table

    first = facts["first"]
    files = Table(title="Files", title_justify="left")
    for heading in ("form", "file", "MB", f"of {first}", "load s", "peak MB", "loaded MB"):
        files.add_column(heading, justify="left" if heading in ("form", "file") else "right", no_wrap=True)
    for form, entry in facts["files"].items():
        share = entry["bytes"] / facts["files"][first]["bytes"]
        load = f"{entry['load_seconds']:.2f}" if entry["load_seconds"] is not None else "-"
        memory = [_megabytes(entry[key]) for key in ("peak_bytes", "loaded_bytes")]
        files.add_row(form, entry["file"], f"{entry['bytes'] / 1e6:.2f}", f"{share:.1%}", load, *memory)
    speed = Table(title="Speed", title_justify="left")
    for heading in ("texts x tokens", "form", "median ms", "p95 ms", "texts/s", f"times {first}"):
        speed.add_column(heading, justify="left" if heading == "form" else "right", no_wrap=True)
    shown = ""
    for entry in facts["speed"]:
        cell = f"{entry['batch']} x {entry['tokens']}"
        speed.add_row(
            "" if cell == shown else cell,
            entry["form"],
            f"{entry['median_ms']:.2f}",
            f"{entry['p95_ms']:.2f}",
            f"{entry['texts_per_second']:.1f}",
            f"{entry['speedup']:.2f}",
        )
        shown = cell
    where = facts["machine"]
    can = ", ".join(where.get("instructions", ())) or "not known"
    threads = f"{facts['threads']} thread{'s' if facts['threads'] != 1 else ''}"
    note = f"{where['processor']} ({can}), {threads}, ONNX Runtime {facts['onnxruntime']}"
    return Group(files, speed, note)


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f}"


if __name__ == "__main__":
    try:
        print(json.dumps(_load_here(Path(sys.argv[1]), int(sys.argv[2]))))
    except BundleError as error:
        sys.exit(str(error))
