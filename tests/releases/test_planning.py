"""The plan of a night against a slow dictionary oracle, and its laws."""

import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codes import PACKER_VERSION
from pipeline.releases.addresses import code_address, unit_token
from pipeline.releases.manifest import UNITS
from pipeline.releases.planning import CHANGED, NEW, RECIPE, Plan, plan_night
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
    return pa.concat_tables([plan.reuse, pa.Table.from_pylist(made, schema=UNITS)])


def night(files: list[SourceFile], parent: pa.Table | None = None) -> Plan:
    return plan_night(files, TOWERS, recipes=both(INPUT), parent_units=parent)


@given(listings, listings, towers, towers, recipes, recipes)
def test_a_plan_is_that_of_the_slow_oracle(before, after, old, new, first, second) -> None:  # type: ignore[no-untyped-def]
    parent = finished(plan_night(before, old, recipes=both(first)))
    plan = plan_night(after, new, recipes=both(second), parent_units=parent)
    encode, reuse, vanished = reference.plan_night(after, new, second, parent.to_pylist())
    assert [(row["path"], row["side"], row["code"]) for row in plan.encode.to_pylist()] == encode
    assert [(row["path"], row["side"], row["code"]) for row in plan.reuse.to_pylist()] == reuse
    assert list(plan.vanished) == vanished
    assert len(encode) + len(reuse) == len(after) * len(new)
    ledgers = {row["code"]: (row["code_sha256"], row["read"], row["encoded"]) for row in parent.to_pylist()}
    for row in plan.reuse.to_pylist():
        assert ledgers[row["code"]] == (row["code_sha256"], row["read"], row["encoded"])
        file = next(file for file in after if file.path == row["path"])
        assert (row["size"], row["token"]) == (file.size, file.token)


@given(listings, st.randoms(use_true_random=False))
def test_the_order_of_the_listing_does_not_count(files: list[SourceFile], order: random.Random) -> None:
    shuffled = order.sample(files, len(files))
    assert night(shuffled) == night(files)


@given(listings)
def test_the_second_night_of_an_equal_source_has_nothing_to_do(files: list[SourceFile]) -> None:
    parent = finished(night(files))
    plan = night(files, parent)
    assert plan.nothing_to_do
    assert plan.reuse.sort_by([("path", "ascending"), ("side", "ascending")]) == plan.reuse
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
    plan = plan_night(after, TOWERS | {"text": "9" * 32}, recipes=both(INPUT), parent_units=parent)
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
    plan = plan_night(
        files, TOWERS | {"text": "9" * 32}, recipes=both(INPUT), parent_units=finished(night(files))
    )
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
