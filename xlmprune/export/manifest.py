"""`manifest.json`: every file of a bundle with its size and SHA-256, the versions that made it, the recipe's hash."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from xlmprune.core.errors import BundleError
from xlmprune.core.files import keys_once, replacing, sha256_of, whole_number

FILE = "manifest.json"
SCHEMA_VERSION = 1
KEYS = {"schema_version", "recipe_sha256", "versions", "files"}

LARGEST_JSON = 200_000_000
"""Bytes of a JSON file of a bundle; a tokenizer of 250,000 pieces has 17 MB."""

OF_HUBS = {".git", ".gitattributes", ".cache"}
"""What git and the tools of model hubs add to a folder that they download. Nothing here reads it."""

ADVICE = "Copy the bundle again. `predict --no-verify` (verify=False in Python) opens it as it is"


@dataclass(frozen=True)
class FileCheck:
    """One file compared with the manifest."""

    file: str
    passed: bool
    detail: str


def write(
    bundle: Path, versions: Mapping[str, Any], recipe_sha256: str, files: Iterable[Path] | None = None
) -> dict[str, Any]:
    """Write the manifest of a bundle.

    Args:
        versions: package to version, `python` and the like among them.
        recipe_sha256: identity of the resolved recipe.
        files: those to list; every file in the bundle, subfolders included, if None.

    Returns:
        What was written.
    """
    listed = (
        _walk(bundle) if files is None else ((file.relative_to(bundle).as_posix(), file) for file in files)
    )
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "recipe_sha256": recipe_sha256,
        "versions": {name: str(version) for name, version in versions.items()},
        "files": {
            name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for name, path in sorted(listed)
            if path.is_file()
        },
    }
    with replacing(bundle / FILE) as partial:
        partial.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def read(bundle: Path) -> dict[str, Any]:
    """Read the manifest of a bundle.

    Raises:
        BundleError: missing, damaged, or of a schema version that is not known.
    """
    path = bundle / FILE
    try:
        manifest = read_json(path, ADVICE)
        if set(manifest) != KEYS:
            raise ValueError(f"its keys are {', '.join(manifest)}, expected {', '.join(sorted(KEYS))}")
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {manifest['schema_version']!r}, expected {SCHEMA_VERSION}")
        if not isinstance(manifest["recipe_sha256"], str):
            raise ValueError("recipe_sha256 is not a text")
        for name, version in manifest["versions"].items():
            if not isinstance(version, str):
                raise ValueError(f"the version of {name!r} is not a text")
        for name, entry in manifest["files"].items():
            if not is_count(entry["bytes"]) or not isinstance(entry["sha256"], str):
                raise ValueError(f"{name!r} has no size in bytes, or no SHA-256")
    except FileNotFoundError:
        raise BundleError(
            f"{path} is missing, so the files of the bundle cannot be checked. {ADVICE}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is damaged: {error}. {ADVICE}") from error
    return manifest


def is_count(value: Any) -> bool:
    """Tell whether a value read from a file is a number of bytes or entries that may be: whole, and not negative."""
    return type(value) is int and 0 <= value < 2**60


def read_json(path: Path, advice: str = "Copy the bundle again") -> dict[str, Any]:
    """Read a JSON object of a bundle; a key given twice, or nesting without end, is damage.

    Args:
        advice: what to do about damage.

    Raises:
        FileNotFoundError: there is no such file.
        BundleError: it is not a file, or not a JSON object.
    """
    require_file(path)
    try:
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise ValueError(f"it has {size:,} bytes; at most {LARGEST_JSON:,} are read")
        values = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=keys_once, parse_int=whole_number
        )
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {error}. {advice}") from error
    if not isinstance(values, dict):
        raise BundleError(f"{path} is damaged: expected a JSON object. {advice}")
    return values


def require_file(path: Path) -> None:
    """Raise BundleError where something else than a file lies at ``path``; opening a pipe would wait for ever."""
    if os.path.lexists(path) and not path.is_file():
        raise BundleError(f"{path} is a {_kind(path)}, expected a file")


def require(bundle: Path, *names: str) -> None:
    """Check those of the files ``names`` that exist, before they are used.

    Raises:
        BundleError: a file is not the one that the manifest describes.
    """
    files = read(bundle)["files"]
    for name in names:
        path = bundle / name
        require_file(path)
        if not path.exists():
            continue  # whoever needs the file says that it is missing
        if name not in files:
            raise BundleError(f"{path} is not in {FILE}: it was added after the bundle was made. {ADVICE}")
        found = _check_file(name, path, files[name])
        if not found.passed:
            raise BundleError(f"{path} {found.detail}. {ADVICE}")


def is_bundle(folder: Path, config: Mapping[str, Any]) -> bool:
    """Tell whether a folder claims to be a bundle: by its manifest, or by the section `xlmprune` of config.json."""
    return (folder / FILE).exists() or "xlmprune" in config


def check(bundle: Path) -> list[FileCheck]:
    """Compare everything in the bundle with the manifest. What is missing, changed or added does not pass.

    Raises:
        BundleError: the manifest itself is missing or damaged.
    """
    files = read(bundle)["files"]
    found = dict(_walk(bundle))
    checks = [_check_file(name, found.get(name), entry) for name, entry in files.items()]
    folders = {parent.as_posix() for name in files for parent in PurePosixPath(name).parents}
    for name in found.keys() - files.keys() - folders:
        checks.append(
            FileCheck(
                name,
                False,
                f"is not in the manifest; this {_kind(found[name])} was added after the bundle was made",
            )
        )
    return sorted(checks, key=lambda entry: entry.file)


def _check_file(name: str, path: Path | None, entry: Mapping[str, Any]) -> FileCheck:
    if path is None:
        return FileCheck(name, False, f"is missing; {entry['bytes']:,} bytes expected")
    if not path.is_file():
        return FileCheck(name, False, f"is a {_kind(path)}, expected a file")
    try:
        size = path.stat().st_size
        # A file of another size is not read: it may be of any length.
        found = sha256_of(path) if size == entry["bytes"] else ""
    except OSError as error:
        return FileCheck(name, False, f"cannot be read: {error.strerror or error}")
    if size != entry["bytes"]:
        return FileCheck(name, False, f"has {size:,} bytes, {entry['bytes']:,} expected")
    if found != entry["sha256"]:
        return FileCheck(name, False, "has another SHA-256 than when it was made")
    return FileCheck(name, True, f"{size:,} bytes, SHA-256 {entry['sha256'][:12]}…")


def _kind(path: Path) -> str:
    """Name what lies at ``path``: a link is named as such, wherever it leads."""
    mode = path.lstat().st_mode
    kinds = {stat.S_ISLNK: "link", stat.S_ISDIR: "folder", stat.S_ISREG: "file"}
    return next((kind for question, kind in kinds.items() if question(mode)), "pipe, socket or device")


def _walk(bundle: Path) -> Iterator[tuple[str, Path]]:
    """Yield everything but the manifest by its name relative to the bundle, with forward slashes.

    Links to folders are not followed. A link to a file counts as that file: model hubs' caches are made of them.
    """
    for parent, folders, files in os.walk(bundle):
        for entry in (*folders, *files):
            path = Path(parent, entry)
            name = path.relative_to(bundle).as_posix()
            if name != FILE and name.partition("/")[0] not in OF_HUBS:
                yield name, path
