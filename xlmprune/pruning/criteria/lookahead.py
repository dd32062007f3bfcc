"""Keep the weights whose removal changes most what the neighbouring matrices compute together (lookahead pruning).

Magnitude times the norms of what feeds the weight and of what reads it. Needs no data. In a Transformer the
neighbours are not those of module order: attention mixes tokens, so value feeds output directly, and query
and key meet in a product.
"""

from __future__ import annotations

import re
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.masks import Scores, Weights
from xlmprune.recipe.component import STRICT

ROLES = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "o",
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
}

Factors = dict[str, tuple[Tensor | None, Tensor | None]]
"""Role to (norm of what feeds each input [in], norm of what reads each output [out]); None counts as 1."""


def lookahead(weight: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
    """``|w_ij| * before_j * after_i``.

    Args:
        weight: [out, in].
        before: [in], or None for 1.
        after: [out], or None for 1.

    Source: Park et al. 2020 (arXiv:2002.04809), Eq. 4.
    """
    score = weight.abs()
    if before is not None:
        score = score * before
    if after is not None:
        score = score * after.unsqueeze(1)
    return score


def block_factors(layer: Weights) -> Factors:
    """Neighbours within one Transformer block, whose weights are given by role (q, k, v, o, fc1, fc2).

    The value and output matrices form a chain per channel of a head, as do the two of the feed-forward part
    (its GELU taken as ReLU is in the source). Removing q_ij changes ``Wq^T Wk`` by exactly ``|q_ij| *
    ||k_i||``, and likewise for k.
    """
    rows = {role: torch.linalg.vector_norm(weight, dim=1) for role, weight in layer.items()}
    columns = {role: torch.linalg.vector_norm(weight, dim=0) for role, weight in layer.items()}
    return {
        "q": (None, rows["k"]),
        "k": (None, rows["q"]),
        "v": (None, columns["o"]),
        "o": (rows["v"], None),
        "fc1": (None, columns["fc2"]),
        "fc2": (rows["fc1"], None),
    }


def through_residual(gain: Tensor, *norms: Tensor) -> Tensor:
    """``|gain| * sqrt(1 + sum of norms^2)`` per channel: the skip connection adds one to what the matrices carry.

    Args:
        gain: [channels], of the LayerNorm that follows the sum.
        norms: [channels] each, of the matrices that write to, or read from, the channel; none at the ends.
    """
    return gain.abs() * torch.sqrt(1 + sum((norm.square() for norm in norms), torch.zeros_like(gain)))


def residual_factors(
    layers: list[Weights], gains: list[tuple[Tensor, Tensor]], first_gain: Tensor
) -> list[Factors]:
    """`block_factors`, with the ends of each block joined to what the residual stream brings and takes.

    Args:
        layers: weights by role, from the lowest block up.
        gains: per block, those of the LayerNorm after attention and after the feed-forward part.
        first_gain: that of the embeddings' LayerNorm.
    """

    def rows(weight: Tensor) -> Tensor:
        return torch.linalg.vector_norm(weight, dim=1)

    def columns(weight: Tensor) -> Tensor:
        return torch.linalg.vector_norm(weight, dim=0)

    found = []
    for i, layer in enumerate(layers):
        factors = block_factors(layer)
        after_attention, after_block = gains[i]
        below = (
            through_residual(gains[i - 1][1], rows(layers[i - 1]["fc2"]))
            if i
            else through_residual(first_gain)
        )
        for role in ("q", "k", "v"):
            factors[role] = (below, factors[role][1])
        factors["o"] = (factors["o"][0], through_residual(after_attention, columns(layer["fc1"])))
        factors["fc1"] = (through_residual(after_attention, rows(layer["o"])), factors["fc1"][1])
        above = [columns(layers[i + 1][role]) for role in ("q", "k", "v")] if i + 1 < len(layers) else []
        factors["fc2"] = (factors["fc2"][0], through_residual(after_block, *above))
        found.append(factors)
    return found


def by_block(weights: Weights) -> tuple[list[Weights], dict[tuple[int, str], str]]:
    """Weights of each encoder block by role, and the parameter name of each (block, role).

    Raises:
        ValueError: a weight that is none of the six matrices of a block, or a block without one of them.
    """
    blocks: dict[int, Weights] = {}
    names: dict[tuple[int, str], str] = {}
    for name, weight in weights.items():
        match = re.fullmatch(r"(?:.*\.)?layer\.(\d+)\.(.+)\.weight", name)
        role = ROLES.get(match[2]) if match else None
        if match is None or role is None:
            raise ValueError(
                f"lookahead knows the neighbours of XLM-R's encoder matrices only, not of {name}"
            )
        blocks.setdefault(int(match[1]), {})[role] = weight
        names[int(match[1]), role] = name
    for number, block in blocks.items():
        if len(block) != len(ROLES):
            raise ValueError(f"block {number} has only {sorted(block)} of {sorted(ROLES.values())}")
    return [blocks[number] for number in sorted(blocks)], names


def layer_norm_gains(model: nn.Module, blocks: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Gains of the two LayerNorms of every block, and of the embeddings'."""
    gains = {
        name.removesuffix(".weight"): parameter.detach()
        for name, parameter in model.named_parameters()
        if name.endswith("LayerNorm.weight")
    }

    def ending(suffix: str) -> Tensor:
        return next(gain for name, gain in gains.items() if name.endswith(suffix))

    per_block = [
        (ending(f"layer.{i}.attention.output.LayerNorm"), ending(f"layer.{i}.output.LayerNorm"))
        for i in range(blocks)
    ]
    return per_block, ending("embeddings.LayerNorm")


@dataclass(config=STRICT)
class Lookahead(Criterion):
    """Score every weight by its magnitude and the norms of its neighbours."""

    neighbours: Literal["block", "residual"] = "block"
    """`block`: within each Transformer block; `residual`: also across the skip connections, with LayerNorm gains."""

    def scores(self, context: PruningContext) -> Scores:
        """Norms are those of the weights that remain."""
        layers, names = by_block(context.weights)
        if self.neighbours == "block":
            factors = [block_factors(layer) for layer in layers]
        else:
            if context.model is None:
                raise ValueError(
                    "lookahead with residual neighbours needs the model, for its LayerNorm gains"
                )
            factors = residual_factors(layers, *layer_norm_gains(context.model, len(layers)))
        scores = {
            names[number, role]: lookahead(layer[role], *factors[i][role])
            for i, (number, layer) in enumerate(zip(sorted({n for n, _ in names}), layers))
            for role in ROLES.values()
        }
        return {name: scores[name] for name in context.weights}
