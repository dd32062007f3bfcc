"""The Hugging Face hub: which commit of a model or of a data set is meant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

SECONDS = 10.0
"""How long to wait for an answer."""


def commit_of(name: str, kind: Literal["model", "dataset"], revision: str | None = None) -> str | None:
    """Return the commit that a revision means now: the hub's, else the cache's; None where neither knows.

    Args:
        name: ``owner/name``.
        revision: a tag, a branch or a commit; None for the newest.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        return api.repo_info(name, repo_type=kind, revision=revision, timeout=SECONDS).sha
    except Exception:  # of no common type. Whoever loads the files next says what is wrong with the hub
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
        known = folder / "refs" / (revision or "main")
        return known.read_text(encoding="utf-8").strip() if known.is_file() else None
