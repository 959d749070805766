"""The parts of a release: which it needs, and how each is made from the code files of a store.

A part's address covers its members, so what an earlier release or an ended run left is taken as it is.
keys.arrow is written first, the FAISS file last: where it stands, the part is whole.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.releases.addresses import code_path, part_address, part_keys_path, part_path, sha256
from pipeline.releases.manifest import PARTS, ManifestError
from pipeline.releases.storage import Storage
from pipeline.search.indexing import KEYS_VERSION, IndexConfig, build_part, count_rows, plan_parts

REQUESTS = 16
"""Threads that wait for the storage while it looks for parts."""


@dataclass(frozen=True)
class PartPlan:
    """A part that a release needs."""

    side: str
    ordinal: int
    address: str
    members: tuple[tuple[str, str], ...]  # (unit path, code address), in order
    rows: int
    sha256s: tuple[str, ...]  # of the members' code files


def plan_release_parts(units: pa.Table, config: IndexConfig) -> list[PartPlan]:
    """Return the parts of a release, side by side and in order; units without a code are in none.

    Args:
        units: table `units` of the release.
    """
    plans = []
    for side in sorted(pc.unique(units["side"]).to_pylist()):
        coded = pc.and_(pc.equal(units["side"], side), pc.greater(units["encoded"], 0))
        mine = {row["path"]: row for row in units.filter(coded).to_pylist()}
        for ordinal, paths in enumerate(plan_parts(mine, boundary=config.part_boundary)):
            members = tuple((path, mine[path]["code"]) for path in paths)
            address = part_address(members, side, recipe={"index": config.recipe, "keys": KEYS_VERSION})
            rows = sum(mine[path]["encoded"] for path in paths)
            sums = tuple(mine[path]["code_sha256"] for path in paths)
            plans.append(PartPlan(side, ordinal, address, members, rows, sums))
    return plans


def reuse_parts(plans: list[PartPlan], parent_parts: pa.Table) -> tuple[list[dict[str, Any]], list[PartPlan]]:
    """Split the plans into rows of the table `parts` that the parent release has, and parts to build."""
    known = {row["part"]: row for row in parent_parts.to_pylist()}
    rows = [known[plan.address] | {"ordinal": plan.ordinal} for plan in plans if plan.address in known]
    return rows, [plan for plan in plans if plan.address not in known]


def standing_parts(parent_parts: pa.Table, storage: Storage) -> pa.Table:
    """Return the rows of a table `parts` whose files stand in the store with the sizes that it names."""

    def stands(row: dict[str, Any]) -> bool:
        names = {"index": part_path(row["part"]), "keys": part_keys_path(row["part"])}
        try:
            return all(storage.size(name) == row[f"{kind}_bytes"] for kind, name in names.items())
        except FileNotFoundError:
            return False

    with ThreadPoolExecutor(REQUESTS) as pool:
        return parent_parts.filter(pa.array(list(pool.map(stands, parent_parts.to_pylist())), pa.bool_()))


def make_part(plan: PartPlan, storage: Storage, *, recipe: str) -> dict[str, Any]:
    """Build a part from its code files, unless it stands in the store, and return its row of `parts`.

    Raises:
        ValueError: the code files do not belong together.
        OSError: a code file is missing, or the storage fails.
        ManifestError: a code file is not the one that the release names, or what stands is no such part.
        RuntimeError: the files do not hold as many codes as the release counts.
    """
    index_name, keys_name = part_path(plan.address), part_keys_path(plan.address)
    if storage.exists(index_name) and storage.exists(keys_name):
        index, keys = storage.read(index_name), storage.read(keys_name)
        _check_standing(plan, storage, index=index, keys=keys)
    else:
        codes = {
            path: _read_codes(storage, code, unit=path, expected=expected)
            for (path, code), expected in zip(plan.members, plan.sha256s, strict=True)
        }
        made = build_part(codes, recipe=recipe)
        if made.rows != plan.rows:
            raise RuntimeError(
                f"part {plan.address}: its code files hold {made.rows} rows, the release counts {plan.rows}"
            )
        keys, index = _create(storage, keys_name, made.keys), _create(storage, index_name, made.index)
    return {
        "side": plan.side,
        "ordinal": plan.ordinal,
        "part": plan.address,
        "units": len(plan.members),
        "rows": plan.rows,
        "index_sha256": sha256(index),
        "index_bytes": len(index),
        "keys_sha256": sha256(keys),
        "keys_bytes": len(keys),
    }


def parts_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Return the table `parts` of a release."""
    return pa.Table.from_pylist(rows, schema=PARTS).sort_by([("side", "ascending"), ("ordinal", "ascending")])


def _read_codes(storage: Storage, address: str, *, unit: str, expected: str) -> pa.Table:
    path = code_path(address)
    mend = "`hashfleet encode` under a new store.channel makes again what the store lacks"
    try:
        data = storage.read(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{storage.where(path)} is missing: the codes of unit {unit}; restore it, or: {mend}"
        ) from error
    if sha256(data) != expected:
        raise ManifestError(
            f"{storage.where(path)} is damaged: its sha256 is {sha256(data)}, the release names {expected} "
            f"for unit {unit}; restore it, or delete it: {mend}"
        )
    return pq.read_table(pa.BufferReader(data), columns=["id", "key", "row", "code"])


def _check_standing(plan: PartPlan, storage: Storage, *, index: bytes, keys: bytes) -> None:
    """Check that the files of a part that stands hold as many codes and keys as the release counts."""
    try:
        counts = count_rows(index, keys)
    except ValueError as error:
        raise ManifestError(
            f"{storage.where(part_path(plan.address))} is damaged ({error}); delete it and run again"
        ) from error
    if counts != (plan.rows, plan.rows):
        raise ManifestError(
            f"{storage.where(part_path(plan.address))} and its keys hold {counts[0]} and {counts[1]} rows, "
            f"the release counts {plan.rows}; delete both and run again"
        )


def _create(storage: Storage, path: str, data: bytes) -> bytes:
    """Put a file; what stands there already is what counts."""
    return data if storage.create(path, data) else storage.read(path)
