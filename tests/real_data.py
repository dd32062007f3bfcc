"""Where real labelled data lies, for the tests that use it when it is there."""

import os
from pathlib import Path

import pytest


def data_dir() -> Path | None:
    """The folder named by XLMPRUNE_DATA; None where it is not set."""
    named = os.environ.get("XLMPRUNE_DATA")
    return Path(named) if named else None


def require_data(part: str) -> Path:
    """One folder of the real data; skips the test, saying so, where it is not there."""
    folder = data_dir()
    if folder is None or not (folder / part).is_dir():
        pytest.skip(f"real data not present: set XLMPRUNE_DATA to a folder holding {part}/")
    return folder / part
