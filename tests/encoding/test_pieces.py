"""Chunks of a unit with earlier codes are encoded together: fewer forward passes, and not a byte else."""

from pathlib import Path

import pytest

from pipeline.encoding import encoder, units
from pipeline.encoding.chunks import join_chunks, plan_chunks
from pipeline.encoding.decoding import Source, decode_pieces
from pipeline.encoding.encoder import EncodeChunk
from pipeline.encoding.units import UnitWork, finish_unit, open_unit
from pipeline.releases.storage import Storage
from tests.encoding.sources import BAD_ROWS, good_rows, tiny_method, write_rows
from tests.encoding.test_chunks import UNIT, footer
from tests.encoding.test_reuse import RECIPE
from tests.encoding.test_units import FILES


@pytest.mark.parametrize("rows_held", [1, 8, 1000])
@pytest.mark.parametrize("count", [1, 3, 4, 16])
def test_joined_chunks_hold_every_row_once(count: int, rows_held: int) -> None:
    chunks = plan_chunks(UNIT, footer([5, 1, 9, 30, 2, 2]), max_bytes=300)
    joined = join_chunks(chunks, count, rows=rows_held)
    assert [piece for chunk in joined for piece in chunk.pieces] == chunks
    assert all(chunk.stop - chunk.start <= max(rows_held, 47) for chunk in joined)
    assert [chunk.index for chunk in joined] == list(range(len(joined)))
    assert all(chunk.offset == 0 for chunk in joined)  # what is cut out of one row group stays together
    rows = [row for chunk in joined for row in range(chunk.start, chunk.stop)]
    assert rows == list(range(49))


@pytest.mark.parametrize("held", [1, 2, 100])
def test_the_pieces_of_a_chunk_give_the_code_files_of_the_chunks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    monkeypatch.setattr(encoder, "TILES_HELD", held)
    path = write_rows(tmp_path / "u.parquet", [*good_rows(0, 15), *BAD_ROWS], row_group_size=4)
    source, network = Source(Storage(tmp_path), RECIPE), EncodeChunk(tiny_method(), tile=4)
    unit = source.root.stat(path.name)
    alone = open_unit(UnitWork(unit, FILES), source, max_bytes=4000)
    one = Storage(tmp_path / "one")
    expected = finish_unit(
        alone, [network(c, decode_pieces(c, source)) for c in alone.chunks], source=source, store=one
    )
    monkeypatch.setattr(units, "PIECES", 5)
    work = open_unit(UnitWork(unit, FILES, earlier={"image": "0" * 32}), source, max_bytes=4000)
    assert 1 < len(work.chunks) < len(alone.chunks)
    receipts = [network(c, decode_pieces(c, source)) for c in work.chunks]
    other = Storage(tmp_path / "other")
    assert finish_unit(work, receipts, source=source, store=other).files == expected.files
    assert {file: other.read(file) for file in other.list()} == {file: one.read(file) for file in one.list()}
