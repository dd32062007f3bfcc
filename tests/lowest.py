"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

    python tests/lowest.py [name==version ...]

A version given on the command line takes the place of the lowest one. The tools of the tests are left out.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:>=|==)([0-9][0-9A-Za-z.]*)")


def lowest(*instead: str) -> dict[str, str]:
    """Return name to version of every package that the package itself or an extra but `test` asks for."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name != "test"}
    wanted = [*project["dependencies"], *(entry for extra in extras.values() for entry in extra)]
    found = [match.groups() for entry in (*wanted, *instead) if (match := REQUIREMENT.fullmatch(entry))]
    return dict(found)


if __name__ == "__main__":
    for name, version in lowest(*sys.argv[1:]).items():
        print(f"{name}=={version}")
