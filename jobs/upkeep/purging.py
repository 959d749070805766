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
from pipeline.releases.locating import read_keys, sorted_ids, unit_names
from pipeline.releases.manifest import (
    REJECTS,
    SCHEMAS,
    UNITS,
    ManifestError,
    code_file,
    joined,
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
        files = tables["rejects"]
        holds = [self._in_rejects(address) for address in files["rejects"].to_pylist()]
        holding = files.filter(pa.array(holds, pa.bool_()))
        units = tables["units"].filter(_is_in(tables["units"], holding))
        return found | set(zip(unit_names(units).to_pylist(), units["side"].to_pylist(), strict=True))

    def holds(self, digest: str) -> bool:
        """Tell whether a release holds a forgotten key."""
        return bool(self.units(self._tables(digest)))

    def rewrite(self, digest: str) -> str:
        """Return the release that is left when the forgotten keys are taken out; itself, if it has none.

        It is written, not published.
        """
        from pipeline.search.building import make_part, parts_table
        from pipeline.search.indexing import IndexConfig
        from pipeline.search.part_plans import plan_release_parts, reuse_parts

        manifest, tables = read_release(self.storage, digest), self._tables(digest)
        wanted = self.units(tables)
        if not wanted:
            return digest
        units, rejects = self._rewritten(tables, wanted)
        config = IndexConfig.from_release(manifest.recipe.index)
        plan = plan_release_parts(units, config, manifest.recipe.quantisers)
        reused, missing = reuse_parts(plan, tables["parts"])
        parts = parts_table(reused, (make_part(part, self.storage) for part in missing))
        left = {"units": units, "parts": parts, "rejects": rejects}
        notes = manifest.notes | {"purged_from": digest}
        return write_release(self.storage, manifest.recipe, tables=left, notes=notes)

    def _rewritten(self, tables: Mapping[str, pa.Table], wanted: set[Where]) -> tuple[pa.Table, pa.Table]:
        """Write what is left of these units' files; return the tables `units` and `rejects` that name it."""
        units, rejects = tables["units"], tables["rejects"]
        names = pc.binary_join_element_wise(unit_names(units), units["side"], "\0")
        touched = pc.is_in(names, value_set=pa.array(["\0".join(one) for one in wanted]))
        rows = units.filter(touched).to_pylist()  # of the others there may be millions
        for unit in rows:
            unit |= self._purged(unit)
        changed = pa.Table.from_pylist(rows, schema=UNITS)
        listed = pa.Table.from_pylist([self._rejects_row(unit) for unit in rows], schema=REJECTS)
        kept = rejects.filter(pc.invert(_is_in(rejects, changed)))
        return (
            pa.concat_tables([units.filter(pc.invert(touched)), changed]),
            pa.concat_tables([kept, listed]),
        )

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


def _is_in(rows: pa.Table, others: pa.Table) -> pa.ChunkedArray:
    """Tell of every row of `units` or `rejects` whether the other table names its unit and side, too."""
    mine, theirs = (joined(table, "path", "first_row_group", "side") for table in (rows, others))
    return pc.is_in(mine, value_set=theirs)
