"""The parts of a release: which it needs, and how each is made from the code files of a store.

A part's address covers its members and its quantiser, so what an earlier release or an ended run left is
taken as it is. keys.arrow is written first, the FAISS file last: where it stands, the part is whole.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.releases.addresses import code_path, part_address, part_keys_path, part_path
from pipeline.releases.locating import unit_names
from pipeline.releases.manifest import PARTS, ManifestError, code_files
from pipeline.releases.storage import Storage
from pipeline.search.assembly import Need, assemble, memory_need
from pipeline.search.families import parse_recipe
from pipeline.search.indexing import IndexConfig, plan_parts
from pipeline.search.partfiles import KEYS_VERSION
from pipeline.search.parts import read_index, read_keys
from pipeline.search.quantisers import open_quantiser

REQUESTS = 16
"""Threads that wait for the storage while it looks for parts."""


@dataclass(frozen=True)
class PartPlan:
    """A part that a release needs."""

    side: str
    ordinal: int
    address: str
    members: tuple[tuple[str, str], ...]  # (unit, code address), in order
    rows: int
    sha256s: tuple[str, ...]  # of the members' code files
    recipe: str = "BFlat"
    quantiser: str | None = None  # digest
    code_bytes: int = 0  # of the members' code files
    memory: int = 4 << 30  # bytes that its build may take

    def need(self, code_size: int) -> Need:
        """Estimate the memory that the build takes."""
        return memory_need(self.rows, self.code_bytes, parse_recipe(self.recipe), code_size=code_size)


def plan_release_parts(
    units: pa.Table, config: IndexConfig, quantisers: Mapping[str, str] | None = None
) -> list[PartPlan]:
    """Return the parts of a release, side by side and in order; units without a code are in none.

    Args:
        units: table `units` of the release.
        quantisers: side -> digest, for a recipe with inverted lists.
    """
    plans = []
    for side in sorted(pc.unique(units["side"]).to_pylist()):
        coded = units.filter(pc.and_(pc.equal(units["side"], side), pc.greater(units["encoded"], 0)))
        members = _members(coded)  # columns: a release may have millions of units
        quantiser = (quantisers or {}).get(side)
        inputs = {"index": config.recipe, "keys": KEYS_VERSION} | (
            {"quantiser": quantiser} if quantiser else {}
        )
        start = 0
        for ordinal, names in enumerate(
            plan_parts(members["name"].to_pylist(), boundary=config.part_boundary)
        ):
            mine = members.slice(start, len(names))
            start += len(names)
            named = tuple(zip(names, mine["code"].to_pylist(), strict=True))
            plans.append(
                PartPlan(
                    side=side,
                    ordinal=ordinal,
                    address=part_address(named, side, recipe=inputs),
                    members=named,
                    rows=pc.sum(mine["encoded"]).as_py(),
                    sha256s=tuple(mine["code_sha256"].to_pylist()),
                    recipe=config.recipe,
                    quantiser=quantiser,
                    code_bytes=pc.sum(mine["code_bytes"]).as_py() or 0,
                    memory=config.max_memory,
                )
            )
    return plans


def _members(units: pa.Table) -> pa.Table:
    """Return name and code file of every unit, in the order of their names, which is that of their bytes."""
    table = units.select(["encoded", "code_sha256", "code_bytes"])
    table = table.append_column("name", unit_names(units)).append_column("code", code_files(units))
    return table.sort_by("name").combine_chunks()


def reuse_parts(plans: list[PartPlan], parent_parts: pa.Table) -> tuple[list[dict[str, Any]], list[PartPlan]]:
    """Split the plans into rows of the table `parts` that the parent release has, and parts to build."""
    known = {row["part"]: row for row in parent_parts.to_pylist()}
    rows = [known[plan.address] | {"ordinal": plan.ordinal} for plan in plans if plan.address in known]
    return rows, [plan for plan in plans if plan.address not in known]


def share_memory(
    plans: list[PartPlan], *, max_memory: int, code_size: int, at_once: int
) -> tuple[list[PartPlan], int]:
    """Return the plans with the memory that each build may take, and how many may be built at once.

    As many parts are built side by side as there are workers and as fit with all their rows sorted at once;
    a part that does not fit alone is sorted in pieces.

    Raises:
        ValueError: what the build of one part holds in any case is more than the memory.
    """
    if not plans:
        return [], 1
    needs = [plan.need(code_size) for plan in plans]
    for plan, need in zip(plans, needs, strict=True):
        if need.least > max_memory:
            raise ValueError(
                f"index.max_memory is {max_memory} bytes, part {plan.ordinal} of side {plan.side} "
                f"({plan.rows} rows, {plan.recipe}) takes {need.least} at least; raise it, or lower "
                "index.part_boundary"
            )
    count = max(1, min(at_once, len(plans), max_memory // max(need.most for need in needs)))
    share = max_memory // count
    return [replace(plan, memory=share) for plan in plans], count


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


def make_part(plan: PartPlan, storage: Storage) -> dict[str, Any]:
    """Build a part from its code files, unless it stands in the store, and return its row of `parts`.

    Files are spilled to the folder for temporary files (TMPDIR), about twice the size of the part.

    Raises:
        ValueError: the code files do not belong together.
        OSError: a code file is missing, or the storage fails.
        ManifestError: a code file is not the one that the release names, or what stands is no such part.
        RuntimeError: the files do not hold as many codes as the release counts.
    """
    with tempfile.TemporaryDirectory(prefix="hashfleet-part-") as name:
        folder = Path(name)
        if storage.exists(part_path(plan.address)) and storage.exists(part_keys_path(plan.address)):
            files = _standing(plan, storage, folder)
        else:
            files = _make(plan, storage, folder)
        return {
            "side": plan.side,
            "ordinal": plan.ordinal,
            "part": plan.address,
            "units": len(plan.members),
            "rows": plan.rows,
            "index_sha256": _sha256(files[0]),
            "index_bytes": files[0].stat().st_size,
            "keys_sha256": _sha256(files[1]),
            "keys_bytes": files[1].stat().st_size,
        }


def parts_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Return the table `parts` of a release."""
    return pa.Table.from_pylist(rows, schema=PARTS).sort_by([("side", "ascending"), ("ordinal", "ascending")])


def _make(plan: PartPlan, storage: Storage, folder: Path) -> tuple[Path, Path]:
    quantiser = open_quantiser(plan.quantiser, storage) if plan.quantiser else None
    with _code_files(plan, storage, folder) as files:
        index, keys, rows = assemble(
            files, plan.recipe, quantiser=quantiser, folder=folder, memory=plan.memory
        )
    if rows != plan.rows:
        raise RuntimeError(
            f"part {plan.address}: its code files hold {rows} rows, the release counts {plan.rows}"
        )
    keys = _put(storage, keys, part_keys_path(plan.address), folder)
    return _put(storage, index, part_path(plan.address), folder), keys


def _put(storage: Storage, file: Path, path: str, folder: Path) -> Path:
    """Put a file; what stands there already is what counts."""
    if storage.exists(path):
        return _fetched(storage, path, folder / "standing")
    storage.upload(file, path)
    return file


@contextmanager
def _code_files(plan: PartPlan, storage: Storage, folder: Path) -> Iterator[dict[str, Path]]:
    """Give the checked code files of a part: those of a local store where they lie, others as copies."""
    copies = folder / "codes"
    files = {}
    for (unit, code), expected in zip(plan.members, plan.sha256s, strict=True):
        path = code_path(code)
        files[unit] = _fetched(storage, path, copies)
        found = _sha256(files[unit]) if files[unit].is_file() else ""
        mend = "`hashfleet encode` under a new store.channel makes again what the store lacks"
        if not found:
            raise FileNotFoundError(
                f"{storage.where(path)} is missing: the codes of unit {unit}; restore it, or: {mend}"
            )
        if found != expected:
            raise ManifestError(
                f"{storage.where(path)} is damaged: its sha256 is {found}, the release names {expected} "
                f"for unit {unit}; restore it, or delete it: {mend}"
            )
    yield files
    for copy in copies.glob("*"):
        copy.unlink()


def _fetched(storage: Storage, path: str, folder: Path) -> Path:
    """Return the file itself on a local store, else a copy; where there is none, a path without a file."""
    local = storage.local(path)
    if local is not None:
        return local
    copy = folder / Path(path).name
    try:
        storage.download(path, copy)
    except FileNotFoundError:
        return copy
    return copy


def _standing(plan: PartPlan, storage: Storage, folder: Path) -> tuple[Path, Path]:
    """Return the files of a part that stands, if they hold as many codes and keys as the release counts."""
    names = part_path(plan.address), part_keys_path(plan.address)
    index, keys = (_fetched(storage, name, folder) for name in names)
    try:
        counts = (
            read_index(index, storage.where(names[0])).ntotal,
            len(read_keys(keys, storage.where(names[1]))),
        )
    except ManifestError as error:
        raise ManifestError(
            f"{storage.where(names[0])} or its keys is damaged ({error}); delete both and run again"
        ) from error
    if counts != (plan.rows, plan.rows):
        raise ManifestError(
            f"{storage.where(names[0])} and its keys hold {counts[0]} and {counts[1]} rows, "
            f"the release counts {plan.rows}; delete both and run again"
        )
    return index, keys


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
