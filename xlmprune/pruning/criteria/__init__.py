"""Importance scores: what a weight is worth, one criterion a file.

The loop asks a criterion for its `ranking` whenever it prunes single weights, and for its `scores` where they are summed
over heads and neurons. The ranking is the scores, unless the criterion also says which of equal ones goes first. A criterion
that watches the training in between overrides hooks of `Criterion`, which the loop calls in this order for every update:

    before_forward(weights, masks)                  may replace weights by what the forward pass should see
    … forward, backward, gradients of pruned weights set to zero …
    observe(weights, masks, learning_rate)          ``.grad`` is alive; weights that were replaced are put back
                                                    (by `put_back` alone where the update is given up)
    … optimizer.step …

Hooks around the updates:

    with measured(weights, masks): …                inside, weights are those that a measurement should see (`l0`)
    end_stage(weights, masks)                       the stage is over: weights become what is measured and exported
    compensate(weights, removed)                    new masks are chosen: adjust what remains for what goes (`obert`)

`state` and `load_state` hold whatever a resumed run needs to continue exactly, as a flat dictionary of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from xlmprune.pruning.hooks import refuse_unknown_hooks
from xlmprune.pruning.masks import Masks, Scope, Scores, Weights
from xlmprune.pruning.moments import Moments

WATCHING = ("before_forward", "observe")
"""Hooks that are called in stage 0 too."""

HOOKS = (
    "scores",
    "ranking",
    *WATCHING,
    "put_back",
    "measured",
    "end_stage",
    "compensate",
    "state",
    "load_state",
)

FACTS = (
    "default_scope",
    "acts_on_dense",
    "scores_pruned",
    "keeps_pruned_values",
    "least_of_matrix",
    "needs_moments",
    "scoring_floats",
)


@dataclass
class PruningContext:
    """What a criterion may look at when it is asked for scores."""

    weights: Weights
    """Effective weights, zero where pruned; detached."""
    masks: Masks
    """What may remain: what remained so far, or every weight where pruned ones may return."""
    reference: Weights
    """Pretrained weights, which may be on another device and of another type."""
    stage: int
    """1 for the first pruning stage."""
    seed: int
    """Differs from stage to stage; the same when a run is repeated or resumed."""
    density: float
    """Density that this pruning will leave."""
    final_density: float
    """Density at the end of the schedule."""
    model: nn.Module | None
    """The network itself, for what lies outside the prunable weights, such as LayerNorm gains."""
    gradients: Callable[[int], Iterator[Weights]]
    """``gradients(T)`` yields T dictionaries of cross-entropy gradients of the effective weights, dropout off, on batches of
    training data. Each may be overwritten by the next."""
    moments: Callable[[], Moments]
    """Gives the second moments of the inputs of every weight on unlabelled text, measured once a stage. There are some only
    for criteria with `needs_moments`."""


class Criterion:
    """Base of every criterion. Its hooks do nothing; a subclass overrides those that it needs.

    A public name that is neither a hook nor a declared fact is an error when the subclass is defined.
    """

    acts_on_dense: ClassVar[bool] = False
    """Whether the criterion changes weights or collects state in stage 0, while nothing is pruned. Such a criterion needs a
    dense stage of its own. A subclass with a hook that is called in stage 0 must declare it."""

    watches: ClassVar[bool] = False
    """Whether the criterion learns from updates. It is set where a subclass is defined with a hook that they call."""

    replaces_weights: ClassVar[bool] = False
    """Whether the forward pass sees other weights than the optimizer. It is set where a subclass has `before_forward`."""

    scores_pruned: ClassVar[bool] = False
    """Whether scores of pruned weights mean something, so that they may return (`pruning.regrow`)."""

    keeps_pruned_values: ClassVar[bool] = False
    """Whether a pruned weight that may return keeps its value, hidden from the forward pass; otherwise it starts at zero."""

    least_of_matrix: ClassVar[float] = 0.0
    """Share of each matrix that a ranking over all matrices leaves at least."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_unknown_hooks(cls, HOOKS, FACTS)
        watches = [name for name in WATCHING if name in vars(cls)]
        if watches and "acts_on_dense" not in vars(cls):
            raise TypeError(f"{cls.__name__} has the hook {watches[0]} and must declare acts_on_dense")
        cls.watches = cls.watches or bool(watches)
        cls.replaces_weights = cls.replaces_weights or "before_forward" in vars(cls)

    needs_moments: ClassVar[bool] = False
    """Whether `scores` asks for `PruningContext.moments`, so that unlabelled text is read for it."""

    @property
    def scoring_floats(self) -> float:
        """Float32 values for each weight that `scores` holds beside the scores, for an estimate of memory."""
        return 0.0

    @property
    def default_scope(self) -> Scope:
        """Where scores are ranked if the recipe does not say: within each matrix, or over all of them."""
        return "layer"

    def scores(self, context: PruningContext) -> Scores:
        """Return one finite score per weight, shaped like the weights; higher is kept longer.

        They are numbers and not ranks, since structures sum them. Scores of pruned entries do not matter, unless pruned
        weights may return.
        """
        raise NotImplementedError

    def ranking(self, context: PruningContext) -> Scores:
        """Return what single weights are ranked by when masks are chosen; only its order means something."""
        return self.scores(context)

    def before_forward(self, weights: Weights, masks: Masks) -> None:
        """Replace weights by what the forward pass should see."""

    def observe(self, weights: Weights, masks: Masks, learning_rate: float) -> None:
        """Look at the gradients of an update before the optimizer makes it, and put replaced weights back."""

    def put_back(self, weights: Weights) -> None:
        """Put replaced weights back without looking at the gradients, which are not finite."""

    @contextmanager
    def measured(self, weights: Weights, masks: Masks) -> Iterator[None]:
        """Show, inside the ``with``, the weights that a measurement should see."""
        yield

    def end_stage(self, weights: Weights, masks: Masks) -> None:
        """Turn the weights, for good, into what is measured and exported."""

    def compensate(self, weights: Weights, removed: Masks) -> None:
        """Adjust the remaining weights, in place, for those about to be removed."""

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""


__all__ = ["Criterion", "PruningContext"]
