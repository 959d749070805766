"""The plan of chunks: which rows of a unit are decoded and encoded together; pure, from its footer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow.parquet as pq

from pipeline.releases.storage import SourceFile

CHUNK_BYTES = 64 << 20

Place = tuple[str, int | None]
"""What tells a unit from all others of a source: the path of its file, and its first row group unless it is
the whole file."""


@dataclass(frozen=True)
class Chunk:
    """A fixed row range of one unit, the grain of work: a part of one row group, or several of them whole."""

    unit: SourceFile
    index: int  # among the chunks of the unit
    start: int  # rows [start, stop) of the file
    stop: int
    row_groups: tuple[int, ...]
    offset: int  # rows before `start` in the first of `row_groups`
    first_row_group: int | None = None  # of the unit, where it is a part of its file
    pieces: tuple["Chunk", ...] = ()  # read one after another, encoded together; none: read at once

    @property
    def place(self) -> Place:
        return self.unit.path, self.first_row_group


@dataclass(frozen=True)
class _RowGroup:
    index: int
    start: int  # rows [start, stop) of the file
    stop: int
    size: int  # bytes of its rows once decoded


def plan_chunks(
    unit: SourceFile,
    metadata: pq.FileMetaData,
    *,
    max_bytes: int = CHUNK_BYTES,
    image_size: int | None = None,
    row_groups: tuple[int, int] | None = None,
) -> list[Chunk]:
    """Cut a unit into chunks whose decoded rows fit in `max_bytes` each.

    Args:
        max_bytes: column bytes and pixels of a chunk; one row beyond that is a chunk alone.
        image_size: side in pixels of a decoded picture; None where the image side is features.
        row_groups: first and one past the last of the unit; None when the unit is the whole file.
    Returns:
        Chunks in row order that tile the rows of the unit exactly; none for a unit without rows.
    Raises:
        ValueError: `max_bytes` is not positive, or the file lacks some of the row groups.
    """
    if max_bytes <= 0:
        raise ValueError(f"max_bytes must be positive, got {max_bytes}")
    first, last = row_groups or (0, metadata.num_row_groups)
    if not 0 <= first <= last <= metadata.num_row_groups:
        raise ValueError(
            f"the unit is row groups [{first}, {last}) of its file, which has {metadata.num_row_groups}"
        )
    chunks: list[Chunk] = []
    whole: list[_RowGroup] = []

    def add(groups: list[_RowGroup], start: int, stop: int) -> None:
        indices = tuple(group.index for group in groups)
        offset = start - groups[0].start
        chunks.append(Chunk(unit, len(chunks), start, stop, indices, offset, row_groups and first))

    for group in _row_groups(metadata, image_size):
        if not first <= group.index < last:
            continue
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


def join_chunks(chunks: Sequence[Chunk], count: int, *, rows: int) -> list[Chunk]:
    """Return chunks of which each is up to `count` neighbours, but no more rows; still read one by one.

    A forward pass has a fixed number of rows, and of a unit whose codes mostly stand already a chunk alone
    would fill it with few. Chunks cut out of one row group stay together, however many: one pass reads them.
    """
    runs: list[list[Chunk]] = []
    for chunk in chunks:
        cut_from_last = bool(runs) and chunk.offset > 0
        full = bool(runs) and (len(runs[-1]) >= count or chunk.stop - runs[-1][0].start > rows)
        if not cut_from_last and (not runs or full):
            runs.append([])
        runs[-1].append(chunk)
    return [_joined(index, run) for index, run in enumerate(runs)]


def _joined(index: int, run: Sequence[Chunk]) -> Chunk:
    groups = tuple(sorted({group for piece in run for group in piece.row_groups}))
    return replace(run[0], index=index, stop=run[-1].stop, row_groups=groups, pieces=tuple(run))


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
