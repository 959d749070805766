"""The parts of a release: which are shared with the one before, and how an ended build goes on."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.releases.addresses import code_path, digest_bytes, part_keys_path, part_path
from pipeline.releases.manifest import PARTS, UNITS
from pipeline.releases.storage import Storage
from pipeline.search.building import PartPlan, make_part, parts_table, plan_release_parts, reuse_parts
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


def store_codes(store: Storage, row: dict, seed: int) -> None:
    table = code_table([f"{row['path']}-{n}" for n in range(row["encoded"])], size=2, seed=seed)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    store.write(code_path(row["code"]), sink.getvalue())


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
    rows = [unit("a.parquet", 4), unit("b.parquet", 3)]
    for seed, row in enumerate(rows):
        store_codes(store, row, seed)
    plan = plan_of(*rows)
    first = make_part(plan, store, recipe="BFlat")
    assert (first["rows"], first["units"]) == (7, 2)
    assert parts_table([first]).num_rows == 1
    names = [part_path(plan.address), part_keys_path(plan.address)]
    whole = [store.read(name) for name in names]
    store.delete(names[0])
    assert make_part(plan, store, recipe="BFlat") == first
    for row in rows:
        store.delete(code_path(row["code"]))  # a part that stands is not built again
    assert make_part(plan, store, recipe="BFlat") == first
    assert [store.read(name) for name in names] == whole
    assert np.frombuffer(whole[0], np.uint8).size == first["index_bytes"]


def test_a_missing_or_short_code_file_leaves_no_part(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    row = unit("a.parquet", 4)
    with pytest.raises(FileNotFoundError):
        make_part(plan_of(row), store, recipe="BFlat")
    store_codes(store, row | {"encoded": 3}, 0)
    with pytest.raises(RuntimeError, match="hold 3 rows, the release counts 4"):
        make_part(plan_of(row), store, recipe="BFlat")
    assert store.list("parts") == []
