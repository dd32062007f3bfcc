"""What the report says about a model beyond its scores: the answer to each test example, and where it puts the classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from xlmprune.evaluation.answers import answers_of
from xlmprune.evaluation.scores import TestSet
from xlmprune.evaluation.separability import SAMPLE, Separability, sampled, separability
from xlmprune.tasks.metrics import Logits


@dataclass(frozen=True)
class Observed:
    """What one model answers, and how well it separates the classes."""

    answers: dict[str, np.ndarray] = field(default_factory=dict)
    """By language, the index of the most probable label of each item; see `answers.items_of`."""
    classes: Separability | None = None

    def tensors(self) -> dict[str, np.ndarray]:
        """Return named arrays, for a checkpoint."""
        found = {f"answers|{language}": array for language, array in self.answers.items()}
        if self.classes is not None:
            found |= {f"points|{language}": array for language, array in self.classes.points.items()}
            found |= {f"share|{language}": np.array(share) for language, share in self.classes.shares.items()}
            found["explained"] = np.array(self.classes.explained)
        return found

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Observed:
        """Return what `tensors` was made of; nothing of no tensors, as in checkpoints of older versions."""
        answers, points, shares = (
            {key.partition("|")[2]: array for key, array in tensors.items() if key.startswith(f"{kind}|")}
            for kind in ("answers", "points", "share")
        )
        if "explained" not in tensors:
            return cls(answers)
        first, second = map(float, tensors["explained"])
        return cls(
            answers,
            Separability(
                points, {language: float(share) for language, share in shares.items()}, (first, second)
            ),
        )


class Vectors:
    """The first token's vectors of the examples that `separability` looks at, taken while every example is scored.

    Args:
        tests: the test sets, whole.
        labels: number of labels.
    """

    def __init__(self, tests: Mapping[str, TestSet], labels: int) -> None:
        self.sample, self.labels = sampled(tests), labels
        self._rows = {language: tests[language].examples.sample_rows(SAMPLE) for language in self.sample}
        self.found: dict[str, np.ndarray] = {}
        """By language, [examples of the sample, width]."""

    def split(self, language: str, outputs: Logits) -> Logits:
        """Keep the vectors of the language's sample, if it has one; return the logits.

        Args:
            outputs: one array per example of the language, [labels + width]: logits and the vector behind them.
        """
        if language in self._rows:
            self.found[language] = np.stack([outputs[row][self.labels :] for row in self._rows[language]])
        return list(np.stack(outputs)[:, : self.labels].copy())


def observe(logits: Mapping[str, Logits], vectors: Vectors) -> Observed:
    """Look at a model whose logits of every test example are known, and whose vectors were kept beside them."""
    answers = {language: answers_of(found, vectors.labels) for language, found in logits.items()}
    return Observed(answers, separability(vectors.found, vectors.sample))
