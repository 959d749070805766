"""The parts of a release: which are shared with the one before, and how an ended build goes on."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.releases.addresses import code_path, digest_bytes, part_keys_path, part_path, sha256
from pipeline.releases.locating import unit_name
from pipeline.releases.manifest import PARTS, UNITS, ManifestError
from pipeline.releases.storage import Storage
from pipeline.search.building import (
    PartPlan,
    make_part,
    parts_table,
    plan_release_parts,
    reuse_parts,
    share_memory,
    standing_parts,
)
from pipeline.search.indexing import IndexConfig
from tests.search.stores import code_table

INDEX = IndexConfig(part_boundary=3)


def unit(path: str, rows: int, side: str = "image") -> dict:
    return {
        "path": path,
        "side": side,
        "code": digest_bytes(f"{path} {rows} {side}".encode()),
        "encoded": rows,
    }


def units(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=UNITS)


def store_codes(store: Storage, row: dict, seed: int) -> dict:
    """Write a code file and return the row with its digest."""
    table = code_table([f"{row['path']}-{n}" for n in range(row["encoded"])], size=2, seed=seed)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    store.write(code_path(row["code"]), sink.getvalue())
    return row | {"code_sha256": sha256(sink.getvalue())}


def plan_of(*rows: dict) -> PartPlan:
    [plan] = plan_release_parts(units(*rows), IndexConfig(part_boundary=1 << 30))
    return plan


def test_every_coded_unit_is_in_one_part_of_its_side_and_empty_units_are_in_none() -> None:
    table = units(
        *(unit(f"{n}.parquet", n) for n in range(20)), *(unit(f"{n}.parquet", 5, "text") for n in range(10))
    )
    plans = plan_release_parts(table, INDEX)
    for side, expected in (("image", range(1, 20)), ("text", range(10))):
        mine = [plan for plan in plans if plan.side == side]
        assert [plan.ordinal for plan in mine] == list(range(len(mine)))
        paths = [path for plan in mine for path, _ in plan.members]
        assert paths == sorted(f"{n}.parquet" for n in expected)
    assert sum(plan.rows for plan in plans) == sum(table["encoded"].to_pylist())
    assert len({plan.address for plan in plans}) == len(plans)


def test_parts_are_those_that_one_row_after_the_other_gives() -> None:
    """Names beyond ASCII, ranges of one file, purged files."""
    rows = [unit(path, n + 1) for n, path in enumerate(["b", "a[0:2]", "\U0001f600", "\uffee", "é/x", "z"])]
    rows += [
        unit("large", 5 + n) | {"first_row_group": 10 * n, "last_row_group": 10 * n + 10} for n in range(12)
    ]
    rows[0] |= {"purged": "f" * 32, "code_bytes": 7}
    named = {unit_name(unit(row["path"], 1) | {"first_row_group": None} | row): row for row in rows}
    plans = plan_release_parts(units(*rows), INDEX)
    members = [member for plan in plans for member in plan.members]
    assert members == [(name, named[name].get("purged") or named[name]["code"]) for name in sorted(named)]
    for plan in plans:
        mine = [named[name] for name, _ in plan.members]
        assert plan.rows == sum(row["encoded"] for row in mine)
        assert plan.code_bytes == sum(row.get("code_bytes", 0) for row in mine)
    assert len(plans) > 2


def test_a_changed_unit_rebuilds_the_part_that_holds_it_and_no_other() -> None:
    rows = [unit(f"{n}.parquet", 4) for n in range(30)]
    before = plan_release_parts(units(*rows), INDEX)
    known = [dict.fromkeys(PARTS.names) | {"part": plan.address, "side": plan.side} for plan in before]
    parent = pa.Table.from_pylist(known, schema=PARTS)
    rows[7] = unit("7.parquet", 5)
    reused, missing = reuse_parts(plan_release_parts(units(*rows), INDEX), parent)
    assert (len(reused), len(missing)) == (len(before) - 1, 1)
    assert "7.parquet" in dict(missing[0].members)


def test_a_part_is_made_once_and_completed_after_an_end_between_its_files(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    rows = [store_codes(store, unit(f"{name}.parquet", count), count) for name, count in (("a", 4), ("b", 3))]
    plan = plan_of(*rows)
    first = make_part(plan, store)
    assert (first["rows"], first["units"]) == (7, 2)
    assert parts_table([first]).num_rows == 1
    names = [part_path(plan.address), part_keys_path(plan.address)]
    whole = [store.read(name) for name in names]
    for lost in names:
        store.delete(lost)
        assert make_part(plan, store) == first
    for row in rows:
        store.delete(code_path(row["code"]))  # a part that stands is not built again
    assert make_part(plan, store) == first
    assert [store.read(name) for name in names] == whole
    assert np.frombuffer(whole[0], np.uint8).size == first["index_bytes"]


def test_a_missing_or_short_code_file_leaves_no_part(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    row = unit("a.parquet", 4)
    with pytest.raises(
        FileNotFoundError, match=r"codes/.* is missing: the codes of unit a.parquet; restore it"
    ):
        make_part(plan_of(row), store)
    short = store_codes(store, row | {"encoded": 3}, 0)
    with pytest.raises(RuntimeError, match="hold 3 rows, the release counts 4"):
        make_part(plan_of(short | {"encoded": 4}), store)
    assert store.list("parts") == []


def test_a_code_file_that_is_not_the_one_of_the_release_is_not_indexed(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    row = store_codes(store, unit("a.parquet", 4), 0)
    store_codes(store, row, 1)
    with pytest.raises(
        ManifestError, match=r"codes/.* is damaged: its sha256 is .* for unit a.parquet; restore"
    ):
        make_part(plan_of(row), store)
    assert store.list("parts") == []


def test_what_stands_in_the_place_of_a_part_is_not_taken_for_it(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    row = store_codes(store, unit("a.parquet", 4), 0)
    plan, other = plan_of(row), plan_of(store_codes(store, unit("b.parquet", 3), 1))
    whole = make_part(plan, store)
    make_part(other, store)
    for name, of_other in ((part_path, "hold 3 and 4 rows"), (part_keys_path, "hold 4 and 3 rows")):
        good = store.read(name(plan.address))
        for bad, said in (
            (store.read(name(other.address)), of_other),
            (good[:20], "is damaged"),
            (b"", "is damaged"),
        ):
            store.write(name(plan.address), bad)
            with pytest.raises(ManifestError, match=said):
                make_part(plan, store)
        store.write(name(plan.address), good)
    assert make_part(plan, store) == whole


def test_a_part_stands_while_both_its_files_have_their_sizes(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    made = [make_part(plan_of(store_codes(store, unit(f"{n}.parquet", 2), n)), store) for n in range(3)]
    table = parts_table([row | {"ordinal": n} for n, row in enumerate(made)])
    assert standing_parts(table, store) == table
    store.delete(part_keys_path(made[0]["part"]))
    store.write(part_path(made[2]["part"]), b"short")
    assert standing_parts(table, store)["part"].to_pylist() == [made[1]["part"]]
    assert standing_parts(PARTS.empty_table(), store) == PARTS.empty_table()


def test_builds_share_the_memory_and_as_many_run_at_once_as_fit() -> None:
    rows = [unit(f"{n}.parquet", 100_000) | {"code_bytes": 4_000_000} for n in range(6)]
    plans = plan_release_parts(units(*rows), IndexConfig(part_boundary=1))
    most = max(plan.need(8).most for plan in plans)
    for memory, at_once, expected in (
        (10 * most, 4, 4),
        (10 * most, 64, 6),
        (2 * most, 64, 2),
        (most - 1, 64, 1),
    ):
        shared, count = share_memory(plans, max_memory=memory, code_size=8, at_once=at_once)
        assert count == expected
        assert {plan.memory for plan in shared} == {memory // expected}
    assert share_memory([], max_memory=1, code_size=8, at_once=4) == ([], 1)
    hashed = plan_release_parts(units(*rows), IndexConfig(recipe="BHNSW32", part_boundary=1))
    with pytest.raises(
        ValueError, match=r"index.max_memory is 1000000 .* part 0 of side image \(100000 rows, BHNSW32"
    ):
        share_memory(hashed, max_memory=1_000_000, code_size=8, at_once=4)


def test_ranges_of_row_groups_of_one_file_are_units_of_their_own(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    rows = []
    for first in (0, 3):
        row = unit(f"big-{first}", 4) | {
            "path": "big.parquet",
            "first_row_group": first,
            "last_row_group": first + 3,
        }
        rows.append(store_codes(store, row, first))
    plan = plan_of(*rows)
    assert [name for name, _ in plan.members] == ["big.parquet[0:3]", "big.parquet[3:6]"]
    assert make_part(plan, store)["rows"] == 8
