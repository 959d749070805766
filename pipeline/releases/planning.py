"""What a night has to do: a pure function of the source listing and the parent release. No storage, no clock.

A unit's code file is wanted at an address that covers all it depends on. Where the parent release names
that address the file is reused without a request; everything else is work.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.codes import PACKER_VERSION
from pipeline.releases.addresses import check_path, code_address, unit_token
from pipeline.releases.manifest import UNITS
from pipeline.releases.storage import SourceFile

WORK = pa.schema(
    [*(UNITS.field(name) for name in UNITS.names[: UNITS.names.index("code") + 1]), ("reason", pa.string())]
)
"""The columns of UNITS up to the address, and why the code file is wanted."""

NEW, CHANGED, RECIPE = "new unit", "changed unit", "new tower or recipe"


@dataclass(frozen=True)
class Plan:
    """The work of a night; every table is sorted by path and side.

    `encode` (WORK): code files that the parent release does not name. Some may stand in the store already,
    left by a run that was ended. `reuse` (UNITS): rows of the next release, ready as they are. `vanished`:
    paths that the parent has and the source has no more.
    """

    encode: pa.Table
    reuse: pa.Table
    vanished: tuple[str, ...]

    @property
    def nothing_to_do(self) -> bool:
        """Tell whether the next release would equal its parent."""
        return not len(self.encode) and not self.vanished

    def counts(self) -> dict[str, int]:
        """Return the plan in numbers: units as a whole, code files by side."""
        encoded = set(self.encode["path"].to_pylist())
        total = encoded | set(self.reuse["path"].to_pylist())
        counts = {
            "units_total": len(total),
            "units_encoded": len(encoded),
            "units_reused": len(total) - len(encoded),
            "units_vanished": len(self.vanished),
        }
        for name, table in (("encode", self.encode), ("reuse", self.reuse)):
            for item in table["side"].value_counts().to_pylist():
                counts[f"code_files_{name}_{item['values']}"] = item["counts"]
        return counts


def plan_night(
    files: Sequence[SourceFile],
    fingerprints: Mapping[str, str],
    *,
    recipes: Mapping[str, str],
    parent_units: pa.Table | None = None,
    packer_version: int = PACKER_VERSION,
) -> Plan:
    """Decide for every unit and side whether its code file is reused or must be encoded.

    Args:
        files: the source, one unit per file.
        fingerprints: side -> fingerprint of its tower, for the sides that are wanted.
        recipes: side -> digest of its input recipe, for the same sides.
        parent_units: table `units` of the parent release; None on the first night.
    Raises:
        ValueError: a path is named twice or leaves the source.
    """
    ordered = sorted(files, key=lambda file: file.path)
    for file, following in itertools.pairwise(ordered):
        if file.path == following.path:
            raise ValueError(f"the source names {file.path!r} twice; every unit must have its own path")
    wanted = _wanted(ordered, fingerprints, recipes=recipes, packer_version=packer_version)
    parent = UNITS.empty_table() if parent_units is None else parent_units.select(UNITS.names).cast(UNITS)
    found = pc.index_in(wanted["code"], value_set=_array(parent["code"]))
    known = pc.is_valid(found)
    missing = wanted.filter(pc.invert(known))
    return Plan(
        encode=missing.append_column("reason", _reasons(missing, parent)).cast(WORK),
        reuse=_reuse(wanted.filter(known), parent.take(pc.drop_null(found))),
        vanished=_vanished(ordered, parent),
    )


def _wanted(
    files: Sequence[SourceFile],
    fingerprints: Mapping[str, str],
    *,
    recipes: Mapping[str, str],
    packer_version: int,
) -> pa.Table:
    """Return the columns of WORK without the reason: one row per unit and wanted side."""
    schema = pa.schema(list(WORK)[:-1])
    columns: dict[str, list] = {name: [] for name in schema.names}
    for file in files:
        check_path(file.path)
        unit = unit_token(file.size, file.token)
        for side, mark in sorted(fingerprints.items()):
            code = code_address(
                unit, side, fingerprint=mark, recipe=recipes[side], packer_version=packer_version
            )
            row = (file.path, None, None, file.size, file.token, unit, side, code)
            for name, value in zip(schema.names, row, strict=True):
                columns[name].append(value)
    return pa.table(columns, schema=schema)


def _reuse(wanted: pa.Table, earlier: pa.Table) -> pa.Table:
    """Return the parent's rows under the paths of today; a file may have moved since."""
    columns = {name: wanted[name] if name in wanted.column_names else earlier[name] for name in UNITS.names}
    columns["stale"] = pa.array([False] * len(wanted), pa.bool_())
    return pa.table(columns, schema=UNITS)


def _reasons(missing: pa.Table, parent: pa.Table) -> pa.Array:
    known_path = pc.is_in(missing["path"], value_set=_array(parent["path"]))
    known_unit = pc.is_in(missing["unit"], value_set=_array(parent["unit"]))
    return pc.if_else(known_unit, RECIPE, pc.if_else(known_path, CHANGED, NEW))


def _vanished(files: Sequence[SourceFile], parent: pa.Table) -> tuple[str, ...]:
    now = {file.path for file in files}
    return tuple(sorted(set(pc.unique(parent["path"]).to_pylist()) - now))


def _array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)
