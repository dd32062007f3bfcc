"""How far the logits of one export are from those of another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xlmprune.tasks.metrics import Logits


@dataclass
class Agreement:
    """How far the logits of one export are from those of another, over real padded batches."""

    largest: float = 0.0
    """Largest absolute difference."""
    low: float = np.inf
    high: float = -np.inf
    same: int = 0
    n: int = 0

    def add(self, expected: Logits, found: Logits) -> None:
        """Add the logits of one language from both."""
        if not expected:
            return
        wanted = np.concatenate([np.atleast_2d(row) for row in expected])
        got = np.concatenate([np.atleast_2d(row) for row in found])
        if not np.isfinite(got).all():
            self.largest = float("inf")
        else:
            self.largest = max(self.largest, float(np.abs(wanted - got).max()))
        self.low, self.high = min(self.low, float(wanted.min())), max(self.high, float(wanted.max()))
        self.same += int((wanted.argmax(1) == got.argmax(1)).sum())
        self.n += len(wanted)

    @property
    def relative(self) -> float:
        """Largest difference as a share of the logits' range."""
        return self.largest / max(self.high - self.low, 1e-12)

    @property
    def agreement(self) -> float:
        """Share of predictions (words, for token tasks) with the same label."""
        return self.same / self.n if self.n else float("nan")

    def as_dict(self) -> dict[str, float | int]:
        """Give the values for the report."""
        return {
            "max_abs_diff": self.largest,
            "relative_diff": self.relative,
            "agreement": self.agreement,
            "n": self.n,
        }


def same_labels(expected: Logits, found: Logits) -> float:
    """Return the share of predictions (words, for token tasks) with the same label."""
    agreement = Agreement()
    agreement.add(expected, found)
    return agreement.agreement
