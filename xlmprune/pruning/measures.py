"""Ways to measure what attention heads and FFN neurons are worth, by the names that `pruning.structure.importance` has.

A new one is a class here and a line in `recipe.registry.IMPORTANCES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from xlmprune.pruning.importance import (
    Importance,
    gate_importance,
    magnitude_importance,
    obs_importance,
    pool,
)
from xlmprune.pruning.masks import Scores
from xlmprune.pruning.moments import Batch, input_moments


@dataclass(frozen=True)
class Evidence:
    """What a measure may look at."""

    model: nn.Module
    """In eval mode."""
    weights: Mapping[str, Tensor]
    """The prunable ones."""
    text: Sequence[Batch]
    """Unlabelled text on the model's device; none where no measure reads it."""
    labelled: Callable[[], Iterable[Mapping[str, Tensor]]]
    """Gives batches of the training set, with labels."""
    scores: Callable[[], Scores]
    """Gives the criterion's scores of single weights."""
    temperature: float
    """The teacher's, for answers that are drawn."""
    ridge: float
    """Of least squares, relative to the mean square of an input."""
    seed: int


class Measure:
    """Base of every measure."""

    reads_text: ClassVar[bool] = False
    """Whether unlabelled text must be read."""

    def importance(self, evidence: Evidence) -> Importance:
        """Return what every head and neuron is worth; higher is kept longer."""
        raise NotImplementedError


class Fisher(Measure):
    """The mean square of the gradients of gates, for answers that the model itself gives."""

    reads_text = True

    def importance(self, evidence: Evidence) -> Importance:
        """Read unlabelled text."""
        return gate_importance(evidence.model, evidence.text, "fisher", evidence.temperature, evidence.seed)


class Gradient(Measure):
    """The mean of the absolute gradients of gates, on labelled text."""

    def importance(self, evidence: Evidence) -> Importance:
        """Read training text."""
        return gate_importance(evidence.model, evidence.labelled(), "gradient")


class Taylor(Measure):
    """The absolute value of the mean gradients of gates, on labelled text."""

    def importance(self, evidence: Evidence) -> Importance:
        """Read training text."""
        return gate_importance(evidence.model, evidence.labelled(), "taylor")


class Magnitude(Measure):
    """The 2-norm of the weights that a head or neuron owns."""

    def importance(self, evidence: Evidence) -> Importance:
        """Read no text."""
        return magnitude_importance(evidence.model)


class Obs(Measure):
    """The error that least squares leaves once a head or neuron, and all that matter less, are gone."""

    reads_text = True

    def importance(self, evidence: Evidence) -> Importance:
        """Read unlabelled text."""
        moments = input_moments(evidence.model, evidence.weights, evidence.text)
        return obs_importance(evidence.model, moments, evidence.ridge)


class Pooled(Measure):
    """The scores of `pruning.criterion`, summed over the weights that a head or neuron owns."""

    def importance(self, evidence: Evidence) -> Importance:
        """Read what the criterion reads."""
        return pool(evidence.scores(), evidence.model)
