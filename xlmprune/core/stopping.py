"""Stop when a signal asks for it: Ctrl-C, `docker stop` (SIGTERM), a lost terminal (SIGHUP), Slurm's notice (SIGUSR1).

A signal that was ignored when the process started stays ignored: a run under `nohup` continues without its terminal.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from xlmprune.core import processes

Given = ParamSpec("Given")
Returned = TypeVar("Returned")

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
"""Windows has the first two."""


@contextlib.contextmanager
def _handling(handler: Callable[..., Any]) -> Iterator[None]:
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def interruptible() -> contextlib.AbstractContextManager[None]:
    """Let every signal raise KeyboardInterrupt at once, where nothing has to be saved first."""
    return _handling(signal.default_int_handler)


class Stopped(KeyboardInterrupt):
    """Says that a request to stop was met, at a moment when the run can be saved."""


class StopRequest:
    """Turns a signal into a request to stop after the next update, or the next batch that is measured, with a checkpoint.

    A second signal stops at once, in a run of one process. Several processes get every signal twice where the scheduler
    and `torchrun` both pass it on, and stop only together; `torchrun` itself kills those that take too long.
    """

    def __init__(self) -> None:
        self.asked = False
        self._patient = processes.count() > 1

    def guard(self, function: Callable[Given, Returned]) -> Callable[Given, Returned]:
        """Return the function so that a call raises `Stopped` where a stop was asked for.

        Several processes stop only together, at the end of an update, so there a call goes on.
        """

        def guarded(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
            if self.asked and not self._patient:
                raise Stopped
            return function(*args, **kwargs)

        return guarded

    def __enter__(self) -> StopRequest:
        self._signals = _handling(self._ask)
        self._signals.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._signals.__exit__(None, None, None)

    def _ask(self, *_: object) -> None:
        if self.asked and not self._patient:
            raise KeyboardInterrupt
        self.asked = True
