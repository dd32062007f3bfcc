"""Scores of each label and confusion matrices of every language, and the errors that pruning introduced, for the pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xlmprune.core.formatting import count_of, difference, number, points, score
from xlmprune.core.tables import Table, tabulate
from xlmprune.evaluation.answers import CUT_OFF, Confusion
from xlmprune.report.findings import Report, rows, shown_key

MOST_LABELS = 40
"""A larger confusion matrix is left out: it could not be read. The scores of its labels stay."""


@dataclass(frozen=True)
class LabelScore:
    """What one model makes of one label, percent; None where nothing is counted."""

    count: int
    """Items with this gold label."""
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class LanguageAnswers:
    """How the pages show the answers of one language."""

    name: str
    before: float | None
    """Score of the dense model."""
    after: float | None
    """Score of the pruned model."""
    table: Table
    """Scores of each label."""
    grid: dict[str, Any] | None
    """`columns` and `rows` of (gold label, [(count, share of the row, is right)]); None if there are too many labels."""


def label_scores(counts: Confusion, labels: Sequence[str]) -> dict[str, LabelScore]:
    """Compute precision, recall and F1 of each label from a confusion matrix."""
    answered = {label: sum(row.get(label, 0) for row in counts.values()) for label in labels}
    found = {}
    for label in labels:
        row = counts.get(label, {})
        right, gold = row.get(label, 0), sum(row.values())
        found[label] = LabelScore(
            gold,
            _percent(right, answered[label]),
            _percent(right, gold),
            _percent(2 * right, gold + answered[label]),
        )
    return found


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def languages_answered(report: Report) -> list[LanguageAnswers]:
    """Return the answers of every language, in the order of the table of languages; empty for ranking."""
    counts = report.get("answers", {})
    labels = report.get("task", {}).get("labels", [])
    return [
        LanguageAnswers(
            row.name,
            row.scores.get("dense"),
            row.scores.get("pruned"),
            _label_table(counts[row.code], labels),
            _grid(counts[row.code]["pruned"], labels),
        )
        for row in rows(report)
        if row.code in counts
    ]


def _label_table(counts: Mapping[str, Confusion], labels: Sequence[str]) -> Table:
    dense, pruned = (label_scores(counts[model], labels) for model in ("dense", "pruned"))
    return tabulate(
        "Scores of each label",
        {
            "label": lambda label: label,
            "n": lambda label: number(pruned[label].count),
            "dense F1": lambda label: score(dense[label].f1),
            "pruned F1": lambda label: score(pruned[label].f1),
            "Δ": lambda label: points(difference(dense[label].f1, pruned[label].f1)),
            "precision": lambda label: score(pruned[label].precision),
            "recall": lambda label: score(pruned[label].recall),
        },
        [label for label in labels if pruned[label].count or pruned[label].precision is not None],
    )


def _grid(counts: Confusion, labels: Sequence[str]) -> dict[str, Any] | None:
    """Lay out a confusion matrix: gold labels down, answers across; labels that occur in neither are left out."""
    answered = {answer for row in counts.values() for answer in row}
    kept = [label for label in labels if label in counts or label in answered]
    columns = [*kept, *([CUT_OFF] if CUT_OFF in answered else [])]
    if len(kept) > MOST_LABELS:
        return None
    return {
        "columns": columns,
        "rows": [(gold, [_cell(counts.get(gold, {}), gold, answer) for answer in columns]) for gold in kept],
    }


def _cell(row: Mapping[str, int], gold: str, answer: str) -> tuple[int, float, bool]:
    count = row.get(answer, 0)
    return count, count / (sum(row.values()) or 1), gold == answer


def error_table(report: Report) -> Table | None:
    """Sample errors of each language, the languages that lost most first; None without any."""
    found = report.get("errors", {})
    entries = [
        {**error, "language": row.name}
        for row in rows(report)
        for error in found.get(row.code, {}).get("shown", [])
    ]
    if not entries:
        return None
    words = any("word" in entry for entry in entries)
    shown = {"language": lambda entry: entry["language"], "text": _text_of}
    if words:
        shown["word"] = lambda entry: entry["word"]
    shown |= {model: _label_of(model) for model in ("gold", "dense", "pruned")}
    introduced = sum(entry["introduced"] for entry in found.values())
    total = sum(entry["of"] for entry in found.values())
    what = "words" if words else "texts"
    before = "" if shown_key(report) == "pruned" else " before export"
    return tabulate(
        "Errors that pruning introduced",
        shown,
        entries,
        f"The dense model is right and the pruned model{before} is wrong on {number(introduced)} of {number(total)} {what} "
        f"in {count_of(len(found), 'language')}. This is a random sample of them, a few of each language.",
        texts=len(shown),
    )


def errors_by_language(report: Report) -> list[tuple[str, int, list[Mapping[str, str]]]]:
    """Return (language, errors that pruning introduced, the sample of them), the languages that lost most first."""
    found = report.get("errors", {})
    return [
        (row.name, found[row.code]["introduced"], found[row.code]["shown"])
        for row in rows(report)
        if found.get(row.code, {}).get("shown")
    ]


def _text_of(entry: Mapping[str, str]) -> str:
    return entry["text"] + (f" / {entry['second']}" if "second" in entry else "")


def _label_of(model: str) -> Any:
    return lambda entry: entry[model]
