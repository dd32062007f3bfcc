"""The sizes of one trained model: each is sliced out of it, and its output projections are refitted to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from xlmprune.models.loading import prunable
from xlmprune.pruning.masks import Weights, nonzero
from xlmprune.pruning.nesting import prefix
from xlmprune.pruning.reconstruction import Batch, reconstruct
from xlmprune.pruning.structures import pieces, slice_model
from xlmprune.recipe.schema import ReconstructRecipe
from xlmprune.training.outcome import Outcome
from xlmprune.training.shrinking import copy_of_layers
from xlmprune.training.state import layer_facts


def at_size(
    trained: Outcome,
    size: float,
    multiple: int,
    pretrained: Weights,
    refit: ReconstructRecipe | None = None,
    text: Sequence[Batch] = (),
) -> Outcome:
    """Take a size out of a trained model of which every smaller model is a prefix.

    Args:
        trained: what training left, of the largest size.
        multiple: neurons come in multiples of this.
        pretrained: of the trained model's matrices.
        refit: how its output projections are refitted to the trained model's hidden states; None where they are not.
        text: unlabelled text on the model's device.
    """
    if size == 1:
        return replace(trained, size=1.0)
    cut = prefix(trained.model, size, multiple)
    found = pieces(trained.model, cut)
    model = copy_of_layers(trained.model)
    slice_model(model, cut)
    if refit is not None:
        reconstruct(trained.model, model, text, range(len(cut)), refit.ridge)
    weights = prunable(model)
    before = {name: piece.of(pretrained) for name, piece in found.items()}
    return replace(
        trained, size=size, model=model, masks=nonzero(weights), layers=layer_facts(weights, before)
    )
