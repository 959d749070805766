"""The source as one table: listed once, page by page, so that a million files are no million objects."""

import os
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.releases.addresses import check_path
from pipeline.releases.storage import SourceFile, iter_source

SOURCE = pa.schema([("path", pa.string()), ("size", pa.int64()), ("token", pa.string())])
"""One row per file, sorted by path, which is relative to the source root."""

_PAGE = 1 << 14


def list_table(uri: str | os.PathLike[str]) -> pa.Table:
    """List the files of a source (SOURCE): what `list_source` lists.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file's name is not UTF-8 or could lead out of the root.
    """
    return source_table(iter_source(uri))


def source_table(files: Iterable[SourceFile]) -> pa.Table:
    """Return files as a table (SOURCE), in the order of their paths.

    Raises:
        ValueError: a path leaves the source.
    """
    batches, page = [], []
    for file in files:
        page.append((check_path(file.path), file.size, file.token))
        if len(page) == _PAGE:
            batches.append(_batch(page))
            page = []
    table = pa.Table.from_batches([*batches, _batch(page)], schema=SOURCE)
    paths = table["path"]
    if not pc.all(pc.less_equal(paths.slice(0, max(len(paths) - 1, 0)), paths.slice(1)), min_count=0).as_py():
        table = table.sort_by("path")  # object stores list in this order, file systems do not
        pa.default_memory_pool().release_unused()
    return table


def source_bytes(units: pa.Table) -> int:
    """Return the bytes of the files that rows of units name, each file once and whole."""
    files = units.group_by(["path"]).aggregate([("size", "max")])
    return pc.sum(files["size_max"]).as_py() or 0


def _batch(page: list[tuple[str, int, str]]) -> pa.RecordBatch:
    columns = zip(*page, strict=True) if page else ((), (), ())
    arrays = [pa.array(values, kind) for values, kind in zip(columns, SOURCE.types, strict=True)]
    return pa.record_batch(arrays, schema=SOURCE)
