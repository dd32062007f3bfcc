"""Layer collapse: a ranking over all matrices at once can empty one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLLAPSE = 0.01
"""A matrix that keeps less than this share of its weights carries next to nothing."""


def collapsed(layers: Sequence[Mapping[str, Any]], encoder_density: float) -> list[str]:
    """Return the matrices that keep next to nothing while the encoder as a whole keeps more.

    The network behind an empty matrix answers much the same whatever it reads.

    Args:
        layers: ``name`` and ``density`` of every matrix.
    """
    if encoder_density < COLLAPSE:
        return []
    return [layer["name"] for layer in layers if layer["density"] < COLLAPSE]
