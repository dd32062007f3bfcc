"""How a model is pruned, built from the recipe's sections `pruning` and `regularizer`."""

from __future__ import annotations

from dataclasses import dataclass

from xlmprune.pruning.criteria import Criterion
from xlmprune.pruning.regularizers import Regularizer
from xlmprune.pruning.schedules import Continuous
from xlmprune.pruning.selection import Selection
from xlmprune.recipe import registry
from xlmprune.recipe.schema import Component, PruningRecipe, ReconstructRecipe, StructureRecipe
from xlmprune.recipe.validation import instantiate


@dataclass(frozen=True)
class Method:
    """The parts that decide which weights remain, and what holds them."""

    criterion: Criterion
    regularizer: Regularizer
    selection: Selection
    densities: tuple[float, ...]
    """Density of each stage among the weights of what structure leaves; stage 0 is dense."""
    continuous: Continuous | None
    """The schedule within stage 1, where masks change every few updates."""
    regrow: bool
    """Whether pruned weights may return until the final phase of a continuous stage."""
    observe_regularizer: bool
    """Whether the criterion sees the regularizer's gradient too."""
    reconstruct: ReconstructRecipe | None
    """How remaining weights are refitted; None where they are not."""
    structure: StructureRecipe | None = None
    """Which layers, heads and neurons the stages from 1 to its `rounds` remove."""

    @property
    def rounds(self) -> int:
        """Stages, after the dense one, that remove structures."""
        return 0 if self.structure is None else self.structure.rounds

    @property
    def acts_on_dense(self) -> bool:
        """Whether anything that the criterion sees in stage 0 matters later."""
        restarts = self.continuous is not None and self.continuous.restart
        return self.criterion.acts_on_dense and not restarts

    @property
    def moment_uses(self) -> tuple[str, ...]:
        """What reads second moments of activations, by the recipe's keys; empty where nothing does."""
        if len(self.densities) == 1:
            return ()
        measure = None if self.structure is None else self.structure.importance
        scored = measure == "criterion" or len(self.densities) > 1 + self.rounds
        uses = {
            "pruning.criterion": self.criterion.needs_moments and scored,
            "pruning.structure": measure is not None and registry.load("importance", measure).reads_text,
            "pruning.reconstruct": self.reconstruct is not None,
        }
        return tuple(key for key, used in uses.items() if used)


def build_method(pruning: PruningRecipe, regularizer: Component) -> Method:
    """Build the components that the sections name."""
    criterion: Criterion = instantiate("criterion", pruning.criterion)
    structured = pruning.pattern == "structured"
    selection = Selection(
        pruning.scope or criterion.default_scope, "unstructured" if structured else pruning.pattern
    )
    schedule = instantiate("schedule", pruning.schedule)
    rounds = pruning.structure.rounds if pruning.structure else 0
    wanted = [1.0] * rounds + ([] if structured else list(schedule.per_stage()))
    return Method(
        criterion=criterion,
        regularizer=instantiate("regularizer", regularizer),
        selection=selection,
        densities=(1.0, *(selection.density(density) for density in wanted)),
        continuous=schedule if isinstance(schedule, Continuous) and not structured else None,
        regrow=pruning.regrow,
        observe_regularizer=pruning.observe_regularizer,
        reconstruct=pruning.reconstruct,
        structure=pruning.structure,
    )
