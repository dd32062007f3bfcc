"""A slice of every campaign, as `make campaigns` runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ON_BUNDLES = ("flips.py", "hostile_bundles.py")
"""`test_verify.py` runs a slice of these, where the model that they need is exported already."""

CAMPAIGNS = sorted(
    file for file in (Path(__file__).parent / "campaigns").glob("*.py") if file.name not in ON_BUNDLES
)

ALL = """
import runpy, sys
for file in sys.argv[1:]:
    sys.argv = [file, "--count", "2", "--seed", "7"]
    try:
        runpy.run_path(file, run_name="__main__")
    except SystemExit:
        pass
"""
"""One process for all of them, so that PyTorch is imported once."""


@pytest.fixture(scope="module")
def ran():
    # Those that fork come first: what the others do in this process would be in the forks.
    files = sorted(CAMPAIGNS, key=lambda file: "import Runs" not in file.read_text(encoding="utf-8"))
    return subprocess.run([sys.executable, "-c", ALL, *map(str, files)], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("file", CAMPAIGNS, ids=lambda file: file.stem)
def test_two_cases_hold(ran, file):
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"campaign"')]
    (tally,) = (line for line in lines if line["campaign"] == file.stem)
    assert (tally["tried"], tally["held"], tally["failed"]) == (2, 2, {}), ran.stderr[-2000:]
