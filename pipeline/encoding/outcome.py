"""What a night's encoding came to: its counts, its limits, and the unit tables of the next release. Pure.

All of it is columns: a first night over millions of units would else be as many Python objects.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.encoding.units import StoredCodes, UnitReport
from pipeline.releases.addresses import rejects_path
from pipeline.releases.manifest import REJECTS, UNITS, ManifestError, code_file, code_files, joined
from pipeline.releases.planning import Plan

_LEDGER = ("read", "encoded", "rejected", "absent")

STORED = pa.schema(
    [
        ("code", pa.string()),  # address
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        *((name, pa.int64()) for name in _LEDGER),
        ("rejects_sha256", pa.string()),  # null where there are none
        ("rejects_bytes", pa.int64()),
    ]
)
"""One row per code file that stands in the store: what a release says of it."""

STANDING = pa.schema([*STORED, ("made", pa.bool_()), ("reused", pa.int64())])
"""Likewise; whether this run made it, and of how many of its rows an earlier code file had the code."""

PLACES = pa.schema([("path", pa.string()), ("first_row_group", pa.int32())])
"""One row per unit."""

_PAGE = 1 << 12


@dataclass(frozen=True)
class Outcome:
    """What became of the code files that a plan wants.

    `standing` (STANDING): those that stand in the store now; `refused`: paths of units without codes of
    their present version, and why; `left` (PLACES): units that this run did not get to.
    """

    standing: pa.Table = field(default_factory=STANDING.empty_table)
    refused: Mapping[str, str] = field(default_factory=dict)
    left: pa.Table = field(default_factory=PLACES.empty_table)

    def made_of(self, plan: Plan) -> pa.Table:
        """Return place and size of the code files of a plan that were made in this run."""
        made = self.standing["code"].filter(self.standing["made"])
        places = plan.encode.select([*PLACES.names, "size"])  # of what else there is nobody needs a copy
        return places.filter(pc.is_in(plan.encode["code"], value_set=made))

    def lacking_of(self, plan: Plan) -> pa.Table:
        """Return the rows of a plan whose code files do not stand."""
        stands = pc.is_in(plan.encode["code"], value_set=self.standing["code"])
        return plan.encode.filter(pc.invert(stands))


class Standing:
    """Collects code files that stand in the store, as a table."""

    def __init__(self) -> None:
        self._tables = [STANDING.empty_table()]
        self._rows: list[dict[str, Any]] = []

    def made(self, report: UnitReport) -> None:
        """Take the code files that were made of a unit."""
        for side, codes in report.files.items():
            self._rows.append(_stored_row(codes) | {"made": True, "reused": report.reused.get(side, 0)})
        if len(self._rows) >= _PAGE:
            self._close_page()

    def found(self, stored: pa.Table) -> None:
        """Take code files (STORED) that an earlier run has left."""
        columns = {"made": pa.array([False] * len(stored)), "reused": pa.array([0] * len(stored), pa.int64())}
        self._tables.append(pa.table([*stored.columns, *columns.values()], schema=STANDING))

    def table(self) -> pa.Table:
        """Return all of them (STANDING)."""
        self._close_page()
        return pa.concat_tables(self._tables)

    def _close_page(self) -> None:
        self._tables.append(pa.Table.from_pylist(self._rows, schema=STANDING))
        self._rows = []


def stored_table(codes: Iterable[StoredCodes]) -> pa.Table:
    """Return code files as a table (STORED)."""
    return pa.Table.from_pylist([_stored_row(one) for one in codes], schema=STORED)


def _stored_row(codes: StoredCodes) -> dict[str, Any]:
    return {
        "code": codes.address,
        "sha256": codes.codes.sha256,
        "bytes": codes.codes.size,
        **{name: getattr(codes.ledger, name) for name in _LEDGER},
        "rejects_sha256": codes.rejects.sha256 if codes.rejects else None,
        "rejects_bytes": codes.rejects.size if codes.rejects else None,
    }


def count_rows(outcome: Outcome, plan: Plan) -> dict[str, int]:
    """Count a night's rows and units by the names of the result line.

    Rows are counted once per side that was read, so that read = encoded + reused + rejected + absent.
    """
    made = outcome.standing.select(["code", *_LEDGER, "reused"]).filter(outcome.standing["made"])
    sides = plan.encode["side"].take(pc.index_in(made["code"], value_set=plan.encode["code"]))
    fresh = pc.subtract(made["encoded"], made["reused"])
    encoded = {side: _sum(fresh.filter(pc.equal(sides, side))) for side in ("image", "text")}
    return {
        "rows_read": _sum(made["read"]),
        "rows_encoded": sum(encoded.values()),
        "rows_encoded_image": encoded["image"],
        "rows_encoded_text": encoded["text"],
        "rows_reused": _sum(made["reused"]),
        "rows_rejected": _sum(made["rejected"]),
        "rows_absent": _sum(made["absent"]),
        "units_total": plan.counts()["units_total"],
        "units_encoded": len(outcome.made_of(plan).group_by(PLACES.names).aggregate([])),
        "units_refused": len(outcome.refused),
    }


def next_units(plan: Plan, outcome: Outcome, parent_units: pa.Table) -> pa.Table:
    """Return the table `units` of the next release.

    Args:
        parent_units: rows that a unit without codes may keep, marked stale: of the same towers as this night.
    """
    kept = _kept_rows(plan, outcome, parent_units)
    stale = pa.nulls(len(kept), pa.bool_()).fill_null(True)
    kept = kept.set_column(UNITS.get_field_index("stale"), "stale", stale).cast(UNITS)
    found = pc.index_in(plan.encode["code"], value_set=outcome.standing["code"])
    fresh = pc.is_valid(found)
    if len(kept):
        in_part = pc.is_in(joined(plan.encode, "path", "side"), value_set=joined(kept, "path", "side"))
        fresh = pc.and_(fresh, pc.invert(in_part))
    wanted = plan.encode
    if not pc.all(fresh, min_count=0).as_py():  # else this would be a copy of millions of rows
        wanted, found = wanted.filter(fresh), found.filter(fresh)
    standing = outcome.standing.select([*_LEDGER, "sha256", "bytes"]).take(found)
    return pa.concat_tables([plan.reuse, kept, _unit_rows(wanted, standing)])


def _kept_rows(plan: Plan, outcome: Outcome, parent_units: pa.Table) -> pa.Table:
    """Return the rows of refused files as the parent has them: the ranges of a file are of one version."""
    without = pa.chunked_array([pa.array(list(outcome.refused), pa.string()), *outcome.left["path"].chunks])
    mine = parent_units.filter(pc.is_in(parent_units["path"], value_set=without))
    lacking = joined(outcome.lacking_of(plan), "path", "side")
    is_lacking = pc.is_in(joined(mine, "path", "side"), value_set=lacking)
    return mine.filter(pc.and_not(is_lacking, pc.is_in(mine["code"], value_set=plan.reuse["code"])))


def _unit_rows(wanted: pa.Table, standing: pa.Table) -> pa.Table:
    """Return rows of UNITS of code files that were wanted, and stand as the other table says, row by row."""
    columns = {name: wanted[name] for name in UNITS.names if name in wanted.column_names}
    columns |= {name: standing[name] for name in _LEDGER}
    columns |= {
        "code_sha256": standing["sha256"],
        "code_bytes": standing["bytes"],
        "stale": pa.nulls(len(wanted), pa.bool_()).fill_null(False),
        "purged": pa.nulls(len(wanted), pa.string()),
    }
    return pa.table([columns[name] for name in UNITS.names], schema=UNITS)


def next_rejects(units: pa.Table, outcome: Outcome, parent_rejects: pa.Table) -> pa.Table:
    """Return the table `rejects` that belongs to `units`.

    Raises:
        ManifestError: the parent's table lacks the rejects of a unit that is reused.
    """
    mine = units.filter(pc.greater(units["rejected"], 0))
    codes = code_files(mine)
    made = outcome.standing.take(pc.index_in(mine["code"], value_set=outcome.standing["code"]))
    before = parent_rejects.take(pc.index_in(codes, value_set=parent_rejects["rejects"]))
    fresh = pc.is_valid(made["rejects_sha256"])
    columns = {name: mine[name] for name in ("path", "first_row_group", "side")}
    columns |= {
        "rejects": pc.if_else(fresh, mine["code"], codes),
        "sha256": pc.coalesce(made["rejects_sha256"], before["sha256"]),
        "bytes": pc.if_else(fresh, made["rejects_bytes"], before["bytes"]),
        "rows": pc.if_else(fresh, made["rejected"], before["rows"]),
    }
    rejects = pa.table([columns[name] for name in REJECTS.names], schema=REJECTS)
    if lost := rejects.filter(pc.is_null(rejects["sha256"])).slice(0, 1).to_pylist():
        raise ManifestError(
            f"the current release counts rejects of {lost[0]['path']} on the {lost[0]['side']} side, and its"
            " table of rejects does not name them; restore the table or roll back"
        )
    return rejects


def without_codes(plan: Plan, outcome: Outcome, units: pa.Table) -> int:
    """Count the units left over of which a release would have no codes, or only some.

    Args:
        units: table `units` of that release.
    """
    lacking, stale = outcome.lacking_of(plan), units.filter(units["stale"])
    kept = pc.is_in(joined(lacking, "path", "side"), value_set=joined(stale, "path", "side"))
    names = joined(lacking.filter(pc.invert(kept)), *PLACES.names)
    left = joined(outcome.left, *PLACES.names)
    return len(pc.unique(names.filter(pc.is_in(names, value_set=left))))


def check_limits(
    outcome: Outcome, units: pa.Table, *, max_reject_fraction: float, max_refused_units: int
) -> None:
    """Check that a night went well enough to be published.

    Raises:
        RuntimeError: more units were refused, or a larger share of the rows rejected, than is allowed.
    """
    refused = len(outcome.refused)
    if refused > max_refused_units:
        first = min(outcome.refused)
        raise RuntimeError(
            f"{refused} unit(s) refused, encode.max_refused_units allows {max_refused_units}; "
            f"first: {first}: {outcome.refused[first]}; mend or remove them, or raise the limit"
        )
    for side in sorted(pc.unique(units["side"]).to_pylist()):
        mine = units.filter(pc.equal(units["side"], side))
        rejected, read = _sum(mine["rejected"]), _sum(mine["read"])
        if rejected > max_reject_fraction * read:
            (most,) = mine.slice(pc.index(mine["rejected"], pc.max(mine["rejected"])).as_py(), 1).to_pylist()
            raise RuntimeError(
                f"{rejected} of {read} rows rejected on the {side} side, encode.max_reject_fraction allows "
                f"{max_reject_fraction:g}; {most['rejected']} of them are in {most['path']}: see "
                f"{rejects_path(code_file(most))} of the store; mend them or raise the limit"
            )


def _sum(column: pa.ChunkedArray) -> int:
    return pc.sum(column).as_py() or 0
