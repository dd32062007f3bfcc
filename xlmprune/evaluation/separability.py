"""How well a model keeps the classes apart: the first token's vector of sample texts, measured and drawn in a plane.

The head reads this vector (`<s>` in XLM-R), so classes that overlap in it are lost to any head. Numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from xlmprune.evaluation.scores import TestSet

SAMPLE = 100
"""Test examples of a language whose vectors are looked at."""


@dataclass(frozen=True)
class Separability:
    """Where a model puts the classes."""

    points: dict[str, np.ndarray]
    """float32 [sample, 2] by language: the vectors on the two main axes of all languages together."""
    shares: dict[str, float]
    """By language: the share of the vectors' variance that lies between classes; see `between_classes`."""
    explained: tuple[float, float]
    """Shares of the variance of all vectors on the two axes."""


def sampled(tests: Mapping[str, TestSet]) -> dict[str, TestSet]:
    """Take the examples whose vectors are looked at, the same at every call; none for tagging and for ranking."""
    return {
        language: test.sample(SAMPLE)
        for language, test in tests.items()
        if test.examples.labels is not None and test.examples.groups is None and test.encoded.words is None
    }


def separability(vectors: Mapping[str, np.ndarray], sample: Mapping[str, TestSet]) -> Separability | None:
    """Measure the vectors of a sample; None where there is no sample, or a vector of a diverged model is not finite.

    Args:
        vectors: by language, the first token's vector of each example of its sample, [examples, width].
        sample: from `sampled`.
    """
    if not sample:
        return None
    if not all(np.isfinite(part).all() for part in vectors.values()):
        return None
    shares = {
        language: between_classes(vectors[language], np.array(test.examples.labels))
        for language, test in sample.items()
    }
    points, explained = main_plane(np.concatenate([vectors[language] for language in sample]))
    ends = np.cumsum([len(vectors[language]) for language in sample])[:-1]
    return Separability(dict(zip(sample, np.split(points, ends), strict=True)), shares, explained)


def between_classes(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of the variance that lies between the means of the classes, in [0, 1].

    It is 1 where all vectors of a class are equal, and 0 where all classes have the same mean, or there is no variance.

    Args:
        vectors: [n, width].
        labels: int [n].
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    total = float(np.square(centred).sum())
    if total == 0:
        return 0.0
    classes = [centred[labels == label] for label in np.unique(labels)]
    return float(sum(len(part) * np.square(part.mean(axis=0)).sum() for part in classes)) / total


def main_plane(vectors: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Project vectors onto their two main axes (principal component analysis).

    The sign of an axis is arbitrary; here its largest component is positive.

    Args:
        vectors: [n, width].

    Returns:
        float32 [n, 2], and the shares of the variance on the two axes.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    plane, variance = np.zeros((2, vectors.shape[1])), np.zeros(2)
    count = min(2, len(axes))
    largest = np.abs(axes[:count]).argmax(axis=1)
    plane[:count] = axes[:count] * np.sign(axes[np.arange(count), largest])[:, None]
    total = float(np.square(sizes).sum())
    variance[:count] = np.square(sizes[:count]) / total if total else 0.0
    return (centred @ plane.T).astype(np.float32), (float(variance[0]), float(variance[1]))
