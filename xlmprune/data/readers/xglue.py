"""The official XGLUE folder, read as released.

The release is never downloaded: its users must accept its terms first. Its files have traps, and this module handles
them: only two tasks have headers, quotation marks stand alone, fields are empty, the last blank line is missing, and
the XNLI dev and test sets come in two forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xlmprune.core.errors import DataError
from xlmprune.data.readers.columns import select_columns
from xlmprune.data.readers.files import find_languages
from xlmprune.data.readers.lines import expand
from xlmprune.data.readers.rows import Rows, Split
from xlmprune.data.readers.tables import read_table
from xlmprune.data.readers.token_files import read_tokens

if TYPE_CHECKING:
    from xlmprune.recipe.schema import TaskRecipe

HOW_TO_GET = (
    "XGLUE is not downloaded for you: accept its terms at https://microsoft.github.io/XGLUE/, unpack "
    "xglue_full_dataset.tar.gz and set `task: {source: xglue, path: …/xglue_full_dataset}`. Without it, "
    "xnli, pawsx, ner (WikiANN) and pos (Universal Dependencies) load from the hub, and every task reads "
    "`source: files`"
)

TITLE_AND_TEXT = {
    4: ("first", "second", "second", "label"),
    3: ("first", "second", "label"),
    2: ("first", "second"),
}
"""Roles by the number of columns: the second text may be in two columns, which are joined."""


@dataclass(frozen=True)
class Layout:
    """The files of a task in the official folder, and the columns that make up its examples."""

    folder: str
    train: str
    test: str
    """``{language}`` and ``{split}`` (dev or test) are filled in."""
    roles: tuple[str, ...] = ("first", "second", "label")
    """The role of every column, the label last; a file with one column fewer has no labels."""
    headers: tuple[str, ...] = ()
    """Which of ``train`` and ``test`` open with column names."""
    combined: str | None = None
    """Another form of the dev and test sets, all languages in one file."""


class Xglue:
    """One task of the official folder."""

    licence = "XGLUE terms of use (non-commercial research), https://microsoft.github.io/XGLUE/"

    def __init__(self, recipe: TaskRecipe, layout: Layout, grouped: bool = False) -> None:
        """Find the folder.

        Raises:
            DataError: the folder is not there, or not XGLUE's.
        """
        self._layout = layout
        self._grouped = grouped
        self._folder = _find_folder(Path(expand(recipe.path or "")), layout.folder)
        self._cache: dict[str, Rows | None] = {}

    def languages(self) -> tuple[str, ...]:
        """List the languages with a test file, alphabetically."""
        found = find_languages(str(self._folder / self._layout.test), "test")
        return found or self._combined_languages("test")

    def has(self, language: str, split: Split) -> bool:
        """Tell whether the folder has that split of that language."""
        return self._file(language, split).is_file() or language in self._combined_languages(split)

    def rows(self, language: str, split: Split) -> Rows:
        """Read one split of one language."""
        path = self._file(language, split)
        if path.is_file():
            if self._layout.roles[0] == "words":
                return read_tokens(path, header=False)
            return self._table(path, "train" if split == "train" else "test")
        combined = self._combined(split)
        if combined is not None and language in self._combined_languages(split):
            return combined.of_language(language)
        known = f"; languages with a test file: {', '.join(self.languages())}" if split != "train" else ""
        raise DataError(f"{path}: no such file, for language {language!r}, split {split!r}{known}")

    def _file(self, language: str, split: Split) -> Path:
        name = self._layout.train if split == "train" else self._layout.test
        return self._folder / name.format(language=language, split=split)

    def _table(self, path: Path, kind: str) -> Rows:
        table = read_table(path, quoting=False)
        if kind in self._layout.headers:
            table = table.without_header()
        roles, width = self._layout.roles, len(table.cells[0])
        if width not in (len(roles), len(roles) - 1):
            raise DataError(
                f"{table.start}: {width} columns found, {len(roles)} expected (or {len(roles) - 1} without labels), as "
                "in the official release"
            )
        return select_columns(table, "pair", {}, False, {width: roles[:width]}, grouped=self._grouped)

    def _combined_languages(self, split: Split) -> tuple[str, ...]:
        rows = self._combined(split)
        return tuple(sorted(set(rows.languages or ()))) if rows else ()

    def _combined(self, split: Split) -> Rows | None:
        """Return the file of all languages, if there is one."""
        if split == "train" or self._layout.combined is None:
            return None
        if split not in self._cache:
            path = self._folder / self._layout.combined.format(split=split)
            self._cache[split] = _read_combined(path) if path.is_file() else None
        return self._cache[split]


def _read_combined(path: Path) -> Rows:
    table = read_table(path, quoting=False)
    names = table.cells[0]
    if names[:2] != ["language", "gold_label"] or names[6:8] != ["sentence1", "sentence2"]:
        raise DataError(
            f"{path}:1: expected the columns of XNLI, language and gold_label first, sentence1 and sentence2 as "
            f"seventh and eighth; found {', '.join(names[:8])}"
        )
    roles = ("language", "label", *("",) * 4, "first", "second", *("",) * (len(names) - 8))
    return select_columns(table.without_header(), "pair", {}, False, {len(names): roles})


def _find_folder(root: Path, name: str) -> Path:
    for folder in (root / name, root / "xglue_full_dataset" / name, root):
        if folder.is_dir() and folder.name == name:
            return folder
    raise DataError(f"{root}: no folder {name}/ in it. {HOW_TO_GET}")
