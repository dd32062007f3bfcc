import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow import slow_but
from tiny import entropy_bits

from xlmprune.export import codes


def random_mask(shape, density, seed=0):
    """Exactly round(density · numel) entries, as pruning keeps them."""
    mask = np.zeros(int(np.prod(shape)), dtype=bool)
    mask[np.random.default_rng(seed).permutation(mask.size)[: round(density * mask.size)]] = True
    return mask.reshape(shape)


def two_of_four(rows, columns, n=2, m=4, seed=0):
    random = np.random.default_rng(seed).random((rows * columns // m, m))
    return (random.argsort(1) < n).reshape(rows, columns)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.booleans(), max_size=90), st.integers(1, 9))
def test_every_mask_comes_back(bits, columns):
    mask = np.array(bits[: len(bits) // columns * columns], dtype=bool).reshape(-1, columns)
    for coded in [
        codes.encode(mask),
        codes._encode_bitmask(mask),
        codes._encode_rice(mask, "remaining"),
        codes._encode_rice(mask, "pruned"),
    ]:
        assert np.array_equal(codes.decode(coded.code, coded.data, mask.size), mask.ravel())


@pytest.mark.parametrize("density", [0.0, 0.0003, 0.05, 0.1, 0.31, 0.5, 0.69, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(384, 1536), (61, 67), (1, 3)])
def test_masks_of_all_densities_and_odd_sizes_come_back(density, shape):
    mask = random_mask(shape, density)
    coded = codes.encode(mask)
    assert np.array_equal(codes.decode(coded.code, coded.data, mask.size).reshape(shape), mask)


def test_a_rice_code_is_what_the_docstring_says():
    # Entries 1, 2 and 9 remain: gaps 1, 0, 6. One low bit each: 1, 0, 0. Quotients 0, 0, 3: 1, 1, 0001.
    mask = np.zeros(12, dtype=bool)
    mask[[1, 2, 9]] = True
    data = np.array([0b001, 0b100011], dtype=np.uint8)
    code = {"name": "rice", "marks": "remaining", "low_bits": 1, "count": 3}
    assert np.array_equal(codes.decode(code, data, 12), mask)
    assert np.array_equal(codes._encode_rice(mask, "remaining").data, data)


def test_a_pattern_code_is_what_the_docstring_says():
    # 2:4, lowest entry first: 1100 is bits 0b0011, rank 0; 0011 is 0b1100, rank 5.
    mask = np.array([[1, 1, 0, 0, 0, 0, 1, 1]], dtype=bool)
    coded = codes._encode_pattern(mask, 2, 4)
    assert coded.data.tolist() == [30, 0, 0, 0]
    assert np.array_equal(codes.decode(coded.code, coded.data, 8), mask.ravel())


@pytest.mark.parametrize(
    "density", slow_but([0.5, 0.31, 0.05], [0.5, 0.4, 0.31, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05])
)
@pytest.mark.parametrize("value_bits", [32, 16, 8])
def test_bits_per_weight_are_within_3_percent_of_the_bound(density, value_bits):
    mask = random_mask((768, 3072), density)
    bits = 8 * codes.encode(mask).data.size / mask.size + density * value_bits
    assert bits <= 1.03 * (entropy_bits(density) + density * value_bits)


@pytest.mark.parametrize(("n", "m", "bits"), [(2, 4, 0.667), (4, 8, 0.8), (1, 4, 0.5)])
def test_a_regular_mask_takes_fewer_bits_than_its_density_needs(n, m, bits):
    mask = two_of_four(768, 768, n, m)
    coded = codes.encode(mask)
    assert coded.code == {"name": "n:m", "n": n, "m": m}
    assert 8 * coded.data.size / mask.size == pytest.approx(bits, abs=0.001)
    assert np.array_equal(codes.decode(coded.code, coded.data, mask.size).reshape(mask.shape), mask)


def test_a_pattern_broken_in_one_group_is_not_a_pattern():
    mask = two_of_four(64, 64)
    mask[-1, -4:] = True
    assert codes.find_pattern(mask) is None
    coded = codes.encode(mask)
    assert np.array_equal(codes.decode(coded.code, coded.data, mask.size).reshape(mask.shape), mask)


@pytest.mark.parametrize("density", [0.5, 0.1])
def test_damaged_data_is_refused(density):
    mask = random_mask((32, 40), density)
    coded = codes.encode(mask)
    with pytest.raises(ValueError, match="expected"):
        codes.decode(coded.code, coded.data[:-1], mask.size)
    with pytest.raises(ValueError):
        codes.decode(coded.code, np.append(coded.data, np.uint8(255)), mask.size)
    with pytest.raises(ValueError, match="unknown"):
        codes.decode({"name": "zip"}, coded.data, mask.size)


def test_a_matrix_of_base_size_is_read_in_milliseconds():
    mask = random_mask((3072, 768), 0.1)
    coded = codes.encode(mask)
    start = time.perf_counter()
    codes.decode(coded.code, coded.data, mask.size)
    assert time.perf_counter() - start < 1.0  # about 0.01 s; a loop over entries takes several
