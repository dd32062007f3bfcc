"""Codes for masks: which weights of a matrix remain, in as few bytes as is quick to read.

Masks are taken row by row as one flat sequence of n entries. Bits are packed little-endian (entry i is bit i % 8 of
byte i // 8). With density p a mask without structure cannot be told in fewer than H(p) bits an entry, where
H(p) = -p·log2(p) - (1-p)·log2(1-p); each code below is near that bound where it is chosen.

`bitmask`   one bit an entry; best around p = 0.5.
`rice`      gaps between marked entries in a Rice code with r low bits: first the r low bits of every gap (bit j of
            gap i is bit i·r + j), padded to a byte, then every gap's quotient q in unary, as q zeros and a one. The
            marked entries are the remaining ones, or with `marks: pruned` the others. Near the bound at any density:
            the sequence of low bits has a fixed width, so both parts are read without a loop over entries.
            (R. F. Rice 1979; S. W. Golomb 1966, for gaps that are geometrically distributed.)
`n:m`       for masks where n of every m entries of a row remain: the rank of each group's pattern among the m-over-n
            in lexicographic order (of the bits, first entry lowest), as digits of uint32 words, as many as fit, the first
            digit lowest. Words are little-endian. 2:4 takes 0.67 bits an entry where H(p) is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

PATTERNS = ((1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (6, 8))
"""The n:m patterns looked for; m a power of two, as hardware and `pruning.pattern` have it."""


@dataclass(frozen=True)
class CodedMask:
    """A mask as bytes, and what is needed to read them."""

    code: dict[str, Any]
    """`name` and the code's own parameters; JSON."""
    data: np.ndarray
    """uint8, 1-D."""


def encode(mask: np.ndarray) -> CodedMask:
    """Encode a boolean mask [rows, columns] (or 1-D) with the code that is smallest for it."""
    candidates = [_encode_bitmask(mask), _encode_rice(mask, "remaining")]
    if 2 * int(mask.sum()) > mask.size:
        candidates.append(_encode_rice(mask, "pruned"))
    pattern = find_pattern(mask)
    if pattern is not None:
        candidates.append(_encode_pattern(mask, *pattern))
    return min(candidates, key=lambda coded: coded.data.size)


def decode(code: dict[str, Any], data: np.ndarray, entries: int) -> np.ndarray:
    """Decode the mask of ``entries`` entries as a flat boolean array.

    Raises:
        ValueError: ``data`` is not what `encode` can have written for so many entries.
    """
    name = code.get("name")
    if name == "bitmask":
        return _unpack_bits(data, entries)
    if name == "rice":
        return _decode_rice(data, entries, int(code["low_bits"]), int(code["count"]), code["marks"])
    if name == "n:m":
        return _decode_pattern(data, entries, int(code["n"]), int(code["m"]))
    raise ValueError(
        f"mask code {name!r} is unknown; known: bitmask, rice, n:m (a newer xlmprune may know it)"
    )


# --- bitmask ---------------------------------------------------------------------------------------------------------


def _encode_bitmask(mask: np.ndarray) -> CodedMask:
    return CodedMask({"name": "bitmask"}, np.packbits(mask, bitorder="little"))


def _unpack_bits(data: np.ndarray, entries: int) -> np.ndarray:
    if data.size != -(-entries // 8):
        raise ValueError(
            f"{data.size} bytes of bits found, {-(-entries // 8)} expected for {entries} entries"
        )
    bits = np.unpackbits(data, bitorder="little")
    if bits[entries:].any():
        raise ValueError("bits are set behind the last entry")
    return bits[:entries].view(bool)


# --- rice ------------------------------------------------------------------------------------------------------------


def _encode_rice(mask: np.ndarray, marks: str) -> CodedMask:
    marked = np.flatnonzero(mask if marks == "remaining" else ~mask)
    gaps = np.diff(marked, prepend=-1) - 1
    low_bits = _best_low_bits(gaps)
    quotients = gaps >> low_bits
    unary = np.zeros(int(quotients.sum()) + gaps.size, dtype=bool)
    unary[np.cumsum(quotients + 1) - 1] = True
    low = ((gaps[:, None] >> np.arange(low_bits)) & 1).astype(bool)
    data = np.concatenate([np.packbits(low, bitorder="little"), np.packbits(unary, bitorder="little")])
    return CodedMask({"name": "rice", "marks": marks, "low_bits": low_bits, "count": int(gaps.size)}, data)


def _best_low_bits(gaps: np.ndarray) -> int:
    """Return the width that makes the code shortest; it lies within a step or two of log2 of the mean gap."""
    if gaps.size == 0:
        return 0
    near = int(math.log2(float(gaps.mean()) + 1))
    widths = range(max(0, near - 2), near + 3)
    return min(widths, key=lambda width: gaps.size * width + int((gaps >> width).sum()))


def _decode_rice(data: np.ndarray, entries: int, low_bits: int, count: int, marks: str) -> np.ndarray:
    if marks not in ("remaining", "pruned") or not 0 <= low_bits <= 40 or not 0 <= count <= entries:
        raise ValueError(
            f"a Rice code with marks {marks!r}, {low_bits} low bits and {count} gaps is not possible"
        )
    low_size = -(-count * low_bits // 8)
    if data.size < low_size:
        raise ValueError(f"{data.size} bytes found, at least {low_size} expected")
    ends = np.flatnonzero(np.unpackbits(data[low_size:], bitorder="little"))
    used = -(-(int(ends[-1]) + 1) // 8) if ends.size else 0
    if ends.size != count or data.size != low_size + used:
        raise ValueError(
            f"{ends.size} gaps in {data.size} bytes found, {count} gaps in {low_size + used} expected"
        )
    steps = np.diff(ends, prepend=-1)
    if low_bits:
        bits = np.unpackbits(data[:low_size], bitorder="little", count=count * low_bits).reshape(
            count, low_bits
        )
        low = np.zeros(count, dtype=np.int64)
        for bit in range(low_bits):
            low |= bits[:, bit].astype(np.int64) << bit
        steps = ((steps - 1) << low_bits) + low + 1
    indices = np.cumsum(steps) - 1
    if count and int(indices[-1]) >= entries:
        raise ValueError(f"an entry at {int(indices[-1])} is marked, and there are {entries}")
    mask = np.full(entries, marks == "pruned")
    mask[indices] = marks == "remaining"
    return mask


# --- n:m -------------------------------------------------------------------------------------------------------------


def find_pattern(mask: np.ndarray) -> tuple[int, int] | None:
    """(n, m) where exactly n of every m consecutive entries of each row remain; the smallest m, or None."""
    columns = mask.shape[-1] if mask.ndim else 0
    for n, m in PATTERNS:
        # A cheap look at the first row spares most masks the whole count.
        if not columns or columns % m or (mask.reshape(-1, m)[: columns // m].sum(1) != n).any():
            continue
        if (mask.reshape(-1, m).sum(1, dtype=np.uint8) == n).all():
            return n, m
    return None


@lru_cache
def pattern_bytes(n: int, m: int) -> np.ndarray:
    """uint8: every byte with n of its lowest m bits set, ascending."""
    return np.array([value for value in range(1 << m) if value.bit_count() == n], dtype=np.uint8)


def pattern_ranks(mask: np.ndarray, n: int, m: int) -> np.ndarray:
    """int64: for every group of m entries, which of `pattern_bytes` it is."""
    known = pattern_bytes(n, m)
    rank = np.zeros(256, dtype=np.int64)
    rank[known] = np.arange(len(known))
    return rank[np.packbits(mask.reshape(-1, m), axis=1, bitorder="little")[:, 0]]


def _digits_per_word(base: int) -> int:
    return int(32 / math.log2(base))


def _encode_pattern(mask: np.ndarray, n: int, m: int) -> CodedMask:
    base = len(pattern_bytes(n, m))
    words = join_digits(pattern_ranks(mask, n, m), base, _digits_per_word(base))
    return CodedMask({"name": "n:m", "n": n, "m": m}, words.astype("<u4").view(np.uint8))


def join_digits(digits: np.ndarray, base: int, width: int) -> np.ndarray:
    """int64: words of ``width`` digits each, the first one lowest."""
    digits = np.pad(digits, (0, -len(digits) % width)).reshape(-1, width)
    return (digits * base ** np.arange(width)).sum(1)


def _decode_pattern(data: np.ndarray, entries: int, n: int, m: int) -> np.ndarray:
    if (n, m) not in PATTERNS or entries % m:
        raise ValueError(f"{n}:{m} is not a pattern that {entries} entries can have")
    patterns = pattern_bytes(n, m)
    width = _digits_per_word(len(patterns))
    if data.size != 4 * -(-entries // (m * width)):
        raise ValueError(f"{data.size} bytes found, {4 * -(-entries // (m * width))} expected for {n}:{m}")
    words = np.ascontiguousarray(data).view("<u4").astype(np.uint32)
    digits = np.empty((len(words), width), dtype=np.uint32)
    for column in range(width):
        words, digits[:, column] = np.divmod(words, np.uint32(len(patterns)))
    if words.any() or digits.ravel()[entries // m :].any():
        raise ValueError("digits are set behind the last group")
    groups = patterns[digits.ravel()[: entries // m]]
    return np.unpackbits(groups[:, None], axis=1, bitorder="little", count=m).reshape(-1).view(bool)
