"""What a night has to do: a pure function of the source listing and the parent release. No storage, no clock.

A unit's code file is wanted at an address that covers all it depends on. Where the parent release names
that address the file is reused without a request; everything else is work. All is done on columns of Arrow
tables: a source of a million units is planned in seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.codes import PACKER_VERSION
from pipeline.releases.addresses import check_path
from pipeline.releases.manifest import UNITS, code_files, joined, leaves_root
from pipeline.releases.planning.addressing import code_addresses, unit_tokens
from pipeline.releases.planning.listing import SOURCE, list_table, source_bytes, source_table
from pipeline.releases.planning.splitting import (
    SOURCE_UNITS,
    UNIT_BYTES,
    cut_files,
    cut_row_groups,
    files_to_open,
)
from pipeline.releases.retrying import again_where, follow_where

__all__ = [
    "CHANGED",
    "NEW",
    "RECIPE",
    "RETRIED",
    "SOURCE",
    "SOURCE_UNITS",
    "UNIT_BYTES",
    "WORK",
    "Plan",
    "cut_files",
    "cut_row_groups",
    "files_to_open",
    "list_table",
    "plan_night",
    "source_bytes",
    "source_table",
]

_WANTED = pa.schema([UNITS.field(name) for name in UNITS.names[: UNITS.names.index("code") + 1]])

WORK = pa.schema([*_WANTED, ("reason", pa.string()), ("earlier", pa.string())])
"""The columns of UNITS up to the address; why the code file is wanted; and the address of the parent's code
file of the same path, range and side, of the same tower and recipe, whose rows can be reused."""

NEW, CHANGED, RECIPE = "new unit", "changed unit", "new tower or recipe"
RETRIED = "rejects to be tried again"

_PLACE = ("path", "first_row_group", "last_row_group")
_ORDER = [("path", "ascending"), ("first_row_group", "ascending"), ("side", "ascending")]


@dataclass(frozen=True)
class Plan:
    """The work of a night.

    `encode` (WORK, sorted by path, range and side): code files that the parent release does not name. Some
    may stand in the store already, left by a run that was ended. `reuse` (UNITS, side by side): rows of the
    next release, ready as they are; `moved`: nothing is to be encoded, yet they are not just those of the
    parent, for the same files. `vanished`: paths that the parent has and the source has no more. `unread`:
    large files, by path, whose footers could not be read, and why: nobody knows which units they are.
    """

    encode: pa.Table
    reuse: pa.Table
    vanished: tuple[str, ...]
    moved: bool = False
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def nothing_to_do(self) -> bool:
        """Tell whether the next release would equal its parent."""
        return not len(self.encode) and not self.vanished and not self.moved

    def counts(self) -> dict[str, int]:
        """Return the plan in numbers: units as a whole, code files by side."""
        sides = {
            name: {item["values"]: item["counts"] for item in table["side"].value_counts().to_pylist()}
            for name, table in (("encode", self.encode), ("reuse", self.reuse))
        }
        wanted = len(set().union(*sides.values()))  # every unit has one row per side in one of the two
        total = (len(self.encode) + len(self.reuse)) // wanted if wanted else 0
        encoded = len(self.encode.group_by(["path", "first_row_group"]).aggregate([]))
        counts = {
            "units_total": total,
            "units_encoded": encoded,
            "units_reused": total - encoded,
            "units_vanished": len(self.vanished),
        }
        return counts | {f"code_files_{name}_{side}": n for name in sides for side, n in sides[name].items()}


def plan_night(
    units: pa.Table,
    fingerprints: Mapping[str, str],
    *,
    recipes: Mapping[str, str],
    parent_units: pa.Table | None = None,
    retries: frozenset[str] = frozenset(),
) -> Plan:
    """Decide for every unit and side whether its code file is reused or must be encoded.

    Args:
        units: the source as `cut_files` returns it (SOURCE_UNITS), sorted by path and range.
        fingerprints: side -> fingerprint of its tower, for the sides that are wanted.
        recipes: side -> digest of its input recipe, for the same sides.
        parent_units: table `units` of the parent release as `read_table` gives it; None on the first night.
        retries: addresses that are to be made again (`retrying.retried`).
    Raises:
        ValueError: a path is named twice or leaves the source.
    """
    _check_units(units)
    parent = UNITS.empty_table() if parent_units is None else parent_units.select(UNITS.names).cast(UNITS)
    units = units.append_column("unit", unit_tokens(units))
    encode, reuse, moved = [WORK.empty_table()], [UNITS.empty_table()], False
    for side, mark in sorted(fingerprints.items()):
        tower = _Tower(side, mark, recipes[side], retries)
        wanted = _wanted(units, tower)
        mine = pc.indices_nonzero(pc.equal(parent["side"], side))  # numbers, not a copy of a million rows
        codes = parent["code"].take(mine)
        found = pc.index_in(wanted["code"], value_set=codes)
        if found.null_count:
            encode.append(_explained(wanted.filter(pc.is_null(found)), parent, mine, tower))
            wanted, found = wanted.filter(pc.is_valid(found)), pc.drop_null(found)
        reuse.append(_reuse(wanted, parent, mine.take(found)))
        if not any(len(table) for table in encode):  # else there is something to do in any case
            moved |= not _equal(reuse[-1], parent, mine)
        pa.default_memory_pool().release_unused()
    return Plan(
        encode=pa.concat_tables(encode).sort_by(_ORDER),
        reuse=pa.concat_tables(reuse),
        vanished=_vanished(units, parent),
        moved=moved,
    )


@dataclass(frozen=True)
class _Tower:
    """What the address of a code file covers besides its unit."""

    side: str
    fingerprint: str
    recipe: str
    retries: frozenset[str]

    def wanted(self, units: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the addresses that are wanted for unit tokens."""
        return again_where(self.addresses(units), self.retries)

    def addresses(self, units: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the addresses of unit tokens, were none of them retried."""
        return code_addresses(
            units,
            self.side,
            fingerprint=self.fingerprint,
            recipe=self.recipe,
            packer_version=PACKER_VERSION,
        )


def _check_units(units: pa.Table) -> None:
    bad = units["path"].filter(leaves_root(units["path"]))
    if len(bad):
        check_path(bad[0].as_py())
    later, earlier = units.slice(1), units.slice(0, max(len(units) - 1, 0))
    twice = later.filter(_same_place(later, earlier))
    if len(twice):
        raise ValueError(
            f"the source names {twice['path'][0].as_py()!r} twice; every unit must have its own path"
        )


def _wanted(units: pa.Table, tower: _Tower) -> pa.Table:
    """Return the columns of WORK that one side wants: one row per unit."""
    side = pa.nulls(len(units), pa.string()).fill_null(tower.side)
    columns = [*units.columns, side, tower.wanted(units["unit"])]
    return pa.table(columns, schema=_WANTED)


def _reuse(wanted: pa.Table, parent: pa.Table, rows: pa.Array) -> pa.Table:
    """Return the parent's rows under the paths of today; a file may have moved since."""
    fresh = pa.nulls(len(wanted), pa.bool_()).fill_null(False)
    columns = dict(zip(wanted.column_names, wanted.columns, strict=True)) | {"stale": fresh}
    known = parent.select([name for name in UNITS.names if name not in columns]).take(rows)
    columns |= dict(zip(known.column_names, known.columns, strict=True))
    return pa.table([columns[name] for name in UNITS.names], schema=UNITS)


def _equal(kept: pa.Table, parent: pa.Table, rows: pa.Array) -> bool:
    """Tell whether every reused code file stands for the same unit as in the parent, and no other does."""
    columns = ["path", "first_row_group", "code"]
    earlier = parent.select(columns).take(rows)
    if len(kept) != len(earlier):
        return False
    same = pc.and_(_same_place(kept, earlier), pc.equal(kept["code"], earlier["code"]))
    return bool(pc.all(same, min_count=0).as_py())


def _same_place(a: pa.Table, b: pa.Table) -> pa.ChunkedArray:
    first, other = (pc.fill_null(table["first_row_group"], -1) for table in (a, b))
    return pc.and_(pc.equal(a["path"], b["path"]), pc.equal(first, other))


def _explained(missing: pa.Table, parent: pa.Table, mine: pa.Array, tower: _Tower) -> pa.Table:
    """Add to the code files that are wanted why they are, and what they may take rows from."""
    known_path, known_unit = (_known(missing[name], parent[name]) for name in ("path", "unit"))
    again = pc.not_equal(missing["code"], tower.addresses(missing["unit"]))
    cases = pc.make_struct(again, known_unit, known_path)
    reasons = pc.case_when(cases, RETRIED, RECIPE, CHANGED, NEW)
    near = mine.filter(pc.is_in(parent["path"], value_set=missing["path"]).take(mine))
    earlier = parent.select([*_PLACE, "unit", "code", "purged"]).take(near)
    # The address says of itself whether tower and recipe are those of tonight, also that of a retried unit.
    usable = earlier.filter(follow_where(tower.addresses(earlier["unit"]), earlier["code"], tower.retries))
    found = pc.index_in(joined(missing, *_PLACE), value_set=joined(usable, *_PLACE))
    return pa.table([*missing.columns, reasons, code_files(usable).take(found)], schema=WORK)


def _known(values: pa.ChunkedArray, parent: pa.ChunkedArray) -> pa.ChunkedArray:
    """Tell which values the parent has; its own are looked up first, for as a rule the values are few."""
    return pc.is_in(values, value_set=parent.filter(pc.is_in(parent, value_set=values)))


def _vanished(units: pa.Table, parent: pa.Table) -> tuple[str, ...]:
    gone = parent["path"].filter(pc.invert(pc.is_in(parent["path"], value_set=units["path"])))
    return tuple(sorted(pc.unique(gone).to_pylist()))
