"""The Triton code of `kernels`. It is imported only where a GPU is used."""

# Triton takes annotations for types of its own.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

EPSILON = tl.constexpr(1e-8)
"""As in `regularizers.cosine`."""


@triton.jit
def align(
    owners,
    first,
    widths,
    shares,
    weights,
    references,
    gradients,
    lengths,
    values,
    absolute: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the gradient of the alignment in one row, and store its value; see `regularizers.cosine.alignment_gradient`."""
    row = tl.program_id(0)
    matrix = tl.load(owners + row)
    width = tl.load(widths + matrix)
    share = tl.load(shares + matrix)
    start = (row - tl.load(first + matrix)).to(tl.int64) * width
    weight = tl.load(weights + matrix).to(tl.pointer_type(tl.float32)) + start
    reference = tl.load(references + matrix).to(tl.pointer_type(tl.float32)) + start
    gradient = tl.load(gradients + matrix).to(tl.pointer_type(tl.float32)) + start
    products = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, width, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        inside = at < width
        ours = tl.load(weight + at, mask=inside, other=0.0)
        theirs = tl.load(reference + at, mask=inside, other=0.0)
        products += ours * theirs
        squares += ours * ours
    product = tl.sum(products)
    length = tl.sqrt(tl.sum(squares))
    reference_length = tl.load(lengths + row)
    directed = (length > EPSILON) & (reference_length > EPSILON)
    length = tl.where(directed, length, 1.0)
    both = length * tl.where(directed, reference_length, 1.0)
    cosine = tl.where(directed, product / both, 0.0)
    sign = tl.where(directed, 1.0, 0.0)
    if absolute:
        sign = tl.where(cosine < 0, -1.0, tl.where(cosine > 0, 1.0, 0.0))
    tl.store(values + row, share * sign * cosine)
    of_reference = share * sign / both
    of_weight = -share * sign * cosine / (length * length)
    for begin in range(0, width, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        inside = at < width
        ours = tl.load(weight + at, mask=inside, other=0.0)
        theirs = tl.load(reference + at, mask=inside, other=0.0)
        before = tl.load(gradient + at, mask=inside, other=0.0)
        tl.store(gradient + at, before + of_reference * theirs + of_weight * ours, mask=inside)


@triton.jit
def mask(owners, first, widths, gradients, masks, BLOCK: tl.constexpr):
    """Set entries of one row to zero where its mask is zero."""
    row = tl.program_id(0)
    matrix = tl.load(owners + row)
    width = tl.load(widths + matrix)
    start = (row - tl.load(first + matrix)).to(tl.int64) * width
    gradient = tl.load(gradients + matrix).to(tl.pointer_type(tl.float32)) + start
    kept = tl.load(masks + matrix).to(tl.pointer_type(tl.int8)) + start
    for begin in range(0, width, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        inside = at < width
        remains = tl.load(kept + at, mask=inside, other=1)
        tl.store(gradient + at, 0.0, mask=inside & (remains == 0))
