"""A unit becomes code files, once, with rejects before codes; a broken one is refused with a reason."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.corpus.recipe import InputRecipe
from pipeline.corpus.schema import Columns, Side, sample_ids
from pipeline.encoding.codefile import FORGOTTEN, CodeFileRecipe, Ledger
from pipeline.encoding.decoding import Receipt, Source, decode_pieces
from pipeline.encoding.encoder import EncodeChunk
from pipeline.encoding.units import UnitWork, find_codes, finish_unit, open_unit
from pipeline.releases.addresses import code_path, rejects_path
from pipeline.releases.forgetting import forget, forgotten_keys
from pipeline.releases.heads import Log
from pipeline.releases.storage import SourceFile, Storage
from tests.encoding.sources import BAD_ROWS, CODE_LENGTH, good_rows, tiny_method, write_rows

FILES = tuple(
    CodeFileRecipe(side, digit * 32, "token", "tower", "recipe", CODE_LENGTH)
    for side, digit in (("image", "a"), ("text", "b"))
)
IMAGE, TEXT = (file.address for file in FILES)
SIDES: tuple[Side, Side] = ("image", "text")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(Storage(tmp_path / "source"), InputRecipe(image_size=16))


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "store")


def written(tmp_path: Path, rows, **options: int) -> SourceFile:
    return Storage(write_rows(tmp_path / "source" / "u.parquet", rows, **options).parent).stat("u.parquet")


def receipts_of(work: UnitWork, source: Source) -> list[Receipt]:
    encode = EncodeChunk(tiny_method(), tile=4)
    return [encode(chunk, decode_pieces(chunk, source, sides=work.sides)) for chunk in work.chunks]


def test_a_unit_of_bad_rows_ends_in_balanced_ledgers(tmp_path: Path, source: Source, store: Storage) -> None:
    work = open_unit(UnitWork(written(tmp_path, BAD_ROWS, row_group_size=4), FILES), source, max_bytes=5000)
    assert len(work.chunks) > 2
    report = finish_unit(work, receipts_of(work, source), source=source, store=store)
    assert report.error == ""
    assert report.files["text"].ledger == Ledger(
        13, 6, 5, 2, {"duplicate key": 2, "empty text": 1, "missing key": 2}
    )
    image = report.files["image"].ledger
    assert (image.read, image.encoded, image.rejected, image.absent) == (13, 4, 7, 2)
    rejects = pq.read_table(io.BytesIO(store.read(rejects_path(IMAGE)))).to_pylist()
    assert [row["row"] for row in rejects] == [1, 2, 3, 8, 9, 10, 11]
    assert rejects[3]["error"] == "row 0 of this unit has the same key"
    assert find_codes(IMAGE, store) == report.files["image"]
    assert find_codes(TEXT, store) == report.files["text"]


def test_finishing_twice_or_from_repeated_receipts_changes_no_byte(
    tmp_path: Path, source: Source, store: Storage
) -> None:
    work = open_unit(UnitWork(written(tmp_path, good_rows(0, 9)), FILES), source, max_bytes=4000, join=False)
    receipts = receipts_of(work, source)
    first = finish_unit(work, receipts, source=source, store=store)
    before = {path: store.read(path) for path in store.list()}
    again = finish_unit(work, [*reversed(receipts), receipts[1]], source=source, store=store)
    assert first == again
    assert {path: store.read(path) for path in store.list()} == before
    assert before.keys() == {code_path(IMAGE), code_path(TEXT)}


def test_a_side_alone_gives_the_file_that_both_sides_give(
    tmp_path: Path, source: Source, store: Storage
) -> None:
    unit = written(tmp_path, BAD_ROWS)
    both = open_unit(UnitWork(unit, FILES), source)
    whole = finish_unit(both, receipts_of(both, source), source=source, store=store)
    alone = open_unit(UnitWork(unit, FILES[1:]), source)
    other = Storage(tmp_path / "other")
    report = finish_unit(alone, receipts_of(alone, source), source=source, store=other)
    assert report.files == {"text": whole.files["text"]}


def test_a_unit_without_rows_gets_empty_code_files(tmp_path: Path, source: Source, store: Storage) -> None:
    rows = pq.read_table(write_rows(tmp_path / "r.parquet", good_rows(0, 1))).slice(0, 0)
    (tmp_path / "source").mkdir()
    pq.write_table(rows, tmp_path / "source" / "u.parquet")
    work = open_unit(UnitWork(Storage(tmp_path / "source").stat("u.parquet"), FILES), source)
    report = finish_unit(work, [], source=source, store=store)
    assert report.files["image"].ledger == Ledger(0, 0, 0, 0)


def test_a_missing_receipt_is_a_fault_of_ours(tmp_path: Path, source: Source, store: Storage) -> None:
    work = open_unit(UnitWork(written(tmp_path, good_rows(0, 9)), FILES), source, max_bytes=4000)
    with pytest.raises(RuntimeError, match="receipts for"):
        finish_unit(work, receipts_of(work, source)[1:], source=source, store=store)
    assert store.list() == []


def test_a_unit_that_changed_while_it_was_read_is_refused(
    tmp_path: Path, source: Source, store: Storage
) -> None:
    work = open_unit(UnitWork(written(tmp_path, good_rows(0, 3)), FILES), source)
    receipts = receipts_of(work, source)
    work = replace(work, unit=replace(work.unit, token="older"))
    report = finish_unit(work, receipts, source=source, store=store)
    assert "changed while it was read" in report.error
    assert store.list() == []


@pytest.mark.parametrize(
    ("content", "said"), [(b"no parquet", "Parquet"), (b"", "Parquet"), (None, "FileNotFound")]
)
def test_a_file_that_is_no_parquet_is_refused(
    tmp_path: Path, source: Source, content: bytes | None, said: str
) -> None:
    path = tmp_path / "source" / "u.parquet"
    path.parent.mkdir()
    path.write_bytes(content or b"")
    unit = Storage(path.parent).stat(path.name)
    if content is None:
        path.unlink()
    work = open_unit(UnitWork(unit, FILES), source)
    assert said in work.error
    assert not work.chunks


def test_a_truncated_unit_is_refused_and_a_chunk_that_fails_refuses_its_unit(
    tmp_path: Path, source: Source, store: Storage
) -> None:
    work = open_unit(UnitWork(written(tmp_path, good_rows(0, 9)), FILES), source, max_bytes=4000)
    first, *others = receipts_of(work, source)
    broken = replace(first, error="OSError: gone")
    report = finish_unit(work, [broken, *others], source=source, store=store)
    assert (report.error, report.files, store.list()) == ("OSError: gone", {}, [])


def test_a_unit_without_a_needed_column_is_refused_and_names_what_it_has(
    tmp_path: Path, source: Source
) -> None:
    unit = written(tmp_path, good_rows(0, 3))
    other = replace(source, recipe=InputRecipe(image_size=16, columns=Columns(text="headline")))
    work = open_unit(UnitWork(unit, FILES), other)
    assert work.error.startswith("SchemaError: u.parquet: no column 'headline'")
    assert "found: key, image, text" in work.error


class Interrupted(Exception):
    """Stands for the end of a run in the midst of its work."""


class Disturbed(Storage):
    """A store before whose first code file something happens."""

    def __init__(self, root: Path, happens: Callable[[], None]) -> None:
        super().__init__(root)
        self.happens = [happens]

    def create(self, path: str, data: bytes) -> bool:
        if path.startswith("codes/") and self.happens:
            self.happens.pop()()
        return super().create(path, data)


def test_rejects_of_an_ended_run_are_not_kept_beside_codes_that_know_of_more(
    tmp_path: Path, source: Source, store: Storage
) -> None:
    work = open_unit(UnitWork(written(tmp_path, BAD_ROWS), FILES[:1]), source)
    receipts = receipts_of(work, source)

    def dies() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        finish_unit(work, receipts, source=source, store=Disturbed(tmp_path / "store", dies))
    assert store.list() == [rejects_path(IMAGE)]
    forget(Log(store), ["truncated"], ids=sample_ids(["truncated"]), owner="operator")
    hidden = forgotten_keys(Log(store))
    report = finish_unit(work, receipts, source=source, store=store, forgotten=hidden)
    assert find_codes(IMAGE, store) == report.files["image"]
    rejects = pq.read_table(io.BytesIO(store.read(rejects_path(IMAGE))))
    assert len(rejects) == report.files["image"].ledger.rejected
    assert "truncated" not in rejects["key"].to_pylist()


def test_of_two_runs_at_one_unit_the_first_code_file_counts_with_its_rejects(
    tmp_path: Path, source: Source, store: Storage
) -> None:
    work = open_unit(UnitWork(written(tmp_path, BAD_ROWS), FILES[:1]), source)
    receipts = receipts_of(work, source)
    other = Storage(tmp_path / "other")
    forget(Log(other), ["truncated"], ids=sample_ids(["truncated"]), owner="operator")
    hidden = forgotten_keys(Log(other))
    quicker = []

    def other_run() -> None:
        quicker.append(finish_unit(work, receipts, source=source, store=store, forgotten=hidden))

    slower = finish_unit(work, receipts, source=source, store=Disturbed(tmp_path / "store", other_run))
    assert slower.files == quicker[0].files == {"image": find_codes(IMAGE, store)}
    assert slower.files["image"].ledger.reasons[FORGOTTEN] == 1


def test_something_else_in_the_place_of_a_code_file_is_said(tmp_path: Path, store: Storage) -> None:
    assert find_codes(IMAGE, store) is None
    store.write(code_path(IMAGE), b"junk")
    with pytest.raises(RuntimeError, match=r"is damaged .* delete it and run again"):
        find_codes(IMAGE, store)


def test_a_file_in_ranges_of_row_groups_gives_the_rows_of_the_file_whole(
    tmp_path: Path, source: Source, store: Storage
) -> None:
    rows = [*good_rows(0, 10), *BAD_ROWS, *good_rows(20, 24)]
    unit = written(tmp_path, rows, row_group_size=5)
    whole = open_unit(UnitWork(unit, FILES), source, max_bytes=4000)
    finish_unit(whole, receipts_of(whole, source), source=source, store=store)
    expected = {row["row"]: row for row in codes_in(store, TEXT)}
    parts, read = Storage(tmp_path / "parts"), []
    for number, limits in enumerate([(0, 2), (2, 3), (3, 6)]):
        files = tuple(replace(file, address=f"{number}{file.address[1:]}") for file in FILES)
        work = open_unit(UnitWork(unit, files, limits), source, max_bytes=4000)
        assert {group for chunk in work.chunks for group in chunk.row_groups} == set(range(*limits))
        report = finish_unit(work, receipts_of(work, source), source=source, store=parts)
        assert (report.error, report.place) == ("", ("u.parquet", limits[0]))
        assert report.files["text"].ledger.read == work.rows
        read += codes_in(parts, files[1].address)
    found = {row["row"]: row for row in read}
    assert found.keys() >= expected.keys()
    assert {row: found[row] for row in expected} == expected
    # Of equal keys the first of a unit is kept: here the two rows of this key are in different units.
    assert [row["key"] for row in read if row["row"] not in expected] == ["good-1"]


def test_a_range_that_is_gone_refuses_its_unit(tmp_path: Path, source: Source) -> None:
    work = open_unit(UnitWork(written(tmp_path, good_rows(0, 3)), FILES, (0, 2)), source)
    assert "row groups [0, 2) of its file, which has 1" in work.error


def codes_in(store: Storage, address: str) -> list[dict]:
    return pq.read_table(io.BytesIO(store.read(code_path(address)))).to_pylist()
