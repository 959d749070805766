"""A part from code files that may be larger than memory: sorted by id in buckets, bucket after bucket.

Ids are hashes, so equal ranges of ids hold about equally many rows. Each code file is read once, row by row
group, its rows are dealt out to one spill file per range, and the ranges are sorted and written in order.
How many ranges there are follows the memory that is given, and changes no byte of the part.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.search.families import Family, parse_recipe
from pipeline.search.indexing import COLUMNS, CodeKind, merge, numbered
from pipeline.search.partfiles import PartRecipe, PartWriter
from pipeline.search.quantisers import Quantiser

_BATCH = 1 << 15  # rows read at once
_ROW = 28  # bytes of id, row, unit and key end
_COPIES = 4  # of the rows of a bucket while it is sorted
_BASE = 48 << 20  # what Arrow takes for reading and writing whatever the size
_HELD = {"flat": 0, "ivf": 24, "hnsw": 16, "hash": 40, "multihash": 16}
"""Bytes a row that a family's build holds beside the codes."""
_IN_MEMORY = ("hnsw", "hash", "multihash")
_MOST_BUCKETS = 1 << 10
_ID_BITS = 63


@dataclass(frozen=True)
class Need:
    """Memory that a part takes to build: at best, and when all its rows are sorted at once."""

    least: int
    most: int

    def buckets(self, memory: int) -> int:
        """Return in how many ranges of ids, a power of two, rows are sorted to stay within `memory`."""
        count = 1
        while count < _MOST_BUCKETS and self.least + (self.most - self.least) // count > memory:
            count *= 2
        return count


def memory_need(rows: int, source_bytes: int, family: Family, *, code_size: int) -> Need:
    """Estimate the memory that a part takes to build.

    Args:
        source_bytes: of its code files: what their keys take at most.
    """
    held = rows * _HELD[family.kind]
    if family.kind in _IN_MEMORY:
        held += 3 * rows * (code_size + 8 * max(family.lists, 1) + 9 * family.neighbours)
    sorting = _COPIES * (rows * (_ROW + code_size) + source_bytes)
    return Need(_BASE + held, _BASE + held + sorting)


def assemble(
    files: Mapping[str, Path], recipe: str, *, quantiser: Quantiser | None, folder: Path, memory: int
) -> tuple[Path, Path, int]:
    """Write the two files of a part into a folder.

    Args:
        files: the code file of every unit, by unit path.
        memory: bytes to stay within; what is held for every row is held even so.
    Returns:
        where the FAISS file and keys.arrow lie, and the rows of both.
    Raises:
        ValueError: as for `indexing.build_part`.
    """
    units = sorted(files)
    kind = CodeKind()
    rows = 0
    for unit in units:
        with pq.ParquetFile(files[unit]) as opened:
            kind = kind.joined(unit, opened.schema_arrow)
            rows += opened.metadata.num_rows
    part = PartRecipe(parse_recipe(recipe), kind.code_size, quantiser)
    source_bytes = sum(file.stat().st_size for file in files.values())
    buckets = memory_need(rows, source_bytes, part.family, code_size=kind.code_size).buckets(memory)
    writer = PartWriter(folder, part)
    for bucket in _sorted(files, units, folder=folder, buckets=buckets):
        writer.add(bucket)
    return *writer.finish(units, kind.metadata(recipe)), writer.rows


def _sorted(files: Mapping[str, Path], units: list[str], *, folder: Path, buckets: int) -> Iterator[pa.Table]:
    """Yield all rows, range of ids after range of ids, each in order."""
    if buckets == 1:
        yield merge([table for unit, number in _numbered(units) for table in _read(files[unit], number)])
        return
    _deal(files, units, folder=folder, buckets=buckets)
    for bucket in range(buckets):
        spill = _spill(folder, bucket)
        with pa.OSFile(str(spill)) as source:
            rows = pa.ipc.open_stream(source).read_all()
        spill.unlink()
        yield merge([rows])


def _deal(files: Mapping[str, Path], units: list[str], *, folder: Path, buckets: int) -> None:
    """Write every row to the spill file of its range of ids."""
    bounds = np.arange(1, buckets, dtype=np.int64) << (_ID_BITS - buckets.bit_length() + 1)
    writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
    with ExitStack() as stack:
        for unit, number in _numbered(units):
            for rows in _read(files[unit], number):
                if not writers:
                    for bucket in range(buckets):
                        sink = stack.enter_context(pa.OSFile(str(_spill(folder, bucket)), "wb"))
                        writers[bucket] = stack.enter_context(pa.ipc.new_stream(sink, rows.schema))
                limits = [0, *np.searchsorted(rows["id"].to_numpy(), bounds).tolist(), len(rows)]
                for bucket, writer in writers.items():
                    mine = rows.slice(limits[bucket], limits[bucket + 1] - limits[bucket])
                    if len(mine):
                        writer.write_table(mine)


def _read(file: Path, number: int) -> Iterator[pa.Table]:
    """Yield the rows of a code file, in id order, a batch at a time."""
    with pq.ParquetFile(file, buffer_size=1 << 18, pre_buffer=False) as opened:
        for batch in opened.iter_batches(_BATCH, columns=list(COLUMNS), use_threads=False):
            yield numbered(pa.Table.from_batches([batch]), number)
        if not opened.metadata.num_rows:
            yield numbered(opened.schema_arrow.empty_table(), number)


def _numbered(units: list[str]) -> Iterator[tuple[str, int]]:
    return zip(units, range(len(units)), strict=True)


def _spill(folder: Path, bucket: int) -> Path:
    return folder / f"{bucket}.rows"
