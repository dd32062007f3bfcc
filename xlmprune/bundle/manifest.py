"""`manifest.json`: every file of a bundle with its size and SHA-256, the versions that made it, the recipe's hash."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlmprune.core.errors import BundleError
from xlmprune.core.files import replacing, sha256_of

FILE = "manifest.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FileCheck:
    """One file compared with the manifest."""

    file: str
    passed: bool
    detail: str


def write(bundle: Path, versions: Mapping[str, Any], recipe_sha256: str) -> dict[str, Any]:
    """Write the manifest of every file in the bundle, subfolders included.

    Args:
        versions: package to version, `python` and the like among them.
        recipe_sha256: identity of the resolved recipe.

    Returns:
        What was written.
    """
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "recipe_sha256": recipe_sha256,
        "versions": {name: str(version) for name, version in versions.items()},
        "files": {
            name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in _files(bundle)
        },
    }
    with replacing(bundle / FILE) as partial:
        partial.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def read(bundle: Path) -> dict[str, Any]:
    """The manifest of a bundle.

    Raises:
        BundleError: missing or damaged.
    """
    path = bundle / FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for name, entry in manifest["files"].items():
            if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
                raise ValueError(f"{name!r} has no size in bytes, or no SHA-256")
    except FileNotFoundError:
        raise BundleError(f"{path} is missing; without it nothing says what the files should be") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is damaged: {error}") from error
    return manifest


def check(bundle: Path) -> list[FileCheck]:
    """Compare every file with the manifest; a missing, changed or added file is a check that did not pass.

    Raises:
        BundleError: the manifest itself is missing or damaged.
    """
    files = read(bundle)["files"]
    found = dict(_files(bundle))
    checks = [_check_file(name, found.get(name), entry) for name, entry in files.items()]
    for name in found.keys() - files.keys():
        checks.append(
            FileCheck(name, False, "is not in the manifest; it was added after the bundle was made")
        )
    return sorted(checks, key=lambda entry: entry.file)


def _check_file(name: str, path: Path | None, entry: Mapping[str, Any]) -> FileCheck:
    if path is None:
        return FileCheck(name, False, f"is missing; {entry['bytes']:,} bytes expected")
    try:
        size, found = path.stat().st_size, sha256_of(path)
    except OSError as error:
        return FileCheck(name, False, f"cannot be read: {error.strerror or error}")
    if size != entry["bytes"]:
        return FileCheck(
            name, False, f"has {size:,} bytes, {entry['bytes']:,} expected; copy the bundle again"
        )
    if found != entry["sha256"]:
        return FileCheck(name, False, "has another SHA-256 than when it was made; copy the bundle again")
    return FileCheck(name, True, f"{size:,} bytes, SHA-256 {entry['sha256'][:12]}…")


def _files(bundle: Path) -> Iterator[tuple[str, Path]]:
    """Every file but the manifest, by its name relative to the bundle with forward slashes, sorted."""
    for path in sorted(bundle.rglob("*")):
        name = path.relative_to(bundle).as_posix()
        if path.is_file() and name != FILE:
            yield name, path
