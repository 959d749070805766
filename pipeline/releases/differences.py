"""What differs between two releases, from their tables alone: units by side, rows, parts, recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.releases.manifest import SCHEMAS, code_files, read_release, read_table
from pipeline.releases.storage import Storage

_PLACE = ("path", "first_row_group", "side")


@dataclass(frozen=True)
class Difference:
    """From release A to release B. The tables have path, side and the encoded rows in A and in B."""

    added: pa.Table  # units and sides that only B has
    removed: pa.Table  # that only A has
    changed: pa.Table  # that have another code file in B
    same: int
    parts_shared: int
    parts_added: int
    parts_removed: int
    recipe: dict[str, tuple[Any, Any]]  # settings that differ: what A has, what B has

    @property
    def nothing(self) -> bool:
        """Tell whether the two hold the same codes, made in the same way."""
        return not (len(self.added) or len(self.removed) or len(self.changed) or self.recipe)


def compare(storage: Storage, first: str, second: str) -> Difference:
    """Compare two releases of a store.

    Raises:
        ManifestError: one of them is missing or damaged.
    """
    manifests = [read_release(storage, digest) for digest in (first, second)]
    tables = [{name: read_table(storage, one, name) for name in SCHEMAS} for one in manifests]
    units = _join(tables[0]["units"], tables[1]["units"])
    in_first, in_second = pc.is_valid(units["file_a"]), pc.is_valid(units["file_b"])
    equal = pc.fill_null(pc.equal(units["file_a"], units["file_b"]), False)
    both = pc.and_(in_first, in_second)
    parts = [set(one["parts"]["part"].to_pylist()) for one in tables]
    shown = units.drop_columns(["file_a", "file_b"])
    return Difference(
        added=shown.filter(pc.invert(in_first)),
        removed=shown.filter(pc.invert(in_second)),
        changed=shown.filter(pc.and_(both, pc.invert(equal))),
        same=pc.sum(equal).as_py() or 0,
        parts_shared=len(parts[0] & parts[1]),
        parts_added=len(parts[1] - parts[0]),
        parts_removed=len(parts[0] - parts[1]),
        recipe=_differing(*(one.recipe.model_dump(mode="json") for one in manifests)),
    )


def _join(first: pa.Table, second: pa.Table) -> pa.Table:
    sides = [_side(table, mark) for table, mark in ((first, "a"), (second, "b"))]
    joined = sides[0].join(sides[1], keys=list(_PLACE), join_type="full outer")
    order = [(name, "ascending") for name in _PLACE]
    return joined.sort_by(order).select(["path", "side", "rows_a", "rows_b", "file_a", "file_b"])


def _side(units: pa.Table, mark: str) -> pa.Table:
    place = {name: units[name] for name in _PLACE}
    place["first_row_group"] = pc.fill_null(place["first_row_group"], -1)  # null equals nothing in a join
    return pa.table(place | {f"file_{mark}": code_files(units), f"rows_{mark}": units["encoded"]})


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = sorted(first.keys() | second.keys())
    return {
        name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)
    }
