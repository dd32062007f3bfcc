"""What the campaigns in `campaigns/` share: options, a tally, and tiny runs in processes that are cheap to start.

A campaign tries many random cases, each made from a seed of its own, and names the seeds that failed. It ends after
`--count` cases or `--seconds`, whichever comes first, with exit code 1 if any case failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import yaml
from golden import BASE, RUNS, digests, write_inputs

Case = Callable[[random.Random, "Runs"], str | None]

SETTINGS: dict[str, dict[str, Any]] = {
    "task": {"languages": ["de", "th"]},
    "training": {"dense_epochs": 2, "checkpoint_minutes": 0.001},
    "pruning": {"schedule": {"name": "geometric", "step_fraction": 0.5, "stages": 2}},
    "export": {"onnx": []},
}
"""Small enough for many cases: a checkpoint after every update or two, and no ONNX forms."""


def campaign(description: str, count: int, case: Case) -> None:
    """Try cases until the options say enough, print the tally as JSON, and exit.

    Args:
        count: cases to try, unless the option says otherwise.
        case: tries one, and returns what was wrong; None if it held.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--count", type=int, default=count, help=f"cases to try (default: {count})")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first case; the next has the next number"
    )
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="start no case after so many seconds"
    )
    options = parser.parse_args()
    started, failed, tried = time.monotonic(), {}, 0
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        while tried < options.count and time.monotonic() - started < options.seconds:
            seed = options.seed + tried
            wrong = attempt(case, random.Random(seed), runs)
            tried += 1
            if tried % 50 == 0:
                print(f"{tried} tried, {len(failed)} failed", file=sys.stderr)
            if wrong is not None:
                failed[seed] = wrong
                print(f"seed {seed}: {wrong}", file=sys.stderr)
    tally = {
        "campaign": Path(sys.argv[0]).stem,
        "seed": options.seed,
        "seconds": round(time.monotonic() - started),
    }
    print(
        json.dumps({**tally, **runs.counted, "tried": tried, "held": tried - len(failed), "failed": failed})
    )
    sys.exit(bool(failed))


def attempt(case: Case, random: random.Random, runs: Runs) -> str | None:
    """Try a case; one that breaks off has failed, and the next is tried."""
    try:
        return case(random, runs)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        return f"{type(error).__name__}: {error}"


class Runs:
    """Tiny runs in one folder, each in a process that is forked from this one, so that PyTorch is imported once."""

    def __init__(self, folder: Path) -> None:
        import onnx  # noqa: F401
        import transformers  # noqa: F401

        import xlmprune.pipeline  # noqa: F401

        self.folder = folder
        self.counted: dict[str, int] = {}
        """What else the tally names."""
        self._expected: dict[str, tuple[dict[str, Any], float, int]] = {}
        self._number = 0
        write_inputs(folder)
        for name in RUNS:
            values = {"name": name, **BASE, **RUNS[name]}
            values["model"] = {"name": "./model", **values.get("model", {})}
            values |= {key: {**values[key], **settings} for key, settings in SETTINGS.items()}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")

    def count(self, what: str) -> None:
        """Add one to a number of the tally."""
        self.counted[what] = self.counted.get(what, 0) + 1

    def new_folder(self) -> Path:
        """A run folder that does not exist yet."""
        self._number += 1
        return self.folder / f"run-{self._number}"

    def expected(self, name: str) -> tuple[dict[str, Any], float, int]:
        """Digests of an uninterrupted run, its seconds, and its number of file operations."""
        if name not in self._expected:
            out, started = self.new_folder(), time.monotonic()
            log = self.folder / "operations"
            code = self.wait(self.start(name, out, count_operations(log)))
            assert code == 0, (self.folder / "stderr").read_text()
            seconds = time.monotonic() - started
            self._expected[name] = (digests(out), seconds, int(log.read_text()))
        return self._expected[name]

    def start(self, name: str, out: Path, before: Callable[[], None] = lambda: None, *options: str) -> int:
        """Start ``xlmprune compress`` in a process of its own, after ``before`` was called there; return its number."""
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            os.setpgid(0, 0)
            os.chdir(self.folder)
            with (self.folder / "stderr").open("wb", buffering=0) as log:
                os.dup2(log.fileno(), 2)
                os.dup2(log.fileno(), 1)
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
            sys.argv = [
                "xlmprune",
                "compress",
                f"{name}.yaml",
                "--out",
                str(out),
                "--device",
                "cpu",
                *options,
            ]
            before()
            from xlmprune import cli

            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else bool(ended.code)
        except KeyboardInterrupt:  # SIGINT before the command handles it, as in a program of its own
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(code)

    @staticmethod
    def wait(process: int) -> int:
        """Return the exit code of a process; minus the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    @property
    def said(self) -> str:
        """What the last process wrote."""
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")

    def finish(self, name: str, out: Path, *options: str) -> str | None:
        """Run to the end and compare with the uninterrupted run; return what is wrong."""
        code = self.wait(self.start(name, out, lambda: None, *options))
        if code:
            return f"{name}: exit code {code}: {self.said[-300:]}"
        found, wanted = digests(out), self.expected(name)[0]
        differ = [key for key in wanted if found.get(key) != wanted[key]]
        if differ:
            return f"{name}: {len(differ)} results differ, first {differ[0]}"
        return self._untidy(out)

    @staticmethod
    def _untidy(out: Path) -> str | None:
        """Say what a finished run should not have left."""
        left = [path.name for path in (out / ".xlmprune").iterdir() if path.is_dir()]
        saved = sorted(path.name for path in (out / "checkpoint").iterdir())
        if left or len(saved) > 3 or any(name.startswith(".") for name in saved):
            return f"left behind: {left + saved}"
        return None


OPERATIONS = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.chmod", "shutil.rmtree",
}  # fmt: skip


def _on_operation(act: Callable[[int], None]) -> None:
    """Call ``act`` with a number before every operation of Python that changes a file."""
    number = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes or event in OPERATIONS:
            number += 1
            act(number)

    sys.addaudithook(hook)


def count_operations(log: Path) -> Callable[[], None]:
    """Keep the number of operations so far in ``log``."""

    def install() -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        _on_operation(lambda number: os.pwrite(descriptor, str(number).encode(), 0) and None)

    return install


def kill_at(wanted: int) -> Callable[[], None]:
    """Kill the process before its operation number ``wanted``."""

    def act(number: int) -> None:
        if number == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: _on_operation(act)
