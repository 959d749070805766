"""Which parts a release needs, which of them the one before has, and what their builds may take. Pure.

Plans are columns: a release may have millions of units and, were every unit a part of its own, as many parts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.releases.addresses import part_address
from pipeline.releases.locating import unit_names
from pipeline.releases.manifest import PARTS, code_files
from pipeline.search.assembly import memory_need
from pipeline.search.families import parse_recipe
from pipeline.search.indexing import IndexConfig, part_ends
from pipeline.search.partfiles import KEYS_VERSION

PLANNED = pa.schema(
    [
        *(PARTS.field(name) for name in ("side", "ordinal", "part", "units", "rows")),
        ("code_bytes", pa.int64()),  # of the code files of its units
        ("first", pa.int64()),  # from here on `PartsPlan.order` names its units
    ]
)
"""One row per part, side by side and in order."""

_PAGE = 1 << 16
"""So many units are Python objects at once, or those of one part."""


@dataclass(frozen=True)
class PartPlan:
    """One part, with all that its build asks for."""

    side: str
    ordinal: int
    address: str
    members: tuple[tuple[str, str], ...]  # (unit, code address), in order
    rows: int
    sha256s: tuple[str, ...]  # of the members' code files
    recipe: str
    quantiser: str | None  # digest
    memory: int  # bytes that the build may take


@dataclass(frozen=True)
class PartsPlan:
    """Parts that a release needs; looped over, it gives one `PartPlan` after the other.

    `parts` (PLANNED): what they are; `units`: table `units` of the release; `order`: (N,) rows of that table,
    those of a part one after another.
    """

    parts: pa.Table
    units: pa.Table
    order: np.ndarray
    recipe: str
    quantisers: Mapping[str, str]  # side -> digest
    memory: int  # bytes that the build of a part may take

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def rows(self) -> int:
        """How many codes the parts hold together."""
        return pc.sum(self.parts["rows"]).as_py() or 0

    def __iter__(self) -> Iterator[PartPlan]:
        page = np.cumsum(self.parts["units"].to_numpy()) // _PAGE
        starts = np.flatnonzero(np.diff(page, prepend=-1)).tolist()
        for start, stop in pairwise([*starts, len(self)]):
            yield from self._page(self.parts.slice(start, stop - start))

    def _page(self, parts: pa.Table) -> Iterator[PartPlan]:
        rows = parts.to_pylist()
        numbers = [self.order[row["first"] : row["first"] + row["units"]] for row in rows]
        units = self.units.take(pa.array(np.concatenate(numbers)))  # at once: every call copies whole columns
        members = zip(unit_names(units).to_pylist(), code_files(units).to_pylist(), strict=True)
        sha256s = iter(units["code_sha256"].to_pylist())
        for row in rows:
            yield PartPlan(
                side=row["side"],
                ordinal=row["ordinal"],
                address=row["part"],
                members=tuple(islice(members, row["units"])),
                rows=row["rows"],
                sha256s=tuple(islice(sha256s, row["units"])),
                recipe=self.recipe,
                quantiser=self.quantisers.get(row["side"]),
                memory=self.memory,
            )


def plan_release_parts(
    units: pa.Table, config: IndexConfig, quantisers: Mapping[str, str] | None = None
) -> PartsPlan:
    """Return the parts of a release; units without a code are in none.

    Args:
        units: table `units` of the release.
        quantisers: side -> digest, for a recipe with inverted lists.
    """
    quantisers = quantisers or {}
    tables, orders = [PLANNED.empty_table()], [np.empty(0, np.uint64)]
    for side in sorted(pc.unique(units["side"]).to_pylist()):
        table, order = _plan_side(units, side, config, quantisers.get(side))
        tables.append(table)
        orders.append(order)
    parts = pa.concat_tables(tables)
    sizes = parts["units"].to_numpy()
    parts = parts.set_column(parts.num_columns - 1, PLANNED.field("first"), [np.cumsum(sizes) - sizes])
    return PartsPlan(parts, units, np.concatenate(orders), config.recipe, quantisers, config.max_memory)


def _plan_side(
    units: pa.Table, side: str, config: IndexConfig, quantiser: str | None
) -> tuple[pa.Table, np.ndarray]:
    """Return the parts of a side (PLANNED, `first` being null) and the rows of their units."""
    coded = pc.indices_nonzero(pc.and_(pc.equal(units["side"], side), pc.greater(units["encoded"], 0)))
    names = unit_names(units.select(["path", "first_row_group", "last_row_group"]).take(coded))
    by_name = pc.sort_indices(names)  # by their bytes
    order, names = coded.take(by_name), names.take(by_name)
    mine = units.select(["code", "purged", "encoded", "code_bytes"]).take(order)
    codes, ends = code_files(mine), part_ends(names, boundary=config.part_boundary)
    limits = [0, *ends.tolist()]
    inputs = {"index": config.recipe, "keys": KEYS_VERSION} | ({"quantiser": quantiser} if quantiser else {})
    addresses = [
        part_address(
            list(zip(names[start:stop].to_pylist(), codes[start:stop].to_pylist(), strict=True)),
            side,
            recipe=inputs,
        )
        for start, stop in pairwise(limits)
    ]
    rows, sizes = (
        np.add.reduceat(pc.fill_null(mine[name], 0).to_numpy(), limits[:-1])
        for name in ("encoded", "code_bytes")
    )
    columns = [
        pa.array([side] * len(ends), pa.string()),
        np.arange(len(ends)),
        addresses,
        np.diff(limits),
        rows,
        sizes,
        pa.nulls(len(ends)),
    ]
    return pa.table(columns, schema=PLANNED), order.to_numpy()


def reuse_parts(plan: PartsPlan, parent_parts: pa.Table) -> tuple[pa.Table, PartsPlan]:
    """Split a plan into rows of the table `parts` that the parent release has, and parts to build."""
    found = pc.index_in(plan.parts["part"], value_set=parent_parts["part"])
    known = pc.is_valid(found)
    rows = parent_parts.take(pc.drop_null(found))
    ordinals = plan.parts["ordinal"].filter(known)
    rows = rows.set_column(PARTS.get_field_index("ordinal"), PARTS.field("ordinal"), ordinals)
    return rows, replace(plan, parts=plan.parts.filter(pc.invert(known)))


def share_memory(plan: PartsPlan, *, max_memory: int, code_size: int, at_once: int) -> tuple[PartsPlan, int]:
    """Return the plan with the memory that each build may take, and how many may be built at once.

    As many parts are built side by side as there are workers and as fit with all their rows sorted at once;
    a part that does not fit alone is sorted in pieces.

    Raises:
        ValueError: what the build of one part holds in any case is more than the memory.
    """
    family, most = parse_recipe(plan.recipe), 1
    for batch in plan.parts.to_batches(max_chunksize=_PAGE):
        for part in batch.to_pylist():
            need = memory_need(part["rows"], part["code_bytes"], family, code_size=code_size)
            if need.least > max_memory:
                raise ValueError(
                    f"index.max_memory is {max_memory} bytes, part {part['ordinal']} of side {part['side']} "
                    f"({part['rows']} rows, {plan.recipe}) takes {need.least} at least; raise it, or lower "
                    "index.part_boundary"
                )
            most = max(most, need.most)
    count = max(1, min(at_once, len(plan), max_memory // most))
    return replace(plan, memory=max_memory // count), count
