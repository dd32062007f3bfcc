"""Write and read checkpoints: named files of tensors, numbers beside them, and the SHA-256 of every file.

A checkpoint that is not exactly what was written is damaged, and never used. Two are kept, so that a damaged one has a
predecessor.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xlmprune.core.errors import ModelError
from xlmprune.core.files import put_in_place, sha256_of

STATE = "state.json"
STATE_HASH = "state.sha256"
FILES = "files.json"
"""In `checkpoint/start`: the SHA-256 of every other file there."""
KEPT = 2
SAVED = "saved-"
"""Start of the name of a checkpoint's folder; its number follows."""

Tensors = dict[str, dict[str, Any]]
Numbers = dict[str, Any]


class DamagedError(ModelError):
    """A file of a checkpoint is not what was written."""


def write(folder: Path, tensors: Tensors, numbers: Numbers) -> None:
    """Write a checkpoint as the folder ``saved-<n>`` of ``folder``, and delete all but the newest two."""
    from safetensors.torch import save_file

    older = saved_in(folder)
    number = older[-1][0] + 1 if older else 1
    partial = folder / f".partial-{number:06d}"
    partial.mkdir()
    hashes = {}
    for name, entries in tensors.items():
        file = partial / f"{name}.safetensors"
        save_file({key: value.detach().contiguous().cpu() for key, value in entries.items()}, file)
        hashes[file.name] = sha256_of(file)
    text = json.dumps({**numbers, "files": hashes}, indent=1)
    (partial / STATE).write_text(text, encoding="utf-8")
    (partial / STATE_HASH).write_text(_hash_line(text), encoding="utf-8")
    put_in_place(partial, folder / f"{SAVED}{number:06d}")
    for _, old in saved_in(folder)[:-KEPT]:
        shutil.rmtree(old)


def read_newest(
    folder: Path, damaged: Callable[[Path, str], None] | None = None
) -> tuple[Tensors, Numbers] | None:
    """Read the newest checkpoint that is intact; None where there is no checkpoint.

    Args:
        damaged: called with each newer checkpoint that is damaged, and the cause, when an older one is intact.

    Raises:
        DamagedError: all of them are damaged.
    """
    skipped: list[tuple[Path, str]] = []
    for _, saved in reversed(saved_in(folder)):
        try:
            found = _read(saved)
        except DamagedError as error:
            skipped.append((saved, str(error)))
            continue
        if damaged is not None:
            for entry in skipped:
                damaged(*entry)
        return found
    if skipped:
        raise DamagedError(f"{skipped[0][1]}; no older checkpoint is intact. Use --fresh to start over")
    return None


def _read(folder: Path) -> tuple[Tensors, Numbers]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    numbers = read_numbers(folder)
    try:
        if found := first_damage(folder, numbers["files"]):
            raise ValueError(found)
        return {Path(name).stem: load_file(folder / name) for name in numbers["files"]}, numbers
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(folder, error) from error


def read_numbers(folder: Path) -> Numbers:
    """Read the numbers of one checkpoint.

    Raises:
        DamagedError: they are not what was written.
    """
    try:
        text = (folder / STATE).read_text(encoding="utf-8")
        written = (folder / STATE_HASH).read_text(encoding="utf-8")
        if written != _hash_line(text):
            raise ValueError(f"{STATE} has changed since it was written")
        return json.loads(text)
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, cause: Exception) -> DamagedError:
    return DamagedError(f"{folder}: the checkpoint is damaged ({cause})")


def first_damage(folder: Path, hashes: Mapping[str, str]) -> str | None:
    """Name the first file that is missing or is not what was written; None where all are intact."""
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_of(folder / name) != expected:
            return f"{name} has changed since it was written"
    return None


def saved_in(folder: Path) -> list[tuple[int, Path]]:
    """Return number and folder of every checkpoint, the oldest first."""
    found = []
    for path in folder.glob(f"{SAVED}*"):
        match = re.fullmatch(rf"{SAVED}(\d+)", path.name)
        if match:
            found.append((int(match[1]), path))
    return sorted(found)


def _hash_line(state: str) -> str:
    """Return what `sha256sum` writes and checks."""
    return f"{hashlib.sha256(state.encode()).hexdigest()}  {STATE}\n"
