"""The run folder: what stopping and resuming needs, written so that a kill at any moment loses nothing.

.xlmprune/              shows that the folder is ours: the marker, the lock, and what is not finished yet
recipe.yaml             the resolved recipe; another recipe in the same folder is refused
budget.json             which sizes `pruning.structure.budget` chose, and the measurements; a resumed run reads them
events.jsonl            what happened; cut back to the checkpoint when a run resumes
checkpoint/start/       the model as the run began: pretrained weights, new head, trimmed vocabulary
checkpoint/saved-<n>/   tensors in safetensors, numbers in state.json, SHA-256 of every file; renamed when complete
bundle/                 what ships; renamed when complete
bundle-<size>/          the same for a smaller size of the model; in place before bundle/ is

Nothing is deleted or overwritten that this tool did not write: a folder without the marker may not hold any of these
names, and a bundle or checkpoint is deleted or replaced only if every file in it is known. Of a link only the link goes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from xlmprune._version import __version__
from xlmprune.core import checkpoints
from xlmprune.core.checkpoints import Numbers, Tensors
from xlmprune.core.errors import ModelError, RecipeError, first_line
from xlmprune.core.events import EventLog, NoEvents
from xlmprune.core.files import REPORT_FILE, explain_disk, put_in_place, sha256_of, write_atomically
from xlmprune.core.locking import FolderLock

OWN = ".xlmprune"
MARKER = "run.json"
NAMES = ("recipe.yaml", "events.jsonl", "scores.safetensors", "budget.json", "checkpoint", "bundle")
"""What a run writes beside its own folder."""

Difference = Callable[[str, Path], str | None]
"""Compares the text of a `recipe.yaml`, read from the given file, with this run's recipe: a sentence, or None if equal."""


class RunFolder:
    """One run's folder, used by one process at a time.

    Args:
        recipe: text of the resolved recipe.
        sha256: identity of the recipe.
        difference: compares a recipe found in the folder with this one.
        fresh: delete what an earlier run left.

    Raises:
        RecipeError: the folder belongs to another recipe and ``fresh`` is false, or it holds files of somebody else.
        MachineError: another process uses it, or it cannot be written to.
    """

    def __init__(
        self, path: Path, recipe: str, sha256: str, difference: Difference, fresh: bool = False
    ) -> None:
        self.path = path
        self._recipe, self._sha256, self._difference = recipe, sha256, difference
        with explain_disk(path):
            path.mkdir(parents=True, exist_ok=True)
            self._refuse_folder_of_others()
            self.own.mkdir(exist_ok=True)
            self._lock = FolderLock(self.own / "lock", path)
            try:
                if not is_run(path):
                    write_atomically(self.own / MARKER, json.dumps({"made_by": f"xlmprune {__version__}"}))
                self._delete_leftovers()
                if fresh:
                    self._clear()
                self._claim()
            except BaseException:
                self.close()
                raise
            self.checkpoints.mkdir(exist_ok=True)
        self.events = EventLog(path / "events.jsonl")
        self.repairs: list[dict[str, str]] = []
        """What was found damaged and was replaced: ``what`` and ``cause``."""
        self._start_hashes: dict[str, str] | None = None
        self._damaged: list[tuple[Path, str]] = []

    @property
    def own(self) -> Path:
        """Folder of the marker, the lock, and what is not finished yet."""
        return self.path / OWN

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoint"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    @property
    def size_bundles(self) -> list[Path]:
        """Bundles of smaller sizes that a run wrote here; other folders may have such names too."""
        return sorted(path for path in self.path.glob("bundle-*") if _is_size_bundle(path))

    def begin_bundle(self, size: float | None = None) -> Path:
        """Make an empty folder for a bundle, which `ship` puts in place.

        Args:
            size: of a bundle beside the first one.
        """
        folder = self.own / bundle_name(size)
        with explain_disk(self.path):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        return folder

    @property
    def budget(self) -> Path:
        return self.path / "budget.json"

    @property
    def start(self) -> Path:
        return self.checkpoints / "start"

    def renew_recipe(self) -> None:
        """Write this run's recipe over the one in the folder, which differs at most in keys that may change."""
        write_atomically(self.path / "recipe.yaml", self._recipe)

    def ship(self) -> None:
        """Put the unfinished bundles in place; older ones are deleted.

        A run without `bundle/` is not finished, so that folder goes first and comes last.
        """
        finished = sorted(self.own.glob("bundle*"), reverse=True)
        self.require_replaceable([folder.name for folder in finished])
        for old in (self.bundle, *self.size_bundles):
            self._discard(old)
        for folder in finished:
            put_in_place(folder, self.path / folder.name)
        self._delete_leftovers()

    def require_replaceable(self, names: Sequence[str]) -> None:
        """Refuse to put new bundles in place where something would be lost that no run wrote.

        Args:
            names: of the new bundles. Other bundles of this run are deleted.

        Raises:
            RecipeError: names what would be lost.
        """
        known = {self.bundle, *self.size_bundles}
        taken = [name for name in names if os.path.lexists(self.path / name)]
        foreign = [name for name in taken if self.path / name not in known]
        self._refuse_to_delete([*foreign, *self._foreign_in_bundles()], "the new bundle")

    def finished(self) -> dict[str, Any] | None:
        """Return the report of a run that is complete, else None."""
        report = report_file(self.path)
        if not report.is_file():
            return None
        try:
            found = json.loads(report.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or "summary" not in found:
                raise ValueError("it is not a report of a run")
            return found
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{report}: is damaged ({error}); use --fresh to start over") from error

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- whose folder it is ----------------------------------------------------------------------------------

    def _refuse_folder_of_others(self) -> None:
        if is_run(self.path):
            return
        found = [name for name in NAMES if (self.path / name).exists() or (self.path / name).is_symlink()]
        found += [path.name for path in self.size_bundles]
        if found:
            raise RecipeError(
                f"{self.path}: holds {', '.join(found)}, which this version of xlmprune did not write (there is no "
                f"{OWN}/{MARKER}). Use another --out, or move these away"
            )

    def _clear(self) -> None:
        """Delete an earlier run. A kill in between leaves a folder that starts over all the same."""
        self._refuse_to_delete([*self._foreign_in_bundles(), *self._foreign_in_checkpoints()], "--fresh")
        for folder in (self.bundle, *self.size_bundles, self.checkpoints):
            self._discard(folder)
        for name in NAMES[:4]:
            (self.path / name).unlink(missing_ok=True)
        self._delete_leftovers()

    def _refuse_to_delete(self, foreign: Sequence[str], cause: str) -> None:
        if not foreign:
            return
        found = sorted(foreign)
        listed = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        raise RecipeError(
            f"{self.path}: {cause} would delete files that xlmprune did not write ({listed}). Move them away, or use "
            "another run folder"
        )

    def _foreign_in_bundles(self) -> Iterator[str]:
        """Yield files in the bundles that no run wrote."""
        for bundle in (self.bundle, *self.size_bundles):
            if bundle.is_symlink():
                continue
            if bundle.is_file():
                yield bundle.name
            known = {"manifest.json", *_listed_in(bundle / "manifest.json")}
            for file in bundle.rglob("*"):
                name = file.relative_to(bundle).as_posix()
                if name not in known and not file.is_dir():
                    yield f"{bundle.name}/{name}"

    def _foreign_in_checkpoints(self) -> Iterator[str]:
        """Yield what lies among the checkpoints and is none."""
        if self.checkpoints.is_dir() and not self.checkpoints.is_symlink():
            for entry in self.checkpoints.iterdir():
                if not re.fullmatch(r"start|saved-\d+|\.partial-(start|\d+)", entry.name):
                    yield f"checkpoint/{entry.name}"

    def _delete_leftovers(self) -> None:
        """Delete what a crash left unfinished, or did not come to delete; only this tool gives these names."""
        unfinished = (entry for entry in self.own.iterdir() if entry.is_symlink() or entry.is_dir())
        superseded = (old for _, old in checkpoints.saved_in(self.checkpoints)[: -checkpoints.KEPT])
        for leftover in [*unfinished, *self.checkpoints.glob(".partial-*"), *superseded]:
            leftover.unlink() if leftover.is_symlink() else shutil.rmtree(leftover)

    def _discard(self, folder: Path) -> None:
        """Take a folder of ours away, to be deleted; of a link only the link."""
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            folder.replace(self.own / f"discarded-{folder.name}")

    def _claim(self) -> None:
        """Write the recipe into a new folder; refuse a folder of another recipe."""
        file = self.path / "recipe.yaml"
        if self.bundle.is_dir() and any(self.bundle.iterdir()) and not report_file(self.path).is_file():
            raise RecipeError(
                f"{self.bundle}: is not empty and holds no {REPORT_FILE}; move it away, or use another --out"
            )
        begun = self.start.exists() or bool(checkpoints.saved_in(self.checkpoints)) or self.bundle.exists()
        if not file.exists() or not begun:  # nothing is lost by another recipe where nothing has begun
            if begun:
                raise RecipeError(
                    f"{self.path}: holds a run without its recipe.yaml; use --fresh or another --out"
                )
            write_atomically(file, self._recipe)
            return
        text = file.read_text(encoding="utf-8")
        if text != self._recipe and (difference := self._difference(text, file)):
            raise RecipeError(
                f"{self.path}: holds the run of another recipe ({difference}). Use --fresh to start over in it, or "
                "another --out"
            )

    # --- checkpoints -----------------------------------------------------------------------------------------

    def expected_start(self) -> dict[str, str] | None:
        """Return the SHA-256 of every file of `checkpoint/start`, as the newest intact checkpoint knows them."""
        for _, saved in reversed(checkpoints.saved_in(self.checkpoints)):
            with contextlib.suppress(checkpoints.DamagedError):
                self._start_hashes = dict(checkpoints.read_numbers(saved)["start"])
                break
        return self._start_hashes

    def save_start(self, write: Callable[[Path], None], expected: dict[str, str] | None = None) -> None:
        """Fill `checkpoint/start` through ``write(folder)``, completely or not at all; replace a damaged one.

        Args:
            expected: SHA-256 of every file, if it has been there before.

        Raises:
            ModelError: other files were written than expected.
        """
        partial = self.checkpoints / ".partial-start"
        with explain_disk(self.path):
            partial.mkdir()
            write(partial)
            # A start that was copied from another run brings that run's list with it.
            (partial / checkpoints.FILES).unlink(missing_ok=True)
            files = sorted(file for file in partial.rglob("*") if file.is_file())
            hashes = {file.relative_to(partial).as_posix(): sha256_of(file) for file in files}
            if expected is not None and hashes != expected:
                raise ModelError(
                    f"{self.start}: is damaged, and loading the model again gives another one. Use --fresh to start over"
                )
            write_atomically(partial / checkpoints.FILES, json.dumps(hashes, indent=1))
            self._start_hashes = hashes
            self._discard(self.start)
            put_in_place(partial, self.start)
            self._delete_leftovers()

    def save(self, tensors: Tensors, numbers: Numbers) -> None:
        """Save named files of tensors and the numbers beside them; the checkpoint before is kept too."""
        if self._start_hashes is None:
            self._start_hashes = start_hashes(self.path)
        with explain_disk(self.path):
            numbers = {
                **numbers,
                "start": self._start_hashes,
                "events_bytes": self.events.bytes,
                "recipe_sha256": self._sha256,
            }
            checkpoints.write(self.checkpoints, tensors, numbers)

    def latest(self, say: Callable[[str], None]) -> tuple[Tensors, Numbers] | None:
        """Return tensors and numbers of the newest intact checkpoint; None where there is none. Nothing is changed.

        Args:
            say: told about newer ones that are damaged.

        Raises:
            ModelError: every checkpoint is damaged.
        """
        self._damaged = []
        found = checkpoints.read_newest(self.checkpoints, lambda *entry: self._damaged.append(entry))
        for _, cause in self._damaged:
            say(f"{cause}; using the previous checkpoint")
        return found

    def go_back_to(self, numbers: Numbers | None) -> None:
        """Drop what is newer than the checkpoint that `latest` returned: events, and checkpoints that are damaged.

        Args:
            numbers: of that checkpoint; None: the run starts over.
        """
        self.events.cut(0 if numbers is None else numbers["events_bytes"])
        for folder, cause in self._damaged:
            self.repairs.append({"what": folder.name, "cause": cause})
            shutil.rmtree(folder)
        self._damaged = []


class FolderOfFirst(RunFolder):
    """The run folder for every process but the first one: nothing is read or written through it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = NoEvents(path / "events.jsonl")
        self.repairs = []

    def renew_recipe(self) -> None:
        """Leave it to the first process."""

    def save(self, tensors: Tensors, numbers: Numbers) -> None:
        """Leave it to the first process."""

    def go_back_to(self, numbers: Numbers | None) -> None:
        """Leave it to the first process."""

    def close(self) -> None:
        """Nothing is held."""


def is_run(folder: Path) -> bool:
    """Return whether this tool made the folder."""
    try:
        return "made_by" in json.loads((folder / OWN / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def bundle_name(size: float | None = None) -> str:
    """Return the name of a bundle's folder.

    Args:
        size: of a bundle beside the first one.
    """
    return "bundle" if size is None else f"bundle-{size}"


def report_file(run: Path) -> Path:
    """Return the report of the run folder ``run``; the file is there when the run is finished."""
    return run / bundle_name() / REPORT_FILE


@contextlib.contextmanager
def explain_report(file: Path) -> Iterator[None]:
    """Explain in a sentence that a report that was read from a file lacks something.

    Raises:
        ModelError: names the file and what is wrong.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        wrong = f"{first_line(error)} ({type(error).__name__})"
        if isinstance(error, KeyError):
            wrong = f"the key {error} is missing"
        raise ModelError(
            f"{file}: {wrong}. The file was edited, or another version of xlmprune wrote it. Make it again from the run: "
            f"xlmprune export {shlex.quote(str(file.parent.parent))}"
        ) from error


def _is_size_bundle(folder: Path) -> bool:
    """Return whether a run wrote the folder, under this name: its report has the size that the name says."""
    try:
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        return folder.name == bundle_name(report["size"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _listed_in(manifest: Path) -> list[str]:
    try:
        return list(json.loads(manifest.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, LookupError, TypeError):
        return []


def start_hashes(run: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of `checkpoint/start`, as they were written.

    Raises:
        ModelError: the list of them is damaged.
    """
    file = run / "checkpoint" / "start" / checkpoints.FILES
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{file}: is damaged ({error})") from error


def start_damage(run: Path, expected: dict[str, str] | None = None) -> str | None:
    """Say what is wrong with `checkpoint/start`; None where it is intact.

    Args:
        expected: its hashes as a checkpoint knows them; otherwise its own list.
    """
    try:
        expected = start_hashes(run) if expected is None else expected
    except ModelError as error:
        return str(error)
    return checkpoints.first_damage(run / "checkpoint" / "start", expected)
