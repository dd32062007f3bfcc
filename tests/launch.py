"""Start the processes of one run as torchrun does, but forked from one process that has imported PyTorch already.

    python tests/launch.py "2 compress tiny.yaml --out two" "1 compress tiny.yaml --out one"

runs a command in two processes, and then another one in one.
torchrun itself imports PyTorch once more for each process; `test_processes.py` uses it where its own part matters.
"""

from __future__ import annotations

import os
import random
import shlex
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress


def fork(count: int, work: Callable[[int], object]) -> list[int]:
    """Call ``work(rank)`` in ``count`` processes with torchrun's environment; return their exit codes."""
    port = free_port()
    started = [_start(variables(rank, count, port), rank, work) for rank in range(count)]
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]


def free_port() -> int:
    """Return a port that nothing listens on, outside those that Linux gives to whoever asks for any."""
    while True:
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", random.SystemRandom().randrange(20_000, 30_000)))
            return tried.getsockname()[1]


def variables(rank: int, count: int, port: int = 1, host: int | None = None) -> dict[str, str]:
    """Return what torchrun sets for a process.

    Args:
        host: processes on its host; all, if None.
    """
    host = host or count
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank % host),
        "LOCAL_WORLD_SIZE": str(host),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _start(given: Mapping[str, str], rank: int, work: Callable[[int], object]) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.environ.update(given)
        work(rank)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from transformers import XLMRobertaForSequenceClassification, XLMRobertaForTokenClassification  # noqa: F401

    import xlmprune.pipeline  # noqa: F401
    from xlmprune import cli

    for job in sys.argv[1:]:
        number, *sys.argv[1:] = shlex.split(job)
        if any(fork(int(number), lambda rank: cli.main())):
            sys.exit(f"failed: {job}")
