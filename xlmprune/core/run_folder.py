"""The run folder: what stopping and resuming needs, written so that a kill at any moment loses nothing.

recipe.yaml             the resolved recipe; another recipe in the same folder is refused
events.jsonl            what happened; cut back to the checkpoint when a run resumes
checkpoint/start/       the model as the run began: pretrained weights, new head, trimmed vocabulary
checkpoint/saved-<n>/   tensors in safetensors, numbers in state.json; renamed when complete
bundle/                 what ships; renamed when complete
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from xlmprune.core.errors import MachineError, ModelError, RecipeError
from xlmprune.core.files import TEMPORARY, explain_disk, put_in_place, write_atomically

STATE = "state.json"

Difference = Callable[[str, Path], str | None]
"""Compares the text of a `recipe.yaml`, read from the given file, with this run's recipe: a sentence, or None if equal."""


class RunFolder:
    """One run's folder, used by one process at a time.

    Args:
        recipe: text of the resolved recipe.
        sha256: identity of the recipe.
        difference: compares a recipe found in the folder with this one.
        fresh: delete what an earlier run left.

    Raises:
        RecipeError: the folder belongs to another recipe, and ``fresh`` is false.
        MachineError: another process uses it, or it cannot be written to.
    """

    def __init__(
        self, path: Path, recipe: str, sha256: str, difference: Difference, fresh: bool = False
    ) -> None:
        self.path = path
        self._recipe, self._sha256, self._difference = recipe, sha256, difference
        with explain_disk(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = self._hold()
            try:
                if fresh:
                    self._clear()
                self._claim()
            except BaseException:
                self.close()
                raise
            self.checkpoints.mkdir(exist_ok=True)
            leftovers = [
                *self.checkpoints.glob(".partial-*"),
                *path.glob(".bundle-*"),
                *path.glob(f"{TEMPORARY}*"),
            ]
            for leftover in leftovers:
                shutil.rmtree(leftover)
        self.events = EventLog(path / "events.jsonl")

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoint"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    @property
    def unfinished_bundle(self) -> Path:
        return self.path / ".bundle-unfinished"

    @property
    def start(self) -> Path:
        return self.checkpoints / "start"

    def renew_recipe(self) -> None:
        """Write this run's recipe over the one in the folder, which differs at most in keys that may change."""
        write_atomically(self.path / "recipe.yaml", self._recipe)

    def ship(self) -> None:
        """Put the unfinished bundle in place; an older bundle is deleted."""
        older = self.path / ".bundle-older"
        if self.bundle.exists():
            self.bundle.replace(older)
        put_in_place(self.unfinished_bundle, self.bundle)
        shutil.rmtree(older, ignore_errors=True)

    def finished(self) -> dict[str, Any] | None:
        """Return the report of a run that is complete, else None."""
        report = self.bundle / "report.json"
        if not report.is_file():
            return None
        try:
            return json.loads(report.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{report}: is damaged ({error}); use --fresh to start over") from error

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hold(self) -> IO[str]:
        lock = (self.path / ".lock").open("a+")
        try:
            import fcntl
        except ImportError:  # Windows has no flock; there the folder is not guarded
            return lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise MachineError(
                f"{self.path}: this folder is in use by another process{f' (pid {owner})' if owner else ''}; wait until "
                "it ends, or use --out"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        return lock

    def _clear(self) -> None:
        # The bundle first: where it may not be removed, the checkpoint and its recipe are still there.
        for folder in (self.bundle, self.checkpoints):
            if folder.is_symlink():
                folder.unlink()
            elif folder.exists():
                shutil.rmtree(folder)
        for name in ("recipe.yaml", "events.jsonl", "scores.safetensors"):
            (self.path / name).unlink(missing_ok=True)

    def _claim(self) -> None:
        """Write the recipe into a new folder; refuse a folder of another recipe."""
        file = self.path / "recipe.yaml"
        if (
            self.bundle.is_dir()
            and any(self.bundle.iterdir())
            and not (self.bundle / "report.json").is_file()
        ):
            raise RecipeError(
                f"{self.bundle}: is not empty and holds no report.json; move it away, or use another --out"
            )
        begun = self.start.exists() or self._saved() or self.bundle.exists()
        if not file.exists() or not begun:  # nothing is lost by another recipe where nothing has begun
            if begun:
                raise RecipeError(
                    f"{self.path}: holds a run without its recipe.yaml; use --fresh or another --out"
                )
            write_atomically(file, self._recipe)
            return
        if difference := self._difference(file.read_text(encoding="utf-8"), file):
            raise RecipeError(
                f"{self.path}: holds the run of another recipe ({difference}). Use --fresh to start over in it, or "
                "another --out"
            )

    # --- checkpoints -----------------------------------------------------------------------------------------

    def save_start(self, write: Callable[[Path], None]) -> None:
        """Fill `checkpoint/start` through ``write(folder)``, completely or not at all."""
        partial = self.checkpoints / ".partial-start"
        with explain_disk(self.path):
            partial.mkdir()
            write(partial)
            put_in_place(partial, self.start)

    def save(self, tensors: dict[str, dict[str, Any]], state: dict[str, Any]) -> None:
        """Save named files of tensors and the numbers beside them, then delete the older checkpoint."""
        from safetensors.torch import save_file

        older = self._saved()
        number = older[-1][0] + 1 if older else 1
        partial = self.checkpoints / f".partial-{number:06d}"
        with explain_disk(self.path):
            partial.mkdir()
            for name, entries in tensors.items():
                save_file(
                    {key: value.detach().contiguous().cpu() for key, value in entries.items()},
                    partial / f"{name}.safetensors",
                )
            state = {
                **state,
                "files": list(tensors),
                "events_bytes": self.events.bytes,
                "recipe_sha256": self._sha256,
            }
            write_atomically(partial / STATE, json.dumps(state, indent=1))
            put_in_place(partial, self.checkpoints / f"saved-{number:06d}")
        for _, folder in older:
            shutil.rmtree(folder)

    def latest(self) -> tuple[dict[str, dict[str, Any]], dict[str, Any]] | None:
        """Return tensors and numbers of the newest checkpoint; None where there is none.

        Raises:
            ModelError: it is damaged.
        """
        found = read_checkpoint(self.path)
        if found is not None:
            self.events.cut(found[1]["events_bytes"])
        return found

    def _saved(self) -> list[tuple[int, Path]]:
        return _saved_in(self.path)


def read_checkpoint(run: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]] | None:
    """Read tensors and numbers of the newest checkpoint in a run folder; None where there is none.

    Raises:
        ModelError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    saved = _saved_in(run)
    if not saved:
        return None
    folder = saved[-1][1]
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        tensors = {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged_checkpoint(folder, str(error)) from error
    if not isinstance(state, dict) or "events_bytes" not in state:
        raise damaged_checkpoint(folder, f"{STATE} is not what was written")
    # Older checkpoints do not list their files.
    if missing := [name for name in state.get("files", []) if name not in tensors]:
        raise damaged_checkpoint(folder, f"{', '.join(f'{name}.safetensors' for name in missing)} missing")
    return tensors, state


def _saved_in(run: Path) -> list[tuple[int, Path]]:
    found = []
    for folder in (run / "checkpoint").glob("saved-*"):
        match = re.fullmatch(r"saved-(\d+)", folder.name)
        if match:
            found.append((int(match[1]), folder))
    return sorted(found)


def damaged_checkpoint(folder: Path, what: str) -> ModelError:
    """Return an error that says what is wrong with a checkpoint, and what to do."""
    return ModelError(f"{folder}: the checkpoint is damaged ({what}); use --fresh to start over")


class StopRequest:
    """Turns Ctrl-C and `docker stop` (SIGTERM) into a request to stop after the next update, with a checkpoint.

    A second signal stops at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class EventLog:
    """One JSON object a line. Events after the checkpoint are written again when the run resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with explain_disk(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": now, "event": event, **facts}, ensure_ascii=False) + "\n")

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
