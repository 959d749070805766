"""An id is found among the keys of a part as by reading them all, from little of the file."""

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.releases import sorted_ids
from pipeline.releases.sorted_ids import find_id
from pipeline.search.partfiles import KEYS_SCHEMA

ANY_ID = st.integers(0, 2**63 - 1) | st.integers(0, 20) | st.integers(2**63 - 20, 2**63 - 1)


def keys_file(ids: Sequence[int], *, units: int = 3) -> bytes:
    """Return the keys of a part with these ids, as parts are written."""
    rows = len(ids)
    unit = pa.DictionaryArray.from_arrays(
        pa.array([row % units for row in range(rows)], pa.int32()),
        pa.array([f"folder/unit-{number:09d}.parquet" for number in range(units)]),
    )
    key = pa.array([f"k{row}" for row in range(rows)], pa.large_string())
    columns = [pa.array(ids, pa.int64()), key, unit, pa.array(range(rows), pa.int64())]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, KEYS_SCHEMA) as writer:
        writer.write_table(pa.table(columns, schema=KEYS_SCHEMA))
    return sink.getvalue().to_pybytes()


def by_reading_all(ids: Sequence[int], number: int) -> tuple[int, int]:
    return sum(one < number for one in ids), sum(one <= number for one in ids)


class Counted(io.BytesIO):
    """A file that counts what is read of it."""

    bytes_read = 0
    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.bytes_read, self.reads = self.bytes_read + len(data), self.reads + 1
        return data


@pytest.mark.parametrize("window", [1, 2, 3, 64])
@given(st.lists(ANY_ID, max_size=40), ANY_ID, st.integers(0, 39))
def test_an_id_is_found_where_reading_all_finds_it(
    window: int, drawn: list[int], other: int, place: int
) -> None:
    ids = sorted(drawn + drawn[:5])
    number = ids[place % len(ids)] if ids and other % 2 else other
    before, sorted_ids.WINDOW = sorted_ids.WINDOW, window
    try:
        assert find_id(pa.BufferReader(keys_file(ids)), len(ids), number) == by_reading_all(ids, number)
    finally:
        sorted_ids.WINDOW = before


def test_of_many_rows_little_is_read() -> None:
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(0, 2**63 - 1, 500_000)).tolist()
    data = keys_file(ids)
    for number in (*rng.choice(ids, 5).tolist(), *rng.integers(0, 2**63 - 1, 5).tolist()):
        file = Counted(data)
        start, stop = find_id(pa.PythonFile(file, mode="r"), len(ids), number)
        assert (start, stop) == (np.searchsorted(ids, number), np.searchsorted(ids, number, side="right"))
        assert file.bytes_read < 200_000 < len(data) / 80
        assert file.reads <= 5


def test_what_is_laid_out_otherwise_is_not_guessed_at() -> None:
    data = keys_file(range(100))
    falling = keys_file(range(100, 0, -1))
    many = keys_file(range(100), units=5000)  # their names do not fit into the head
    plain = io.BytesIO()
    with pa.ipc.new_file(plain, pa.schema([("id", pa.int64())])) as writer:
        writer.write_table(pa.table({"id": pa.array(range(100), pa.int64())}))
    for other in (b"", b"junk" * 100, data[:300], data[:700], falling, many, plain.getvalue()):
        with pytest.raises((ValueError, OSError), match=r"ids|Arrow|schema|out of bounds"):
            find_id(pa.BufferReader(other), 100, 50)
