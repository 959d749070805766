"""Rows of a chunk: the ones asked for, whatever the row groups, and never a large row group at once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encoding.chunks import plan_chunks
from pipeline.encoding.reading import read_rows, read_some
from pipeline.releases.storage import SourceFile

UNIT = SourceFile("a.parquet", 0, "token")


@given(row_group_size=st.integers(1, 12), max_bytes=st.integers(40, 2000), wanted=st.sets(st.integers(0, 39)))
def test_the_rows_asked_for_are_read(row_group_size: int, max_bytes: int, wanted: set[int]) -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"n": range(40), "text": ["x" * (n % 7) for n in range(40)], "more": [0] * 40})
    pq.write_table(table, sink, row_group_size=row_group_size)
    file = pq.ParquetFile(pa.BufferReader(sink.getvalue()))
    some, every = [], []
    for chunk in plan_chunks(UNIT, file.metadata, max_bytes=max_bytes):
        every.append(read_rows(file, chunk, ["n", "text"]))
        mine = np.array([n - chunk.start for n in sorted(wanted) if chunk.start <= n < chunk.stop], np.int64)
        some.append(read_some(file, chunk, ["n", "text"], rows=mine))
    assert pa.concat_tables(every).equals(table.select(["n", "text"]))
    assert pa.concat_tables(some).equals(
        table.select(["n", "text"]).take(pa.array(sorted(wanted), pa.int64()))
    )


def test_row_groups_without_a_row_that_is_asked_for_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(40)}), path, row_group_size=10)
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(2).column(0).dictionary_page_offset
    data[start : start + 30] = bytes(30)  # no reader gets past this
    file = pq.ParquetFile(pa.BufferReader(bytes(data)))
    (chunk,) = plan_chunks(UNIT, file.metadata)
    assert read_some(file, chunk, ["n"], rows=np.array([3, 19, 35]))["n"].to_pylist() == [3, 19, 35]
    with pytest.raises(OSError):
        read_some(file, chunk, ["n"], rows=np.array([3, 29]))


READ = """
import resource, sys
import pyarrow as pa, pyarrow.parquet as pq
from pipeline.encoding.chunks import plan_chunks
from pipeline.encoding.reading import read_rows
from pipeline.releases.storage import SourceFile
pa.set_memory_pool(pa.system_memory_pool())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
chunks = plan_chunks(SourceFile("a", 0, "t"), pq.read_metadata(sys.argv[1]), max_bytes=16 << 20)
rows = 0
for chunk in chunks:
    with pq.ParquetFile(sys.argv[1]) as file:
        rows += read_rows(file, chunk, ["key", "image"]).num_rows
print(rows, len(chunks), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_a_large_row_group_is_never_held_at_once(tmp_path: Path) -> None:
    rng, rows, width = np.random.default_rng(0), 3000, 100_000
    path, blob = tmp_path / "large.parquet", rng.bytes(width + rows)
    images = [blob[n : n + width] for n in range(rows)]
    pq.write_table(
        pa.table({"key": [str(n) for n in range(rows)], "image": images}), path, use_dictionary=False
    )
    assert pq.read_metadata(path).num_row_groups == 1 and path.stat().st_size > 250 << 20
    run = subprocess.run(
        [sys.executable, "-c", READ, path], capture_output=True, text=True, check=True, timeout=300
    )
    read, chunks, grown = map(int, run.stdout.split())
    assert read == rows and chunks > 15
    assert grown < 100  # MiB, of 286 in the row group: a chunk, a batch and what the reader holds
