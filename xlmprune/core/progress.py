"""Show progress on stderr: a live line on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from xlmprune.core.formatting import clock

LINE_EVERY_SECONDS = 10.0
"""Seconds between two lines of a running stage if there is no terminal."""

BUSY_EVERY_SECONDS = 30.0
"""Seconds between two lines of a single long step."""

Level = Literal["quiet", "normal", "verbose"]

Advance = Callable[[int], None]
"""Called with the number of items that were done since the last call."""


class Reporter:
    """Show what a run is doing: a progress bar on a terminal, a line every ten seconds elsewhere.

    Args:
        console: where to print; by default stderr.
        level: ``quiet`` prints warnings only; ``verbose`` prints details too, and lines on a terminal as well.
    """

    def __init__(self, console: Console | None = None, level: Level = "normal") -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.level = level
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._clock = _Clock()
        self._last_line = 0.0

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def say(self, text: str) -> None:
        """Print one line that stays on the screen."""
        if self.level != "quiet":
            self._print(text)

    def detail(self, text: str) -> None:
        """Print a line in verbose mode only."""
        if self.level == "verbose":
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning, also in quiet mode."""
        self._print(f"warning: {text}", "yellow")

    def _print(self, text: str, style: str = "") -> None:
        line = Text.assemble((time.strftime("%H:%M:%S "), "dim"), (text, style))
        # A terminal wraps between words. A log keeps one line, so that it can be searched.
        self.console.print(line, soft_wrap=not self.console.is_terminal)

    def step(
        self, stage: int, stages: int, density: float, number: int, total: int, loss: float, later: float = 0
    ) -> None:
        """Report one update.

        Args:
            later: how many updates of this stage take as long as all that follows the stage.
        """
        self._clock.at(number)
        what, status = f"stage {stage}/{stages}", f"{self._clock.rate()} loss {loss:.4f}"
        logged = f"{what}  {density:6.1%} of the encoder  update"
        here, whole = self._clock.left(total), self._clock.left(total + later)
        in_log = f"{here} left in this stage, about {whole} in all without export" if here else ""
        self._show(what, status, number, total, logged, in_log, f"about {whole} left" if whole else "")

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Advance]:
        """Give a function that says how many more of ``total`` items are done, for example texts that are measured.

        It can run between two updates of a stage, whose rate and remaining time stay as they are.
        """
        outer, done = self._clock, 0
        self._clock = _Clock()

        def advance(number: int) -> None:
            nonlocal done
            done = min(done + number, total)
            self._clock.at(done)
            left = f"{here} left" if (here := self._clock.left(total)) else ""
            self._show(what, "", done, total, what, left, left)

        try:
            yield advance
        finally:
            self.stop()
            self._clock = outer

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Show that one long step is running, and for how long: a live line on a terminal, now and then a line elsewhere."""
        if self.level == "quiet":
            yield
        elif self.console.is_terminal and self.level == "normal":
            columns = (TextColumn("{task.description}"), SpinnerColumn(), TimeElapsedColumn())
            with Progress(*columns, console=self.console, transient=True) as bar:
                bar.add_task(what, total=None)
                yield
        else:
            with self._repeating(what):
                yield

    @contextmanager
    def _repeating(self, what: str) -> Iterator[None]:
        """Print a line every half minute until the step ends; the step itself cannot, because it is one call."""
        ended, begun = threading.Event(), time.monotonic()

        def repeat() -> None:
            while not ended.wait(BUSY_EVERY_SECONDS):
                self._print(f"{what}  {time.monotonic() - begun:.0f} s so far")

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _show(
        self, what: str, status: str, number: int, total: int, logged: str, left: str, left_live: str
    ) -> None:
        if self.level == "quiet":
            pass
        elif self.console.is_terminal and self.level == "normal":
            self._live(what, status, left_live, number, total)
        elif (
            self._clock.now - max(self._last_line, self._clock.started) >= LINE_EVERY_SECONDS
            and number < total
        ):
            self._last_line = self._clock.now
            self._print("  ".join(filter(None, (f"{logged} {number}/{total}", status, left))))
        if number >= total:
            self.stop()

    def _live(self, what: str, status: str, left: str, number: int, total: int) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.fields[what]}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed}/{task.total} {task.fields[status]}"),
                TextColumn("{task.fields[left]}"),
                console=self.console,
                expand=True,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=total, what=what, status="", left="")
        self._bar.update(self._task, completed=number, total=total, what=what, status=status, left=left)

    def stop(self) -> None:
        """Remove the live line."""
        self._clock = _Clock()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def silent_reporter() -> Reporter:
    """Return a reporter that prints nothing, for processes that leave it to the first one."""
    return Reporter(Console(quiet=True), "quiet")


class _Clock:
    """Measure a rate from the second event on, because the first one includes warming up."""

    def __init__(self) -> None:
        self.started = self.now = time.perf_counter()
        self._first = self._number = 0

    def at(self, number: int) -> None:
        """Note that event ``number`` is done."""
        self.now, self._number = time.perf_counter(), number
        if not self._first:
            self.started, self._first = self.now, number

    def _per_second(self) -> float | None:
        done, seconds = self._number - self._first, self.now - self.started
        return done / seconds if done and seconds > 0 else None

    def rate(self) -> str:
        """Return ``3.1/s``, ``12.5 s each`` if that is slower than one a second, or nothing before the second event."""
        rate = self._per_second()
        if rate is None:
            return ""
        return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"

    def left(self, total: float) -> str:
        """Return the time until event ``total``, such as ``1:05``, or nothing before the second event."""
        rate = self._per_second()
        return "" if rate is None else clock((total - self._number) / rate)
