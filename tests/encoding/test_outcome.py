"""The tables and counts of a night, from what was made, found, reused, kept stale and refused."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.encoding.codefile import Ledger
from pipeline.encoding.outcome import (
    PLACES,
    Outcome,
    Standing,
    check_limits,
    count_rows,
    next_rejects,
    next_units,
    stored_table,
    without_codes,
)
from pipeline.encoding.units import StoredCodes, StoredFile, UnitReport
from pipeline.releases.manifest import REJECTS, UNITS, ManifestError
from pipeline.releases.planning import Plan, cut_files, plan_night, source_table
from pipeline.releases.storage import SourceFile

TOWERS = {"image": "1" * 32, "text": "2" * 32}
RECIPES = {"image": "3" * 32, "text": "4" * 32}


def listing(**tokens: str) -> list[SourceFile]:
    """Units of equal size; the token of a version has its file's name in it, as that of a storage has."""
    return [SourceFile(f"{name}.parquet", 1, name + token) for name, token in tokens.items()]


def night(files: list[SourceFile], parent: pa.Table | None = None) -> Plan:
    known = UNITS.empty_table() if parent is None else parent
    units = cut_files(source_table(files), known, {})
    return plan_night(units, TOWERS, recipes=RECIPES, parent_units=parent)


def codes(address: str, rejected: int) -> StoredCodes:
    ledger = Ledger(10, 10 - rejected, rejected, 0)
    return StoredCodes(
        address, ledger, StoredFile("c" * 64, 7), StoredFile("r" * 64, 3) if rejected else None
    )


def made_of(plan: Plan, *, rejected: int = 0, but: tuple[str, ...] = ()) -> tuple[UnitReport, ...]:
    """Reports of every unit that a plan wants, all of it encoded."""
    units: dict[SourceFile, dict] = {}
    for row in plan.encode.to_pylist():
        if row["path"] not in but:
            unit = SourceFile(row["path"], row["size"], row["token"])
            units.setdefault(unit, {})[row["side"]] = codes(row["code"], rejected)
    return tuple(UnitReport(unit, files) for unit, files in units.items())


def outcome_of(
    made: Sequence[UnitReport] = (),
    *,
    found: Sequence[StoredCodes] = (),
    refused: dict[str, str] | None = None,
    left: Sequence[str] = (),
) -> Outcome:
    standing = Standing()
    standing.found(stored_table(found))
    for report in made:
        standing.made(report)
    places = pa.table([list(left), [None] * len(left)], schema=PLACES)
    return Outcome(standing.table(), refused or {}, places)


def test_made_found_and_reused_code_files_make_the_next_release() -> None:
    first = night(listing(a="1", b="1"))
    parent = next_units(first, outcome_of(made_of(first)), UNITS.empty_table())
    plan = night(listing(a="1", b="2", c="1"), parent)
    [b_image] = plan.encode.filter((pc.field("path") == "b.parquet") & (pc.field("side") == "image"))[
        "code"
    ].to_pylist()
    made = tuple(
        replace(report, files={side: f for side, f in report.files.items() if f.address != b_image})
        for report in made_of(plan, rejected=1)
    )
    outcome = outcome_of(made, found=[codes(b_image, 2)])
    units = next_units(plan, outcome, parent)
    assert {(row["path"], row["side"], row["rejected"], row["stale"]) for row in units.to_pylist()} == {
        ("a.parquet", "image", 0, False),
        ("a.parquet", "text", 0, False),
        ("b.parquet", "image", 2, False),
        ("b.parquet", "text", 1, False),
        ("c.parquet", "image", 1, False),
        ("c.parquet", "text", 1, False),
    }
    counts = count_rows(outcome, plan)
    assert counts["rows_read"] == 30 == counts["rows_encoded"] + counts["rows_rejected"]
    assert (counts["rows_encoded_image"], counts["rows_encoded_text"]) == (9, 18)
    assert (counts["units_total"], counts["units_encoded"]) == (3, 2)


def test_rejects_of_a_reused_unit_come_from_the_parent() -> None:
    first = night(listing(a="1", b="1"))
    outcome = outcome_of(made_of(first, rejected=1))
    units = next_units(first, outcome, UNITS.empty_table())
    rejects = next_rejects(units, outcome, REJECTS.empty_table())
    assert rejects.num_rows == 4
    plan = night(listing(a="1", b="2"), units)
    outcome = outcome_of(made_of(plan))
    later = next_rejects(next_units(plan, outcome, units), outcome, rejects)
    assert [(row["path"], row["side"], row["rows"]) for row in later.to_pylist()] == [
        ("a.parquet", "image", 1),
        ("a.parquet", "text", 1),
    ]


def test_a_refused_unit_keeps_the_codes_of_its_earlier_version_or_has_none() -> None:
    first = night(listing(a="1"))
    parent = next_units(first, outcome_of(made_of(first)), UNITS.empty_table())
    plan = night(listing(a="2", new="1"), parent)
    outcome = outcome_of(refused={"a.parquet": "broken", "new.parquet": "broken"})
    units = next_units(plan, outcome, parent).to_pylist()
    assert [(row["path"], row["token"], row["stale"]) for row in units] == [("a.parquet", "a1", True)] * 2
    assert next_units(plan, outcome, UNITS.empty_table()).num_rows == 0


def ranges(token: str, *bounds: tuple[int, int], parent: pa.Table | None = None) -> Plan:
    """The night of a source that is one file, cut into these ranges."""
    known = UNITS.empty_table() if parent is None else parent
    units = cut_files(source_table(listing(a=token)), known, {"a.parquet": list(bounds)})
    return plan_night(units, TOWERS, recipes=RECIPES, parent_units=parent)


def found_in(plan: Plan, *, but: int | None = None) -> list[StoredCodes]:
    rows = plan.encode.to_pylist()
    return [codes(row["code"], 0) for row in rows if row["first_row_group"] != but]


def test_one_refused_range_keeps_the_whole_file_as_it_was_and_of_a_new_file_the_others() -> None:
    first = ranges("1", (0, 2), (2, 4))
    parent = next_units(first, outcome_of(found=found_in(first)), UNITS.empty_table())
    plan = ranges("2", (0, 3), (3, 6), parent=parent)
    outcome = outcome_of(found=found_in(plan, but=3), refused={"a.parquet": "broken"})
    units = next_units(plan, outcome, parent).to_pylist()
    assert [(row["token"], row["first_row_group"], row["stale"]) for row in units] == [
        ("a1", 0, True),
        ("a1", 0, True),
        ("a1", 2, True),
        ("a1", 2, True),
    ]
    new = next_units(plan, outcome, UNITS.empty_table())
    assert [(row["first_row_group"], row["stale"]) for row in new.to_pylist()] == [(0, False)] * 2
    later = ranges("2", (0, 3), (3, 6), parent=new)
    refused = outcome_of(refused={"a.parquet": "broken"})
    assert next_units(later, refused, new).select(["code", "stale"]) == new.select(["code", "stale"])


def test_reused_rows_are_counted_apart_from_encoded_ones() -> None:
    plan = night(listing(a="1"))
    [report] = made_of(plan, rejected=1)
    outcome = outcome_of([replace(report, reused={"image": 7, "text": 9})])
    counts = count_rows(outcome, plan)
    assert (counts["rows_reused"], counts["rows_encoded_image"], counts["rows_encoded_text"]) == (16, 2, 0)
    assert counts["rows_read"] == counts["rows_encoded"] + counts["rows_reused"] + counts["rows_rejected"]


def test_units_left_over_keep_what_they_had_and_those_without_are_counted() -> None:
    first = night(listing(a="1", b="1"))
    parent = next_units(first, outcome_of(made_of(first, rejected=1)), UNITS.empty_table())
    plan = night(listing(a="2", b="2", new="1", more="1"), parent)
    made = made_of(plan, but=("b.parquet", "new.parquet", "more.parquet"))
    half = [codes(row["code"], 0) for row in plan.encode.to_pylist() if row["path"] == "more.parquet"][:1]
    outcome = outcome_of(made, found=half, left=["b.parquet", "new.parquet", "more.parquet"])
    units = next_units(plan, outcome, parent)
    assert {(row["path"], row["side"], row["token"], row["stale"]) for row in units.to_pylist()} == {
        ("a.parquet", "image", "a2", False),
        ("a.parquet", "text", "a2", False),
        ("b.parquet", "image", "b1", True),
        ("b.parquet", "text", "b1", True),
        ("more.parquet", half_side(plan, half[0]), "more1", False),
    }
    assert without_codes(plan, outcome, units) == 2, "new has none and more has one of two"
    rejects = next_rejects(parent, outcome_of(made_of(first, rejected=1)), REJECTS.empty_table())
    assert next_rejects(units, outcome, rejects)["path"].to_pylist() == ["b.parquet"] * 2
    with pytest.raises(ManifestError, match=r"counts rejects of b\.parquet on the image side"):
        next_rejects(units, outcome, REJECTS.empty_table())


def half_side(plan: Plan, one: StoredCodes) -> str:
    [row] = plan.encode.filter(pc.field("code") == one.address).to_pylist()
    return str(row["side"])


def test_limits_are_inclusive_and_named() -> None:
    plan = night(listing(a="1"))
    outcome = outcome_of(made_of(plan, rejected=1), refused={"b.parquet": "ArrowInvalid: no"})
    units = next_units(plan, outcome, UNITS.empty_table())
    check_limits(outcome, units, max_reject_fraction=0.1, max_refused_units=1)
    with pytest.raises(RuntimeError, match=r"1 of 10 rows rejected on the image side, .* allows 0\.09"):
        check_limits(outcome, units, max_reject_fraction=0.09, max_refused_units=1)
    with pytest.raises(RuntimeError, match=r"first: b\.parquet: ArrowInvalid: no"):
        check_limits(outcome, units, max_reject_fraction=1, max_refused_units=0)
