"""The plan of parts: every unit is in one of its side, what stands is shared, memory is dealt out."""

import tracemalloc

import pyarrow as pa
import pytest

from pipeline.releases.locating import unit_name
from pipeline.releases.manifest import PARTS
from pipeline.search import part_plans
from pipeline.search.assembly import memory_need
from pipeline.search.families import parse_recipe
from pipeline.search.indexing import IndexConfig
from pipeline.search.part_plans import plan_release_parts, reuse_parts, share_memory
from tests.search.stores import unit, units

INDEX = IndexConfig(part_boundary=3)


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
    for plan, code_bytes in zip(plans, plans.parts["code_bytes"].to_pylist(), strict=True):
        mine = [named[name] for name, _ in plan.members]
        assert plan.rows == sum(row["encoded"] for row in mine)
        assert code_bytes == sum(row.get("code_bytes", 0) for row in mine)
    assert len(plans) > 2


def test_parts_are_the_same_however_many_units_are_looked_up_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [unit(f"{n}.parquet", n % 5, side) for n in range(200) for side in ("text", "image")]
    plan = plan_release_parts(units(*rows), INDEX)
    parts = list(plan)
    for page in (1, 7, 150):
        monkeypatch.setattr(part_plans, "_PAGE", page)
        assert list(plan) == parts
    assert len(parts) == len(plan) > 60


def test_a_plan_holds_no_python_object_for_a_unit() -> None:
    table = units(*(unit(f"{n:06d}.parquet", 1) for n in range(20_000)))
    tracemalloc.start()
    try:
        plan = plan_release_parts(table, IndexConfig())
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert plan.rows == 20_000
    assert held < 16 * 20_000  # the rows' numbers in order are 8 bytes each


def test_a_changed_unit_rebuilds_the_part_that_holds_it_and_no_other() -> None:
    rows = [unit(f"{n}.parquet", 4) for n in range(30)]
    before = plan_release_parts(units(*rows), INDEX)
    known = [dict.fromkeys(PARTS.names) | {"part": plan.address, "side": plan.side} for plan in before]
    parent = pa.Table.from_pylist(known, schema=PARTS)
    rows[7] = unit("7.parquet", 5)
    after = plan_release_parts(units(*rows), INDEX)
    reused, missing = reuse_parts(after, parent)
    [built] = missing
    assert "7.parquet" in dict(built.members)
    ordinals = dict(zip(reused["part"].to_pylist(), reused["ordinal"].to_pylist(), strict=True))
    assert ordinals | {built.address: built.ordinal} == {part.address: part.ordinal for part in after}
    assert len(reused) == len(before) - 1


def test_builds_share_the_memory_and_as_many_run_at_once_as_fit() -> None:
    rows = [unit(f"{n}.parquet", 100_000) | {"code_bytes": 4_000_000} for n in range(6)]
    plan = plan_release_parts(units(*rows), IndexConfig(part_boundary=1))
    most = memory_need(100_000, 4_000_000, parse_recipe("BFlat"), code_size=8).most
    for memory, at_once, expected in (
        (10 * most, 4, 4),
        (10 * most, 64, 6),
        (2 * most, 64, 2),
        (most - 1, 64, 1),
    ):
        shared, count = share_memory(plan, max_memory=memory, code_size=8, at_once=at_once)
        assert count == expected
        assert {part.memory for part in shared} == {memory // expected}
    nothing = plan_release_parts(units(), IndexConfig())
    assert list(nothing) == []
    assert share_memory(nothing, max_memory=1, code_size=8, at_once=4)[1] == 1
    hashed = plan_release_parts(units(*rows), IndexConfig(recipe="BHNSW32", part_boundary=1))
    with pytest.raises(
        ValueError, match=r"index.max_memory is 1000000 .* part 0 of side image \(100000 rows, BHNSW32"
    ):
        share_memory(hashed, max_memory=1_000_000, code_size=8, at_once=4)
