"""Files that ship: one format a module, each able to read back and check what it wrote.

Nothing heavy is imported here; `verify` and `predict` come through this package without PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SAFETENSORS_FILE = "model.safetensors"


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
