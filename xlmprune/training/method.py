"""How a model is pruned, built from the recipe's sections `pruning` and `regularizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from xlmprune.pruning.criteria import Criterion
from xlmprune.pruning.regularizers import Regularizer
from xlmprune.pruning.schedules import Continuous
from xlmprune.pruning.selection import Selection
from xlmprune.recipe import Component, PruningRecipe, ReconstructRecipe, registry


@dataclass(frozen=True)
class Method:
    """The parts that decide which weights remain, and what holds them."""

    criterion: Criterion
    regularizer: Regularizer
    selection: Selection
    densities: tuple[float, ...]
    """Density of each stage; stage 0 is dense."""
    continuous: Continuous | None
    """The schedule within stage 1, where masks change every few updates."""
    regrow: bool
    """Whether pruned weights may return until the final phase of a continuous stage."""
    observe_regularizer: bool
    """Whether the criterion sees the regularizer's gradient too."""
    reconstruct: ReconstructRecipe | None
    """How remaining weights are refitted; None where they are not."""

    @property
    def moment_uses(self) -> tuple[str, ...]:
        """What reads second moments of activations, by the recipe's keys; empty where nothing does."""
        if len(self.densities) == 1:
            return ()
        criterion = ("pruning.criterion",) if self.criterion.needs_moments else ()
        return (*criterion, *(("pruning.reconstruct",) if self.reconstruct is not None else ()))


def build_method(pruning: PruningRecipe, regularizer: Component) -> Method:
    """Build the components that the sections name."""
    criterion: Criterion = _build("criterion", pruning.criterion)
    selection = Selection(pruning.scope or criterion.default_scope, pruning.pattern)
    schedule = _build("schedule", pruning.schedule)
    return Method(
        criterion=criterion,
        regularizer=_build("regularizer", regularizer),
        selection=selection,
        densities=(1.0, *(selection.density(wanted) for wanted in schedule.densities())),
        continuous=schedule if isinstance(schedule, Continuous) else None,
        regrow=pruning.regrow,
        observe_regularizer=pruning.observe_regularizer,
        reconstruct=pruning.reconstruct,
    )


def _build(table: str, component: Component) -> Any:
    return TypeAdapter(registry.load(table, component.name)).validate_python(component.parameters)
