"""The rooms of the package, and that imports run downwards between them; read from the import statements themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "xlmprune"

FLOORS = (
    ("core",),
    ("recipe",),
    ("data",),
    ("tasks", "models"),
    ("pruning", "quickstart"),
    ("evaluation",),
    ("training",),
    ("export",),
    ("bundle",),
    ("report",),
    ("compare",),
    ("pipeline",),
    ("cli",),
)
"""From the ground up. A room imports from its own floor only within itself, and otherwise from floors below."""

HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}

KNOWN: dict[str, set[str]] = {}
"""Imports that still run upwards, from before the rooms. Each goes; none may come."""

KNOWN_CIRCLE: dict[str, set[str]] = {}

# `__init__` names the public functions, `__main__` starts the command, `_version` holds a string.
OUTSIDE = {"__init__", "__main__", "_version"}

MODULES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
    if file.parent != PACKAGE or file.stem not in OUTSIDE
}


def imports_of(module: str) -> set[str]:
    """Modules of this package that ``module`` imports: at the top, in functions and under TYPE_CHECKING."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            inside = name.removeprefix("xlmprune.")
            if name != inside and inside in MODULES:
                found.add(inside)
    # `from xlmprune.tasks import metrics` names the package on the way to its module.
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)} - {module}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_entry_of_the_package_is_a_room():
    entries = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert entries - OUTSIDE == set(HEIGHT)
    assert len(entries - OUTSIDE) <= 16


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_downwards(module):
    here = room_of(module)
    upwards = {
        name for name in imports_of(module) if room_of(name) != here and HEIGHT[room_of(name)] >= HEIGHT[here]
    }
    assert upwards == KNOWN.get(module, set())


def test_no_circle_within_a_room():
    graph = {
        module: imports_of(module) - KNOWN.get(module, set()) - KNOWN_CIRCLE.get(module, set())
        for module in MODULES
    }
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module in done:
            return
        for name in sorted(graph[module]):
            walk(name, (*path, module))
        done.add(module)

    for module in sorted(graph):
        walk(module, ())
