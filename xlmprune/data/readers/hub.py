"""Data sets of the Hugging Face hub that load without a script, through `datasets`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xlmprune.core import hub
from xlmprune.core.errors import DataError, MachineError, XlmpruneError
from xlmprune.data.readers.rows import Rows, Split

Repaired = tuple[list[list[str]], list[list[str]], tuple[str, ...]]
Repair = Callable[[list[list[str]], list[list[str]]], Repaired]
"""From words and tags of every sentence to repaired ones, and notes that count the repairs."""


@dataclass(frozen=True)
class HubSet:
    """A task's data on the hub."""

    id: str
    languages: tuple[str, ...]
    """The languages that ``languages: all`` means."""
    first: str
    label: str
    second: str | None = None
    configs: Mapping[str, str] = field(default_factory=dict)
    """Config by language, if it is not the language's code."""
    closed: bool = True
    """Whether only ``languages`` and ``others`` exist; otherwise any code may be asked for."""
    others: tuple[str, ...] = ()
    """Further languages, which are not part of ``all``."""
    splits: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"train": ("train",), "dev": ("validation", "dev"), "test": ("test",)}
    )
    """Names a split may have."""
    translated_train: bool = False
    """Whether the training sets of other languages are machine translations of the English one."""
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
        """List the languages that ``all`` means."""
        return self._set.languages

    def has(self, language: str, split: Split) -> bool:
        """Tell whether the data set should have it, without asking the hub."""
        if self._set.closed and language not in (*self._set.languages, *self._set.others):
            return False
        return split == "test" or language not in self._set.test_only

    def rows(self, language: str, split: Split) -> Rows:
        """Download (or find in the cache) one split of one language.

        Raises:
            DataError: there is no such language, the hub cannot be reached, or columns differ from those expected.
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
        from datasets import disable_progress_bars, load_dataset

        if not sys.stderr.isatty():
            disable_progress_bars()
        fault: Exception | None = None
        for name in self._set.splits[split]:
            try:
                return load_dataset(self._set.id, config, split=name, revision=self._set.revision)
            except ValueError as error:  # an unknown split, or an unknown config
                fault = error
            except ImportError:
                raise
            except Exception as error:  # of no common type: `datasets`, its clients and its readers have many
                fault = error
                break
        assert fault is not None
        raise self._explained(f"{self._set.id} (config {config}, {split})", fault) from fault

    def _explained(self, name: str, fault: Exception) -> XlmpruneError:
        """Return the error for the user: full and unwritable disks, damaged downloads, no connection, unknown splits."""
        from datasets import config as settings
        from datasets.exceptions import (
            ChecksumVerificationError,
            DatasetNotFoundError,
            SplitsVerificationError,
        )

        if said := hub.cache_fault(fault):
            return MachineError(f"{name} could not be put into the cache: {said}")
        if isinstance(fault, ChecksumVerificationError | SplitsVerificationError):
            return DataError(
                f"{name}: the files differ from the description of the data set ({type(fault).__name__}), as after an "
                f"interrupted download. Delete its folder in {settings.HF_DATASETS_CACHE} and load it again"
            )
        reason = (hub.unreached() or hub.reason_for(fault)).rstrip(".")
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
            reason += ". Unset HF_HUB_OFFLINE"
        elif (
            hub.unreached() is None
            and hub.meaning_of(fault) is None
            and not isinstance(fault, DatasetNotFoundError)
        ):
            reason += ". Check the network"
        return DataError(
            f"{name} cannot be loaded from the Hugging Face hub: {reason}. Or load it once on a machine that reaches the "
            "hub and copy the cache (HF_HOME), or read local files: "
            "`task: {source: files, path: …/{language}.{split}.tsv}`"
        )


def _names(feature: Any, values: list[Any]) -> list[Any]:
    """Labels by name: the name that a ClassLabel gives, or the value itself; one list per sentence for token tasks."""
    if values and isinstance(values[0], Sequence) and not isinstance(values[0], str):
        return [_names(getattr(feature, "feature", feature), row) for row in values]
    names = getattr(feature, "names", None) or ()
    known = dict(enumerate(names))
    return [known.get(value, str(value)) for value in values]
