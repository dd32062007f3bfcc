"""A user's own files: tables (TSV, CSV, JSON lines) and token files, plain or gzipped.

Nothing is guessed silently. Repairs are counted in the notes; anything else is an error that names file and line.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from xlmprune.core.errors import DataError
from xlmprune.data.examples import Kind
from xlmprune.data.readers.columns import check_roles, select_columns, usual_columns
from xlmprune.data.readers.lines import expand, find_file
from xlmprune.data.readers.rows import Rows, Split
from xlmprune.data.readers.tables import read_json_table, read_table, without_empty_rows
from xlmprune.data.readers.token_files import read_json_tokens, read_tokens

if TYPE_CHECKING:
    from xlmprune.recipe.schema import TaskRecipe


class Files:
    """Files found by a pattern such as ``data/{language}.{split}.tsv``."""

    licence = "unknown"

    def __init__(
        self,
        recipe: TaskRecipe,
        kind: Kind,
        columns: Mapping[int, tuple[str, ...]] | None = None,
        grouped: bool = False,
    ) -> None:
        """Check the path.

        Raises:
            DataError: no path, or a pattern with other names in braces.
        """
        if not recipe.path:
            raise DataError("source `files` needs `task.path`, such as data/{language}.{split}.tsv")
        unknown = sorted(set(re.findall(r"\{(\w*)\}", recipe.path)) - {"language", "split"})
        if unknown:
            raise DataError(
                f"task.path {recipe.path}: {{{unknown[0]}}} is unknown; "
                "{language} and {split} are filled in"
            )
        self._pattern = expand(recipe.path)
        self._splits = {"train": recipe.train_split, "dev": recipe.dev_split, "test": recipe.test_split}
        self._train_language = recipe.train_language
        self._kind = kind
        self._grouped = grouped
        # Names of columns are read without spaces around them.
        self._columns = {
            role: column.strip() if isinstance(column, str) else column
            for role, column in (recipe.columns or {}).items()
        }
        self._header = recipe.header
        self._format = recipe.format
        self._delimiter = recipe.delimiter
        self._quoting = recipe.quoting
        self._by_column = "language" in self._columns
        self._cache: dict[Path, Rows] = {}
        self._by_count = columns or usual_columns(kind)
        check_roles(self._columns, kind)

    def languages(self) -> tuple[str, ...]:
        """List the languages for which the pattern finds a test file, or a column names one, alphabetically."""
        if "{language}" in self._pattern:
            return find_languages(self._pattern, self._splits["test"])
        if not self._by_column:
            return (self._train_language,) if self.has(self._train_language, "test") else ()
        return self._languages_of("test")

    def has(self, language: str, split: Split) -> bool:
        """Tell whether there is such a file, and rows of that language in it."""
        if self._by_column and "{language}" not in self._pattern:
            return language in self._languages_of(split)
        return self._file(language, split) is not None

    def _languages_of(self, split: Split) -> tuple[str, ...]:
        path = self._file(self._train_language, split)
        if path is None:
            return ()
        return tuple(sorted(set(self._read(path, split).languages or ())))

    def rows(self, language: str, split: Split) -> Rows:
        """Read the file of one split and language."""
        if split != "test" and "{split}" not in self._pattern:
            raise DataError(
                f"task.path {self._pattern}: without {{split}} train and test would be the same file"
            )
        path = self._file(language, split)
        if path is None:
            raise self._no_file(language, split)
        rows = self._read(path, split)
        if not self._by_column:
            return rows
        own = rows.of_language(language)
        if not len(own.first):
            known = ", ".join(sorted(set(rows.languages or ())))
            raise DataError(f"{path}: no row of language {language!r}; the column has: {known}")
        return own

    def _no_file(self, language: str, split: Split) -> DataError:
        name = fill(self._pattern, language, self._splits[split])
        others = ""
        if "{language}" in self._pattern:
            found = find_languages(self._pattern, self._splits[split])
            others = f"; languages with a {split} file: {', '.join(found) or 'none'}"
        return DataError(
            f"no file {name} (nor {name}.gz, relative to {Path.cwd().name or '/'}/) for language {language!r}, split "
            f"{split!r}{others}. Give another folder with --set task.path=…"
        )

    def _read(self, path: Path, split: Split) -> Rows:
        """Read a file; a file of several languages is read once."""
        if path not in self._cache:
            rows = self._parse(path, split)
            if not self._by_column:
                return rows
            self._cache[path] = rows
        return self._cache[path]

    def _parse(self, path: Path, split: Split) -> Rows:
        file_format = self._format or _format_of(path, self._kind)
        if self._kind == "tokens":
            if file_format == "jsonl":
                return read_json_tokens(path, self._columns)
            if file_format == "csv":
                raise DataError(
                    f"{path}: words and tags are read from token files or JSON lines, not from CSV"
                )
            return read_tokens(path, self._columns, self._header)
        if file_format == "tokens":
            raise DataError(f"{path}: a token file has no texts to classify; for tags, use task `tagging`")
        if file_format == "jsonl":
            table = read_json_table(path, self._columns.values())
        else:
            table = read_table(path, file_format, self._delimiter, self._quoting)
        return select_columns(
            without_empty_rows(table),
            self._kind,
            self._columns,
            self._header,
            self._by_count,
            grouped=self._grouped,
            train=split == "train",
        )

    def _file(self, language: str, split: Split) -> Path | None:
        if split != "test" and "{split}" not in self._pattern:
            return None  # there is only a test set, as `evaluate` needs
        if "{language}" not in self._pattern and language != self._train_language and not self._by_column:
            return None
        return find_file(Path(fill(self._pattern, language, self._splits[split])))


def fill(pattern: str, language: str, split: str) -> str:
    """Fill in the braces of a pattern."""
    return pattern.replace("{language}", language).replace("{split}", split)


def find_languages(pattern: str, split: str) -> tuple[str, ...]:
    """List the codes for which a file of that split exists, plain or gzipped, alphabetically."""
    head, *rest = pattern.replace("{split}", split).split("{language}")
    wildcard = "*".join(glob.escape(part) for part in (head, *rest))
    code = "(?P<language>[A-Za-z0-9_-]+)"
    exact = re.escape(head) + "".join(
        (code if number == 0 else "(?P=language)") + re.escape(part) for number, part in enumerate(rest)
    )
    found = set()
    for name in [*glob.glob(wildcard), *glob.glob(wildcard + ".gz")]:  # noqa: PTH207 (absolute too)
        match = re.fullmatch(exact + r"(?:\.gz)?", name)
        if match and find_file(Path(name)):
            found.add(match["language"])
    return tuple(sorted(found))


def _format_of(path: Path, kind: Kind) -> str:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        return "jsonl"
    if suffix == ".csv":
        return "csv"
    return "tokens" if kind == "tokens" else "tsv"
