"""The plan of chunks: which rows of a unit are decoded and encoded together; pure, from its footer."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

from pipeline.releases.storage import SourceFile

CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Chunk:
    """A fixed row range of one unit, the grain of work: a part of one row group, or several of them whole."""

    unit: SourceFile
    index: int  # among the chunks of the unit
    start: int  # rows [start, stop) of the unit
    stop: int
    row_groups: tuple[int, ...]
    offset: int  # rows before `start` in the first of `row_groups`


@dataclass(frozen=True)
class _RowGroup:
    index: int
    start: int  # rows [start, stop) of the unit
    stop: int
    size: int  # bytes of its rows once decoded


def plan_chunks(
    unit: SourceFile,
    metadata: pq.FileMetaData,
    *,
    max_bytes: int = CHUNK_BYTES,
    image_size: int | None = None,
) -> list[Chunk]:
    """Cut a unit into chunks whose decoded rows fit in `max_bytes` each.

    Args:
        max_bytes: column bytes and pixels of a chunk; one row beyond that is a chunk alone.
        image_size: side in pixels of a decoded picture; None where the image side is features.
    Returns:
        Chunks in row order that tile [0, rows) exactly; none for a unit without rows.
    Raises:
        ValueError: `max_bytes` is not positive.
    """
    if max_bytes <= 0:
        raise ValueError(f"max_bytes must be positive, got {max_bytes}")
    chunks: list[Chunk] = []
    whole: list[_RowGroup] = []

    def add(groups: list[_RowGroup], start: int, stop: int) -> None:
        indices = tuple(group.index for group in groups)
        chunks.append(Chunk(unit, len(chunks), start, stop, indices, start - groups[0].start))

    for group in _row_groups(metadata, image_size):
        if whole and sum(member.size for member in whole) + group.size > max_bytes:
            add(whole, whole[0].start, whole[-1].stop)
            whole = []
        if group.size <= max_bytes:
            whole.append(group)
            continue
        for start, stop in _split(group, max_bytes):
            add([group], start, stop)
    if whole:
        add(whole, whole[0].start, whole[-1].stop)
    return chunks


def _row_groups(metadata: pq.FileMetaData, image_size: int | None) -> Iterator[_RowGroup]:
    """Yield the row groups that hold rows."""
    pixels = 3 * image_size**2 if image_size else 0
    start = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        stop = start + group.num_rows
        if stop > start:
            yield _RowGroup(index, start, stop, group.total_byte_size + group.num_rows * pixels)
        start = stop


def _split(group: _RowGroup, max_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield even row ranges of a row group that is too large for one chunk."""
    rows = group.stop - group.start
    pieces = -(-rows // max(1, max_bytes * rows // group.size))
    for piece in range(pieces):
        yield group.start + rows * piece // pieces, group.start + rows * (piece + 1) // pieces
