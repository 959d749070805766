"""From files to units: which files are cut into ranges of row groups, and where. Pure; reads no footer.

A file up to the limit is one unit, and is not opened for the plan. A larger one is cut where its footer says
row groups end, by a pure function of footer and limit. A version of a file that the parent release knows
keeps the ranges it has there, whatever the limit is now: what has not changed is not encoded again.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.releases.manifest import UNITS
from pipeline.releases.planning.listing import SOURCE

UNIT_BYTES = 4 << 30

SOURCE_UNITS = pa.schema([UNITS.field(name) for name in UNITS.names[: UNITS.names.index("token") + 1]])
"""One row per unit of the source: a file (range null), or row groups [first, last) of a large one."""

_ENDS = ["first_row_group", "last_row_group"]


def cut_row_groups(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Cut a file into ranges of whole row groups, each up to a limit where one row group does not exceed it.

    A file that grows at its end keeps all its ranges but the last.

    Args:
        sizes: bytes of the row groups in the file.
    Returns:
        (first, one past the last) of every range, in order.
    """
    ranges: list[tuple[int, int]] = []
    first, held = 0, 0
    for number, size in enumerate(sizes):
        if number > first and held + size > limit:
            ranges.append((first, number))
            first, held = number, 0
        held += size
    return [*ranges, (first, len(sizes))] if sizes else []


def files_to_open(files: pa.Table, parent_units: pa.Table, *, limit: int) -> pa.Table:
    """Return the files (SOURCE) beyond the limit in versions that the parent does not know.

    Args:
        files: the source (SOURCE).
        parent_units: table `units` of the parent release.
    """
    large = files.filter(pc.greater(files["size"], limit))
    if not len(large):
        return large
    known = pc.is_in(_version(large), value_set=_version(parent_units))
    return large.filter(pc.invert(known))


def cut_files(
    files: pa.Table, parent_units: pa.Table, ranges: Mapping[str, Sequence[tuple[int, int]]]
) -> pa.Table:
    """Return the units (SOURCE_UNITS) of the source, sorted by path and range.

    Args:
        files: the source (SOURCE), sorted by path.
        ranges: of the files that were opened, by path; a file with one range or none is a unit whole.
    """
    several = {path: found for path, found in ranges.items() if len(found) > 1}
    known = parent_units.filter(pc.is_valid(parent_units["first_row_group"]))
    if not several and not len(known):
        return _whole(files)
    opened = pc.is_in(files["path"], value_set=pa.array(list(several), pa.string()))
    kept = pc.and_(pc.invert(opened), pc.is_in(_version(files), value_set=_version(known)))
    whole = files.filter(pc.invert(pc.or_(opened, kept)))
    tables = [_whole(whole)]
    if several:
        tables.append(_join(files.filter(opened), _table_of(several), ["path"]))
    if len(known):
        found = known.select(["size", "token", *_ENDS]).group_by(["size", "token", *_ENDS]).aggregate([])
        tables.append(_join(files.filter(kept), found, ["size", "token"]))
    return pa.concat_tables(tables).sort_by([("path", "ascending"), ("first_row_group", "ascending")])


def _whole(files: pa.Table) -> pa.Table:
    nothing = pa.nulls(len(files), pa.int32())
    columns = [files["path"], nothing, nothing, files["size"], files["token"]]
    return pa.table(columns, schema=SOURCE_UNITS)


def _join(files: pa.Table, ranges: pa.Table, keys: list[str]) -> pa.Table:
    joined = files.select(SOURCE.names).join(ranges, keys, join_type="inner")
    return joined.select(SOURCE_UNITS.names).cast(SOURCE_UNITS)


def _table_of(ranges: Mapping[str, Sequence[tuple[int, int]]]) -> pa.Table:
    rows = [(path, first, last) for path, found in ranges.items() for first, last in found]
    schema = pa.schema([SOURCE_UNITS.field(name) for name in ("path", *_ENDS)])
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema)


def _version(files: pa.Table) -> pa.ChunkedArray:
    """Return size and token of every row as one text."""
    return pc.binary_join_element_wise(pc.cast(files["size"], pa.string()), files["token"], " ")
