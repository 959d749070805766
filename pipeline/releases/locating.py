"""Where a key is in a release: its unit and row, its code and the part that holds it, or why it was rejected.

The parts answer for encoded rows: their keys are sorted by id, so a look-up reads a few places of each part's
keys; where they are remote, those of the part that holds the id are then read whole. So are all rejects.
"""

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.releases.addresses import code_path, part_keys_path, rejects_path
from pipeline.releases.manifest import ManifestError, code_file
from pipeline.releases.sorted_ids import find_id
from pipeline.releases.storage import Storage

log = logging.getLogger(__name__)

REQUESTS = 16
"""Threads that wait for the storage while parts are looked into."""


@dataclass(frozen=True)
class Place:
    """One side of a row that has a code."""

    side: str
    unit: str  # path in the source
    row: int  # of that unit
    code: str  # hex
    code_file: str
    part: str
    position: int  # row of the part
    stale: bool  # the unit was refused since; this is of an earlier night


@dataclass(frozen=True)
class Rejection:
    """One side of a row that has no code, and why."""

    side: str
    unit: str
    row: int
    reason: str
    error: str


def find_rows(
    storage: Storage, tables: Mapping[str, pa.Table], key: str, *, number: int
) -> tuple[list[Place], list[Rejection]]:
    """Find every row of a release that has a key.

    Args:
        tables: of the release.
        number: the id of the key.
    Raises:
        ManifestError: a file of the release that has to be read is missing or is not what it should be.
    """
    return list(_places(storage, tables, key, number)), list(_rejections(storage, tables["rejects"], key))


def read_keys(storage: Storage, part: str, *, ids_only: bool = False) -> pa.Table:
    """Open the keys of a part: mapped where they are local, else read, and then only the ids on demand.

    Raises:
        ManifestError: they are missing or damaged.
    """
    path = part_keys_path(part)
    local = storage.local(path)
    options = pa.ipc.IpcReadOptions(included_fields=[0] if ids_only else None)
    try:
        if local is not None:
            return pa.ipc.open_file(pa.memory_map(str(local)), options=options).read_all()
        filesystem, root = storage.filesystem()
        with filesystem.open_input_file(f"{root}/{path}") as file:
            return pa.ipc.open_file(file, options=options).read_all()
    except FileNotFoundError as error:
        raise ManifestError(f"{storage.where(path)} is missing: the keys of a part") from error
    except pa.ArrowException as error:
        raise ManifestError(f"{storage.where(path)} is no Arrow file: {error}") from error


def unit_name(unit: Mapping[str, Any]) -> str:
    """Return what names a unit in the keys of a part: its path, and its row groups if it is a range."""
    if unit["first_row_group"] is None:
        return str(unit["path"])
    return f"{unit['path']}[{unit['first_row_group']}:{unit['last_row_group']}]"


def unit_names(units: pa.Table) -> pa.ChunkedArray:
    """Return `unit_name` of every row of a table `units`."""
    first, last = (pc.cast(units[f"{end}_row_group"], pa.string()) for end in ("first", "last"))
    ranges = pc.binary_join_element_wise(units["path"], "[", first, ":", last, "]", "")
    return pc.coalesce(ranges, units["path"])


def sorted_ids(keys: pa.Table) -> np.ndarray:
    """Return the (N,) int64 ids of a part's keys, ascending; without a copy where they are one batch."""
    column = keys["id"]
    return column.chunk(0).to_numpy() if column.num_chunks == 1 else column.to_numpy()


def _places(storage: Storage, tables: Mapping[str, pa.Table], key: str, number: int) -> Iterator[Place]:
    parts = tables["parts"].to_pylist()
    with ThreadPoolExecutor(REQUESTS) as pool:
        found = list(pool.map(lambda part: _find_id(storage, part, number), parts))
    for part, (start, end) in zip(parts, found, strict=True):
        if start == end:
            continue
        for offset, row in enumerate(read_keys(storage, part["part"]).slice(start, end - start).to_pylist()):
            if row["key"] == key:
                yield _place(storage, tables["units"], part, row=row, position=start + offset)


def _find_id(storage: Storage, part: Mapping[str, Any], number: int) -> tuple[int, int]:
    """Return the rows [start, end) of a part that have an id, from as few bytes as can be."""
    path = part_keys_path(part["part"])
    if storage.local(path) is None:
        filesystem, root = storage.filesystem()
        try:
            with filesystem.open_input_file(f"{root}/{path}") as file:
                return find_id(file, part["rows"], number)
        except FileNotFoundError as error:
            raise ManifestError(f"{storage.where(path)} is missing: the keys of a part") from error
        except (ValueError, OSError) as error:  # whatever is wrong, reading it all will say
            log.debug("%s: %s; all of its ids are read", storage.where(path), error)
    ids = sorted_ids(read_keys(storage, part["part"], ids_only=True))
    start, end = (int(np.searchsorted(ids, number, side=side)) for side in ("left", "right"))
    return start, end


def _place(
    storage: Storage, units: pa.Table, part: Mapping[str, Any], *, row: Mapping[str, Any], position: int
) -> Place:
    paths = pa.array([row["unit"], row["unit"].rpartition("[")[0]])
    mine = pc.and_(pc.is_in(units["path"], value_set=paths), pc.equal(units["side"], part["side"]))
    unit = next((one for one in units.filter(mine).to_pylist() if unit_name(one) == row["unit"]), None)
    if unit is None:
        raise ManifestError(f"part {part['part']} holds unit {row['unit']}, the table of units does not")
    path = code_path(code_file(unit))
    return Place(
        side=part["side"],
        unit=row["unit"],
        row=row["row"],
        code=_code(storage, path, row=row).hex(),
        code_file=storage.where(path),
        part=part["part"],
        position=position,
        stale=unit["stale"],
    )


def _code(storage: Storage, path: str, *, row: Mapping[str, Any]) -> bytes:
    filesystem, root = storage.filesystem()
    try:
        found = pq.read_table(
            f"{root}/{path}", filesystem=filesystem, filters=[("id", "=", row["id"])], columns=["row", "code"]
        )
    except FileNotFoundError as error:
        raise ManifestError(f"{storage.where(path)} is missing: the codes of {row['unit']}") from error
    except pa.ArrowException as error:
        raise ManifestError(f"{storage.where(path)}: {error}") from error
    codes = found.filter(pc.equal(found["row"], row["row"]))["code"].to_pylist()
    if not codes:
        raise ManifestError(
            f"{storage.where(path)} lacks row {row['row']} of {row['unit']}, which a part has"
        )
    code: bytes = codes[0]
    return code


def _rejections(storage: Storage, rejects: pa.Table, key: str) -> Iterator[Rejection]:
    for file in rejects.to_pylist():
        path = rejects_path(file["rejects"])
        try:
            rows = pq.read_table(pa.BufferReader(storage.read(path)))
        except FileNotFoundError as error:
            raise ManifestError(f"{storage.where(path)} is missing: rejects of {file['path']}") from error
        except pa.ArrowException as error:
            raise ManifestError(f"{storage.where(path)}: {error}") from error
        for row in rows.filter(pc.equal(rows["key"], key)).to_pylist():
            yield Rejection(file["side"], file["path"], row["row"], row["reason"], row["error"])
