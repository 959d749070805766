"""The rows of a chunk out of its Parquet file: all of them, or some, in memory bounded by the chunk."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.encoding.chunks import Chunk

BATCH_ROWS = 1024
BATCH_BYTES = 16 << 20


def read_rows(file: pq.ParquetFile, chunk: Chunk, columns: list[str]) -> pa.Table:
    """Read every row of a chunk; of a row group that is cut, the rows before are read and dropped."""
    groups, wanted = list(chunk.row_groups), chunk.stop - chunk.start
    if chunk.offset == 0 and wanted == _rows(file, groups):
        return file.read_row_groups(groups, columns=columns, use_threads=False)
    return read_some(file, chunk, columns, rows=np.arange(wanted))


def read_some(file: pq.ParquetFile, chunk: Chunk, columns: list[str], *, rows: np.ndarray) -> pa.Table:
    """Read some rows of a chunk. Row groups that hold none of them are not read.

    Args:
        rows: (n,) int64: ascending, from 0 for the first row of the chunk.
    """
    groups, first = [], -chunk.offset
    for group in chunk.row_groups:
        last = first + file.metadata.row_group(group).num_rows
        if ((rows >= first) & (rows < last)).any():
            groups.append((group, first))
        first = last
    schema = pa.schema([file.schema_arrow.field(name) for name in columns])
    parts = [part for group, first in groups for part in _parts(file, group, columns, rows - first)]
    return pa.Table.from_batches(parts, schema=parts[0].schema if parts else schema)


def _parts(
    file: pq.ParquetFile, group: int, columns: list[str], rows: np.ndarray
) -> Iterator[pa.RecordBatch]:
    """Yield these rows of a row group, batch by batch; rows outside it are passed over."""
    metadata = file.metadata.row_group(group)
    rows = rows[(rows >= 0) & (rows < metadata.num_rows)]
    size = max(1, min(BATCH_ROWS, BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)))
    passed = 0
    for batch in file.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
        start, stop = np.searchsorted(rows, [passed, passed + batch.num_rows])
        mine = rows[start:stop] - passed
        passed += batch.num_rows
        if len(mine) == batch.num_rows:
            yield batch
        elif len(mine):
            yield batch.take(pa.array(mine))  # a slice would hold the whole batch in memory
        if stop == len(rows):
            return


def _rows(file: pq.ParquetFile, groups: list[int]) -> int:
    return sum(file.metadata.row_group(group).num_rows for group in groups)
