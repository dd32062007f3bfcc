"""What a model family is built like: its classes, layers, embeddings, positions and parameter names.

A new family is one file with an `Architecture` and one line in `recipe.registry.FAMILIES`. Nothing here needs PyTorch
until a model is given. `of` finds the family of a model; the functions at the end read the names in a file, whatever
family it is of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

from xlmprune.core.errors import ModelError
from xlmprune.data.examples import Kind
from xlmprune.recipe import registry

if TYPE_CHECKING:
    from torch import Tensor, nn

Part = Literal["embeddings", "encoder", "head", "other"]

PARTS: tuple[Part, ...] = ("embeddings", "encoder", "head", "other")

Role = Literal["query", "key", "value", "attention_output", "ffn_in", "ffn_gate", "ffn_out"]

TITLES: dict[Role, str] = {
    "query": "query",
    "key": "key",
    "value": "value",
    "attention_output": "attention output",
    "ffn_in": "FFN in",
    "ffn_gate": "FFN gate",
    "ffn_out": "FFN out",
}
"""What reports call the matrix that plays a role, in the order in which a layer uses them.

`ffn_gate` is there in families whose neurons are products: what `ffn_in` gives, times what the gate gives.
"""

FFN: frozenset[Role] = frozenset({"ffn_in", "ffn_gate", "ffn_out"})
"""Roles of the feed-forward part, whose neurons are rows, or columns, of their matrices."""

OUTPUTS: frozenset[Role] = frozenset({"attention_output", "ffn_out"})
"""Roles whose matrices own a column for each channel of a head, or neuron; the others own a row."""


@dataclass(frozen=True)
class Rows:
    """Where a role stands: a linear module of a layer, or one of ``count`` equal parts of its rows."""

    module: str
    index: int = 0
    count: int = 1

    def of(self, rows: int) -> slice:
        """Return the role's rows among the matrix's ``rows``."""
        size = rows // self.count
        return slice(self.index * size, (self.index + 1) * size)


@dataclass(frozen=True)
class MatrixName:
    """The name of a prunable matrix, taken apart."""

    family: Architecture
    layer: int
    module: str

    @property
    def roles(self) -> dict[Role, Rows]:
        """Roles that the matrix plays; several where it is fused."""
        return {role: rows for role, rows in self.family.roles.items() if rows.module == self.module}

    @property
    def title(self) -> str:
        """What reports call it."""
        return ", ".join(TITLES[role] for role in self.roles)


@dataclass(frozen=True)
class Matrix:
    """What plays one role in one layer of a model."""

    name: str
    """Of the parameter, which several roles share where a matrix is fused."""
    module: nn.Linear
    rows: slice

    @property
    def weight(self) -> Tensor:
        """The role's rows, [out, in]; a view of the parameter."""
        return self.module.weight[self.rows]

    @property
    def bias(self) -> Tensor | None:
        """The role's bias, [out]; a view of the parameter. None where the module has none."""
        return None if self.module.bias is None else self.module.bias[self.rows]


@dataclass(frozen=True)
class Layer:
    """One encoder layer of a model, by roles."""

    index: int
    path: str
    """Of its module in the model, such as ``roberta.encoder.layer.0``."""
    module: nn.Module
    attention: Any
    """Where ``norm_first`` is not: called with hidden states and mask; gives what enters `attention_output`, first of a
    tuple."""
    expand: Any
    """`ffn_in` and its activation; gives what enters `ffn_out`. None in families without such a module."""
    head_size: int
    """Width of one head."""
    query: Matrix
    key: Matrix
    value: Matrix
    attention_output: Matrix
    ffn_in: Matrix
    ffn_out: Matrix
    attention_norm: nn.LayerNorm
    """Behind attention; before it in families with ``norm_first``, where the first layer may have none."""
    ffn_norm: nn.LayerNorm
    """Behind the feed-forward part; before it in families with ``norm_first``."""
    ffn_gate: Matrix | None = None
    """None in families without one."""

    @property
    def heads(self) -> int:
        """Attention heads that it has now."""
        return len(self.query.weight) // self.head_size

    @property
    def neurons(self) -> int:
        """FFN neurons that it has now."""
        return len(self.ffn_in.weight)

    def matrices(self) -> dict[Role, Matrix]:
        """Return all matrices by role, in the order in which the layer uses them."""
        found = {role: getattr(self, role) for role in TITLES}
        return {role: matrix for role, matrix in found.items() if matrix is not None}


@dataclass(frozen=True)
class Architecture:
    """What a family is built like. Paths are those of modules below the backbone."""

    model_type: str
    heads: Mapping[Kind, str]
    """The class in transformers for each kind of task."""
    backbone: str
    """The pretrained part's attribute in a model with a head; begins the names of its parameters."""
    roles: Mapping[Role, Rows]
    """Where a layer has its matrices, in module order; parts of a fused matrix in the order of their rows."""
    attention_norm: str
    ffn_norm: str
    attention: str = "attention.self"
    head_size: str = "attention_head_size"
    """The attribute of the attention module that holds the width of one head."""
    expand: str | None = "intermediate"
    """The feed-forward part up to its activation; None where no module is that part."""
    layers_path: str = "encoder.layer"
    encoder_paths: tuple[str, ...] = ("encoder",)
    """Modules that are the encoder: its layers, and norms outside them."""
    embeddings_path: str = "embeddings"
    word_embeddings: str = "embeddings.word_embeddings"
    first_norm: str | None = "embeddings.LayerNorm"
    """The LayerNorm whose output enters the first layer; None where there is none."""
    norm_first: bool = False
    """Each part of a layer normalises what it reads, not what it adds to."""
    first_stays: bool = False
    """The first layer is built unlike the others, so that none of them can take its place."""
    per_layer: tuple[str, ...] = ()
    """Entries of the config that are lists with an item for each layer."""
    head_paths: tuple[str, ...] = ("classifier",)
    """Modules of the task head, by their path in the whole model."""
    drawn_paths: tuple[str, ...] = ("classifier",)
    """Modules of the head that every run draws anew; the others are drawn where a checkpoint lacks them."""
    positions_follow_padding: bool = False
    """Positions are counted from the padding id + 1, so that the rows up to it are never used."""
    rotary: bool = False
    """Positions rotate queries and keys; there is no table of them."""
    segments: bool = False
    """The model adds an embedding of segment ids (`token_type_ids`), which pairs need."""
    licences: Mapping[str, str] = field(default_factory=dict)
    """Licence of the published models, by the beginning of their names."""

    def positions(self, config: Any) -> int:
        """Return how many tokens a text may have, special tokens included."""
        unused = config.pad_token_id + 1 if self.positions_follow_padding else 0
        return int(config.max_position_embeddings - unused)

    def licence(self, name: str) -> str:
        """Return the licence of a published model, or `unknown`."""
        return next((known for start, known in self.licences.items() if name.startswith(start)), "unknown")

    @property
    def fused(self) -> tuple[str, ...]:
        """Linear modules of a layer that play several roles."""
        playing = [rows.module for rows in self.roles.values()]
        return tuple(module for module in self.modules if playing.count(module) > 1)

    # --- names of parameters

    @property
    def modules(self) -> tuple[str, ...]:
        """Linear modules of a layer, in module order."""
        return tuple(dict.fromkeys(rows.module for rows in self.roles.values()))

    @cached_property
    def _matrix(self) -> re.Pattern[str]:
        modules = "|".join(map(re.escape, self.modules))
        path = re.escape(self.layers_path)
        return re.compile(rf"(?:{self.backbone}\.)?{path}\.(\d+)\.({modules})(?:\.weight)?")

    def find_matrix(self, name: str) -> MatrixName | None:
        """Take the name of a prunable matrix apart, with or without backbone and ``.weight``; None for others."""
        found = self._matrix.fullmatch(name)
        return MatrixName(self, int(found[1]), found[2]) if found else None

    def part_of(self, parameter: str) -> Part:
        """Return which part of the model a parameter belongs to."""
        if any(parameter.startswith(f"{path}.") for path in self.head_paths):
            return "head"
        inside = parameter.removeprefix(f"{self.backbone}.")
        if inside.startswith(f"{self.embeddings_path}."):
            return "embeddings"
        in_encoder = any(inside.startswith(f"{path}.") for path in self.encoder_paths)
        return "encoder" if in_encoder else "other"

    def layer_of(self, parameter: str) -> int | None:
        """Return the index of the layer that a parameter belongs to; None for parameters of no layer."""
        path = re.escape(self.layers_path)
        found = re.match(rf"(?:{self.backbone}\.)?{path}\.(\d+)\.", parameter)
        return int(found[1]) if found else None

    def is_drawn(self, parameter: str) -> bool:
        """Return whether every run draws this parameter anew."""
        return any(parameter.startswith(f"{path}.") for path in self.drawn_paths)

    # --- modules of a model

    def layers(self, model: nn.Module) -> list[Layer]:
        """Return the encoder layers of a model with a head, from the lowest up."""
        path = f"{self.backbone}.{self.layers_path}"
        return [
            self._layer(f"{path}.{index}", index, module)
            for index, module in enumerate(model.get_submodule(path).children())
        ]

    def _layer(self, path: str, index: int, module: nn.Module) -> Layer:
        norms: Any = (module.get_submodule(self.attention_norm), module.get_submodule(self.ffn_norm))
        attention: Any = module.get_submodule(self.attention)
        expand = None if self.expand is None else module.get_submodule(self.expand)
        size = int(getattr(attention, self.head_size))
        matrices = {role: _matrix_of(path, module, rows) for role, rows in self.roles.items()}
        return Layer(
            index,
            path,
            module,
            attention,
            expand,
            size,
            attention_norm=norms[0],
            ffn_norm=norms[1],
            **matrices,
        )

    def keep_layers(self, model: nn.Module, kept: Sequence[int]) -> None:
        """Let the model consist of these of its layers, in this order."""
        from torch import nn

        parent, _, attribute = f"{self.backbone}.{self.layers_path}".rpartition(".")
        modules = [layer.module for layer in self.layers(model)]
        setattr(model.get_submodule(parent), attribute, nn.ModuleList([modules[index] for index in kept]))
        self.describe_layers(model.config, kept)

    def describe_layers(self, config: Any, kept: Sequence[int]) -> None:
        """Let a config describe these of its layers, in this order.

        Items of layers that it does not have, as those of layers removed before, repeat the items that it has.
        """
        config.num_hidden_layers = len(kept)
        for entry in self.per_layer:
            items = getattr(config, entry)
            setattr(config, entry, [items[index % len(items)] for index in kept])

    def embeddings(self, model: nn.Module) -> nn.Module:
        """Return the module of all embeddings."""
        return model.get_submodule(f"{self.backbone}.{self.embeddings_path}")

    def input_norm(self, model: nn.Module) -> nn.Module | None:
        """Return the LayerNorm whose output enters the first layer."""
        return None if self.first_norm is None else model.get_submodule(f"{self.backbone}.{self.first_norm}")

    def prunable(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the encoder's linear weights by parameter name, in module order."""
        return {
            matrix.name: matrix.module.weight
            for layer in self.layers(model)
            for matrix in (getattr(layer, role) for role in self.roles)
        }

    def decayed(self, model: nn.Module) -> set[str]:
        """Return the names of the parameters under weight decay: matrices of encoder and head."""
        head = {
            name
            for name, parameter in model.named_parameters()
            if self.part_of(name) == "head" and parameter.ndim == 2
        }
        return head | set(self.prunable(model))


def _matrix_of(path: str, layer: nn.Module, rows: Rows) -> Matrix:
    module: Any = layer.get_submodule(rows.module)
    return Matrix(f"{path}.{rows.module}.weight", module, rows.of(module.weight.shape[0]))


# --- families --------------------------------------------------------------------------------------------------------


def of(model_or_config: Any) -> Architecture:
    """Return the architecture of a model or its config.

    Raises:
        ModelError: its type is not known; names those that are.
    """
    return named(getattr(model_or_config, "config", model_or_config).model_type)


def named(model_type: str) -> Architecture:
    """Return the architecture of a ``model_type``.

    Raises:
        ModelError: it is not known; names those that are.
    """
    if model_type not in registry.FAMILIES:
        raise ModelError(
            f"models of type {model_type!r} are not supported; known types: {', '.join(registry.FAMILIES)}"
        )
    return registry.load("family", model_type)


@cache
def families() -> tuple[Architecture, ...]:
    """Return every family."""
    return tuple(named(model_type) for model_type in registry.FAMILIES)


# --- names in a file, whatever its family ----------------------------------------------------------------------------


def find_matrix(name: str) -> MatrixName | None:
    """Take the name of a prunable matrix of any family apart; None for other parameters."""
    return next((found for family in families() if (found := family.find_matrix(name))), None)


def short_name(name: str) -> str:
    """Return a matrix's name without the path of the layers: ``layer.3.attention.self.query``."""
    found = find_matrix(name)
    return f"layer.{found.layer}.{found.module}" if found else name


def part_of(parameter: str) -> Part:
    """Return which part of a model the parameter belongs to, from its name alone."""
    return next((part for family in families() if (part := family.part_of(parameter)) != "other"), "other")


def is_word_embedding(name: str) -> bool:
    """Return whether this is a table of word embeddings, with or without a suffix."""
    return any(f"{family.word_embeddings}." in f"{name}." for family in families())


@cache
def _parameter() -> re.Pattern[str]:
    starts = {
        path.partition(".")[0] for family in families() for path in (family.backbone, *family.head_paths)
    }
    return re.compile(rf"(?:{'|'.join(sorted(starts))})\..*?\.?(?:weight|bias)(?![a-z])")


def parameter_at_start(name: str) -> str | None:
    """Return the parameter that a name begins with; None where it begins with none."""
    found = _parameter().match(name)
    return found[0] if found else None
