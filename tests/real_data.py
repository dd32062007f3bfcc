"""Where real labelled data lies, for the tests that use it when it is there."""

import os
from pathlib import Path

import pytest


def data_dir() -> Path | None:
    """The folder named by XLMPRUNE_DATA, or `../shared/data` beside the checkout; None where neither exists."""
    named = os.environ.get("XLMPRUNE_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None


def require_data(part: str) -> Path:
    """One folder of the real data; skips the test, saying so, where it is not there."""
    folder = data_dir()
    if folder is None or not (folder / part).is_dir():
        pytest.skip(f"real data not present: set XLMPRUNE_DATA to a folder holding {part}/")
    return folder / part
