"""Show progress on stderr: a live line on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 10.0
"""Seconds between two lines of a running stage if there is no terminal."""


class Reporter:
    """Show what a run is doing: a progress bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._stage_started = 0.0
        self._last_line = 0.0
        self._first_number = 0

    def say(self, text: str) -> None:
        """Print one line that stays on the screen."""
        stamp = time.strftime("%H:%M:%S")
        self.console.print(
            f"[dim]{stamp}[/dim] {escape(text)}" if self.console.is_terminal else f"{stamp} {text}",
            markup=self.console.is_terminal,
        )

    def step(self, stage: int, stages: int, density: float, number: int, total: int, loss: float) -> None:
        """Report one update."""
        now = time.perf_counter()
        if number == 1 or self._stage_started == 0.0:
            self._stage_started, self._last_line, self._first_number = now, now, number - 1
        if self.console.is_terminal:
            self._live(stage, stages, density, number, total, loss)
        elif now - self._last_line >= LINE_EVERY_SECONDS and number < total:
            self._last_line = now
            rate = (number - self._first_number) / max(1e-9, now - self._stage_started)
            self.say(
                f"stage {stage}/{stages}  {density:6.1%} of the encoder  update {number}/{total}  loss {loss:.4f}  "
                f"{rate:.1f} updates/s  {(total - number) / rate:.0f} s left in the stage"
            )
        if number == total:
            self.stop()

    def _live(self, stage: int, stages: int, density: float, number: int, total: int, loss: float) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("stage {task.fields[stage]}  {task.fields[density]} of the encoder"),
                BarColumn(),
                TextColumn(
                    "{task.completed}/{task.total} updates  {task.fields[rate]}/s  loss {task.fields[loss]}"
                ),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=total, stage="", density="", loss="", rate="")
        rate = (number - self._first_number) / max(1e-9, time.perf_counter() - self._stage_started)
        self._bar.update(
            self._task,
            completed=number,
            total=total,
            stage=f"{stage}/{stages}",
            density=f"{density:.1%}",
            loss=f"{loss:.4f}",
            rate=f"{rate:.1f}",
        )

    def stop(self) -> None:
        """Remove the live line."""
        self._stage_started = 0.0
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
