"""Files that ship: one format a module, each able to read back and check what it wrote.

Nothing heavy is imported here; `verify` and `predict` come through this package without PyTorch.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xlmprune.core.errors import MachineError

TEMPORARY = ".temporary-"
"""Begins the name of a folder that is gone when its work is done; one that is still there, a crash left behind."""

SAFETENSORS_FILE = "model.safetensors"


@contextmanager
def temporary_folder(inside: Path | None = None) -> Iterator[Path]:
    """A folder for files of the while, in ``inside`` or where the system has its temporary files.

    Raises:
        MachineError: the system's place is full, or there is none. What happens in ``inside`` is its owner's to explain.
    """
    if inside is not None:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=inside) as folder:
            yield Path(folder)
        return
    advice = "make room there, or name another place in the environment variable TMPDIR"
    try:
        place = tempfile.gettempdir()
        temporary = tempfile.TemporaryDirectory()
    except OSError as error:
        raise MachineError(f"there is no place for temporary files ({error}): {advice}") from error
    try:
        with temporary as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise MachineError(
                f"{place}, where temporary files go, is full ({error.strerror}): {advice}"
            ) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to, which takes its name when all went well and vanishes otherwise.

    A reader, or a crash, meets the old file or the new one and never a part of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.touch()
    mode = partial.stat().st_mode
    try:
        yield partial
        # safetensors makes its files readable by the owner only; a server often runs as somebody else.
        partial.chmod(mode)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Return $XLMPRUNE_CACHE, else xlmprune below $XDG_CACHE_HOME, else ~/.cache/xlmprune."""
    if named := os.environ.get("XLMPRUNE_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xlmprune"
