"""The rows of a chunk out of its Parquet file: all of them, or some, in memory bounded by the chunk."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.encoding.chunks import Chunk
from pipeline.encoding.pages import RowsOfGroup, read_pages

BATCH_ROWS = 1024
BATCH_BYTES = 16 << 20
BUFFER_BYTES = 4 << 20
"""Bytes of a column that are read at once where a row group is not read whole."""
WIDE_BYTES = 1 << 20
"""A column chunk of this size is looked at page by page."""


class RowReader:
    """Reads the chunks of one file.

    Chunks that are cut out of one row group and asked for in order are read in one pass over it.

    Args:
        raw: the file, open.
        seeks: small reads of it cost little, as on a local disk: single pages may be picked.
    """

    def __init__(self, raw: pa.NativeFile, *, seeks: bool = False) -> None:
        self.file = pq.ParquetFile(raw)
        self._raw, self._seeks = raw, seeks
        self._passes: dict[tuple[str, ...], _Pass] = {}

    def read_rows(self, chunk: Chunk, columns: list[str]) -> pa.Table:
        """Read every row of a chunk."""
        if self._is_cut(chunk):
            return self._read_cut(chunk, columns, np.arange(chunk.stop - chunk.start))
        # One by one: pyarrow takes twice as long for several at once.
        tables = [self._read_group(group, columns) for group in chunk.row_groups]
        return pa.concat_tables(tables) if tables else self._schema(columns).empty_table()

    def read_some(self, chunk: Chunk, columns: list[str], *, rows: np.ndarray) -> pa.Table:
        """Read some rows of a chunk. Row groups that hold none of them are not read.

        Of a struct that is read page by page only the field `bytes` is given.

        Args:
            rows: (n,) int64: ascending, from 0 for the first row of the chunk.
        """
        if self._is_cut(chunk):
            return self._read_cut(chunk, columns, rows)
        wanted, first = [], 0
        for group in chunk.row_groups:
            last = first + self.file.metadata.row_group(group).num_rows
            start, stop = np.searchsorted(rows, [first, last])
            if start < stop:
                wanted.append(RowsOfGroup(group, rows[start:stop] - first))
            first = last
        if not wanted:
            return self._schema(columns).empty_table()
        picked = self._pick_pages(columns, wanted)
        others = [name for name in columns if name not in picked]
        if others:
            read = pa.Table.from_batches([self._take(some, others) for some in wanted])
            picked |= {name: read.column(name) for name in others}
        return pa.table({name: picked[name] for name in columns})

    def _pick_pages(self, columns: list[str], wanted: Sequence[RowsOfGroup]) -> dict[str, pa.ChunkedArray]:
        """Read those columns page by page where that reads less."""
        if not self._seeks:
            return {}
        wide = [name for name in columns if self._width(name, wanted[0].group) >= WIDE_BYTES]
        found = {name: read_pages(self._raw, self.file, name, wanted) for name in wide}
        return {name: values for name, values in found.items() if values is not None}

    def _width(self, name: str, group: int) -> int:
        columns = map(self.file.metadata.row_group(group).column, range(self.file.metadata.num_columns))
        mine = (c for c in columns if c.path_in_schema.split(".")[0] == name)
        return sum(column.total_compressed_size for column in mine)

    def _read_group(self, group: int, columns: list[str]) -> pa.Table:
        return self.file.read_row_group(group, columns=columns, use_threads=False)

    def _take(self, wanted: RowsOfGroup, columns: list[str]) -> pa.RecordBatch:
        """Read a row group up to the last row that is wanted."""
        count = int(wanted.rows[-1]) + 1
        batches = self.file.iter_batches(count, row_groups=[wanted.group], columns=columns, use_threads=False)
        return next(batches).take(pa.array(wanted.rows))

    def _is_cut(self, chunk: Chunk) -> bool:
        """Tell whether a chunk, or a piece of it, is not made of whole row groups."""
        rows = sum(self.file.metadata.row_group(group).num_rows for group in chunk.row_groups)
        return chunk.offset > 0 or rows != chunk.stop - chunk.start

    def _read_cut(self, chunk: Chunk, columns: list[str], rows: np.ndarray) -> pa.Table:
        """Read rows of a part of a row group; the pass over it goes on where the last chunk ended."""
        (group,) = chunk.row_groups
        one = self._passes.get(tuple(columns))
        if one is None or one.group != group or one.passed > chunk.offset:
            one = self._passes[tuple(columns)] = _Pass(self._raw, self.file.metadata, group, columns)
        parts = list(one.take(rows + chunk.offset)) if len(rows) else []
        return pa.Table.from_batches(parts, schema=None if parts else self._schema(columns))

    def _schema(self, columns: list[str]) -> pa.Schema:
        return pa.schema([self.file.schema_arrow.field(name) for name in columns])


class _Pass:
    """One pass over some columns of a row group, batch by batch."""

    def __init__(self, raw: pa.NativeFile, metadata: pq.FileMetaData, group: int, columns: list[str]) -> None:
        self.group, self.passed = group, 0  # rows whose batches are let go
        # Without these two the whole column chunk would be held.
        file = pq.ParquetFile(raw, metadata=metadata, pre_buffer=False, buffer_size=BUFFER_BYTES)
        held = metadata.row_group(group)
        size = max(1, min(BATCH_ROWS, BATCH_BYTES * held.num_rows // max(1, held.total_byte_size)))
        self._batches = file.iter_batches(size, row_groups=[group], columns=columns, use_threads=False)
        self._batch: pa.RecordBatch | None = None

    def take(self, rows: np.ndarray) -> Iterator[pa.RecordBatch]:
        """Yield these rows, ascending and counted in the row group: none of a batch that was let go."""
        done = 0
        while done < len(rows):
            if self._batch is None:
                self._batch = next(self._batches)
            count = self._batch.num_rows
            stop = int(np.searchsorted(rows, self.passed + count))
            mine = rows[done:stop] - self.passed
            if len(mine) == count:
                yield self._batch
            elif len(mine):
                yield self._batch.take(pa.array(mine))  # a slice would hold the whole batch in memory
            if stop == len(rows) and rows[-1] < self.passed + count - 1:
                return  # more of this batch may be asked for
            self.passed, self._batch, done = self.passed + count, None, stop
