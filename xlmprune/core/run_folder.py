"""The run folder: what stopping and going on needs, written so that a kill at any moment loses nothing.

recipe.yaml             the resolved recipe; another one in the same folder is refused
events.jsonl            what happened; cut back to the checkpoint when a run goes on
checkpoint/start/       the model as the run began: pretrained weights, fresh head, trimmed vocabulary
checkpoint/saved-<n>/   tensors in safetensors, numbers in state.json; renamed into place when whole
bundle/                 what ships; renamed into place when whole
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from xlmprune import recipe as recipes
from xlmprune.core.errors import MachineError, ModelError, RecipeError
from xlmprune.core.files import TEMPORARY
from xlmprune.recipe import Recipe

STATE = "state.json"


@contextmanager
def explain_disk(folder: Path) -> Iterator[None]:
    """A full or unwritable disk becomes a sentence; nothing that was whole before is touched.

    Raises:
        MachineError: writing failed.
    """
    try:
        yield
    except Exception as error:  # safetensors wraps the system's error in its own type, with the text inside
        text = str(error)
        inside = re.search(r"os error (\d+)", text)
        code = error.errno if isinstance(error, OSError) else int(inside[1]) if inside else None
        if (
            code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            or "No space left" in text
            or "os error 28" in text
        ):
            free = shutil.disk_usage(_existing(folder)).free / 1e9
            raise MachineError(
                f"{folder}: the disk is full ({free:.1f} GB free). The last whole checkpoint is kept: make room and run "
                "the same command again, or choose another place with --out"
            ) from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENAMETOOLONG, errno.ENOLCK):
            raise MachineError(
                f"{folder}: cannot be written to ({text}); choose another place with --out"
            ) from error
        if code == errno.ENOTDIR or isinstance(error, FileExistsError | NotADirectoryError):
            raise MachineError(
                f"{folder}: is not a folder, or lies beneath a file; choose another --out"
            ) from error
        raise


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, meets the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class RunFolder:
    """One run's folder, held by one process at a time.

    Raises:
        RecipeError: the folder belongs to another recipe, and ``fresh`` was not asked for.
        MachineError: another process holds it, or it cannot be written to.
    """

    def __init__(self, path: Path, recipe: Recipe, fresh: bool = False) -> None:
        self.path = path
        self.recipe = recipe
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

    def finished(self) -> dict[str, Any] | None:
        """The report of a run that is complete, else None."""
        report = self.bundle / "report.json"
        if not report.is_file():
            return None
        try:
            return json.loads(report.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{report}: is damaged ({error}); use --fresh to start over") from error

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hold(self) -> IO[str]:
        lock = (self.path / ".lock").open("w")
        try:
            import fcntl
        except ImportError:  # Windows has no flock; there the folder is not guarded
            return lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise MachineError(
                f"{self.path}: another xlmprune is at work in this folder; wait for it or use --out"
            ) from None
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
        """Write the recipe into a new folder; refuse a folder of another one."""
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
            write_atomically(file, self.recipe.to_yaml())
            return
        values, _ = recipes.parse_yaml(file.read_text(encoding="utf-8"), str(file))
        difference = _first_difference(_resolved(values, file), self.recipe.resolved())
        if difference:
            raise RecipeError(
                f"{self.path}: holds the run of another recipe ({difference}). Use --fresh to start over in it, or "
                "another --out"
            )

    # --- checkpoints -----------------------------------------------------------------------------------------

    def save_start(self, write: Any) -> None:
        """Fill `checkpoint/start` through ``write(folder)``; whole or not at all."""
        partial = self.checkpoints / ".partial-start"
        with explain_disk(self.path):
            partial.mkdir()
            write(partial)
            put_in_place(partial, self.start)

    def save(self, tensors: dict[str, dict[str, Any]], state: dict[str, Any]) -> None:
        """Save named files of tensors and the numbers beside them, then let the older checkpoint go."""
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
                "recipe_sha256": self.recipe.sha256(),
            }
            write_atomically(partial / STATE, json.dumps(state, indent=1))
            put_in_place(partial, self.checkpoints / f"saved-{number:06d}")
        for _, folder in older:
            shutil.rmtree(folder)

    def latest(self) -> tuple[dict[str, dict[str, Any]], dict[str, Any]] | None:
        """Tensors and numbers of the newest checkpoint; None where there is none.

        Raises:
            ModelError: it is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        saved = self._saved()
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
            raise damaged_checkpoint(
                folder, f"{', '.join(f'{name}.safetensors' for name in missing)} missing"
            )
        self.events.cut(state["events_bytes"])
        return tensors, state

    def _saved(self) -> list[tuple[int, Path]]:
        found = []
        for folder in self.checkpoints.glob("saved-*"):
            match = re.fullmatch(r"saved-(\d+)", folder.name)
            if match:
                found.append((int(match[1]), folder))
        return sorted(found)


def damaged_checkpoint(folder: Path, what: str) -> ModelError:
    """What is wrong with a checkpoint, and the way out."""
    return ModelError(f"{folder}: the checkpoint is damaged ({what}); use --fresh to start over")


class StopRequest:
    """Turns Ctrl-C and `docker stop` (SIGTERM) into a wish that the loop grants after its update, with a checkpoint.

    A second one does not wait.
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
    """One JSON object a line. What was written after the checkpoint is written again when the run goes on."""

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
        """Every event; a last line cut short by a crash is left out."""
        if not self.path.exists():
            return []
        events = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                break
        return events


def put_in_place(partial: Path, final: Path) -> None:
    """Give a finished folder its name, once all of it is on the disk: after a power cut it is whole or absent."""
    for path in [*partial.rglob("*"), partial]:
        _flush(path)
    partial.replace(final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _resolved(values: Any, file: Path) -> Any:
    """A run's recipe with the defaults of keys that this version has and the one that wrote it had not."""
    try:
        return recipes.validate(values, str(file)).resolved()
    except RecipeError:  # as it stands, then; the difference that follows says where
        return values


def _first_difference(found: Any, wanted: Any, path: str = "") -> str | None:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys([*wanted, *found]):
            difference = _first_difference(found.get(key), wanted.get(key), f"{path}.{key}" if path else key)
            if difference:
                return difference
        return None
    return None if found == wanted else f"{path} is {json.dumps(found)} there and {json.dumps(wanted)} here"
