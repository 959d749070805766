"""The plan of a night against a slow dictionary oracle, and its laws."""

import itertools
import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codes import PACKER_VERSION
from pipeline.releases.addresses import code_address, unit_token
from pipeline.releases.manifest import UNITS
from pipeline.releases.planning import (
    CHANGED,
    NEW,
    RECIPE,
    RETRIED,
    Plan,
    cut_files,
    cut_row_groups,
    files_to_open,
    plan_night,
    source_table,
)
from pipeline.releases.storage import SourceFile
from tests import reference

TOWERS = {"image": "1" * 32, "text": "2" * 32}
INPUT = "3" * 32

listings = st.dictionaries(
    st.sampled_from(["a.parquet", "b c.parquet", "d/ü.parquet", "e.parquet", "f/g/h.parquet"]),
    st.tuples(st.integers(1, 3), st.sampled_from("xyz")),
).map(lambda found: [SourceFile(path, size, token) for path, (size, token) in found.items()])
towers = st.dictionaries(
    st.sampled_from(["image", "text"]), st.sampled_from(["1" * 32, "2" * 32]), min_size=1
)
recipes = st.sampled_from(["3" * 32, "4" * 32])


def both(recipe: str) -> dict[str, str]:
    return {"image": recipe, "text": recipe}


def finished(plan: Plan) -> pa.Table:
    """The units of the release that a night with this plan leaves: every code file encoded."""
    ledger = {"read": 4, "encoded": 2, "rejected": 1, "absent": 1, "stale": False}
    made = [
        {name: row.get(name) for name in UNITS.names}
        | ledger
        | {"code_sha256": row["code"] * 2, "code_bytes": 1}
        for row in plan.encode.to_pylist()
    ]
    units = pa.concat_tables([plan.reuse, pa.Table.from_pylist(made, schema=UNITS)])
    return units.sort_by([(name, "ascending") for name in ("path", "first_row_group", "side")])


Ranges = dict[str, list[tuple[int, int]]]


def night(
    files: list[SourceFile],
    parent: pa.Table | None = None,
    *,
    towers: dict[str, str] = TOWERS,
    recipe: str = INPUT,
    retries: frozenset[str] = frozenset(),
    ranges: Ranges | None = None,
) -> Plan:
    """Plan a night over listed files, of which some were opened and found to have these ranges."""
    known = UNITS.empty_table() if parent is None else parent
    units = cut_files(source_table(files), known, ranges or {})
    return plan_night(units, towers, recipes=both(recipe), parent_units=parent, retries=retries)


@settings(max_examples=50)
@given(listings, listings, towers, towers, recipes, recipes)
def test_a_plan_is_that_of_the_slow_oracle(before, after, old, new, first, second) -> None:  # type: ignore[no-untyped-def]
    parent = finished(night(before, towers=old, recipe=first))
    plan = night(after, parent, towers=new, recipe=second)
    encode, reuse, vanished = reference.plan_night(after, new, second, parent.to_pylist())
    assert [(row["path"], row["side"], row["code"]) for row in plan.encode.to_pylist()] == encode
    assert sorted((row["path"], row["side"], row["code"]) for row in plan.reuse.to_pylist()) == sorted(reuse)
    assert list(plan.vanished) == vanished
    assert len(encode) + len(reuse) == len(after) * len(new)
    ledgers = {row["code"]: (row["code_sha256"], row["read"], row["encoded"]) for row in parent.to_pylist()}
    for row in plan.reuse.to_pylist():
        assert ledgers[row["code"]] == (row["code_sha256"], row["read"], row["encoded"])
        file = next(file for file in after if file.path == row["path"])
        assert (row["size"], row["token"]) == (file.size, file.token)


@settings(max_examples=25)
@given(listings, st.randoms(use_true_random=False))
def test_the_order_of_the_listing_does_not_count(files: list[SourceFile], order: random.Random) -> None:
    shuffled = order.sample(files, len(files))
    assert night(shuffled) == night(files)


@settings(max_examples=25)
@given(listings)
def test_the_second_night_of_an_equal_source_has_nothing_to_do(files: list[SourceFile]) -> None:
    parent = finished(night(files))
    plan = night(files, parent)
    assert plan.nothing_to_do
    assert plan.reuse.sort_by([("side", "ascending"), ("path", "ascending")]) == plan.reuse
    assert plan.counts()["units_reused"] == len(files)
    assert plan.counts()["units_encoded"] == 0


def test_every_file_to_encode_has_its_reason() -> None:
    first = [
        SourceFile("a.parquet", 1, "x"),
        SourceFile("b.parquet", 1, "y"),
        SourceFile("c.parquet", 1, "z"),
    ]
    parent = finished(night(first))
    after = [
        SourceFile("a.parquet", 1, "x"),
        SourceFile("b.parquet", 2, "y"),
        SourceFile("d.parquet", 9, "n"),
    ]
    plan = night(after, parent, towers=TOWERS | {"text": "9" * 32})
    reasons = {(row["path"], row["side"]): row["reason"] for row in plan.encode.to_pylist()}
    assert reasons == {
        ("a.parquet", "text"): RECIPE,
        ("b.parquet", "image"): CHANGED,
        ("b.parquet", "text"): CHANGED,
        ("d.parquet", "image"): NEW,
        ("d.parquet", "text"): NEW,
    }
    assert plan.vanished == ("c.parquet",)
    assert not plan.nothing_to_do
    assert plan.counts() == {
        "units_total": 3,
        "units_encoded": 3,
        "units_reused": 0,
        "units_vanished": 1,
        "code_files_encode_image": 2,
        "code_files_encode_text": 3,
        "code_files_reuse_image": 1,
    }


def test_a_new_text_tower_touches_nothing_of_the_image_side() -> None:
    files = [SourceFile(f"{n}.parquet", n, "x") for n in range(4)]
    plan = night(files, finished(night(files)), towers=TOWERS | {"text": "9" * 32})
    assert set(plan.encode["side"].to_pylist()) == {"text"}
    assert plan.reuse["side"].to_pylist() == ["image"] * 4


def test_a_moved_file_keeps_its_codes_and_a_stale_one_is_tried_again() -> None:
    parent = finished(night([SourceFile("old.parquet", 5, "etag")]))
    plan = night([SourceFile("new.parquet", 5, "etag")], parent)
    assert len(plan.encode) == 0
    assert plan.reuse["path"].to_pylist() == ["new.parquet"] * 2
    assert plan.vanished == ("old.parquet",)
    stale = parent.set_column(UNITS.names.index("stale"), "stale", pa.array([True, True]))
    plan = night([SourceFile("old.parquet", 6, "etag2")], stale)
    assert plan.encode["reason"].to_pylist() == [CHANGED] * 2


def test_the_address_is_the_one_that_the_encoder_is_given() -> None:
    plan = night([SourceFile("a.parquet", 7, "t")])
    row = plan.encode.to_pylist()[0]
    assert row["unit"] == unit_token(7, "t")
    assert row["code"] == code_address(
        row["unit"], "image", fingerprint=TOWERS["image"], recipe=INPUT, packer_version=PACKER_VERSION
    )


def test_a_path_that_leaves_the_source_or_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="a path must be relative"):
        night([SourceFile("../a.parquet", 1, "x")])
    with pytest.raises(ValueError, match="the source names 'a' twice"):
        night([SourceFile("a", 1, "x"), SourceFile("a", 2, "y")])


def test_an_empty_source_has_an_empty_plan() -> None:
    plan = night([])
    assert plan.nothing_to_do
    assert plan.counts()["units_total"] == 0


@settings(max_examples=50)
@given(
    st.text(max_size=8).filter(lambda text: text.isprintable()),
    st.none() | st.tuples(*[st.integers(0, 8)] * 2),
)
def test_addresses_of_columns_are_those_of_single_rows(token: str, ends: tuple[int, int] | None) -> None:
    ranges = {"a.parquet": [ends, (9, 10)]} if ends else {}
    plan = night([SourceFile("a.parquet", 7, token), SourceFile("b", 8, '"\\\n')], ranges=ranges)
    for row in plan.encode.to_pylist():
        limits = (row["first_row_group"], row["last_row_group"])
        unit = unit_token(row["size"], row["token"], None if limits == (None, None) else limits)
        assert row["unit"] == unit
        assert row["code"] == code_address(
            unit, row["side"], fingerprint=TOWERS[row["side"]], recipe=INPUT, packer_version=PACKER_VERSION
        )


def test_a_changed_unit_may_take_rows_from_the_parents_code_file_of_equal_tower_and_recipe_alone() -> None:
    parent = finished(night([SourceFile("a.parquet", 1, "x"), SourceFile("b.parquet", 1, "y")]))
    after = [
        SourceFile("a.parquet", 2, "x"),
        SourceFile("b.parquet", 1, "y"),
        SourceFile("c.parquet", 3, "z"),
    ]
    codes = {(row["path"], row["side"]): row["code"] for row in parent.to_pylist()}
    plan = night(after, parent, towers=TOWERS | {"text": "9" * 32})
    earlier = {(row["path"], row["side"]): row["earlier"] for row in plan.encode.to_pylist()}
    assert earlier == {
        ("a.parquet", "image"): codes["a.parquet", "image"],
        ("a.parquet", "text"): None,
        ("b.parquet", "text"): None,
        ("c.parquet", "image"): None,
        ("c.parquet", "text"): None,
    }
    assert set(night(after, parent, recipe="8" * 32).encode["earlier"].to_pylist()) == {None}


def test_a_retried_address_is_wanted_elsewhere_once() -> None:
    files = [SourceFile("a.parquet", 1, "x"), SourceFile("b.parquet", 1, "y")]
    parent = finished(night(files))
    first = parent["code"][0].as_py()
    plan = night(files, parent, retries=frozenset([first]))
    [row] = plan.encode.to_pylist()
    assert (row["path"], row["side"], row["reason"]) == ("a.parquet", "image", RETRIED)
    assert row["earlier"] == first != row["code"]
    assert night(files, finished(plan), retries=frozenset([first])).nothing_to_do


def test_a_unit_that_was_retried_still_lends_its_rows() -> None:
    """When it is retried once more, and when it changes: not one known row of it is encoded again."""
    files = [SourceFile("a.parquet", 1, "x"), SourceFile("b.parquet", 1, "y")]
    parent = finished(night(files))
    first = parent["code"][0].as_py()
    once = finished(night(files, parent, retries=frozenset([first])))
    second = once["code"][0].as_py()
    for now, retries in ((files, {first, second}), ([SourceFile("a.parquet", 2, "z"), files[1]], {first})):
        rows = night(now, once, retries=frozenset(retries)).encode.to_pylist()
        earlier = {(row["path"], row["side"]): row["earlier"] for row in rows}
        assert earlier["a.parquet", "image"] == second
        assert None not in earlier.values()


def test_files_that_swap_their_content_are_work_to_publish_and_none_to_encode() -> None:
    a, b = SourceFile("a.parquet", 1, "x"), SourceFile("b.parquet", 1, "y")
    parent = finished(night([a, b]))
    swapped = [SourceFile("a.parquet", 1, "y"), SourceFile("b.parquet", 1, "x")]
    copied = [a, b, SourceFile("c.parquet", 1, "x")]
    for files in (swapped, copied):
        plan = night(files, parent)
        assert len(plan.encode) == 0
        assert not plan.nothing_to_do
        assert night(files, finished(plan)).nothing_to_do


@given(st.lists(st.integers(0, 9), max_size=12), st.lists(st.integers(0, 9), max_size=4), st.integers(1, 20))
def test_ranges_tile_the_row_groups_and_hold_no_more_than_the_limit(
    sizes: list[int], added: list[int], limit: int
) -> None:
    ranges = cut_row_groups(sizes, limit)
    assert [n for first, last in ranges for n in range(first, last)] == list(range(len(sizes)))
    for first, last in ranges:
        assert last == first + 1 or sum(sizes[first:last]) <= limit
    for (first, last), (_, following) in itertools.pairwise(ranges):
        assert sum(sizes[first : last + 1]) > limit, f"{following} could have gone one range earlier"
    assert cut_row_groups(sizes + added, limit)[: max(len(ranges) - 1, 0)] == ranges[:-1]


def test_a_large_file_is_opened_once_and_keeps_its_ranges() -> None:
    large, small = SourceFile("large.parquet", 100, "x"), SourceFile("small.parquet", 10, "y")
    opened = files_to_open(source_table([large, small]), UNITS.empty_table(), limit=50)
    assert opened["path"].to_pylist() == ["large.parquet"]
    first = night([large, small], ranges={"large.parquet": [(0, 2), (2, 5)], "small.parquet": [(0, 1)]})
    assert [
        (row["path"], row["first_row_group"], row["last_row_group"], row["side"])
        for row in first.encode.to_pylist()
    ] == [
        ("large.parquet", 0, 2, "image"),
        ("large.parquet", 0, 2, "text"),
        ("large.parquet", 2, 5, "image"),
        ("large.parquet", 2, 5, "text"),
        ("small.parquet", None, None, "image"),
        ("small.parquet", None, None, "text"),
    ]
    assert first.counts()["units_total"] == first.counts()["units_encoded"] == 3
    parent = finished(first)
    assert len(files_to_open(source_table([large, small]), parent, limit=5)) == 0
    assert night([large, small], parent).nothing_to_do
    grown = SourceFile("large.parquet", 120, "z")
    assert files_to_open(source_table([grown, small]), parent, limit=50)["path"].to_pylist() == [
        "large.parquet"
    ]
    plan = night([grown, small], parent, ranges={"large.parquet": [(0, 2), (2, 6), (6, 7)]})
    earlier = {(row["first_row_group"], row["side"]): row["earlier"] for row in plan.encode.to_pylist()}
    codes = {(row["first_row_group"], row["side"]): row["code"] for row in parent.to_pylist()}
    assert earlier[0, "image"] == codes[0, "image"]
    assert earlier[2, "image"] is earlier[6, "text"] is None, "these ranges are of other row groups"
    assert plan.vanished == ()
