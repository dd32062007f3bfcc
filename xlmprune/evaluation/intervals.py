"""How certain a score is: its 95 % interval, and McNemar's test of two models on the same examples."""

from __future__ import annotations

from math import lgamma, log, sqrt

import numpy as np

from xlmprune.tasks.metrics import Metric

RESAMPLES = 2000

NORMAL_95 = 1.959964
"""Standard deviations to each side that hold 95 % of a normal distribution."""


def interval(statistics: np.ndarray, metric: Metric) -> tuple[float, float] | tuple[None, None]:
    """Compute the 95 % interval of the metric.

    If every example is right or wrong, it is Wilson's interval (1927); otherwise examples are resampled (percentile
    bootstrap, 2,000 resamples). The result is None, None without examples, and if all resamples score the same: with few
    examples that says nothing about the uncertainty of the score.
    """
    count = len(statistics)
    if count == 0:
        return None, None
    if _right_or_wrong(statistics):
        return _wilson(float(statistics[:, 0].sum()), count)
    random = np.random.default_rng(0)
    values = []
    for start in range(0, RESAMPLES, 100):
        weights = random.multinomial(count, np.full(count, 1 / count), size=min(100, RESAMPLES - start))
        values.append(metric.value(weights @ statistics))
    low, high = np.percentile(np.concatenate(values), [2.5, 97.5])
    return (float(low), float(high)) if low < high else (None, None)


def _right_or_wrong(statistics: np.ndarray) -> bool:
    """Whether each row is (0 or 1, 1): the metric is then the share of examples that are right."""
    return (
        statistics.shape[1] == 2
        and bool((statistics[:, 1] == 1).all())
        and bool(np.isin(statistics[:, 0], (0, 1)).all())
    )


def _wilson(right: float, count: int) -> tuple[float, float]:
    share, width = right / count, NORMAL_95**2 / count
    centre = (share + width / 2) / (1 + width)
    half = NORMAL_95 * sqrt(share * (1 - share) / count + width / (4 * count)) / (1 + width)
    # At the edges one end is the score itself, but for rounding.
    return 100 * max(0.0, min(share, centre - half)), 100 * min(1.0, max(share, centre + half))


def paired(before: np.ndarray, after: np.ndarray, metric: Metric) -> dict[str, float | int]:
    """Run the exact McNemar test of two models on the same examples.

    An example is gained if the metric on it alone is higher after, lost if it is lower. For accuracy these
    are the discordant pairs; for other metrics it is the sign test.

    Args:
        before, after: [examples, k] statistics of the same examples, in the same order.

    Returns:
        ``p_value`` (two-sided, binomial with p = 1/2), ``gained``, ``lost``.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"the two models were measured on different examples: {before.shape} and {after.shape}"
        )
    difference = _each(after, metric) - _each(before, metric)
    gained, lost = int((difference > 1e-9).sum()), int((difference < -1e-9).sum())
    return {"p_value": _sign_test(gained, lost), "gained": gained, "lost": lost}


def _each(statistics: np.ndarray, metric: Metric) -> np.ndarray:
    """Return the metric on every example alone. If there was nothing to find and nothing was found, that is right: 100."""
    return np.where(statistics.any(axis=1), metric.value(statistics), 100.0)


def _sign_test(gained: int, lost: int) -> float:
    total, extreme = gained + lost, min(gained, lost)
    if total == 0:
        return 1.0
    logs = [
        lgamma(total + 1) - lgamma(k + 1) - lgamma(total - k + 1) - total * log(2) for k in range(extreme + 1)
    ]
    return float(min(1.0, 2 * np.exp(logs).sum()))
