"""Remove layers, heads and neurons at the beginning of a stage, and refit what remains to the larger model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from xlmprune.core import processes
from xlmprune.core.device import derive_seed
from xlmprune.core.errors import RecipeError
from xlmprune.models import architecture
from xlmprune.models.loading import count_prunable
from xlmprune.pruning.importance import Importance
from xlmprune.pruning.masks import Scores, parse_pattern
from xlmprune.pruning.measures import Evidence, Measure
from xlmprune.pruning.moments import Batch
from xlmprune.pruning.nesting import prefix, ranked, spread, view_of
from xlmprune.pruning.reconstruction import Fit, reconstruct
from xlmprune.pruning.structures import Cut, Layout, choose, layout_of, slice_model, spaced_layers
from xlmprune.recipe import registry
from xlmprune.recipe.schema import ReconstructRecipe, StructureRecipe
from xlmprune.training.gradients import Gradients
from xlmprune.training.state import TrainState


class Shrinker:
    """Makes the model of a run smaller, in one round or several.

    Args:
        state: model, reference and masks change in it.
        settings: the recipe's `pruning.structure`.
        refit: how what remains is refitted; None where it is not.
        gradients: labelled text, for importance that reads labels.
        seed: the run's.
        scores: gives the criterion's scores of single weights.
        text: unlabelled text on the model's device.
        temperature: of the answers that Fisher importance draws; the teacher's, where there is one.

    Raises:
        RecipeError: the model does not have what the recipe asks for.
    """

    def __init__(
        self,
        state: TrainState,
        settings: StructureRecipe,
        refit: ReconstructRecipe | None,
        gradients: Gradients,
        seed: int,
        scores: Callable[[], Scores],
        text: Sequence[Batch] = (),
        temperature: float = 1.0,
    ) -> None:
        self.state, self.settings, self.refit, self.scores = state, settings, refit, scores
        self.gradients, self.seed, self.text, self.temperature = gradients, seed, text, temperature
        require_possible(state.model, settings, refit is not None)

    def shrink(self, stage: int) -> list[Fit]:
        """Remove the part of a stage, from 1; return how well output projections were refitted."""
        state, smallest = self.state, self.settings.smallest
        state.all_rows()
        state.model.eval()
        measured = self._importance(stage)
        importance = processes.from_first(lambda: measured)
        cut = round_cut(state.model, self.settings, importance, stage, state.whole.layout)
        if smallest is not None:
            cut = ranked(cut, importance)
        before = None if self.refit is None else copy_of_layers(state.model)
        state.shrink(cut)
        if before is None or self.refit is None:
            return []
        state.model.eval()
        sizes = [] if smallest is None else spread(smallest)[1:]
        views = [view_of(state.model, prefix(state.model, size, self.settings.multiple)) for size in sizes]
        sources = [part.source for part in cut]
        fits = reconstruct(before, state.model, self.text, sources, self.refit.ridge, views)
        processes.copy_from_first(state.model.parameters())
        return fits

    def _importance(self, stage: int) -> Importance:
        settings = self.refit or ReconstructRecipe()
        batches = max(1, settings.texts // self.gradients.batch_size)
        evidence = Evidence(
            self.state.model,
            self.state.weights,
            self.text,
            lambda: self.gradients.labelled(batches, stage),
            self.scores,
            self.temperature,
            settings.ridge,
            derive_seed(self.seed, "importance", stage),
        )
        measure: Measure = registry.load("importance", self.settings.importance)()
        return measure.importance(evidence)


def round_cut(
    model: nn.Module, settings: StructureRecipe, importance: Importance, stage: int, whole: Layout
) -> Cut:
    """Choose what a stage leaves of the model as it is now.

    Shares are counted from a layer of the ``whole`` model, so that rounding does not add up over the rounds.
    """
    left, first = layout_of(model).layers, whole.layers[0]
    places = round_layers(settings, [layer.source for layer in left], stage, len(whole.layers))
    stay = [left[place] for place in places]
    progress = stage / settings.rounds

    def share(asked: float, of_whole: int, now: list[int]) -> float:
        return min(1.0, asked**progress * of_whole * len(now) / sum(now))

    return choose(
        importance,
        places,
        share(settings.heads, first.heads, [layer.heads for layer in stay]),
        share(settings.neurons, first.neurons, [layer.neurons for layer in stay]),
        settings.multiple,
        settings.scope,
    )


def planned_densities(model: nn.Module, settings: StructureRecipe) -> list[float]:
    """Return the density after each round, of a model that is made smaller on the way; any device will do, `meta` too.

    Raises:
        RecipeError: the model does not have what the recipe asks for.
    """
    require_possible(model, settings, refitted=False)
    whole = count_prunable(model)
    layout = layout_of(model)
    densities = []
    for stage in range(1, settings.rounds + 1):
        layers = architecture.of(model).layers(model)
        worth = Importance(
            [torch.arange(float(layer.heads)) for layer in layers],
            [torch.arange(float(layer.neurons)) for layer in layers],
        )
        slice_model(model, round_cut(model, settings, worth, stage, layout))
        densities.append(count_prunable(model) / whole)
    return densities


def planned_sizes(
    trained: nn.Module, multiple: int, sizes: Sequence[float], prunable_before: int
) -> list[dict[str, Any]]:
    """Return what sizes of a model will be: heads and neurons of a layer, and the density of the encoder.

    Args:
        trained: the largest size; any device will do.
        multiple: neurons come in multiples of this.
        prunable_before: entries of the prunable matrices before structures were removed.
    """
    rows = []
    for size in sizes:
        smaller = view_of(trained, prefix(trained, size, multiple))
        layer = layout_of(smaller).layers[0]
        left = count_prunable(smaller)
        density = left / prunable_before
        rows.append(
            {"size": size, "heads": layer.heads, "neurons": layer.neurons, "encoder_density": density}
        )
    return rows


def round_layers(settings: StructureRecipe, sources: Sequence[int], stage: int, total: int) -> list[int]:
    """Return which of the layers that are left remain after a stage.

    Args:
        sources: which layer of the whole model each of those left was.
        stage: from 1; the last round leaves what the recipe asks for.
        total: layers of the whole model.

    Returns:
        Places in ``sources``. Earlier rounds also keep some of the layers that will go, evenly spaced.
    """
    if settings.layers is None:
        return list(range(len(sources)))
    left = settings.rounds - stage
    asked = settings.layers
    kept = spaced_layers(total, asked) if isinstance(asked, int) else asked
    going = [place for place, source in enumerate(sources) if source not in kept]
    stay = len(going) * left // (left + 1)
    spared = {going[number] for number in spaced_layers(len(going), stay)} if stay else set()
    return [place for place, source in enumerate(sources) if source in kept or place in spared]


def require_possible(model: nn.Module, settings: StructureRecipe, refitted: bool) -> None:
    """Raise RecipeError if the model does not have what the recipe asks for, before anything is trained.

    Raises:
        ValueError: nobody turned the budget into sizes (`export.sizing`).
    """
    if settings.budget is not None:
        raise ValueError("the budget of pruning.structure is not settled")
    family = architecture.of(model)
    if family.norm_first and refitted:
        raise RecipeError(
            f"pruning.reconstruct: models of type {family.model_type!r} normalise before each part of a layer, and "
            "refitting needs a LayerNorm after it. Leave reconstruct out"
        )
    if family.fused and settings.smallest is not None:
        raise RecipeError(
            f"pruning.structure.smallest: models of type {family.model_type!r} hold several matrices in one "
            f"({', '.join(family.fused)}), so that a smaller model is no part of a larger one. Leave smallest out"
        )
    layers = family.layers(model)
    asked, total = settings.layers, len(layers)
    if family.first_stays and isinstance(asked, list) and asked[0] > 0:
        raise RecipeError(
            f"pruning.structure.layers: {asked} asked for; the first layer of models of type {family.model_type!r} is "
            "unlike the others and must remain. Begin the list with 0"
        )
    highest = asked if isinstance(asked, int) else max(asked) + 1 if asked else 0
    if highest > total:
        raise RecipeError(
            f"pruning.structure.layers: {asked} asked for; the model has {total} layers"
            + ("" if isinstance(asked, int) else f", 0 to {total - 1}")
        )
    odd = next((layer.neurons for layer in layers if layer.neurons % settings.multiple), None)
    if (settings.neurons < 1 or settings.smallest is not None) and odd is not None:
        raise RecipeError(
            f"pruning.structure.multiple: {settings.multiple} does not divide the {odd} neurons of a layer"
        )


def require_refittable(model: nn.Module, refit: ReconstructRecipe | None) -> None:
    """Raise RecipeError if the model's output projections cannot be refitted as the recipe's `pruning.reconstruct` asks."""
    family = architecture.of(model)
    if refit is not None and refit.correct_drift and family.norm_first:
        raise RecipeError(
            f"pruning.reconstruct.correct_drift: models of type {family.model_type!r} normalise before each part of a "
            "layer, and this refit needs a LayerNorm after it. Leave correct_drift out"
        )


def require_pattern(model: nn.Module, pattern: str, settings: StructureRecipe | None) -> None:
    """Raise RecipeError if rows of the model, as structures leave it, do not divide into the groups of an N:M pattern.

    Args:
        settings: the recipe's `pruning.structure`; None where no structure is removed.
    """
    if ":" not in pattern:
        return
    _, group = parse_pattern(pattern)
    layer = architecture.of(model).layers(model)[0]
    widths = {name: weight.shape[1] for name, weight in architecture.of(model).prunable(model).items()}
    odd = next((name for name, width in widths.items() if width % group), None)
    if odd is not None:
        raise RecipeError(
            f"pruning.pattern: {pattern} needs rows that divide into groups of {group}; {odd} has {widths[odd]} inputs"
        )
    if settings is None:
        return
    if settings.heads < 1 and layer.head_size % group:
        raise RecipeError(
            f"pruning.pattern: {pattern} needs rows that divide into groups of {group}, and an attention head has "
            f"{layer.head_size} of them. Leave structure.heads out, or choose another pattern"
        )
    if settings.neurons < 1 and settings.multiple % group:
        raise RecipeError(
            f"pruning.structure.multiple: neurons remain in multiples of {settings.multiple}, which do not divide into the "
            f"groups of {group} of the pattern {pattern}. Choose a multiple of {group}"
        )


def copy_of_layers(model: nn.Module) -> Any:
    """Copy a model for reading; embeddings, the largest part, are shared."""
    shared = architecture.of(model).embeddings(model)
    return copy.deepcopy(model, {id(shared): shared}).eval()
