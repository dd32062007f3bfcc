"""Importance scores: what a weight is worth, one criterion a file.

A criterion is asked for `scores` once per pruning stage. Those that watch the training between stages also
offer hooks, which the loop finds by name and calls in this order for every update:

    before_forward(weights, masks)                  weights may be swapped for what the forward pass should see
    … forward, backward, regularizer, gradients of pruned weights zeroed, clipping …
    observe(weights, masks, learning_rate)          ``.grad`` is alive; whatever was swapped in is swapped back
    … optimizer.step …

and around every measurement or export, where the criterion changes what the network computes (`l0`):

    fold(weights, masks)                            weights become what is measured and exported
    unfold(weights, masks)                          weights become what is trained again; `before_forward`
    sees to it too

After the masks of a stage are chosen, before pruned weights are set to zero:

    compensate(weights, removed)                    adjust what remains for what goes (`obert`)

`state` and `load_state` carry whatever a resumed run needs to go on exactly, as a flat dictionary of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from xlmprune.pruning.masks import Masks, Scores, Weights


@dataclass
class PruningContext:
    """What a criterion may look at when it is asked for scores."""

    weights: Weights
    """Effective weights, zero where pruned; detached."""
    masks: Masks
    """What remains before this stage."""
    reference: Weights
    """Pretrained weights."""
    stage: int
    """1 for the first pruning stage."""
    seed: int
    """Differs from stage to stage; the same when a run is repeated or resumed."""
    density: float
    """Density that this stage will leave."""
    model: nn.Module | None
    """The network itself, for what lies outside the prunable weights, such as LayerNorm gains."""
    gradients: Callable[[int], Iterator[Weights]]
    """``gradients(T)`` yields T dictionaries of cross-entropy gradients of the effective weights, dropout off, on batches of
    training data. Each may be overwritten by the next."""


class Criterion(Protocol):
    """What a criterion must offer; the hooks described above are optional."""

    def scores(self, context: PruningContext) -> Scores:
        """One finite score per weight, shaped like the weights; higher is kept longer. Scores of pruned entries do not
        matter."""


__all__ = ["Criterion", "PruningContext"]
