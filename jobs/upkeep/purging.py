"""Taking forgotten keys out of the files of a release: what is left of it is a release of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.encoding.purging import purge, purged_address
from pipeline.releases.addresses import code_path, rejects_path, sha256
from pipeline.releases.forgetting import Forgotten
from pipeline.releases.locating import read_keys, sorted_ids, unit_name
from pipeline.releases.manifest import (
    REJECTS,
    SCHEMAS,
    UNITS,
    ManifestError,
    code_file,
    read_release,
    read_table,
    write_release,
)
from pipeline.releases.storage import Storage

Where = tuple[str, str]
"""A unit, by its name in the parts, and a side."""


@dataclass
class Purge:
    """Looks for forgotten keys in releases, and rewrites those that hold some. Shared parts are read once."""

    storage: Storage
    forgotten: Forgotten
    _of_part: dict[str, set[str]] = field(default_factory=dict)
    _of_rejects: dict[str, bool] = field(default_factory=dict)

    def units(self, tables: Mapping[str, pa.Table]) -> set[Where]:
        """Return the units and sides of a release whose code file or rejects hold a forgotten key."""
        found = {
            (name, part["side"])
            for part in tables["parts"].to_pylist()
            for name in self._in_part(part["part"])
        }
        for file in tables["rejects"].to_pylist():
            if self._in_rejects(file["rejects"]):
                mine = pc.and_(
                    pc.equal(tables["units"]["path"], file["path"]),
                    pc.equal(tables["units"]["side"], file["side"]),
                )
                found |= {
                    (unit_name(unit), file["side"])
                    for unit in tables["units"].filter(mine).to_pylist()
                    if unit["first_row_group"] == file["first_row_group"]
                }
        return found

    def holds(self, digest: str) -> bool:
        """Tell whether a release holds a forgotten key."""
        return bool(self.units(self._tables(digest)))

    def rewrite(self, digest: str) -> str:
        """Return the release that is left when the forgotten keys are taken out; itself, if it has none.

        It is written, not published.
        """
        from pipeline.search.building import make_part, parts_table, plan_release_parts, reuse_parts
        from pipeline.search.indexing import IndexConfig

        manifest, tables = read_release(self.storage, digest), self._tables(digest)
        wanted = self.units(tables)
        if not wanted:
            return digest
        rows = tables["units"].to_pylist()
        rejects = {file["rejects"]: file for file in tables["rejects"].to_pylist()}
        for unit in rows:
            if (unit_name(unit), unit["side"]) in wanted:
                before = code_file(unit)
                unit |= self._purged(unit)
                rejects.pop(before, None)
                rejects[code_file(unit)] = self._rejects_row(unit)
        units = pa.Table.from_pylist(rows, schema=UNITS)
        config = IndexConfig.from_release(manifest.recipe.index)
        plans = plan_release_parts(units, config, manifest.recipe.quantisers)
        known, missing = reuse_parts(plans, tables["parts"])
        parts = parts_table(known + [make_part(plan, self.storage) for plan in missing])
        left = {"units": units, "parts": parts}
        left["rejects"] = pa.Table.from_pylist(list(rejects.values()), schema=REJECTS)
        notes = manifest.notes | {"purged_from": digest}
        return write_release(self.storage, manifest.recipe, tables=left, notes=notes)

    def _purged(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Write what is left of a unit's files and return what changes in its row."""
        before = code_file(unit)
        rejects = self._read(rejects_path(before)) if unit["rejected"] else None
        left = purge(self._read(code_path(before)), rejects, self.forgotten)
        if left is None:
            raise ManifestError(
                f"{self.storage.where(code_path(before))} does not hold what a part has of it"
            )
        address = purged_address(unit["code"], self.forgotten)
        self.storage.create(rejects_path(address), left.rejects)
        self.storage.create(code_path(address), left.codes)
        return {
            "purged": address,
            "code_sha256": sha256(left.codes),
            "code_bytes": len(left.codes),
            "encoded": left.ledger.encoded,
            "rejected": left.ledger.rejected,
        }

    def _rejects_row(self, unit: Mapping[str, Any]) -> dict[str, Any]:
        data = self._read(rejects_path(code_file(unit)))
        place = {name: unit[name] for name in ("path", "first_row_group", "side")}
        file = {"rejects": code_file(unit), "sha256": sha256(data), "bytes": len(data)}
        return place | file | {"rows": unit["rejected"]}

    def _in_part(self, part: str) -> set[str]:
        if part not in self._of_part:
            keys = read_keys(self.storage, part)
            rows = self.forgotten.rows(sorted_ids(keys), keys["key"])
            self._of_part[part] = set(keys["unit"].take(pa.array(rows)).to_pylist())
        return self._of_part[part]

    def _in_rejects(self, address: str) -> bool:
        if address not in self._of_rejects:
            rows = pq.read_table(pa.BufferReader(self._read(rejects_path(address))), columns=["key"])
            self._of_rejects[address] = bool(self.forgotten.mask(rows["key"].to_pylist()).any())
        return self._of_rejects[address]

    def _tables(self, digest: str) -> dict[str, pa.Table]:
        manifest = read_release(self.storage, digest)
        return {name: read_table(self.storage, manifest, name) for name in SCHEMAS}

    def _read(self, path: str) -> bytes:
        try:
            return self.storage.read(path)
        except FileNotFoundError as error:
            raise ManifestError(f"{self.storage.where(path)} is missing: a release names it") from error
