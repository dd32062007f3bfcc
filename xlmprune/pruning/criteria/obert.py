"""Keep the weights whose removal raises the loss most, even if others compensate for it (oBERT, the Optimal BERT Surgeon).

The curvature is the empirical Fisher matrix in blocks of consecutive weights. Global. The most faithful
criterion here and the most expensive: ``4 * block`` bytes per weight at the pruning moment (XLM-R base: 5.4 GB in
blocks of 16, 17 GB in the published 50) and ``batches`` gradients.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from xlmprune.core.errors import ModelError
from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.masks import Masks, Scope, Scores, Weights
from xlmprune.recipe.component import STRICT


def in_blocks(tensor: Tensor, block: int) -> Tensor:
    """[blocks, block]: the entries in order, zeros added at the end."""
    flat = tensor.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)


def initial_inverse(size: int, block: int, damping: float, like: Tensor) -> Tensor:
    """Inverse of ``damping`` times the identity: [blocks, block, block]."""
    blocks = -(-size // block)
    return torch.eye(block, dtype=like.dtype, device=like.device).div(damping).repeat(blocks, 1, 1)


def add_sample(inverse: Tensor, gradient: Tensor, samples: int) -> None:
    """Take one gradient into the inverse of ``damping I + 1/samples sum of g g^T``, in place (Sherman-Morrison).

    Args:
        inverse: [blocks, block, block].
        gradient: [blocks, block].
        samples: how many gradients there will be in all.

    Source: Kurtic et al. 2022 (arXiv:2203.07259), Eq. 9.
    """
    product = torch.bmm(inverse, gradient.unsqueeze(2)).squeeze(2)
    scale = samples + (gradient * product).sum(dim=1, keepdim=True)
    # An outer product by broadcasting takes a sixth of the time of baddbmm_ on many small blocks.
    inverse.addcmul_((product / scale).unsqueeze(2), product.unsqueeze(1), value=-1)


def saliency(weight: Tensor, inverse: Tensor) -> Tensor:
    """``w^2 / (2 [F^-1]_ii)``: the rise of the loss without the weight, the others free to make up for it.

    Args:
        weight: [blocks, block].
        inverse: [blocks, block, block].

    Source: Kurtic et al. 2022, Eq. 4 for single weights.
    """
    return weight.square() / (2 * inverse.diagonal(dim1=1, dim2=2))


def compensation(weight: Tensor, inverse: Tensor, removed: Tensor) -> Tensor:
    """Return what to add to the weights for those ``removed``: ``- F^-1 (w / diag F^-1)`` over the removed.

    Each removed weight is treated by itself, as in the released code; the exact update of a whole set would
    solve a system per block.

    Args:
        weight: [blocks, block].
        inverse: [blocks, block, block].
        removed: boolean [blocks, block].
    """
    shares = torch.where(removed, weight / inverse.diagonal(dim1=1, dim2=2), 0)
    return -torch.bmm(inverse, shares.unsqueeze(2)).squeeze(2)


@dataclass(config=STRICT)
class Obert(Criterion):
    """Score every weight by second-order saliency, and compensate for what is removed."""

    default_scope: ClassVar[Scope] = "global"

    block: Annotated[int, Field(ge=1)] = 16
    """Weights per block of the Fisher matrix (published: 50). With 1 it is diagonal, and nothing is compensated."""

    batches: Annotated[int, Field(ge=1)] = 256
    """Number of gradients, each of one batch, to estimate the Fisher matrix from (published: 1024)."""

    damping: Annotated[float, Field(gt=0)] = 1e-7
    """Value added to the diagonal of the Fisher matrix."""

    def __post_init__(self) -> None:
        self._inverse: dict[str, Tensor] = {}

    @property
    def scoring_floats(self) -> float:
        """A row of the inverse Fisher matrix of its block for each weight."""
        return self.block

    def scores(self, context: PruningContext) -> Scores:
        """Estimate the inverse Fisher matrix anew.

        Raises:
            ModelError: the matrix of some weights cannot be inverted.
        """
        return self._saliencies(context.weights, self._estimate(context))

    def ranking(self, context: PruningContext) -> Scores:
        """Estimate the inverse Fisher matrix anew and keep it for `compensate`, which follows the choice of masks."""
        self._inverse = self._estimate(context)
        return self._saliencies(context.weights, self._inverse)

    def _estimate(self, context: PruningContext) -> dict[str, Tensor]:
        found = {
            name: initial_inverse(weight.numel(), self.block, self.damping, weight.detach().float())
            for name, weight in context.weights.items()
        }
        for gradients in context.gradients(
            self.batches
        ):  # which back-propagates, so no_grad must not reach here
            for name, inverse in found.items():
                # Without the gradients of pruned weights: they are not free to make up for anything.
                gradient = gradients[name].detach().float() * context.masks[name]
                add_sample(inverse, in_blocks(gradient, self.block), self.batches)
        for name, inverse in found.items():
            if not bool((inverse.diagonal(dim1=1, dim2=2) > 0).all()):
                raise ModelError(
                    f"pruning.criterion obert: the Fisher matrix of {name} cannot be inverted in float32, since its "
                    f"gradients are too large for a damping of {self.damping:g}. Raise pruning.criterion.damping tenfold"
                )
        return found

    def _saliencies(self, weights: Weights, inverse: dict[str, Tensor]) -> Scores:
        return {
            name: saliency(in_blocks(weight.detach().float(), self.block), inverse[name])
            .view(-1)[: weight.numel()]
            .view(weight.shape)
            for name, weight in weights.items()
        }

    @torch.no_grad()
    def compensate(self, weights: Weights, removed: Masks) -> None:
        """Adjust the remaining weights, in place, for those about to be removed; then forget the Fisher matrix."""
        for name, weight in weights.items():
            gone = in_blocks(removed[name].to(torch.uint8), self.block).bool()
            change = compensation(in_blocks(weight.float(), self.block), self._inverse.pop(name), gone)
            weight.add_(change.view(-1)[: weight.numel()].view(weight.shape).to(weight.dtype))
            weight.mul_(~removed[name])
