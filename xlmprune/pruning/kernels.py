"""Work on the rows of all matrices in one launch on a GPU, written in Triton.

A model has some seventy pruned matrices, and PyTorch launches each of twenty small operations for each of them. A launch
takes the processor longer than most of these operations take the GPU. Every other device uses the plain form, with which
`tests/test_gpu.py` compares.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

BLOCK = 1024
"""Entries of a row that are read at once."""


def usable(matrices: Sequence[Tensor], *alike: Sequence[Tensor]) -> bool:
    """Return whether these functions can work on float32 ``matrices`` and on tensors ``alike`` them, float32 or boolean.

    They need Triton and the memory of one GPU, in which rows lie behind each other without gaps.
    """
    if not matrices or matrices[0].device.type != "cuda" or not _has_triton():
        return False
    device = matrices[0].device
    if any(matrix.ndim != 2 or matrix.dtype != torch.float32 for matrix in matrices):
        return False
    return all(
        one.device == device
        and one.is_contiguous()
        and one.shape == matrix.shape
        and one.dtype in (torch.float32, torch.bool)
        for tensors in (matrices, *alike)
        for one, matrix in zip(tensors, matrices, strict=True)
    )


def align(
    weights: Sequence[Tensor],
    references: Sequence[Tensor],
    gradients: Sequence[Tensor],
    lengths: Tensor,
    shares: Sequence[float],
    absolute: bool,
) -> Tensor:
    """Add the gradient of ``share * |cosine|`` of every row to ``gradients``, and return the sum of these terms.

    Args:
        weights: each [out, in], float32; so are `references` and `gradients`, of the same shapes.
        lengths: [rows of all matrices], of the rows of the references.
        shares: for each matrix.
        absolute: whether the term is ``|cosine|`` or the cosine itself.

    Returns:
        A float64 scalar on the device.
    """
    from xlmprune.pruning import triton_kernels

    device = weights[0].device
    values = torch.empty(sum(map(len, weights)), device=device)
    triton_kernels.align[(len(values),)](
        *_rows(weights),
        _sent(tuple(shares), device, torch.float32),
        *(_addresses(tensors) for tensors in (weights, references, gradients)),
        lengths,
        values,
        absolute,
        BLOCK,
    )
    return values.sum(dtype=torch.float64)


def mask(gradients: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Set entries of ``gradients`` to zero where the boolean ``masks`` are false."""
    from xlmprune.pruning import triton_kernels

    triton_kernels.mask[(sum(map(len, gradients)),)](
        *_rows(gradients), _addresses(gradients), _addresses(masks), BLOCK
    )


def _rows(matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the number of its matrix for every row; and each matrix's first row, and its width."""
    heights, device = tuple(len(matrix) for matrix in matrices), matrices[0].device
    return (
        _owners(heights, device),
        _sent((0, *accumulate(heights))[:-1], device, torch.int32),
        _sent(tuple(matrix.shape[1] for matrix in matrices), device, torch.int32),
    )


@lru_cache(maxsize=8)
def _owners(heights: tuple[int, ...], device: torch.device) -> Tensor:
    numbers = torch.arange(len(heights), dtype=torch.int32)
    return numbers.repeat_interleave(torch.tensor(heights)).to(device, non_blocking=True)


def _addresses(tensors: Sequence[Tensor]) -> Tensor:
    return _sent(tuple(tensor.data_ptr() for tensor in tensors), tensors[0].device, torch.int64)


@lru_cache(maxsize=64)
def _sent(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the numbers on the device. Those of the last updates are there already."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
