"""Latency, throughput, load time, peak memory and bytes of ONNX files side by side, so that the ratios can be trusted.

Forms take turns (see `export/timing.py`), and a ratio is the median of the ratios within rounds. Load time and memory come
from a process of its own for every form and every time.

Needs numpy and onnxruntime; rich to `render`; openvino for forms that it opens.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import onnxruntime

from xlmprune.core import machine, own_process
from xlmprune.core.errors import BundleError, XlmpruneError
from xlmprune.core.formatting import decimals, number, percent, size
from xlmprune.core.tables import Table, rich_table, tabulate
from xlmprune.export.runtime import bytes_of, open_session
from xlmprune.export.timing import Session, ids_known, takes, time_rounds

if TYPE_CHECKING:
    from rich.console import RenderableType

Runtime = Literal["onnxruntime", "openvino"]

USUAL: Runtime = "onnxruntime"
OPENVINO: Runtime = "openvino"


def bench(
    files: Mapping[str, Path],
    batches: Sequence[int] = (1, 8),
    lengths: Sequence[int] = (64, 128),
    threads: Sequence[int] = (),
    repeats: int = 30,
    seconds: float = 10.0,
    loads: int = 3,
    say: Callable[[str], None] = lambda text: None,
    runtimes: Mapping[str, Runtime] = {},
) -> dict[str, Any]:
    """Measure forms side by side; the first one is what the others are compared with.

    Args:
        files: ONNX files by the name they are shown under.
        batches: texts in a call.
        lengths: tokens of every text.
        threads: numbers of threads of ONNX Runtime; empty: one measurement with as many as OMP_NUM_THREADS says,
            or all processors that this process may use.
        repeats: rounds at most for each batch, length and number of threads, after one to warm up.
        seconds: for each of them, after which no round begins once there are five.
        loads: how often each form is opened in a fresh process.
        say: told what is measured next.
        runtimes: by form, what opens it; ONNX Runtime opens those that are not named.

    Returns:
        `threads`, `machine`, `onnxruntime`, `openvino` where it opened a form: {version, precision}, `first`; `files`
        {form: file, runtime, bytes, load_seconds, peak_bytes, loaded_bytes}, opened with the first number of threads;
        `speed`, a list of {form, batch, tokens, threads, rounds, median_ms, p95_ms, texts_per_second, speedup}, where
        `speedup` is how many times faster than the first form with as many threads. Memory is what the process gained
        from before the file was opened: at most while loading, and after it; None on systems that do not tell.

    Raises:
        BundleError: a file is missing, cannot be opened, or does not take so many tokens.
        MachineError: a runtime is not installed.
    """
    for path in files.values():
        if not Path(path).is_file():
            raise BundleError(f"{path} is not there; expected an ONNX file")
    threads = tuple(threads) or (machine.chosen_threads() or machine.processors(),)
    facts: dict[str, Any] = {
        "threads": list(threads),
        "machine": machine.describe(),
        "onnxruntime": onnxruntime.__version__,
        "first": next(iter(files)),
        "files": _loads(files, threads[0], loads, say, runtimes),
        "speed": [],
    }
    for count in threads:
        sessions = {form: _open(path, count, runtimes.get(form, USUAL)) for form, path in files.items()}
        if OPENVINO in runtimes.values():
            facts["openvino"] = _openvino_facts(sessions.values())
        ids = ids_known(sessions)
        for batch in batches:
            for tokens in lengths:
                say(f"{batch} x {tokens} tokens, {_threads(count)}")
                rounds = time_rounds(sessions, batch, tokens, repeats, seconds, ids)
                facts["speed"] += [
                    {**_speed(form, rounds, batch, tokens), "threads": count} for form in rounds
                ]
    return facts


def quick(
    files: Mapping[str, Path],
    tokens: int = 64,
    seconds: float = 2.0,
    threads: int | None = None,
    batch: int = 1,
) -> dict[str, dict[str, Any]]:
    """Latency of one call in every form, taking turns, and one opening of each, in a few seconds; for the report.

    Args:
        files: ONNX files by name, the one to compare with first.
        tokens: length of every text; halved until every model's positions allow it.
        seconds: for all calls together.
        threads: of ONNX Runtime; by default as many as OMP_NUM_THREADS says, or all processors that this process may use.
        batch: texts in a call.

    Returns:
        by name: `batch`, `tokens`, `threads`, `rounds`, `median_ms`, `p95_ms`, `texts_per_second`, `speedup` against the
        first, `load_seconds`, `peak_bytes` and `loaded_bytes` (see `bench`).
    """
    threads = threads or machine.chosen_threads() or machine.processors()
    sessions = {form: _open(path, threads) for form, path in files.items()}
    ids = ids_known(sessions)
    while not all(takes(session, tokens, ids) for session in sessions.values()):
        if tokens == 1:
            raise BundleError(
                f"{', '.join(map(str, files.values()))}: do not accept even one token; expected ONNX "
                "files written by xlmprune"
            )
        tokens //= 2
    rounds = time_rounds(sessions, batch, tokens, repeats=1000, seconds=seconds, ids=ids)
    del sessions
    facts = {}
    for form, path in files.items():
        speed = _speed(form, rounds, batch, tokens)
        facts[form] = {key: value for key, value in speed.items() if key != "form"}
        facts[form] |= {"threads": threads, **load_once(path, threads)}
    return facts


def time_files(
    files: Mapping[str, Path], say: Callable[[str], None], **conditions: int
) -> dict[str, dict[str, Any]]:
    """Measure files with `quick`, by name. Where that fails, ``say`` is told, and nothing is returned.

    Args:
        conditions: `batch`, `tokens` and `threads`, where they are not those of `quick`.
    """
    if not files:
        return {}
    try:
        return quick(files, **conditions)
    except (BundleError, OSError) as error:
        say(f"the forms were not timed: {error}")
        return {}


# --- speed -----------------------------------------------------------------------------------------------------------


def _open(path: Path, threads: int, runtime: Runtime = USUAL) -> Session:
    """Open a session whose threads rest between calls, so that forms do not disturb one another."""
    if runtime == OPENVINO:
        from xlmprune.bundle.openvino import OpenVinoSession

        return OpenVinoSession(path, threads)
    return open_session(path, threads, spinning=False)


def _openvino_facts(sessions: Iterable[Session]) -> dict[str, Any]:
    """Return the version of OpenVINO and the type of number that its sessions compute with."""
    from xlmprune.bundle import openvino

    opened = next(session for session in sessions if isinstance(session, openvino.OpenVinoSession))
    return {"version": openvino.version(), "precision": opened.precision}


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
    files: Mapping[str, Path],
    threads: int,
    loads: int,
    say: Callable[[str], None],
    runtimes: Mapping[str, Runtime],
) -> dict[str, dict[str, Any]]:
    measured: dict[str, list[dict[str, Any]]] = {form: [] for form in files}
    for turn in range(loads):
        for form in list(files) if turn % 2 == 0 else reversed(list(files)):
            say(f"loading {form}")
            measured[form].append(load_once(files[form], threads, runtimes.get(form, USUAL)))
    facts = {}
    for form, path in files.items():
        facts[form] = {"file": Path(path).name, "runtime": runtimes.get(form, USUAL), "bytes": bytes_of(path)}
        for key in ("load_seconds", "peak_bytes", "loaded_bytes"):
            values = [entry[key] for entry in measured[form] if entry[key] is not None]
            facts[form][key] = type(values[0])(np.median(values)) if values else None
    return facts


def load_once(path: Path, threads: int, runtime: Runtime = USUAL) -> dict[str, Any]:
    """Open a file in a fresh process: `load_seconds`, `peak_bytes`, `loaded_bytes` (see `bench`)."""
    command = own_process.command("xlmprune.bundle.bench", str(path), str(threads), runtime)
    done = subprocess.run(command, capture_output=True, text=True, env=own_process.environment(), check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise BundleError(f"{path} cannot be opened in a process of its own: {reason[0]}")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def _load_here(path: Path, threads: int, runtime: Runtime) -> dict[str, Any]:
    if runtime == OPENVINO:
        import openvino  # noqa: F401, only the file's share is measured
    before = machine.process_memory()
    start = time.perf_counter()
    session = _open(path, threads, runtime)
    seconds = time.perf_counter() - start
    after = machine.process_memory()
    del session
    gained = [
        None if now is None or before[0] is None else max(now - before[0], 0) for now in (after[1], after[0])
    ]
    return {"load_seconds": round(seconds, 3), "peak_bytes": gained[0], "loaded_bytes": gained[1]}


# --- for people ------------------------------------------------------------------------------------------------------


def render(facts: Mapping[str, Any]) -> RenderableType:
    """Two tables: files (bytes, load time, memory) and speed by batch and length."""
    from rich.console import Group

    machine = facts["machine"]
    known = ", ".join(machine.get("instructions", ())) or "not known"
    opened = f"opened with {_threads(facts['threads'][0])}"
    note = f"{machine['processor']} ({known}), {opened}, ONNX Runtime {facts['onnxruntime']}"
    if "openvino" in facts:
        note += ", OpenVINO {version} (computes in {precision})".format(**facts["openvino"])
    ratios = "A speedup is the median of the ratios within each round, so it can differ from the ratio of the medians."
    return Group(rich_table(_file_table(facts)), "", rich_table(_speed_table(facts)), "", ratios, note)


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def _file_table(facts: Mapping[str, Any]) -> Table:
    first = facts["first"]
    whole = facts["files"][first]["bytes"]
    columns: dict[str, Callable[[Any], str]] = {
        "form": lambda row: row["form"],
        "file": lambda row: row["file"],
        "size": lambda row: size(row["bytes"]),
        f"of {first}": lambda row: percent(row["bytes"] / whole),
        "load time (s)": lambda row: decimals(row["load_seconds"]),
        "peak memory": lambda row: size(row["peak_bytes"]),
        "memory once loaded": lambda row: size(row["loaded_bytes"]),
    }
    rows = [{"form": form, **entry} for form, entry in facts["files"].items()]
    return tabulate("Files", columns, rows, texts=2)


def _speed_table(facts: Mapping[str, Any]) -> Table:
    columns: dict[str, Callable[[Any], str]] = {
        "texts x tokens": lambda row: f"{row['batch']} x {row['tokens']}",
        "form": lambda row: row["form"],
        "threads": lambda row: number(row["threads"]),
        "median ms": lambda row: decimals(row["median_ms"]),
        "p95 ms": lambda row: decimals(row["p95_ms"]),
        "texts/s": lambda row: decimals(row["texts_per_second"], 1),
        f"speedup over {facts['first']}": lambda row: decimals(row["speedup"]),
    }
    return tabulate("Speed", columns, facts["speed"], texts=2)


if __name__ == "__main__":
    try:
        print(json.dumps(_load_here(Path(sys.argv[1]), int(sys.argv[2]), cast(Runtime, sys.argv[3]))))
    except XlmpruneError as error:
        sys.exit(str(error))
