"""The Hugging Face hub: which commit of a model or of a data set is meant, and what its errors mean for the user."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from xlmprune.core.errors import MachineError, first_line
from xlmprune.core.files import causes, storage_fault, write_atomically

SECONDS = 10.0
"""How long to wait for an answer."""

STATUSES = {
    401: "the hub does not accept the token. Log in again with: hf auth login",
    403: "the token may not do this; an upload needs a token with write permission (hf auth login)",
    404: "the hub does not know it, or your token may not see it. Check the owner and the name",
    409: "the hub reports a conflict: somebody else changed the repository. Try again",
    413: "the hub says that a file is too large",
    429: "the hub received too many requests. Wait a few minutes and try again",
}
"""What an answer of the hub means for the user."""

UNCONNECTED = ("ConnectError", "ConnectTimeout", "ProxyError")
"""Errors of the hub's clients for a connection that could not be made, in addition to Python's own."""

_UNREACHED: list[str] = []
"""Why the hub could not be reached, once that has happened; see `read_cache_alone`."""

TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp", "ssl", "socket")
"""Packages whose errors say that the hub could not be reached: clients that its libraries have used."""


def commit_of(name: str, kind: Literal["model", "dataset"], revision: str | None = None) -> str | None:
    """Return the commit that a revision means now: the hub's, else the cache's; None where neither knows.

    If no connection to the hub can be made, its libraries read the cache alone from now on, until `ask_again`.

    Args:
        name: ``owner/name``.
        revision: a tag, a branch or a commit; None for the newest.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    except HFValidationError:  # whoever loads it next says that it is no name
        return None
    known = folder / "refs" / (revision or "main")
    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        commit = api.repo_info(name, repo_type=kind, revision=revision, timeout=SECONDS).sha
    except Exception as error:  # of no common type; what loads the files next says what is wrong with the hub
        if _unconnected(error):
            read_cache_alone(meaning_of(error) or first_line(error))
        return known.read_text(encoding="utf-8").strip() if known.is_file() else None
    if commit and commit != revision:
        _remember(known, commit)
    return commit


def _unconnected(error: BaseException) -> bool:
    return any(
        isinstance(cause, ConnectionError | socket.gaierror) or type(cause).__name__ in UNCONNECTED
        for cause in causes(error)
    )


def unreached() -> str | None:
    """Say why the hub could not be reached, where its libraries read the cache alone; None where they ask it."""
    return _UNREACHED[0] if _UNREACHED else None


def read_cache_alone(reason: str) -> None:
    """Let the hub's libraries read the cache alone: they would try each file six times, for half a minute."""
    _UNREACHED[:] = [reason]
    _set_offline(True)


def ask_again() -> None:
    """Let the hub's libraries ask the hub again, after `read_cache_alone`."""
    if _UNREACHED:
        _UNREACHED.clear()
        _set_offline(False)


def _set_offline(is_offline: bool) -> None:
    """Set what the libraries have read from the environment, which still holds where ``is_offline`` is false."""
    from huggingface_hub import constants

    def wished(name: str) -> bool:
        return os.environ.get(name, "").upper() in constants.ENV_VARS_TRUE_VALUES

    constants.HF_HUB_OFFLINE = is_offline or wished("HF_HUB_OFFLINE")
    # Where it is not imported yet, it takes over the hub's setting.
    if (datasets := sys.modules.get("datasets")) is not None:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE or wished("HF_DATASETS_OFFLINE")


def _remember(ref: Path, commit: str) -> None:
    """Note in the cache what a revision means: files are then loaded by their commit, which notes nothing."""
    with suppress(OSError):
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(ref, commit)


def signed_in() -> Any:
    """Return an `HfApi` with the user's token.

    Raises:
        MachineError: there is no token.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise MachineError("no token of the hub was found. Log in with `hf auth login`, or set HF_TOKEN")
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


@contextmanager
def explained(name: str, done: str) -> Iterator[None]:
    """Turn an error of the hub into a sentence for the user.

    Args:
        name: the repository.
        done: completes "could not be", such as ``uploaded to``.

    Raises:
        MachineError: the hub cannot be reached, or it refuses.
    """
    from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except HFValidationError as error:
        raise MachineError(
            f"{name!r} is not a repository name; expected owner/name: {first_line(error)}"
        ) from error
    except (HTTPError, OfflineModeIsEnabled, ValueError, RuntimeError) as error:
        said = meaning_of(error)
        if said is None and isinstance(
            error, RuntimeError
        ):  # a failed upload is one, caused by what has a meaning
            raise
        # A ValueError without one finds fault with the model card.
        raise MachineError(f"{name} could not be {done}: {said or ' '.join(str(error).split())}") from error


def meaning_of(error: BaseException) -> str | None:
    """Say in the user's words what an error of the hub means, or an error that one caused; None for others."""
    return next((said for cause in causes(error) if (said := _meaning(cause))), None)


def cache_fault(error: BaseException) -> str | None:
    """Say why the hub's cache could not be written, where that is what an error means; None for others."""
    from huggingface_hub import constants

    return storage_fault(error, Path(constants.HF_HOME), "HF_HOME")


def reason_for(error: BaseException) -> str:
    """Say what an error means; where that is not known, the first line of what caused it."""
    return meaning_of(error) or first_line(list(causes(error))[-1])


def _meaning(error: BaseException) -> str | None:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "access to it is restricted; ask for access on its page, and log in with: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return STATUSES[404]
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return f"{STATUSES.get(status) or error.server_message or first_line(error)} ({status})"
    offline = isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    if offline or isinstance(error, errors.OfflineModeIsEnabled):
        return unreached() or "HF_HUB_OFFLINE is set. Unset it to reach the hub"
    package = type(error).__module__.partition(".")[0]
    if isinstance(error, errors.HTTPError | ConnectionError | TimeoutError) or package in TRANSPORTS:
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        return f"{endpoint} cannot be reached ({first_line(error).rstrip('.')}). Check the network and HF_ENDPOINT"
    return None
