"""The parts of a release: which it needs, and how each is made from the code files of a store.

A part's address covers its members, so what an earlier release or an ended run left is taken as it is.
keys.arrow is written first, the FAISS file last: where it stands, the part is whole.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.releases.addresses import code_path, part_address, part_keys_path, part_path, sha256
from pipeline.releases.manifest import PARTS
from pipeline.releases.storage import Storage
from pipeline.search.indexing import KEYS_VERSION, IndexConfig, build_part, plan_parts


@dataclass(frozen=True)
class PartPlan:
    """A part that a release needs."""

    side: str
    ordinal: int
    address: str
    members: tuple[tuple[str, str], ...]  # (unit path, code address), in order
    rows: int


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
            plans.append(PartPlan(side, ordinal, address, members, rows))
    return plans


def reuse_parts(plans: list[PartPlan], parent_parts: pa.Table) -> tuple[list[dict[str, Any]], list[PartPlan]]:
    """Split the plans into rows of the table `parts` that the parent release has, and parts to build."""
    known = {row["part"]: row for row in parent_parts.to_pylist()}
    rows = [known[plan.address] | {"ordinal": plan.ordinal} for plan in plans if plan.address in known]
    return rows, [plan for plan in plans if plan.address not in known]


def make_part(plan: PartPlan, storage: Storage, *, recipe: str) -> dict[str, Any]:
    """Build a part from its code files, unless it stands in the store, and return its row of `parts`.

    Raises:
        ValueError: the code files do not belong together.
        OSError: a code file is missing, or the storage fails.
        RuntimeError: the files do not hold as many codes as the release counts.
    """
    index_name, keys_name = part_path(plan.address), part_keys_path(plan.address)
    if storage.exists(index_name):
        index, keys = storage.read(index_name), storage.read(keys_name)
    else:
        codes = {path: _read_codes(storage, code) for path, code in plan.members}
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


def _read_codes(storage: Storage, address: str) -> pa.Table:
    data = pa.BufferReader(storage.read(code_path(address)))
    return pq.read_table(data, columns=["id", "key", "row", "code"])


def _create(storage: Storage, path: str, data: bytes) -> bytes:
    """Put a file; what stands there already is what counts."""
    return data if storage.create(path, data) else storage.read(path)
