"""What the report says about a model beyond its scores: the answer to each test example, and where it puts the classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from xlmprune.evaluation.answers import answers_of
from xlmprune.evaluation.scores import Forward, TestSet
from xlmprune.evaluation.separability import Separability, sampled, separability
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


def observe(
    vectors_of: Forward,
    tests: Mapping[str, TestSet],
    logits: Mapping[str, Logits],
    labels: int,
    batch_size: int,
) -> Observed:
    """Look at a model whose logits of every test example are known.

    Args:
        vectors_of: see `separability`.
    """
    answers = {language: answers_of(found, labels) for language, found in logits.items()}
    return Observed(answers, separability(vectors_of, sampled(tests), batch_size))
