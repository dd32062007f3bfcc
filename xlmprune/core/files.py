"""Write files and folders so that a reader, or a crash, finds the old one or the new one and never a part.

Nothing heavy is imported here, because commands that need no PyTorch use this module too.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xlmprune.core.errors import MachineError

TEMPORARY = ".temporary-"
"""Start of the name of a temporary folder in a run folder, where the next start of the run deletes it."""

SAFETENSORS_FILE = "model.safetensors"
REPORT_FILE = "report.json"


@contextmanager
def temporary_folder(inside: Path | None = None) -> Iterator[Path]:
    """Make a folder that exists inside the ``with``, in ``inside`` or among the system's temporary files.

    Raises:
        MachineError: the system's temporary folder is full, or there is none. Errors in ``inside`` pass through.
    """
    if inside is not None:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=inside) as folder:
            yield Path(folder)
        return
    advice = "free some space, or set the environment variable TMPDIR to another folder"
    try:
        path = tempfile.gettempdir()
        temporary = tempfile.TemporaryDirectory()
    except OSError as error:
        raise MachineError(f"no folder for temporary files was found ({error}): {advice}") from error
    try:
        with temporary as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise MachineError(
                f"{path}, the folder for temporary files, is full ({error.strerror}): {advice}"
            ) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, which replaces ``path`` if the ``with`` ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.touch()
    mode = partial.stat().st_mode
    try:
        yield partial
        # safetensors makes its files readable by the owner only, and a server often runs as another user.
        partial.chmod(mode)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def require_place_for_file(path: Path) -> None:
    """Check a path before work is done for it.

    Raises:
        MachineError: it is a folder, or the folder that it names does not exist.
    """
    if path.is_dir():
        raise MachineError(f"{path}: is a folder; expected the name of a file")
    if not path.parent.is_dir():
        raise MachineError(f"{path}: there is no folder {path.parent}; create it first")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_in_place(partial: Path, final: Path) -> None:
    """Rename a finished folder once all its files are on the disk. After a power cut it is complete or absent."""
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


@contextmanager
def explain_disk(folder: Path) -> Iterator[None]:
    """Explain a full or unwritable disk in a sentence.

    Raises:
        MachineError: writing failed.
    """
    try:
        yield
    except MachineError:  # explained already
        raise
    except Exception as error:  # of no common type; see `system_error`
        text, code = str(error), system_error(error)
        if code == errno.EFBIG:
            raise MachineError(
                f"{folder}: {TOO_LARGE}; raise the limit and run the same command again"
            ) from error
        if code in FULL:
            free = shutil.disk_usage(existing(folder)).free / 1e9
            raise MachineError(
                f"{folder}: the disk is full ({free:.1f} GB free). The last complete checkpoint is kept: free some space "
                "and run the same command again, or choose another folder with --out"
            ) from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENAMETOOLONG, errno.ENOLCK):
            raise MachineError(
                f"{folder}: cannot be written to ({text}); choose another folder with --out"
            ) from error
        if code == errno.EISDIR:
            raise MachineError(
                f"{folder}: a folder exists where the file should be written ({text})"
            ) from error
        if code == errno.ENOTDIR or isinstance(error, FileExistsError | NotADirectoryError):
            raise MachineError(
                f"{folder}: is not a folder, or its parent is a file; choose another --out"
            ) from error
        raise


FULL = (errno.ENOSPC, errno.EDQUOT)
"""Codes of the system that say that a disk is full."""

TOO_LARGE = "a file is larger than `ulimit -f` or the file system allows"


def system_error(error: BaseException) -> int | None:
    """Return the code of the system's error, also where a library put it as text into a type of its own; None for others."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if inside := re.search(r"os error (\d+)", text):  # of libraries in Rust
        return int(inside[1])
    return errno.ENOSPC if "No space left" in text or "Not enough disk space" in text else None


def storage_fault(error: BaseException, folder: Path, variable: str) -> str | None:
    """Say why a cache could not be written, with its owner and the variable that names another one; None for other errors.

    Args:
        error: one that occurred, or that was caused by one that did.
        folder: the cache.
        variable: the environment variable that sets the folder.
    """
    for cause in causes(error):
        code, path = system_error(cause), existing(_path_of(cause) or folder)
        if code == errno.EFBIG:
            return f"{path}: {TOO_LARGE}"
        if code in FULL:
            free = shutil.disk_usage(path).free / 1e9
            return f"the disk of {folder} is full ({free:.1f} GB free). Free some space, or set {variable} to another disk"
        if code in (errno.EACCES, errno.EROFS, errno.ENOTDIR) or isinstance(
            cause, PermissionError | NotADirectoryError
        ):
            return (
                f"{path} cannot be written to ({os.strerror(code or errno.EACCES).lower()}); it belongs to {_owner(path)}. "
                f"Set {variable} to a folder that you may write to"
            )
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then what caused it, then what caused that; nothing that `raise … from None` hides."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _path_of(error: BaseException) -> Path | None:
    name = getattr(error, "filename", None)
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None


def _owner(path: Path) -> str:
    try:
        return f"the user {path.owner()}"
    except (KeyError, OSError, NotImplementedError):  # a user id without a name, as in containers
        return f"the user id {path.stat().st_uid}"


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Put a file that nobody writes to again at a second path: as a link where the disk has them, to save space."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, as an ``object_pairs_hook``.

    Raises:
        ValueError: a key is given twice; names it.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is given twice")
        found[key] = value
    return found


def whole_number(digits: str) -> int:
    """Read a whole number of JSON, as a ``parse_int``.

    Raises:
        ValueError: Python reads no number of so many digits.
    """
    try:
        return int(digits)
    except ValueError:
        raise ValueError(
            f"a whole number has {len(digits.lstrip('-')):,} digits, which is too many"
        ) from None


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file as a whole."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def cache_folder() -> Path:
    """Return $XLMPRUNE_CACHE, else xlmprune below $XDG_CACHE_HOME, else ~/.cache/xlmprune."""
    if named := os.environ.get("XLMPRUNE_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xlmprune"
