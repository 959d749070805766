"""Which rows of a source can be trained on: its footers, and the few cheap columns that decide it.

No picture is opened here: a row with a damaged picture is still listed, and met when it is decoded.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from pipeline.corpus.readers import read_keys
from pipeline.corpus.schema import SIDES, ColumnMap, Columns, Side, resolve_columns, sample_ids

CHUNK_ROWS = 1024
MOST_CLASSES = 100_000  # a row of a batch holds a number for each


@dataclass(frozen=True)
class Selection:
    """Which complete pairs are wanted."""

    splits: tuple[str, ...] | None = None  # values of the split column; None or no such column: all
    held_out: float = 0.0  # share of them, drawn by key, that is kept out
    inside: bool = False  # want the share that is kept out, and not the rest


@dataclass(frozen=True)
class TrainChunk:
    """A fixed row range of one file, inside one row group, and which of its rows are wanted."""

    path: str
    row_group: int
    start: int  # rows [start, stop) of the row group
    stop: int
    kept: np.ndarray | None  # (n,) positions in the range; None for all of them
    columns: ColumnMap

    @property
    def rows(self) -> int:
        """How many rows are wanted."""
        return self.stop - self.start if self.kept is None else len(self.kept)


@dataclass
class Listing:
    """The rows of a source that are wanted, chunk by chunk, in the order of its files."""

    chunks: list[TrainChunk]
    classes: int = 0  # highest label + 1, where labels were asked for
    widths: dict[Side, int | None] = field(default_factory=dict)  # of feature columns
    dropped: Counter[str] = field(default_factory=Counter)  # rows not wanted, by reason

    @property
    def counts(self) -> list[int]:
        """Rows of each chunk."""
        return [chunk.rows for chunk in self.chunks]

    @property
    def rows(self) -> int:
        """Rows in all."""
        return sum(self.counts)

    def require(self, rows: int, *, where: str) -> None:
        """Refuse a source that does not fill one global batch.

        Raises:
            ValueError: it has fewer rows than that; says why others were dropped.
        """
        if self.rows >= rows:
            return
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common()) or "none"
        advice = f"lower it to at most {self.rows}" if self.rows else "look at data.path and data.split"
        raise ValueError(
            f"{where} has {self.rows} pairs to train on (rows left out: {dropped}), fewer than one global "
            f"batch: train.global_batch_size is {rows}; {advice}"
        )


def list_pairs(
    paths: Sequence[str],
    filesystem: pyarrow.fs.FileSystem,
    *,
    columns: Columns,
    selection: Selection,
    labels: bool = False,
) -> Listing:
    """List the complete pairs of Parquet files.

    Row-group statistics say where a side has no null; only elsewhere is its column read.

    Args:
        labels: also find the number of classes.
    Raises:
        SchemaError: a file lacks a column.
        ValueError: a file is not Parquet, features of two files differ in width, or labels are asked for and
            there is no such column.
    """
    with ThreadPoolExecutor(8) as pool:
        listed = list(pool.map(lambda path: _list_file(path, filesystem, columns, selection, labels), paths))
    whole = Listing([chunk for listing in listed for chunk in listing.chunks])
    first: dict[Side, str] = {}
    for path, listing in zip(paths, listed, strict=True):
        whole.classes = max(whole.classes, listing.classes)
        whole.dropped += listing.dropped
        for side, width in listing.widths.items():
            if width is None:
                continue
            if whole.widths.setdefault(side, width) != width:
                raise ValueError(
                    f"{path}: {side} features have width {width}, those of {first[side]} "
                    f"{whole.widths[side]}: all files of a source must agree"
                )
            first.setdefault(side, path)
    return whole


def held_out(ids: np.ndarray, share: float) -> np.ndarray:
    """Return (N,) bool: which rows are kept out of training. A key keeps its side of the cut for ever."""
    return ids < int(share * 2**63)


def _list_file(
    path: str, filesystem: pyarrow.fs.FileSystem, columns: Columns, selection: Selection, labels: bool
) -> Listing:
    try:
        with filesystem.open_input_file(path) as file:
            return _list_groups(path, pq.ParquetFile(file), columns, selection, labels)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: cannot be read as Parquet: {error}") from error
    except OSError as error:
        if error.filename is not None:  # the operating system's own words name it
            raise
        raise type(error)(f"{path}: cannot be read ({error}); check its name and who may read it") from error


def _list_groups(
    path: str, parquet: pq.ParquetFile, columns: Columns, selection: Selection, labels: bool
) -> Listing:
    found = resolve_columns(parquet.schema_arrow, columns, where=path)
    listing = Listing([])
    for group in range(parquet.metadata.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        kept = _kept(parquet, group, found, selection, listing.dropped)
        for start in range(0, rows, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, rows)
            some = None if kept is None else np.flatnonzero(kept[start:stop])
            chunk = TrainChunk(path, group, start, stop, some, found)
            if chunk.rows:
                listing.chunks.append(chunk)
        if labels:
            listing.classes = max(listing.classes, _classes(path, parquet, group, found))
    listing.widths = {side: _width(parquet, found, side) for side in SIDES}
    return listing


def _kept(
    parquet: pq.ParquetFile, group: int, found: ColumnMap, selection: Selection, dropped: Counter[str]
) -> np.ndarray | None:
    """Return (rows,) bool, or None where every row is wanted and nothing had to be read."""
    sides = [found.side(side) for side in SIDES]
    doubtful = [side.name for side in sides if side and _may_hold_null(parquet, group, side.name)]
    asked = [found.split] if found.split and selection.splits is not None else []
    keys = [found.key] if selection.held_out else []
    if not doubtful + asked + keys:
        return None
    table = parquet.read_row_group(group, columns=[*doubtful, *asked, *keys])
    kept = np.ones(table.num_rows, dtype=bool)

    def drop(reason: str, wrong: np.ndarray) -> None:
        dropped[reason] += int((kept & wrong).sum())
        kept[wrong] = False

    for name in asked:
        wanted = pc.is_in(table.column(name).cast(pa.string()), pa.array(selection.splits, pa.string()))
        drop("other split", ~np.asarray(wanted))
    for name in doubtful:
        column = table.column(name)
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")
        drop("not a pair", ~np.asarray(column.is_valid()))
    for name in keys:
        ids = sample_ids([key or "" for key in read_keys(table.column(name))])
        out = held_out(ids, selection.held_out)
        drop("not held out" if selection.inside else "held out", ~out if selection.inside else out)
    return None if kept.all() else kept


def _may_hold_null(parquet: pq.ParquetFile, group: int, name: str) -> bool:
    leaves = (name, f"{name}.bytes", f"{name}.list.element", f"{name}.list.item")
    metadata = parquet.metadata.row_group(group)
    for index in range(metadata.num_columns):
        column = metadata.column(index)
        if column.path_in_schema in leaves:
            statistics = column.statistics
            if statistics is None or not statistics.has_null_count or statistics.null_count:
                return True
    return False


def _classes(path: str, parquet: pq.ParquetFile, group: int, found: ColumnMap) -> int:
    if found.labels is None:
        raise ValueError(
            f"{path}: no column 'labels', which the method needs; name it under data.columns.labels"
        )
    values = pc.list_flatten(parquet.read_row_group(group, columns=[found.labels]).column(found.labels))
    lowest, highest = pc.min(values).as_py(), pc.max(values).as_py()
    if lowest is not None and lowest < 0:
        raise ValueError(f"{path}: labels must not be negative, got {lowest}")
    if highest is not None and highest >= MOST_CLASSES:
        raise ValueError(
            f"{path}: the highest label is {highest}: labels must be numbered from 0 on, and be fewer than "
            f"{MOST_CLASSES}; number them anew"
        )
    return 0 if highest is None else int(highest) + 1


def _width(parquet: pq.ParquetFile, found: ColumnMap, side: Side) -> int | None:
    """Return the width of a feature column: that of its type, or of its first row with a value."""
    column = found.side(side)
    if column is None or column.kind != "features" or column.width is not None:
        return None if column is None else column.width
    for batch in parquet.iter_batches(64, columns=[column.name]):
        lengths = pc.list_value_length(batch.column(0)).drop_null()
        if len(lengths):
            return int(lengths[0].as_py())
    return None
