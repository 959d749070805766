"""What holds for every import: files, keys, sets, the ledger."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.importers.rows import Block, ImportReject, schema_of
from pipeline.corpus.importers.splits import parse_split
from pipeline.corpus.importers.writing import WriteSettings, kept_blocks, write_import
from tests.corpus.importers.sources import import_into


class Given:
    """An importer of given keys, in blocks of given sizes."""

    label_names: tuple[str, ...] = ()

    def __init__(self, keys: list[str], block: int = 3) -> None:
        self.keys, self.block = keys, block
        self.schema = schema_of(["key", "image", "text"])

    def blocks(self) -> Iterator[Block]:
        for start in range(0, len(self.keys), self.block):
            keys = self.keys[start : start + self.block]
            rows = [{"key": key, "image": key.encode(), "text": None} for key in keys]
            yield Block(pa.Table.from_pylist(rows, self.schema), [ImportReject("f", "r", "bad")], "f")


def names(count: int) -> list[str]:
    return [f"k{n}" for n in range(count)]


@pytest.mark.parametrize("rows", [1, 4, 5, 6, 10, 11])
def test_files_hold_the_rows_in_order_and_no_more_than_asked(rows: int, tmp_path: Path) -> None:
    out = import_into(tmp_path, Given(names(rows)), rows_per_file=5)
    assert [row["key"] for row in out.rows] == names(rows)
    sizes = [pq.read_metadata(file).num_rows for file in out.files]
    assert sizes == [5] * (rows // 5) + [rows % 5] * (rows % 5 > 0)
    assert out.files[0].name == "part-000000.parquet"


def test_row_groups_are_bounded_in_rows(tmp_path: Path) -> None:
    out = import_into(tmp_path, Given(names(5000), block=500), rows_per_file=4000)
    groups = [pq.ParquetFile(file).metadata for file in out.files]
    assert [metadata.num_row_groups for metadata in groups] == [3, 1]
    assert max(groups[0].row_group(n).num_rows for n in range(3)) <= 1500


def test_the_same_import_writes_the_same_bytes(tmp_path: Path) -> None:
    first = import_into(tmp_path / "a", Given(names(20)), rows_per_file=7)
    second = import_into(tmp_path / "b", Given(names(20)), rows_per_file=7)
    assert [f.read_bytes() for f in first.files] == [f.read_bytes() for f in second.files]


@given(st.lists(st.sampled_from("abcdefgh"), max_size=60), st.integers(1, 9))
def test_of_equal_keys_the_first_is_kept_however_rows_are_blocked(keys: list[str], block: int) -> None:
    blocks = list(kept_blocks(Given(keys, block), WriteSettings()))
    kept = [key for part in blocks for key in part.table.column("key").to_pylist()]
    assert kept == list(dict.fromkeys(keys))
    repeats = [reject for part in blocks for reject in part.rejects if reject.reason == "duplicate key"]
    assert len(repeats) == len(keys) - len(kept)


def test_a_row_without_a_key_is_a_reject(tmp_path: Path) -> None:
    out = import_into(tmp_path, Given(["a", "", "b"]), prefix="mine/")
    assert [row["key"] for row in out.rows] == ["mine/a", "mine/b"]
    assert out.ledger.rejects == {"bad": 1, "missing key": 1}


def test_the_limit_counts_rows_that_are_kept(tmp_path: Path) -> None:
    out = import_into(tmp_path, Given(["a", "a", "b", "c", "d", "e"]), limit=4)
    assert [row["key"] for row in out.rows] == ["a", "b", "c", "d"]


def test_an_import_that_was_cut_short_says_so(tmp_path: Path) -> None:
    class Dying(Given):
        def blocks(self) -> Iterator[Block]:
            yield from super().blocks()
            raise OSError("the disk is gone")

    def put(file: Path, name: str) -> None:
        (tmp_path / name).write_bytes(file.read_bytes())

    (tmp_path / "scratch").mkdir()
    with pytest.raises(OSError, match="the disk is gone"):
        write_import(Dying(names(12)), put, tmp_path / "scratch", WriteSettings(rows_per_file=5))
    assert json.loads((tmp_path / "_import.json").read_text())["state"] == "started"
    assert len(list(tmp_path.glob("part-*"))) == 2


def test_nothing_to_import_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not one row could be imported; 1 x bad, 1 x missing key"):
        import_into(tmp_path, Given([""]))


def test_counts_split_rows_in_order_and_shares_by_key(tmp_path: Path) -> None:
    in_order = import_into(tmp_path / "a", Given(names(8)), split=parse_split("query=2,train=rest"))
    assert [row["split"] for row in in_order.rows] == ["query"] * 2 + ["train"] * 6
    rule = parse_split("query=20%,train=rest")
    all_keys = import_into(tmp_path / "b", Given(names(2000), 100), split=rule).rows
    some_keys = import_into(tmp_path / "c", Given(names(2000)[::2], 7), split=rule).rows
    sets = {row["key"]: row["split"] for row in all_keys}
    assert all(sets[row["key"]] == row["split"] for row in some_keys)
    assert 340 < sum(split == "query" for split in sets.values()) < 460


def test_more_rows_than_the_split_has_room_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"room for 5 rows and the source has more; end it with NAME=rest"):
        import_into(tmp_path, Given(names(6)), split=parse_split("query=2,train=3"))


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("query=x,train=rest", "no number"),
        ("query=2,query=rest", "names must be given and differ"),
        ("=2", "names must be given"),
        ("query=2,train=5%", "do not mix"),
        ("query=0,train=rest", "must be positive"),
        ("query=1.5,train=rest", "counts whole"),
        ("query=70%,train=40%", "come to 110 %"),
        ("query=20%,train=70%", "come to 90 %"),
    ],
)
def test_a_rule_that_makes_no_sense_says_what_is_wrong(rule: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_split(rule)


@pytest.mark.parametrize("rule", ["train", "query=20%,train=80%", "query=5.5%,train=rest"])
def test_rules_that_cover_every_row_have_room_for_all(rule: str) -> None:
    assert parse_split(rule).rows == float("inf")
