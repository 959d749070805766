"""What a night's encoding came to: its counts, its limits, and the unit tables of the next release. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.encoding.units import StoredCodes, UnitReport
from pipeline.releases.addresses import rejects_path
from pipeline.releases.manifest import REJECTS, UNITS, code_file
from pipeline.releases.planning import Plan


@dataclass(frozen=True)
class Outcome:
    """What became of the code files that a plan wants.

    `made`: units encoded in this run; `found`: code files, by address, that an earlier run left in the store;
    `refused`: units without codes of their present version, and why.
    """

    made: tuple[UnitReport, ...] = ()
    found: Mapping[str, StoredCodes] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def standing(self) -> dict[str, StoredCodes]:
        """Every wanted code file that stands in the store now, by address."""
        return dict(self.found) | {
            codes.address: codes for unit in self.made for codes in unit.files.values()
        }


def count_rows(outcome: Outcome, plan: Plan) -> dict[str, int]:
    """Count a night's rows and units by the names of the result line.

    Rows are counted once per side that was read, so that read = encoded + reused + rejected + absent.
    """
    ledgers = [(side, codes.ledger) for unit in outcome.made for side, codes in unit.files.items()]
    reused = sum(count for unit in outcome.made for count in unit.reused.values())
    encoded = Counter({"image": 0, "text": 0})
    for unit in outcome.made:
        for side, codes in unit.files.items():
            encoded[side] += codes.ledger.encoded - unit.reused.get(side, 0)
    return {
        "rows_read": sum(ledger.read for _, ledger in ledgers),
        "rows_encoded": encoded.total(),
        "rows_encoded_image": encoded["image"],
        "rows_encoded_text": encoded["text"],
        "rows_reused": reused,
        "rows_rejected": sum(ledger.rejected for _, ledger in ledgers),
        "rows_absent": sum(ledger.absent for _, ledger in ledgers),
        "units_total": plan.counts()["units_total"],
        "units_encoded": len(outcome.made),
        "units_refused": len(outcome.refused),
    }


def next_units(plan: Plan, outcome: Outcome, parent_units: pa.Table) -> pa.Table:
    """Return the table `units` of the next release.

    Args:
        parent_units: rows that a refused unit may keep, marked stale: of the same towers as this night.
    """
    standing, kept = outcome.standing, _kept_rows(plan, outcome, parent_units)
    rows = [row | {"stale": True} for found in kept.values() for row in found]
    for wanted in plan.encode.to_pylist():
        codes = standing.get(wanted["code"])
        if codes is not None and (wanted["path"], wanted["side"]) not in kept:
            rows.append(_unit_row(wanted, codes))
    rows.sort(key=lambda row: (row["path"], row["first_row_group"] or 0, row["side"]))
    return pa.concat_tables([plan.reuse, pa.Table.from_pylist(rows, schema=UNITS)])


def _kept_rows(
    plan: Plan, outcome: Outcome, parent_units: pa.Table
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the rows of refused files as the parent has them: the ranges of a file are of one version."""
    standing, reused = outcome.standing, set(plan.reuse["code"].to_pylist())
    lacking = {(row["path"], row["side"]) for row in plan.encode.to_pylist() if row["code"] not in standing}
    kept = defaultdict(list)
    for row in _rows_of(parent_units, outcome.refused):
        if (row["path"], row["side"]) in lacking and row["code"] not in reused:
            kept[row["path"], row["side"]].append(row)
    return kept


def next_rejects(units: pa.Table, outcome: Outcome, parent_rejects: pa.Table) -> pa.Table:
    """Return the table `rejects` that belongs to `units`."""
    standing = outcome.standing
    earlier = {row["rejects"]: row for row in parent_rejects.to_pylist()}
    rows = []
    for unit in units.filter(pc.greater(units["rejected"], 0)).to_pylist():
        place = {name: unit[name] for name in ("path", "first_row_group", "side")}
        codes = standing.get(unit["code"])
        if codes is not None and codes.rejects is not None:
            file = {"sha256": codes.rejects.sha256, "bytes": codes.rejects.size}
            rows.append(place | file | {"rejects": unit["code"], "rows": codes.ledger.rejected})
        else:
            rows.append(earlier[code_file(unit)] | place)
    return pa.Table.from_pylist(rows, schema=REJECTS)


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
        rejected, read = pc.sum(mine["rejected"]).as_py(), pc.sum(mine["read"]).as_py()
        if rejected > max_reject_fraction * read:
            most = max(mine.to_pylist(), key=lambda row: int(row["rejected"]))
            raise RuntimeError(
                f"{rejected} of {read} rows rejected on the {side} side, encode.max_reject_fraction allows "
                f"{max_reject_fraction:g}; {most['rejected']} of them are in {most['path']}: see "
                f"{rejects_path(code_file(most))} of the store; mend them or raise the limit"
            )


def _unit_row(wanted: Mapping[str, Any], codes: StoredCodes) -> dict[str, Any]:
    ledger = codes.ledger
    return {name: wanted[name] for name in UNITS.names if name in wanted} | {
        "code_sha256": codes.codes.sha256,
        "code_bytes": codes.codes.size,
        "read": ledger.read,
        "encoded": ledger.encoded,
        "rejected": ledger.rejected,
        "absent": ledger.absent,
        "stale": False,
    }


def _rows_of(units: pa.Table, paths: Iterable[str]) -> list[dict[str, Any]]:
    chosen = pc.is_in(units["path"], value_set=pa.array(list(paths), pa.string()))
    return units.filter(chosen).to_pylist()
