"""How the parts of a release are made, and how an ended build goes on."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.releases.addresses import code_path, part_keys_path, part_path, sha256
from pipeline.releases.manifest import PARTS, ManifestError
from pipeline.releases.storage import Storage
from pipeline.search.building import make_part, parts_table, standing_parts
from pipeline.search.indexing import IndexConfig
from pipeline.search.part_plans import PartPlan, plan_release_parts
from tests.search.stores import code_table, unit, units


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


def test_a_part_is_made_once_and_completed_after_an_end_between_its_files(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    rows = [store_codes(store, unit(f"{name}.parquet", count), count) for name, count in (("a", 4), ("b", 3))]
    plan = plan_of(*rows)
    first = make_part(plan, store)
    assert (first["rows"], first["units"]) == (7, 2)
    assert parts_table(PARTS.empty_table(), [first]).num_rows == 1
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
    table = parts_table(PARTS.empty_table(), (row | {"ordinal": n} for n, row in enumerate(made)))
    assert standing_parts(table, store) == table
    store.delete(part_keys_path(made[0]["part"]))
    store.write(part_path(made[2]["part"]), b"short")
    assert standing_parts(table, store)["part"].to_pylist() == [made[1]["part"]]
    assert standing_parts(PARTS.empty_table(), store) == PARTS.empty_table()


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
