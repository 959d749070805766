"""Rows of a chunk: the ones asked for, whatever the row groups, and never a large row group at once."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.readers import read_bytes
from pipeline.encoding import pages
from pipeline.encoding.chunks import plan_chunks
from pipeline.encoding.pages import RowsOfGroup
from pipeline.encoding.reading import RowReader
from pipeline.releases.storage import SourceFile

UNIT = SourceFile("a.parquet", 0, "token")


@given(row_group_size=st.integers(1, 12), max_bytes=st.integers(40, 2000), wanted=st.sets(st.integers(0, 39)))
def test_the_rows_asked_for_are_read(row_group_size: int, max_bytes: int, wanted: set[int]) -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"n": range(40), "text": ["x" * (n % 7) for n in range(40)], "more": [0] * 40})
    pq.write_table(table, sink, row_group_size=row_group_size)
    reader = RowReader(pa.BufferReader(sink.getvalue()))
    some, every = [], []
    for chunk in plan_chunks(UNIT, reader.file.metadata, max_bytes=max_bytes):
        every.append(reader.read_rows(chunk, ["n", "text"]))
        mine = np.array([n - chunk.start for n in sorted(wanted) if chunk.start <= n < chunk.stop], np.int64)
        some.append(reader.read_some(chunk, ["n", "text"], rows=mine))
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
    reader = RowReader(pa.BufferReader(bytes(data)))
    (chunk,) = plan_chunks(UNIT, reader.file.metadata)
    assert reader.read_some(chunk, ["n"], rows=np.array([3, 19, 35]))["n"].to_pylist() == [3, 19, 35]
    with pytest.raises(OSError):
        reader.read_some(chunk, ["n"], rows=np.array([3, 29]))


@given(
    wanted=st.sets(st.integers(0, 89), min_size=1),
    nulls=st.sets(st.integers(0, 89)),
    rows_per_page=st.integers(1, 9),
    wrapped=st.booleans(),
    codec=st.sampled_from(["none", "snappy", "zstd", "gzip", "brotli", "lz4"]),
    version=st.sampled_from(["1.0", "2.0"]),
    dictionary=st.booleans(),
    required=st.booleans(),
)
def test_pages_that_are_picked_hold_the_rows(
    wanted: set[int], nulls: set[int], rows_per_page: int, wrapped: bool, codec: str, version: str,
    dictionary: bool, required: bool,
) -> None:  # fmt: skip
    values = [None if n in nulls and not required else bytes([n % 11]) * (n % 50) for n in range(90)]
    kind: Any = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if wrapped else pa.binary()
    rows = [None if v is None else {"bytes": v, "path": "p"} for v in values] if wrapped else values
    schema = pa.schema([("n", pa.int64()), pa.field("image", kind, nullable=not required)])
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table([list(range(90)), rows], schema=schema), sink, row_group_size=40, use_dictionary=dictionary,
        compression=codec, data_page_version=version, max_rows_per_page=rows_per_page, write_batch_size=1,
    )  # fmt: skip
    raw = pa.BufferReader(sink.getvalue())
    groups = [
        RowsOfGroup(g, np.array([n - 40 * g for n in sorted(wanted) if n // 40 == g])) for g in range(3)
    ]
    groups = [some for some in groups if len(some.rows)]
    with patch.object(pages, "_WORTH_IT", 9.0):
        read = pages.read_pages(raw, pq.ParquetFile(raw), "image", groups)
    if read is None:
        assert codec == "lz4" or (wrapped and required)  # what this leaves to pyarrow
        return
    found = [None if v is None else bytes(v) for v in read_bytes(read)]
    assert found == [values[n] for n in sorted(wanted)]


def test_few_rows_are_read_from_their_pages_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"n": range(200), "image": [rng.bytes(50_000) for _ in range(200)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=100, max_rows_per_page=4, write_batch_size=4)
    rows = np.array([57, 58, 157])  # past the dictionary
    for seeks, most in ((True, 1 << 20), (False, 12 << 20)):
        counted = Counted(path)
        reader = RowReader(pa.PythonFile(counted), seeks=seeks)
        (chunk,) = plan_chunks(UNIT, reader.file.metadata)
        assert reader.read_some(chunk, ["n", "image"], rows=rows).equals(table.take(pa.array(rows)))
        assert counted.bytes_read < most


def test_a_row_group_that_is_cut_is_read_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"n": range(300), "image": [rng.bytes(100_000) for _ in range(300)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, use_dictionary=False)
    counted = Counted(path)
    reader = RowReader(pa.PythonFile(counted))
    chunks = plan_chunks(UNIT, reader.file.metadata, max_bytes=2 << 20)
    read = [reader.read_rows(chunk, ["n", "image"]) for chunk in chunks]
    assert len(chunks) > 10 and pa.concat_tables(read).equals(table)
    assert counted.bytes_read < 1.1 * path.stat().st_size


class Counted(io.FileIO):
    """A file that counts what is read of it."""

    bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self.bytes_read += len(data)
        return data


READ = """
import resource, sys
import pyarrow as pa, pyarrow.parquet as pq
from pipeline.encoding.chunks import plan_chunks
from pipeline.encoding.reading import RowReader
from pipeline.releases.storage import SourceFile
pa.set_memory_pool(pa.system_memory_pool())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
chunks = plan_chunks(SourceFile("a", 0, "t"), pq.read_metadata(sys.argv[1]), max_bytes=16 << 20)
reader, rows = RowReader(pa.OSFile(sys.argv[1])), 0
for chunk in chunks:
    rows += reader.read_rows(chunk, ["key", "image"]).num_rows
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
