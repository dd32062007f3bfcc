"""Keep the weights whose removal changes most what the neighbouring matrices compute together (lookahead pruning).

Magnitude times the norms of what feeds the weight and of what reads it. Needs no data. In a Transformer the
neighbours are not those of module order: attention mixes tokens, so value feeds output directly, and query
and key meet in a product.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from xlmprune.models import architecture
from xlmprune.models.architecture import MatrixName, Role
from xlmprune.pruning.criteria import Criterion, PruningContext
from xlmprune.pruning.masks import Scores, Weights
from xlmprune.recipe.component import STRICT

Block = dict[Role, Tensor]
"""Weights of one layer by role, [out, in]."""

READERS: tuple[Role, ...] = ("query", "key", "value")
"""What reads the residual stream at the beginning of a layer."""

Factor = dict[Role, Tensor]

Factors = dict[Role, tuple[Tensor | None, Tensor | None]]
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


def block_factors(layer: Block) -> Factors:
    """Neighbours within one Transformer block, whose weights are given by role.

    The value and output matrices form a chain per channel of a head, as do the two of the feed-forward part
    (its GELU taken as ReLU is in the source). Removing q_ij changes ``Wq^T Wk`` by exactly ``|q_ij| *
    ||k_i||``, and likewise for k. Where a gate multiplies a neuron, three matrices meet in a product, and each has the
    norms of the other two.
    """
    rows = {role: torch.linalg.vector_norm(weight, dim=1) for role, weight in layer.items()}
    columns = {role: torch.linalg.vector_norm(weight, dim=0) for role, weight in layer.items()}
    factors: Factors = {
        "query": (None, rows["key"]),
        "key": (None, rows["query"]),
        "value": (None, columns["attention_output"]),
        "attention_output": (rows["value"], None),
        "ffn_in": (None, columns["ffn_out"]),
        "ffn_out": (rows["ffn_in"], None),
    }
    if "ffn_gate" in layer:
        factors["ffn_in"] = (None, columns["ffn_out"] * rows["ffn_gate"])
        factors["ffn_gate"] = (None, columns["ffn_out"] * rows["ffn_in"])
        factors["ffn_out"] = (rows["ffn_in"] * rows["ffn_gate"], None)
    return factors


def through_residual(gain: Tensor, *norms: Tensor) -> Tensor:
    """``|gain| * sqrt(1 + sum of norms^2)`` per channel: the skip connection adds one to what the matrices carry.

    Args:
        gain: [channels], of the LayerNorm that follows the sum.
        norms: [channels] each, of the matrices that write to, or read from, the channel; none at the ends.
    """
    return gain.abs() * torch.sqrt(1 + sum((norm.square() for norm in norms), torch.zeros_like(gain)))


def residual_factors(
    layers: list[Block], gains: list[tuple[Tensor, Tensor]], first_gain: Tensor
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
            through_residual(gains[i - 1][1], rows(layers[i - 1]["ffn_out"]))
            if i
            else through_residual(first_gain)
        )
        written = rows(layer["attention_output"])
        above = [columns(layers[i + 1][role]) for role in READERS] if i + 1 < len(layers) else []
        before: Factor = dict.fromkeys(READERS, below)
        before |= {"ffn_in": through_residual(after_attention, written)}
        after: Factor = {
            "attention_output": through_residual(after_attention, columns(layer["ffn_in"])),
            "ffn_out": through_residual(after_block, *above),
        }
        factors = {role: (before.get(role, b), after.get(role, a)) for role, (b, a) in factors.items()}
        found.append(factors)
    return found


def by_layer(weights: Weights) -> tuple[list[Block], dict[str, MatrixName]]:
    """Return the weights of each encoder layer by role, and each parameter name taken apart.

    Raises:
        ValueError: a weight that is no encoder matrix of a known family, or a layer without one of its matrices.
    """
    layers: dict[int, Block] = {}
    names: dict[str, MatrixName] = {}
    expected: dict[int, Iterable[Role]] = {}
    for name, weight in weights.items():
        found = architecture.find_matrix(name)
        if found is None:
            raise ValueError(f"lookahead knows the neighbours of encoder matrices only, not of {name}")
        names[name] = found
        parts = {role: weight[rows.of(len(weight))] for role, rows in found.roles.items()}
        layers.setdefault(found.layer, {}).update(parts)
        expected[found.layer] = found.family.roles
    for number, layer in layers.items():
        if missing := [role for role in expected[number] if role not in layer]:
            raise ValueError(f"layer {number} has no {', '.join(missing)}")
    return [layers[number] for number in sorted(layers)], names


def layer_norm_gains(model: nn.Module) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Return the gains of the two LayerNorms of every layer, and of the one before the first layer.

    Raises:
        ValueError: a family whose LayerNorms stand before the matrices, so that nothing scales the residual stream.
    """
    family = architecture.of(model)
    first: Any = family.input_norm(model)
    if family.norm_first or first is None:
        raise ValueError(
            f"lookahead with residual neighbours needs LayerNorms after the matrices; {family.model_type} has them "
            "before. Use neighbours: block"
        )
    layers = family.layers(model)
    gains = [(layer.attention_norm.weight.detach(), layer.ffn_norm.weight.detach()) for layer in layers]
    return gains, first.weight.detach()


@dataclass(config=STRICT)
class Lookahead(Criterion):
    """Score every weight by its magnitude and the norms of its neighbours."""

    neighbours: Literal["block", "residual"] = "block"
    """`block`: within each Transformer block; `residual`: also across the skip connections, with LayerNorm gains."""

    def scores(self, context: PruningContext) -> Scores:
        """Norms are those of the weights that remain."""
        layers, names = by_layer(context.weights)
        if self.neighbours == "block":
            factors = [block_factors(layer) for layer in layers]
        else:
            if context.model is None:
                raise ValueError(
                    "lookahead with residual neighbours needs the model, for its LayerNorm gains"
                )
            factors = residual_factors(layers, *layer_norm_gains(context.model))
        index = {number: i for i, number in enumerate(sorted({found.layer for found in names.values()}))}
        return {
            name: torch.cat(
                [
                    lookahead(layers[index[found.layer]][role], *factors[index[found.layer]][role])
                    for role in found.roles
                ]
            )
            for name, found in names.items()
        }
