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


@pytest.mark.parametrize("file", CAMPAIGNS, ids=lambda file: file.stem)
def test_two_cases_hold(file):
    ran = subprocess.run(
        [sys.executable, str(file), "--count", "2", "--seed", "7"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]
    tally = json.loads(ran.stdout.splitlines()[-1])
    assert (tally["tried"], tally["held"], tally["failed"]) == (2, 2, {})
