"""Upload a bundle to a repository of a model hub, as one commit.

The manifest is checked first, so only what was measured is published. The repository then has exactly the files of the
manifest, besides those that others put there.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlmprune.core import hub
from xlmprune.core.errors import BundleError, RecipeError, first_line
from xlmprune.export import manifest

CARD = "README.md"
BRANCH = re.compile(r"\w+([./-]+\w+)*")


@dataclass(frozen=True)
class Pushed:
    """One upload."""

    repository: str
    """``owner/name``."""
    commit: str
    url: str
    """Of the commit."""
    files: int
    bytes: int


def push(bundle: Path, repository: str, private: bool = False, revision: str | None = None) -> Pushed:
    """Upload the files of ``bundle`` and create the repository if it does not exist.

    Files that an earlier push uploaded and this bundle does not have are removed.

    Args:
        repository: ``owner/name``.
        private: create a private repository; refuse one that is public.
        revision: a branch, which is created if it does not exist; None for the main one.

    Raises:
        BundleError: a file is not the one that the manifest describes, or the model card is not valid.
        RecipeError: no name of a branch; or the repository is public and ``private`` is asked for.
        MachineError: the hub cannot be reached or refuses the upload.
    """
    if revision is not None and (not BRANCH.fullmatch(revision) or ".." in revision):
        raise RecipeError(
            f"--revision {revision!r} is not a branch name; expected letters and digits, with - _ . / between them"
        )
    files = require_whole(bundle)
    require_card(bundle)
    with hub.explained(repository, "uploaded to"):
        api = hub.signed_in()
        name = api.create_repo(repository, private=private or None, exist_ok=True).repo_id
        if private and not api.repo_info(name).private:
            raise RecipeError(
                f"{name} exists and is public, but --private asks for a private repository. Make it private on the hub, or "
                "push to another name"
            )
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        commit = _commit(api, bundle, name, revision, files)
    return Pushed(name, commit.oid, str(commit.commit_url), len(files), sum(files.values()))


def require_whole(bundle: Path) -> dict[str, int]:
    """Return the bytes of each file to upload.

    Raises:
        BundleError: a file is missing, changed or added.
    """
    if not (bundle / manifest.FILE).is_file():
        raise BundleError(
            f"{bundle}: there is no {manifest.FILE}; expected the folder of a bundle, such as runs/quickstart/bundle"
        )
    checks = manifest.check(bundle)
    for entry in checks:
        if not entry.passed:
            raise BundleError(f"{bundle / entry.file} {entry.detail}. Nothing was uploaded")
    return {
        name: (bundle / name).stat().st_size for name in (*(entry.file for entry in checks), manifest.FILE)
    }


def require_card(bundle: Path) -> None:
    """Raise BundleError unless the model card has metadata that huggingface_hub can read."""
    import yaml
    from huggingface_hub import ModelCard

    file = bundle / CARD
    try:
        card = ModelCard.load(file)
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise BundleError(f"{file}: is not a valid model card: {first_line(error)}") from error
    if not card.data.to_dict():
        raise BundleError(f"{file}: has no metadata between two lines of ---, which a model card needs")


def _commit(api: Any, bundle: Path, name: str, revision: str | None, files: dict[str, int]) -> Any:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    stale = _pushed_before(api, name, revision) - files.keys()
    operations = [
        *(CommitOperationAdd(file, bundle / file) for file in files),
        *(CommitOperationDelete(file) for file in sorted(stale)),
    ]
    return api.create_commit(
        name, operations, commit_message="Upload a bundle of xlmprune", revision=revision
    )


def _pushed_before(api: Any, name: str, revision: str | None) -> set[str]:
    """Return the files that an earlier push uploaded and that are still there."""
    from tempfile import TemporaryDirectory

    from huggingface_hub.errors import EntryNotFoundError

    with TemporaryDirectory() as folder:
        try:
            api.hf_hub_download(name, manifest.FILE, revision=revision, local_dir=folder)
            listed = set(manifest.read(Path(folder))["files"])
        except (EntryNotFoundError, BundleError):  # nothing was pushed, or it was not a bundle
            return set()
    return listed & set(api.list_repo_files(name, revision=revision))
