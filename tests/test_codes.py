"""Packed codes against bit-by-bit loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline import codes
from tests import reference

lengths = st.sampled_from([8, 16, 24, 32, 64, 72, 128])


def packed(rows: st.SearchStrategy[int], code_length: int) -> st.SearchStrategy[np.ndarray]:
    return rows.flatmap(lambda n: hnp.arrays(np.uint8, (n, code_length // 8)))


@given(lengths.flatmap(lambda length: hnp.arrays(np.int8, (5, length), elements=st.sampled_from([-1, 1]))))
def test_unpacking_undoes_packing(hash_codes: np.ndarray) -> None:
    assert np.array_equal(codes.unpack(codes.pack(hash_codes)), hash_codes)


@given(hnp.arrays(np.float32, (3, 16), elements=st.floats(-1, 1, width=32)))
def test_bit_j_stands_in_byte_j_over_8_most_significant_first(relaxed: np.ndarray) -> None:
    assert np.array_equal(codes.pack(relaxed), reference.pack(relaxed))


def test_zero_and_minus_zero_are_plus_one() -> None:
    assert codes.pack(np.array([[0.0, -0.0, -1e-30, 1e-30, -1, 1, -1, -1]])).tolist() == [[0b11010100]]


@given(lengths.flatmap(lambda n: st.tuples(packed(st.integers(1, 4), n), packed(st.integers(1, 4), n))))
def test_hamming_counts_the_bits_that_differ(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    assert np.array_equal(codes.hamming(a, b), reference.hamming(a, b))


@pytest.mark.parametrize("code_length", [0, -8, 7, 9, 20])
def test_a_code_length_that_is_not_whole_bytes_is_refused(code_length: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 8, got {code_length}"):
        codes.check_code_length(code_length)


def test_nan_is_refused_and_its_row_named() -> None:
    values = np.zeros((3, 8))
    values[2, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 3 rows are, first at 2"):
        codes.pack(values)


def test_codes_of_two_lengths_have_no_distance() -> None:
    with pytest.raises(ValueError, match="got 8 and 16 bits"):
        codes.hamming(np.zeros((1, 1), np.uint8), np.zeros((1, 2), np.uint8))
