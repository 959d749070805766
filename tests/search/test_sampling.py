"""Samples of codes: as many as asked for, of many units, the same for the same seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.releases.manifest import UNITS
from pipeline.releases.storage import Storage
from pipeline.search.sampling import UNITS as FIRST
from pipeline.search.sampling import sample_codes, shares
from tests.search.test_building import store_codes, unit


@given(sizes=st.lists(st.integers(1, 50), max_size=200), rows=st.integers(1, 3000))
def test_shares_are_as_many_as_asked_for_or_as_there_are(sizes: list[int], rows: int) -> None:
    dealt = shares(np.array(sizes, np.int64), rows)
    assert dealt.sum() == min(rows, sum(sizes))
    assert ((dealt >= 0) & (dealt <= np.array(sizes, np.int64))).all()
    if len(sizes) >= FIRST and all(size >= -(-rows // FIRST) for size in sizes[:FIRST]):
        assert dealt.max(initial=0) <= -(-rows // FIRST)


def test_a_sample_is_drawn_from_the_code_files_of_its_side(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    rows: list[dict[str, Any]] = [store_codes(store, unit(f"{n}.parquet", 9), n) for n in range(4)]
    units = pa.Table.from_pylist([*rows, unit("x.parquet", 9, side="text")], schema=UNITS)
    everything = sample_codes(units, "image", store, rows=100, seed=1)
    assert everything.shape == (36, 2)
    one, again = (sample_codes(units, "image", store, rows=10, seed=3) for _ in range(2))
    assert np.array_equal(one, again)
    assert len(one) == 10
    known = {code.tobytes() for code in everything}
    assert all(code.tobytes() in known for code in one)
    assert sample_codes(units.slice(0, 0), "image", store, rows=5, seed=1).shape == (0, 0)
    with pytest.raises(FileNotFoundError):
        sample_codes(units, "text", store, rows=5, seed=1)
