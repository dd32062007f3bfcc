"""What was measured after each stage: one row a stage, and the dense model's statistics for every example."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlmprune.evaluation import scores as evaluation
from xlmprune.evaluation.collapse import COLLAPSE, collapsed
from xlmprune.evaluation.observing import Observed, Vectors, observe
from xlmprune.evaluation.scores import Forward, Scores
from xlmprune.pruning.masks import remaining
from xlmprune.recipe.schema import EvaluationRecipe
from xlmprune.tasks.metrics import Logits
from xlmprune.training.loop import StageEnd
from xlmprune.training.outcome import Datasets, Outcome

Row = dict[str, Any]
"""One entry of `stages` in report.json."""

Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Forwards:
    """A model's forward passes, in full precision."""

    logits: Forward
    with_vectors: Forward
    """Logits and the first token's vector, as `logits_and_vectors_of` returns them; called for classifiers of texts."""


class StageScores:
    """Scores of every language after each stage.

    Args:
        data: the test sets and the task.
        settings: the recipe's `evaluation`.
        watch: shows progress, as `Reporter.counting` does.
    """

    def __init__(self, data: Datasets, settings: EvaluationRecipe, watch: Watch) -> None:
        self.data, self.settings, self._watch = data, settings, watch
        self.rows: list[Row] = []
        self.dense: dict[str, np.ndarray] = {}
        """Statistics of the dense model by language, [examples, k]."""
        self.dense_others: dict[str, dict[str, float]] = {}
        self.dense_observed = self.observed = Observed()
        """What the dense model and the last one do with each example."""
        self.measuring_seconds: float | None = None
        """Of the newest measurement of every language; None before the first."""

    def add_row(self, end: StageEnd, layers: Sequence[Mapping[str, Any]]) -> Row:
        """Add a stage without scores."""
        row: Row = {
            "stage": end.stage,
            "encoder_density": end.density,
            "seconds": end.seconds,
            "loss": end.loss,
            "alignment": _alignment(layers),
            "dev": end.dev,
        }
        if empty := collapsed(layers, end.density):
            row["collapsed"] = empty
        self.rows.append(row)
        return row

    def is_due(self, stage: int) -> bool:
        """Return whether `evaluation.stage_interval` asks for scores after this stage."""
        return stage % self.settings.stage_interval == 0

    def measure(self, forward: Forward) -> None:
        """Score every language on the recipe's share of its examples, after a stage between the first and the last."""
        begun = time.monotonic()
        self._record(self._scores(forward, self._cap()), self.rows[-1])
        self.measuring_seconds = time.monotonic() - begun

    def measure_all(self, forwards: Forwards, row: Row) -> tuple[Scores, dict[str, Logits]]:
        """Score the dense model or one of the last stage on every example of every language, and look at its answers.

        Args:
            row: where the scores go, the stage's own or a copy.

        Returns:
            The scores and the logits.
        """
        begun = time.monotonic()
        vectors = Vectors(self.data.tests, len(self.data.task.labels))
        if vectors.sample:
            found = self._scores(forwards.with_vectors, None, vectors.split)
        else:
            found = self._scores(forwards.logits, None)
        self.observed = observe({language: logits for language, (_, logits) in found.items()}, vectors)
        if row["stage"] == 0:
            self.dense_observed = self.observed
            self.dense = {language: score.statistics for language, (score, _) in found.items()}
            self.dense_others = {language: score.others for language, (score, _) in found.items()}
        self._record(found, row)
        self.measuring_seconds = time.monotonic() - begun
        scores = {language: score for language, (score, _) in found.items()}
        return scores, {language: logits for language, (_, logits) in found.items()}

    def _scores(
        self,
        forward: Forward,
        cap: int | None,
        split: Callable[[str, Logits], Logits] = lambda language, outputs: outputs,
    ) -> dict[str, tuple[evaluation.Score, Logits]]:
        sets = {language: test.sample(cap) for language, test in self.data.tests.items()}
        with self._watch("measuring texts of all languages", evaluation.texts_in(sets)) as advance:
            measured = evaluation.evaluate(
                evaluation.counted(forward, advance),
                sets,
                self.data.task,
                self.settings.batch_size,
                split=split,
            )
            return {language: (score, logits) for language, score, logits in measured}

    def _record(self, found: Mapping[str, tuple[evaluation.Score, Logits]], row: Row) -> None:
        # The same examples at every stage, though the first and the last are measured on all: a curve must not jump.
        metric = self.data.task.metrics[0]
        shown = {
            language: self._sampled(language, score.statistics) for language, (score, _) in found.items()
        }
        values = {language: float(metric.value(part.sum(axis=0))) for language, part in shown.items()}
        row["languages"] = values
        row["zero_shot_mean"] = evaluation.zero_shot_mean(values, self.data.train_language)
        row["n"] = sum(len(part) for part in shown.values())

    def _sampled(self, language: str, statistics: np.ndarray) -> np.ndarray:
        """Take the rows of the curve's sample out of statistics of all examples; a sample's own stay as they are."""
        cap, examples = self._cap(), self.data.tests[language].examples
        if cap is None or len(statistics) != len(examples):
            return statistics
        return statistics[examples.sample_rows(cap)]

    def _cap(self) -> int | None:
        """Return the test examples a language in the curve over stages; groups of ranked documents are not cut."""
        grouped = any(test.examples.groups is not None for test in self.data.tests.values())
        return None if grouped else self.settings.max_stage_examples

    def line(self, row: Row, last: int) -> str:
        """Describe a stage in one line.

        Args:
            last: number of the last stage.
        """
        training = "training" if row["stage"] == 0 else "pruning and training"
        parts = [f"stage {row['stage']}/{last}  density {row['encoder_density']:.1%}"]
        if "languages" in row:
            language = self.data.train_language
            parts.append(f"{language} {row['languages'][language]:.1f}")
        if row.get("zero_shot_mean") is not None:
            parts.append(f"zero-shot {row['zero_shot_mean']:.1f}")
        parts.append(f"{training} took {row['seconds']:.0f} s")
        if "languages" in row and self.measuring_seconds is not None:
            parts[-1] += f", measuring {self.measuring_seconds:.0f} s"
        if empty := row.get("collapsed"):
            parts.append(f"layer collapse: {len(empty)} matrices keep less than {COLLAPSE:.0%}")
        return "  ".join(parts)


def size_row(row: Row, outcome: Outcome) -> Row:
    """Return a stage's row for a smaller size of its model, still with the scores of the larger one."""
    remain = remaining(outcome.masks.values())[0]
    density = remain / outcome.whole.prunable
    return {**row, "encoder_density": density, "alignment": _alignment(outcome.layers)}


def _alignment(layers: Sequence[Mapping[str, Any]]) -> float:
    return float(np.mean([layer["alignment"] for layer in layers]))
