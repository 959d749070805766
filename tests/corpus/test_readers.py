"""Change tokens as numbers: equal where the stored tokens are equal, whatever type they have."""

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.readers import FloatRows, read_tokens

DAY = dt.datetime(2026, 1, 1)
KINDS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.int8(), [1, -1, None, 1]),
    (pa.uint64(), [2**64 - 1, 0, None, 2**64 - 1]),
    (pa.float32(), [1.5, -1.5, None, 1.5]),
    (pa.bool_(), [True, False, None, True]),
    (pa.timestamp("us", "UTC"), [DAY, DAY.replace(year=2027), None, DAY]),
    (pa.date32(), [DAY.date(), dt.date(1960, 1, 1), None, DAY.date()]),
    (pa.string(), ["a", "ü", None, "a"]),
    (pa.binary(), [b"\xff", b"", None, b"\xff"]),
    (pa.list_(pa.int64()), [[1, 2], [], None, [1, 2]]),
]


@pytest.mark.parametrize(("kind", "values"), KINDS, ids=[str(kind) for kind, _ in KINDS])
def test_tokens_are_equal_where_values_are_and_null_where_they_are(kind: pa.DataType, values: list) -> None:
    column = pa.chunked_array([pa.array(values[:1], kind), pa.array(values[1:], kind)])
    first, other, nothing, again = read_tokens(column).to_pylist()
    assert first == again != other and nothing is None
    assert read_tokens(column.slice(1)).to_pylist() == [other, None, again]


def test_tokens_of_two_types_differ_and_a_dictionary_is_no_type() -> None:
    ones = [pa.array([1], kind) for kind in (pa.int8(), pa.int64(), pa.float64(), pa.timestamp("s"))]
    found = [read_tokens(pa.chunked_array([array])).to_pylist()[0] for array in [*ones, pa.array(["1"])]]
    assert len(set(found)) == len(found)
    names = pa.array(["a", "b", "a"])
    plain, coded = (read_tokens(pa.chunked_array([a])) for a in (names, names.dictionary_encode()))
    assert plain == coded


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 3), st.booleans())
def test_a_matrix_of_float_rows_is_the_rows(chosen: list[bool], start: int, fixed: bool) -> None:
    rows = np.arange(3 * (len(chosen) + start), dtype=np.float32).reshape(-1, 3)
    kind = pa.list_(pa.float32(), 3) if fixed else pa.list_(pa.float32())
    column = pa.chunked_array([pa.array(rows.tolist(), kind)]).slice(start)
    positions = np.flatnonzero(chosen)
    np.testing.assert_array_equal(FloatRows(column).matrix(positions, 3), rows[start:][positions])
