"""The official XGLUE folder, read as released.

The release is never downloaded: whoever uses it accepts its terms first. Its files have traps, all met here:
no header but for two tasks, bare quotation marks, empty fields, a missing last blank line, and two forms of
the XNLI dev and test sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from xlmprune.core.errors import DataError
from xlmprune.data.readers.files import find_languages
from xlmprune.data.readers.lines import expand
from xlmprune.data.readers.rows import Rows, Split
from xlmprune.data.readers.tables import read_table
from xlmprune.data.readers.token_files import read_tokens

if TYPE_CHECKING:
    from xlmprune.recipe import TaskRecipe

HOW_TO_GET = (
    "XGLUE is not downloaded for you: accept its terms at https://microsoft.github.io/XGLUE/, unpack "
    "xglue_full_dataset.tar.gz and set `task: {source: xglue, path: …/xglue_full_dataset}`. Without it, "
    "xnli, pawsx, ner (WikiANN) and pos (Universal Dependencies) load from the hub, and every task reads "
    "`source: files`"
)

LICENCE = "XGLUE terms of use (non-commercial research), https://microsoft.github.io/XGLUE/"


@dataclass(frozen=True)
class Layout:
    """Where a task lies in the official folder, and which columns make up its examples."""

    folder: str
    train: str
    test: str
    """``{language}`` and ``{split}`` (dev or test) are filled in."""
    first: tuple[int, ...] = (0,)
    second: tuple[int, ...] = (1,)
    """Columns joined by a space; negative positions are not used, as files may lack the label."""
    labelled: int = 3
    """Columns of a file with labels, the label last; a file with one fewer has none."""
    headers: Mapping[str, bool] = field(default_factory=dict)
    """Whether the files of ``train`` and ``test`` open with column names; not, unless said."""
    tokens: bool = False
    combined: str | None = None
    """Another form of the dev and test sets, all languages in one file."""
    test_names: Mapping[str, str] = field(default_factory=lambda: {"dev": "dev", "test": "test"})


class Xglue:
    """One task of the official folder."""

    def __init__(self, recipe: TaskRecipe, layout: Layout, grouped: bool = False) -> None:
        """
        Raises:
            DataError: the folder is not there, or not XGLUE's.
        """
        self._layout = layout
        self._grouped = grouped
        self._folder = _find_folder(Path(expand(recipe.path or "")), layout.folder)
        self._cache: dict[str, dict[str, Rows]] = {}

    def languages(self) -> tuple[str, ...]:
        """Languages with a test file, alphabetically."""
        name = self._layout.test_names["test"]
        found = find_languages(str(self._folder / self._layout.test), name)
        return found or tuple(sorted(self._combined("test")))

    def has(self, language: str, split: Split) -> bool:
        """Whether the folder has that split of that language."""
        if self._file(language, split).is_file():
            return True
        return split != "train" and language in self._combined(split)

    def rows(self, language: str, split: Split) -> Rows:
        """Read one split of one language."""
        path = self._file(language, split)
        if not path.is_file():
            if split != "train" and language in (combined := self._combined(split)):
                return combined[language]
            known = f"; languages with a test file: {', '.join(self.languages())}" if split != "train" else ""
            raise DataError(f"{path}: no such file, for language {language!r}, split {split!r}{known}")
        if self._layout.tokens:
            return read_tokens(path, header=False)
        return self._table(path, "train" if split == "train" else "test")

    def _file(self, language: str, split: Split) -> Path:
        if split == "train":
            return self._folder / self._layout.train.format(language=language)
        name = self._layout.test.format(language=language, split=self._layout.test_names[split])
        return self._folder / name

    def _table(self, path: Path, kind: str) -> Rows:
        table = read_table(path)
        cells, lines = table.cells, table.lines
        if self._layout.headers.get(kind, False):
            cells, lines = cells[1:], lines[1:]
        if not cells:
            raise DataError(f"{path}: a header and no examples")
        width, expected = len(cells[0]), self._layout.labelled
        if width not in (expected, expected - 1):
            raise DataError(
                f"{path}:{lines[0]}: {width} columns found, {expected} expected (or {expected - 1} "
                f"without labels), "
                "as the official release has them"
            )
        first = [" ".join(row[place] for place in self._layout.first) for row in cells]
        second = [" ".join(row[place] for place in self._layout.second) for row in cells]
        labels = [row[-1].strip() for row in cells] if width == expected else None
        empty = sum(not text.strip() for text in [*first, *second])
        notes = (*table.notes, *([f"{path}: {empty:,} empty texts kept"] if empty else []))
        return Rows(str(path), first, second, labels, first if self._grouped else None, lines, notes=notes)

    def _combined(self, split: Split) -> dict[str, Rows]:
        """Per language the rows of a file of all languages: language, label, …, texts in columns 6 and 7."""
        if self._layout.combined is None:
            return {}
        if split not in self._cache:
            self._cache[split] = self._read_combined(split)
        return self._cache[split]

    def _read_combined(self, split: Split) -> dict[str, Rows]:
        assert self._layout.combined is not None
        path = self._folder / self._layout.combined.format(split=split)
        if not path.is_file():
            return {}
        table = read_table(path)
        if table.cells[0][:2] != ["language", "gold_label"] or table.cells[0][6:8] != [
            "sentence1",
            "sentence2",
        ]:
            raise DataError(
                f"{path}:1: expected the columns of XNLI, language and gold_label first, sentence1 and "
                f"sentence2 as "
                f"seventh and eighth; found {', '.join(table.cells[0][:8])}"
            )
        rows: dict[str, Rows] = {}
        for cells, line in zip(table.cells[1:], table.lines[1:], strict=True):
            own = rows.setdefault(cells[0], Rows(str(path), [], [], [], None, [], notes=table.notes))
            for column, value in ((own.first, cells[6]), (own.second, cells[7]), (own.labels, cells[1])):
                assert column is not None
                column.append(value)  # type: ignore[arg-type]
            own.lines.append(line)
        return rows


def _find_folder(root: Path, name: str) -> Path:
    for folder in (root / name, root / "xglue_full_dataset" / name, root):
        if folder.is_dir() and folder.name == name:
            return folder
    raise DataError(f"{root}: no folder {name}/ in it. {HOW_TO_GET}")
