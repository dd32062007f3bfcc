"""Data sets of the Hugging Face hub that load without a script, through `datasets`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xlmprune.core.errors import DataError
from xlmprune.data.readers.rows import Rows, Split

Repaired = tuple[list[list[str]], list[list[str]], tuple[str, ...]]
Repair = Callable[[list[list[str]], list[list[str]]], Repaired]
"""Words and tags of every sentence to repaired ones, and notes that count what was done."""


@dataclass(frozen=True)
class HubSet:
    """A task's data on the hub."""

    id: str
    languages: tuple[str, ...]
    """What ``languages: all`` means."""
    first: str
    label: str
    second: str | None = None
    configs: Mapping[str, str] = field(default_factory=dict)
    """Config by language, where it is not the language's code."""
    closed: bool = True
    """Whether only ``languages`` (and those of ``others``) exist; else any code may be asked for."""
    others: tuple[str, ...] = ()
    """Languages that exist and are not part of ``all``."""
    splits: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"train": ("train",), "dev": ("validation", "dev"), "test": ("test",)}
    )
    """Names a split may have."""
    test_only: tuple[str, ...] = ()
    """Languages without train and dev."""
    revision: str | None = None
    licence: str = "unknown"
    repair: Repair | None = None


class Hub:
    """One data set of the hub."""

    def __init__(self, dataset: HubSet) -> None:
        self._set = dataset
        self.licence = dataset.licence

    def languages(self) -> tuple[str, ...]:
        """The languages that ``all`` stands for."""
        return self._set.languages

    def has(self, language: str, split: Split) -> bool:
        """Whether the data set should have it; the hub is not asked."""
        if self._set.closed and language not in (*self._set.languages, *self._set.others):
            return False
        return split == "test" or language not in self._set.test_only

    def rows(self, language: str, split: Split) -> Rows:
        """Download (or find in the cache) one split of one language.

        Raises:
            DataError: no such language, no hub to be reached, or other columns than expected.
        """
        if not self.has(language, split):
            known = ", ".join(sorted((*self._set.languages, *self._set.others)))
            raise DataError(f"{self._set.id} has no {split} set for language {language!r}; it has: {known}")
        config = self._set.configs.get(language, language)
        data = self._load(config, split)
        origin = f"{self._set.id} ({config}, {split})"
        wanted = [name for name in (self._set.first, self._set.second, self._set.label) if name]
        missing = [name for name in wanted if name not in data.column_names]
        if missing:
            raise DataError(f"{origin}: no column {missing[0]!r}; found {', '.join(data.column_names)}")
        first = list(data[self._set.first])
        second = list(data[self._set.second]) if self._set.second else None
        labels = _names(data.features[self._set.label], list(data[self._set.label]))
        notes: tuple[str, ...] = ()
        if self._set.repair is not None:
            first, labels, notes = self._set.repair(first, labels)
        lines = list(range(1, len(first) + 1))
        return Rows(origin, first, second, labels, None, lines, notes=notes)

    def _load(self, config: str, split: Split) -> Any:
        # What the hub's client raises when it cannot be reached differs by place; all of it ends up below.
        from datasets import disable_progress_bars, load_dataset

        if not sys.stderr.isatty():
            disable_progress_bars()
        faults: list[Exception] = []
        for name in self._set.splits[split]:
            try:
                return load_dataset(self._set.id, config, split=name, revision=self._set.revision)
            except ValueError as error:  # an unknown split, or an unknown config
                faults.append(error)
            except (OSError, RuntimeError) as error:
                faults.append(error)
                break
        fault = faults[-1]
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
        remedy = "Unset HF_HUB_OFFLINE" if offline else "Check the network"
        raise DataError(
            f"{self._set.id} (config {config}, {split}) cannot be loaded from the Hugging Face hub: {reason}. "
            f"{remedy}, or load it once where the hub can be reached and copy the cache (HF_HOME), or read local "
            "files: `task: {source: files, path: …/{language}.{split}.tsv}`"
        ) from fault


def _names(feature: Any, values: list[Any]) -> list[Any]:
    """Labels by name: what a ClassLabel calls them, or as they are; one list per sentence for token tasks."""
    nested = bool(values) and isinstance(values[0], Sequence) and not isinstance(values[0], str)
    inner = getattr(feature, "feature", feature) if nested else feature
    named = getattr(inner, "names", None)

    def name(value: Any) -> str:
        if named is not None and isinstance(value, int) and 0 <= value < len(named):
            return named[value]
        return str(value)

    return [[name(value) for value in row] for row in values] if nested else [name(value) for value in values]
