"""Density after each pruning stage.

`Geometric` removes a fixed share of what is left; the paper's 31 % and 28 % are 0.9 ** 11 and 0.9 ** 12. `Linear` removes
the same number of weights at each stage. `Cubic` removes most weights early and keeps the later stages near the final
density: choose it when stages are few.

Every schedule can begin with stages that stay dense (``warm_up``) and end with stages that stay at the final density
(``cool_down``); both count among ``stages``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from xlmprune.recipe.component import STRICT

Stages = Annotated[int, Field(ge=0, le=1000)]
Spare = Annotated[int, Field(ge=0, le=1000)]
FinalDensity = Annotated[float, Field(gt=0, le=1)]


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
    """Pruning stages; the final density is (1 - step_fraction) to the power of those that prune. 0 trains the dense stage
    alone."""

    warm_up: Spare = 0
    """Pruning stages at the start that stay dense."""

    cool_down: Spare = 0
    """Pruning stages at the end that stay at the final density."""

    def __post_init__(self) -> None:
        self.densities()

    def densities(self) -> tuple[float, ...]:
        """One density per pruning stage, falling."""
        return stage_densities(
            lambda j, n: (1 - self.step_fraction) ** j, self.stages, self.warm_up, self.cool_down
        )


@dataclass(config=STRICT)
class Linear:
    """Remove the same number of weights at every stage: ``1 - (1 - final_density) * j / n``."""

    stages: Stages = 11
    """Pruning stages, warm-up and cool-down included; 0 trains the dense stage alone."""

    final_density: FinalDensity = 0.9**11
    """Share of the prunable weights that remains after the last stage."""

    warm_up: Spare = 0
    """Pruning stages at the start that stay dense."""

    cool_down: Spare = 0
    """Pruning stages at the end that stay at the final density."""

    def __post_init__(self) -> None:
        self.densities()

    def densities(self) -> tuple[float, ...]:
        """One density per pruning stage, falling; the last is ``final_density`` exactly."""
        return stage_densities(lambda j, n: self._after(j / n), self.stages, self.warm_up, self.cool_down)

    def _after(self, progress: float) -> float:
        # Written from the end backwards so that progress 1 gives final_density without rounding.
        return self.final_density + (1 - self.final_density) * (1 - progress)


@dataclass(config=STRICT)
class Cubic:
    """Remove most early: ``final + (1 - final) * (1 - j / n) ** 3``.

    Source: Zhu and Gupta 2017 (arXiv:1710.01878), Eq. 1, from density 1.
    """

    stages: Stages = 11
    """Pruning stages, warm-up and cool-down included; 0 trains the dense stage alone."""

    final_density: FinalDensity = 0.9**11
    """Share of the prunable weights that remains after the last stage."""

    warm_up: Spare = 0
    """Pruning stages at the start that stay dense."""

    cool_down: Spare = 0
    """Pruning stages at the end that stay at the final density."""

    def __post_init__(self) -> None:
        self.densities()

    def densities(self) -> tuple[float, ...]:
        """One density per pruning stage, falling; the last is ``final_density`` exactly."""
        return stage_densities(lambda j, n: self._after(j / n), self.stages, self.warm_up, self.cool_down)

    def _after(self, progress: float) -> float:
        return self.final_density + (1 - self.final_density) * (1 - progress) ** 3
