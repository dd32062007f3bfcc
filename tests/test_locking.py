"""One process at a time in a folder, with and without flock."""

import errno
import fcntl
import os
import platform
import subprocess
import sys

import pytest

from xlmprune.core import own_process
from xlmprune.core.errors import MachineError
from xlmprune.core.locking import FolderLock

NO_LOCK = [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK]


@pytest.fixture(
    params=["flock", *NO_LOCK], ids=lambda code: code if code == "flock" else errno.errorcode[code]
)
def file_system(request, monkeypatch):
    """A file system with flock, and some that answer with an error."""
    if request.param != "flock":

        def refuse(*_):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def test_a_second_holder_is_refused_and_told_who_holds_it(tmp_path, file_system):
    held = FolderLock(tmp_path / "lock", tmp_path)
    if file_system != "flock":
        # A process does not refuse itself there; another one on this machine does.
        owner = tmp_path / "lock-owner"
        assert owner.read_text() == f"pid {os.getpid()} on {platform.node()}"
        owner.write_text(f"pid {os.getppid()} on {platform.node()}")
    with pytest.raises(MachineError, match=r"in use by another process \(pid \d+"):
        FolderLock(tmp_path / "lock", tmp_path)
    held.close()
    FolderLock(tmp_path / "lock", tmp_path).close()


@pytest.mark.parametrize(
    ("owner", "taken_over"),
    [
        ("pid 4194305 on {node}", True),
        ("pid 4194305 on elsewhere", False),
        ("", False),
        ("pid x on {node}", True),
    ],
)
def test_a_lock_file_that_was_left_behind(tmp_path, monkeypatch, owner, taken_over):
    """4194305 is above the highest process number that Linux gives."""

    def refuse(*_):
        raise OSError(errno.ENOSYS, "no flock")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "lock-owner").write_text(owner.format(node=platform.node()))
    if taken_over:
        FolderLock(tmp_path / "lock", tmp_path).close()
        assert not (tmp_path / "lock-owner").exists()
    else:
        with pytest.raises(MachineError, match=r"If that process is gone, delete .*lock-owner"):
            FolderLock(tmp_path / "lock", tmp_path)


def test_another_error_is_not_hidden(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="broken disk"):
        FolderLock(tmp_path / "lock", tmp_path)


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from xlmprune.core.locking import FolderLock\n"
        f"lock = FolderLock(Path({str(tmp_path / 'lock')!r}), Path('.')); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=own_process.environment()
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(MachineError, match=f"pid {process.pid}"):
            FolderLock(tmp_path / "lock", tmp_path)
        process.kill()
        process.wait()
    FolderLock(tmp_path / "lock", tmp_path).close()
