"""Index parts: which units share one, and how its two files are made from their code files.

A part is a plain FAISS file, which FAISS alone can open, and `keys.arrow`, an uncompressed Arrow IPC file
with one row for each row of the index. Both hold the rows in (id, key) order and are pure functions of the
code files: the same inputs give the same bytes. Nothing here reads or writes a store.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import faiss
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

RECIPES = ("BFlat",)
KEYS_VERSION = 1
KEYS_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("key", pa.large_string()),  # 64-bit offsets: the keys of one part may exceed 2 GiB
        ("unit", pa.dictionary(pa.int32(), pa.string())),
        ("row", pa.int64()),
    ]
)
_COLUMNS = ("id", "key", "row", "code")
_ONE_VALUE_PER_PART = ("side", "fingerprint", "code_length", "bit_order", "packer_version")


class IndexConfig(BaseModel):
    """How parts are cut and which FAISS index each of them is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str = "BFlat"  # a FAISS factory string
    part_boundary: int = Field(default=64, ge=1)  # units per part on average; 1 makes every unit its own part

    @field_validator("recipe")
    @classmethod
    def _known(cls, recipe: str) -> str:
        if recipe not in RECIPES:
            raise ValueError(f"must be one of {', '.join(RECIPES)} in this version")
        return recipe


@dataclass(frozen=True)
class PartFiles:
    """The bytes of one part."""

    index: bytes
    keys: bytes
    rows: int


def plan_parts(units: Iterable[str], *, boundary: int) -> list[tuple[str, ...]]:
    """Group units into parts whose limits depend on the units' own paths only.

    Units are sorted by path, and a part ends after each unit whose path hash is 0 mod `boundary`; so a unit
    that comes or goes changes at most two parts of the plan.

    Args:
        units: distinct paths, in any order: those with rows on the side that is planned.
        boundary: mean number of units in a part.
    Raises:
        ValueError: `boundary` is not positive, or a path appears twice.
    """
    if boundary < 1:
        raise ValueError(f"part_boundary must be at least 1, got {boundary}")
    parts: list[tuple[str, ...]] = []
    open_part: list[str] = []
    previous = None
    for unit in sorted(units):
        if unit == previous:
            raise ValueError(f"units must be distinct, got {unit!r} twice")
        previous = unit
        open_part.append(unit)
        if _path_hash(unit) % boundary == 0:
            parts.append(tuple(open_part))
            open_part = []
    return [*parts, tuple(open_part)] if open_part else parts


def build_part(codes: Mapping[str, pa.Table], *, recipe: str = "BFlat") -> PartFiles:
    """Build the two files of one part.

    Args:
        codes: the code table of every unit of the part, by unit path. Tables without rows are fine, a part
            without any row too.
    Returns:
        the bytes of the FAISS file and of keys.arrow, whose row n describes row n of the index.
    Raises:
        ValueError: no units, an unknown recipe, a table without the columns of a code file, or tables that
            differ in side, fingerprint, code length or packing; the unit is named.
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown index recipe {recipe!r}; known: {', '.join(RECIPES)}")
    if not codes:
        raise ValueError("a part needs at least one unit, got none")
    units = sorted(codes)
    size = _code_size(codes)
    metadata = _part_metadata(codes) | {
        "hashfleet.keys_version": str(KEYS_VERSION),
        "hashfleet.recipe": recipe,
    }
    rows = _merge(units, codes)
    index = faiss.IndexBinaryFlat(8 * size)
    index.add(_code_matrix(rows["code"], size))
    keys = _keys_table(rows, units).replace_schema_metadata(metadata)
    return PartFiles(faiss.serialize_index_binary(index).tobytes(), _ipc_bytes(keys), rows.num_rows)


def count_rows(index: bytes, keys: bytes) -> tuple[int, int]:
    """Return the rows of the two files of a part.

    Raises:
        ValueError: one of them is not what it should be.
    """
    try:
        codes = faiss.deserialize_index_binary(np.frombuffer(index, np.uint8)).ntotal
    except RuntimeError as error:
        raise ValueError("FAISS cannot read it") from error
    return codes, pa.ipc.open_file(pa.BufferReader(keys)).read_all().num_rows


def _path_hash(path: str) -> int:
    return int.from_bytes(blake2b(path.encode(), digest_size=8).digest(), "big")


def _code_size(codes: Mapping[str, pa.Table]) -> int:
    """Return the one code size of all tables."""
    first_unit, size = "", 0
    for unit, table in sorted(codes.items()):
        missing = [name for name in _COLUMNS if name not in table.column_names]
        if missing:
            raise ValueError(
                f"codes of {unit}: no column {missing[0]!r}; found: {', '.join(table.column_names)}"
            )
        kind = table.schema.field("code").type
        if not pa.types.is_fixed_size_binary(kind) or kind.byte_width < 1:
            raise ValueError(f"codes of {unit}: column 'code' must be fixed_size_binary, got {kind}")
        if size and kind.byte_width != size:
            raise ValueError(
                f"codes of {unit} have {8 * kind.byte_width} bits, those of {first_unit} {8 * size}; "
                "one part holds one code length"
            )
        first_unit, size = first_unit or unit, kind.byte_width
    return size


def _part_metadata(codes: Mapping[str, pa.Table]) -> dict[str, str]:
    """Return what all code files say of themselves; they must agree."""
    shared: dict[str, str] = {}
    origin: dict[str, str] = {}
    for unit, table in sorted(codes.items()):
        metadata = table.schema.metadata or {}
        for name in _ONE_VALUE_PER_PART:
            key = f"hashfleet.{name}"
            if key.encode() not in metadata:
                continue
            value = metadata[key.encode()].decode()
            if shared.setdefault(key, value) != value:
                raise ValueError(
                    f"codes of {unit} have {name} {value}, those of {origin[key]} {shared[key]}; "
                    "one part holds one kind of code"
                )
            origin.setdefault(key, unit)
    return shared


def _merge(units: list[str], codes: Mapping[str, pa.Table]) -> pa.Table:
    """Return all rows in (id, key) order; of rows with the same key, the lower unit path and row first."""
    tables = [
        codes[unit]
        .select(_COLUMNS)
        .set_column(1, "key", codes[unit]["key"].cast(pa.large_string()))
        .append_column("unit", pa.array(np.full(codes[unit].num_rows, number, np.int32)))
        .replace_schema_metadata(None)
        for number, unit in enumerate(units)
    ]
    order = [(name, "ascending") for name in ("id", "key", "unit", "row")]
    return pa.concat_tables(tables).sort_by(order).combine_chunks()


def _code_matrix(column: pa.ChunkedArray, size: int) -> np.ndarray:
    """Return fixed-size binary values as (N, size) uint8."""
    array = column.combine_chunks()
    values = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    return values[array.offset * size : (array.offset + len(array)) * size].reshape(-1, size)


def _keys_table(rows: pa.Table, units: list[str]) -> pa.Table:
    unit = pa.DictionaryArray.from_arrays(rows["unit"].combine_chunks(), pa.array(units, pa.string()))
    return pa.table([rows["id"], rows["key"], unit, rows["row"]], schema=KEYS_SCHEMA)


def _ipc_bytes(table: pa.Table) -> bytes:
    """Write one record batch, uncompressed, so that a reader maps it and looks rows up without a copy."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
