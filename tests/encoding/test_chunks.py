"""The plan of chunks tiles a unit exactly, within its bound, whatever its row groups."""

import io
import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encoding.chunks import plan_chunks
from pipeline.releases.storage import SourceFile

UNIT = SourceFile("a.parquet", 0, "token")


def footer(rows: list[int], width: int = 1) -> pq.FileMetaData:
    """Return the footer of a unit with row groups of these sizes and `width` bytes of text a row."""
    schema = pa.schema([("text", pa.string())])
    file = io.BytesIO()
    with pq.ParquetWriter(file, schema) as writer:
        for count in rows:
            writer.write_table(pa.table({"text": ["x" * width] * count}, schema=schema))
    return pq.read_metadata(io.BytesIO(file.getvalue()))


def decoded_size(metadata: pq.FileMetaData, group: int, image_size: int | None) -> float:
    """Return the decoded bytes of one row of a row group."""
    stored = metadata.row_group(group)
    return stored.total_byte_size / stored.num_rows + 3 * (image_size or 0) ** 2


@given(
    rows=st.lists(st.integers(0, 9), max_size=6),
    max_bytes=st.integers(1, 5000),
    image_size=st.sampled_from([None, 1, 8]),
)
def test_chunks_tile_the_rows_and_keep_to_whole_row_groups_or_one(
    rows: list[int], max_bytes: int, image_size: int | None
) -> None:
    metadata = footer(rows)
    chunks = plan_chunks(UNIT, metadata, max_bytes=max_bytes, image_size=image_size)
    covered = [row for chunk in chunks for row in range(chunk.start, chunk.stop)]
    assert covered == list(range(sum(rows)))
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    for chunk in chunks:
        first = sum(rows[: chunk.row_groups[0]])
        assert chunk.start == first + chunk.offset
        held = sum(rows[group] for group in chunk.row_groups)
        if len(chunk.row_groups) > 1:
            assert (chunk.offset, chunk.stop - chunk.start) == (0, held)
        assert chunk.offset + chunk.stop - chunk.start <= held
        size = sum(
            decoded_size(metadata, group, image_size) * min(rows[group], chunk.stop - chunk.start)
            for group in chunk.row_groups
        )
        assert size <= max_bytes or chunk.stop - chunk.start == 1


@given(rows=st.lists(st.integers(1, 9), min_size=2, max_size=6), max_bytes=st.integers(1, 5000))
def test_neighbouring_row_groups_share_a_chunk_when_they_fit(rows: list[int], max_bytes: int) -> None:
    metadata = footer(rows)
    chunks = plan_chunks(UNIT, metadata, max_bytes=max_bytes)
    for left, right in itertools.pairwise(chunks):
        groups = {*left.row_groups, *right.row_groups}
        size = sum(metadata.row_group(group).total_byte_size for group in groups)
        assert size > max_bytes


@pytest.mark.parametrize("rows", [7, 8, 9])
def test_a_large_row_group_is_cut_evenly(rows: int) -> None:
    row = 3 * 10**2
    metadata = footer([rows], width=0)
    extra = metadata.row_group(0).total_byte_size
    chunks = plan_chunks(UNIT, metadata, max_bytes=4 * row + extra, image_size=10)
    sizes = [chunk.stop - chunk.start for chunk in chunks]
    assert max(sizes) - min(sizes) <= 1
    assert len(chunks) == -(-rows // 4)


def test_a_unit_without_rows_has_no_chunk() -> None:
    assert plan_chunks(UNIT, footer([])) == []
    assert plan_chunks(UNIT, footer([0])) == []


def test_a_bound_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes must be positive, got 0"):
        plan_chunks(UNIT, footer([1]), max_bytes=0)


@given(
    rows=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 8), max_size=3),
    max_bytes=st.integers(1, 3000),
)
def test_the_units_of_a_cut_file_tile_its_rows_as_the_file_numbers_them(
    rows: list[int], cuts: list[int], max_bytes: int
) -> None:
    metadata = footer(rows)
    bounds = sorted({0, len(rows), *(cut for cut in cuts if cut <= len(rows))})
    covered = []
    for first, last in itertools.pairwise(bounds):
        chunks = plan_chunks(UNIT, metadata, max_bytes=max_bytes, row_groups=(first, last))
        assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
        for chunk in chunks:
            assert chunk.place == (UNIT.path, first)
            assert set(chunk.row_groups) <= set(range(first, last))
            assert chunk.start == sum(rows[: chunk.row_groups[0]]) + chunk.offset
            covered += range(chunk.start, chunk.stop)
    assert covered == list(range(sum(rows)))


def test_a_range_that_the_file_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row groups \[1, 4\) of its file, which has 3"):
        plan_chunks(UNIT, footer([1, 1, 1]), row_groups=(1, 4))
