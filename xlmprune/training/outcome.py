"""What training reads and what it leaves, as two frozen records; measuring, exporting and reporting work on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from xlmprune.data.encoding import Encoded
from xlmprune.evaluation.observing import Observed
from xlmprune.evaluation.scores import Scores, TestSet
from xlmprune.pruning.masks import Masks, remaining
from xlmprune.tasks.metrics import Logits
from xlmprune.training.state import Sizes


@dataclass(frozen=True)
class Datasets:
    """A task and its texts, read and encoded."""

    task: Any
    train_language: str
    max_length: int
    """Tokens of an example, special ones included."""
    train: Encoded
    train_origin: str
    train_notes: tuple[str, ...]
    dev: TestSet | None
    tests: Mapping[str, TestSet]
    """Test set of each language, the train language first."""
    unlabelled: Mapping[str, int]
    """Number of texts of each language that the student learns the teacher's answers on."""
    fingerprints: Mapping[str, str]
    """Of train, dev, unlabelled text and every test set, so that a run never continues with other data."""
    moments: Mapping[str, Any] | None = None
    """The text on which activations were measured, as report.json has it; None where they were not."""


@dataclass(frozen=True)
class Outcome:
    """What training leaves."""

    model: Any
    """A Hugging Face model in eval mode; pruned weights are exactly zero."""
    tokenizer: Tokenizer
    origin: Mapping[str, Any]
    """Name, revision and licence of the pretrained model."""
    vocabulary: Mapping[str, Any] | None
    """Facts about vocabulary trimming; None where the vocabulary was kept."""
    device: torch.device
    masks: Masks
    whole: Sizes
    """Numbers of parameters before anything was pruned."""
    layers: Sequence[Mapping[str, Any]]
    """Density, norm and alignment of every prunable matrix."""
    stages: Sequence[Mapping[str, Any]] = ()
    """One row a stage, as in report.json."""
    dense: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Statistics of the dense model by language, [examples, k]."""
    dense_others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The task's further metrics of the dense model, by language and metric."""
    dense_observed: Observed = field(default_factory=Observed)
    """What the dense model answers; empty in runs that an older version began."""
    observed: Observed = field(default_factory=Observed)
    """What the pruned model answers."""
    changes: Sequence[Mapping[str, Any]] = ()
    """Conditions that changed when the run resumed, each with its stage and update."""
    budget: Mapping[str, Any] | None = None
    """What `pruning.structure.budget` asked for, chose and predicted; None where there was none."""
    size: float | None = None
    """Share of the trained heads and neurons that the model has; None where one size was trained."""

    @property
    def encoder_density(self) -> float:
        """Share of the dense encoder's prunable weights that remain, in [0, 1]; cut heads and neurons are gone as well."""
        return remaining(self.masks.values())[0] / self.whole.prunable


@dataclass(frozen=True)
class Scored:
    """A trained model with what it scored."""

    outcome: Outcome
    scores: Scores
    """By language, on every test example."""
    logits: Mapping[str, Logits]
    """By language; fp32, and what every export must reproduce."""
