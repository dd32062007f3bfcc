"""The log of a run: what happened, one JSON object a line, cut back to the checkpoint when the run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xlmprune.core.files import explain_disk
from xlmprune.core.formatting import timestamp


class EventLog:
    """One JSON object a line. Events after the checkpoint are written again when the run resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listeners: list[Callable[[str, Mapping[str, Any]], None]] = []
        """Called with each event and its facts, after it is written."""

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, size: int) -> None:
        """Drop what came after ``size`` bytes."""
        if self.bytes > size:
            with self.path.open("r+b") as file:
                file.truncate(size)

    def write(self, event: str, **facts: Any) -> None:
        """Append one event, with the time in UTC."""
        with explain_disk(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": timestamp(), "event": event, **facts}, ensure_ascii=False) + "\n")
        for listener in self.listeners:
            listener(event, facts)

    def read(self) -> list[dict[str, Any]]:
        """Return every event, without a last line that a crash cut short."""
        if not self.path.exists():
            return []
        events = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                break
        return events


class NoEvents(EventLog):
    """The log of a process that does not write."""

    def cut(self, size: int) -> None:
        """Leave it to the first process."""

    def write(self, event: str, **facts: Any) -> None:
        """Leave it to the first process."""

    def read(self) -> list[dict[str, Any]]:
        """Return no events."""
        return []
