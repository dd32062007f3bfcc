"""Keep other processes out of a folder while this one uses it."""

from __future__ import annotations

import errno
import os
import platform
from pathlib import Path

from xlmprune.core.errors import MachineError

UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
"""What `flock` answers on file systems without it, such as some network file systems."""


class FolderLock:
    """Holds a lock file until it is closed.

    `flock` does this where the file system has it: the kernel lets go of it whatever happens to the process. Elsewhere a
    second file names the process that holds the lock; one whose process no longer runs on this machine is taken over.

    Args:
        file: the lock file; its folder exists.
        folder: what it stands for, in messages.

    Raises:
        MachineError: another process holds it.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        self.folder = folder
        self._owner: Path | None = None
        self._file = file.open("a+")
        try:
            if not self._lock():
                self._claim(file.with_name(f"{file.name}-owner"))
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> bool:
        """Take the kernel's lock; return False where there is none to take."""
        try:
            import fcntl
        except ImportError:  # Windows
            return False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            self._refuse(self._file.read().strip())
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            raise
        self._file.truncate(0)
        self._file.write(f"pid {os.getpid()}")
        self._file.flush()
        return True

    def _claim(self, owner: Path) -> None:
        """Create the file that names us; take the place of a process that no longer runs."""
        me = f"pid {os.getpid()} on {platform.node()}"
        for _ in range(2):
            try:
                with owner.open("x", encoding="utf-8") as file:
                    file.write(me)
                self._owner = owner
                return
            except FileExistsError:
                other = owner.read_text(encoding="utf-8")
                if _may_run(other):
                    self._refuse(other, f". If that process is gone, delete {owner}")
                owner.unlink(missing_ok=True)
        self._refuse("")

    def _refuse(self, other: str, advice: str = "") -> None:
        named = f" ({other})" if other else ""
        raise MachineError(
            f"{self.folder}: this folder is in use by another process{named}; wait until it ends, or use another "
            f"--out{advice}"
        )

    def close(self) -> None:
        """Let another process use the folder."""
        if self._owner is not None:
            self._owner.unlink(missing_ok=True)
            self._owner = None
        self._file.close()


def _may_run(owner: str) -> bool:
    """Return whether the process that a lock names may still run: on another machine nobody can tell."""
    words = owner.split(maxsplit=3)
    if len(words) != 4 or words[3] != platform.node():
        return True
    if not words[1].isdecimal() or int(words[1]) == os.getpid():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, as another user
        return True
    return True
