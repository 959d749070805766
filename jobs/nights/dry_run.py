"""A plan in words, like that of a build tool: what is done to which unit and why, and what it may take."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.nights.night import Night, Parent
from jobs.nights.progress import duration
from pipeline.encoding.outcome import PLACES, Outcome, count_rows
from pipeline.releases.manifest import joined
from pipeline.releases.planning import Plan, source_bytes

log = logging.getLogger(__name__)

LINES = 20
"""So much of a plan is printed line by line; the rest is counted."""
LIST_PAGE = 1000
"""Names in one answer of an object store."""


@dataclass(frozen=True)
class Estimate:
    """What the encoding of a plan may take; None where nothing is known to tell by."""

    rows: int  # of changed units, as they were
    units_of_unknown_rows: int
    source_bytes: int
    requests: int  # of source and store, before index parts
    seconds: float | None


def print_plan(plan: Plan, parent: Parent) -> None:
    """Say what there is to do and why."""
    head = plan.encode.slice(0, LINES)
    for row, before in zip(head.to_pylist(), _rows_before(head, parent).to_pylist(), strict=True):
        what = (
            f"{row['reason']}, {row['size']} bytes, {'? rows' if before is None else f'{before} rows before'}"
        )
        log.info("encode %-5s %s (%s)", row["side"], _name(row), what)
    if len(plan.encode) > LINES:
        log.info("... and %d more", len(plan.encode) - LINES)
    for path in plan.vanished[:LINES]:
        log.info("drop         %s (no longer in the source)", path)
    if len(plan.vanished) > LINES:
        log.info("... and %d more", len(plan.vanished) - LINES)
    reasons = {item["values"]: item["counts"] for item in plan.encode["reason"].value_counts().to_pylist()}
    why = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())) or "nothing"
    size = source_bytes(plan.encode)
    log.info("to encode, by side: %s; %d source bytes; units vanished: %d", why, size, len(plan.vanished))


def print_estimate(night: Night, plan: Plan, parent: Parent) -> Estimate:
    """Say how many rows and requests a plan means, and how long it may take; return that too."""
    found = estimate(plan, parent, rate=rate(night))
    log.info(
        "about %d rows, and those of %d units that no release knows; %d requests before parts; time: %s",
        found.rows,
        found.units_of_unknown_rows,
        found.requests,
        "unknown" if found.seconds is None else f"about {duration(found.seconds)}",
    )
    return found


def planned_counts(plan: Plan) -> dict[str, int]:
    """Return the counts of a result line before the work: of units as planned, of rows none."""
    planned = {"units_encoded": plan.counts()["units_encoded"], "units_left": 0}
    return count_rows(Outcome(), plan) | planned


def estimate(plan: Plan, parent: Parent, *, rate: float | None) -> Estimate:
    """Estimate what a plan takes.

    Args:
        rate: source bytes per second of an earlier encoding.
    """
    before = _rows_before(plan.encode.group_by(PLACES.names).aggregate([]), parent)
    units, size, files = len(before), source_bytes(plan.encode), len(plan.encode)
    return Estimate(
        rows=pc.sum(before).as_py() or 0,
        units_of_unknown_rows=before.null_count,
        source_bytes=size,
        # The listing; of a unit footer, rows and a last look; of a code file a look and a write.
        requests=1 + plan.counts()["units_total"] // LIST_PAGE + 3 * units + 2 * files if files else 0,
        seconds=size / rate if rate else None,
    )


def rate(night: Night) -> float | None:
    """Return source bytes per second of the newest encoding that this run's folder tells of, if any."""
    folder, path = night.rate_json
    try:
        kept = json.loads(folder.read(path))
        return float(kept["encode_bytes"] / kept["encode_seconds"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def _name(row: Mapping[str, Any]) -> str:
    if row["first_row_group"] is None:
        return str(row["path"])
    return f"{row['path']}[{row['first_row_group']}:{row['last_row_group']}]"


def _rows_before(units: pa.Table, parent: Parent) -> pa.ChunkedArray:
    """Return, for every row of some units, the rows that the parent release counts there; null: unknown."""
    mine = parent.units.filter(pc.is_in(parent.units["path"], value_set=units["path"]))
    known = mine.group_by(PLACES.names).aggregate([("read", "max")])
    found = pc.index_in(joined(units, *PLACES.names), value_set=joined(known, *PLACES.names))
    return known["read_max"].take(found)
