"""Density after each pruning stage.

`Geometric` removes a fixed share of what is left; the paper's 31 % and 28 % are 0.9 ** 11 and 0.9 ** 12. `Linear` removes
the same number of weights at each stage. `Cubic` removes most weights early and keeps the later stages near the final
density: choose it when stages are few. `Explicit` takes the densities from the recipe. `Continuous` prunes every few updates
within one stage, as PINS, PLATON, movement pruning and oBERT do.

The first three can begin with stages that stay dense (``warm_up``) and end with stages that stay at the final density
(``cool_down``); both count among ``stages``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from xlmprune.recipe.component import STRICT

Stages = Annotated[int, Field(ge=0, le=1000)]
FinalDensity = Annotated[float, Field(gt=0, le=1)]

# Texts of fields that several schedules have. A docstring under a field would not reach the classes that inherit it.
EvenStages = Annotated[
    Stages,
    Field(description="Pruning stages, including warm-up and cool-down. 0 trains only the dense stage."),
]
LastDensity = Annotated[
    FinalDensity, Field(description="Share of the prunable weights that remains after the last stage.")
]
WarmUp = Annotated[int, Field(ge=0, le=1000, description="Pruning stages at the start that stay dense.")]
CoolDown = Annotated[
    int, Field(ge=0, le=1000, description="Pruning stages at the end that stay at the final density.")
]


def stage_densities(
    falling: Callable[[int, int], float], stages: int, warm_up: int, cool_down: int
) -> tuple[float, ...]:
    """Return ``falling(j, n)`` for j = 1..n, between ``warm_up`` ones and ``cool_down`` repeats of its last value.

    Nothing where ``stages`` is 0: the run is the dense stage alone.

    Raises:
        ValueError: no stage is left between warm-up and cool-down.
    """
    if stages == warm_up == cool_down == 0:
        return ()
    pruning = stages - warm_up - cool_down
    if pruning < 1:
        raise ValueError(
            f"stages: {stages} with warm_up: {warm_up} and cool_down: {cool_down} leaves no stage to prune in; "
            f"give at least {warm_up + cool_down + 1} stages"
        )
    falls = [falling(j, pruning) for j in range(1, pruning + 1)]
    return (*[1.0] * warm_up, *falls, *falls[-1:] * cool_down)


@dataclass(config=STRICT)
class Geometric:
    """Remove a fixed share of what is left: ``(1 - step_fraction) ** j``.

    Source: O'Neill et al. 2022 (arXiv:2204.01385), section 4; "31 %" is stage 11 and "28 %" stage 12 of 0.1.
    """

    step_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the remaining weights that each pruning stage removes."""

    stages: Stages = 11
    """Pruning stages; the final density is (1 - step_fraction) to the power of the number of stages that prune. 0 trains
    only the dense stage."""

    warm_up: WarmUp = 0
    cool_down: CoolDown = 0

    def __post_init__(self) -> None:
        self.per_stage()

    def per_stage(self) -> tuple[float, ...]:
        """One density per pruning stage, falling."""
        return stage_densities(
            lambda j, n: (1 - self.step_fraction) ** j, self.stages, self.warm_up, self.cool_down
        )


@dataclass(config=STRICT)
class Linear:
    """Remove the same number of weights at every stage: ``1 - (1 - final_density) * j / n``."""

    power: ClassVar[int] = 1

    stages: EvenStages = 11
    final_density: LastDensity = 0.9**11
    warm_up: WarmUp = 0
    cool_down: CoolDown = 0

    def __post_init__(self) -> None:
        self.per_stage()

    def per_stage(self) -> tuple[float, ...]:
        """One density per pruning stage, falling; the last is ``final_density`` exactly."""
        return stage_densities(lambda j, n: self._after(j / n), self.stages, self.warm_up, self.cool_down)

    def _after(self, progress: float) -> float:
        # Written from the end backwards so that progress 1 gives final_density without rounding.
        return self.final_density + (1 - self.final_density) * (1 - progress) ** self.power


@dataclass(config=STRICT)
class Cubic(Linear):
    """Remove most early: ``final + (1 - final) * (1 - j / n) ** 3``.

    Source: Zhu and Gupta 2017 (arXiv:1710.01878), Eq. 1, from density 1.
    """

    power: ClassVar[int] = 3


@dataclass(config=STRICT)
class Explicit:
    """Prune to the densities of a list, one pruning stage each."""

    densities: Annotated[tuple[FinalDensity, ...], Field(max_length=1000)]
    """Share of the prunable weights that remains after each pruning stage, never rising: ``[0.31, 0.1]``."""

    def __post_init__(self) -> None:
        for before, after in pairwise(self.densities):
            if after > before:
                raise ValueError(
                    f"densities: {after} follows {before}; pruned weights stay pruned, so densities cannot rise"
                )

    def per_stage(self) -> tuple[float, ...]:
        """Return the densities of the recipe."""
        return self.densities


@dataclass(config=STRICT)
class Continuous:
    """Prune every few updates within one stage: ``final + (first - final) * (1 - x) ** 3``, x from 0 to 1.

    The stage trains once, with one optimizer, one warm-up and one learning rate curve. Masks are chosen anew every
    ``every`` updates between ``warm_up`` and ``cool_down``, and do not change after that.

    Source: Zhu and Gupta 2017 (arXiv:1710.01878), Eq. 1; the phases are those of PLATON, PINS and movement pruning.
    """

    final_density: FinalDensity = 0.9**11
    """Share of the prunable weights that remains at the end."""

    first_density: FinalDensity = 1.0
    """Density at the first pruning; below 1 the schedule begins with a jump (oBERT). With ``warm_up: 0`` it comes before the
    first update."""

    every: Annotated[int, Field(ge=1)] = 10
    """Updates between two prunings, or epochs with ``unit: epochs``."""

    unit: Literal["updates", "epochs"] = "updates"
    """What ``every`` counts."""

    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.06
    """Share of the stage's updates that stay dense at the start."""

    cool_down: Annotated[float, Field(ge=0, lt=1)] = 0.4
    """Share of the stage's updates that train at the final density, with masks that do not change."""

    restart: bool = False
    """Begin the stage from the pretrained weights, as published methods do. Otherwise it begins from the dense fine-tuned
    ones."""

    def __post_init__(self) -> None:
        if self.warm_up + self.cool_down >= 1:
            raise ValueError(
                f"warm_up: {self.warm_up} and cool_down: {self.cool_down} leave no update to prune in; their sum must be "
                "below 1"
            )
        if self.first_density < self.final_density:
            raise ValueError(
                f"first_density {self.first_density} is below final_density {self.final_density}"
            )

    def per_stage(self) -> tuple[float, ...]:
        """Return the final density: there is one pruning stage."""
        return (self.final_density,)

    def end(self, total: int) -> int:
        """Return the update after which masks do not change, of ``total`` in the stage."""
        return max(1, total - round(self.cool_down * total))

    def density(self, update: int, total: int) -> float:
        """Return the density after ``update`` updates."""
        start, end = round(self.warm_up * total), self.end(total)
        if update >= end:
            return self.final_density
        if update < start:
            return 1.0
        left = 1 - (update - start) / (end - start)
        return self.final_density + (self.first_density - self.final_density) * left**3

    def is_due(self, update: int, total: int, updates_per_epoch: int) -> bool:
        """Return whether masks are chosen after ``update`` updates; 0 is before the first, for a jump without warm-up."""
        if update == 0:
            return self.density(0, total) < 1
        return self.last_due(update, total, updates_per_epoch) == update

    def last_due(self, update: int, total: int, updates_per_epoch: int) -> int:
        """Return the last update, up to ``update``, after which masks are chosen; 0 before the first."""
        end = self.end(total)
        if update >= end:
            return end
        step = self.every * (updates_per_epoch if self.unit == "epochs" else 1)
        start = round(self.warm_up * total)
        return start + (update - start) // step * step if update >= start else 0
