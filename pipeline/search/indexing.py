"""Index parts: which units share one, and how its two files are made from their code files.

A part is a plain FAISS file, which FAISS alone can open, and `keys.arrow`, an uncompressed Arrow IPC file
with one row for each row of the index. Both hold the rows in (id, key) order and are pure functions of the
code files: the same inputs give the same bytes. Nothing here reads or writes a store.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.search.families import Effort, parse_recipe
from pipeline.search.partfiles import KEYS_VERSION, PartRecipe, PartWriter
from pipeline.search.quantisers import Quantiser

AUTO = "auto"
SETTINGS = {"ivf": "nprobe", "hnsw": "ef_search", "hash": "nflip", "multihash": "nflip"}
"""The setting of each kind of family that says how much of it a search looks at."""
COLUMNS = ("id", "key", "row", "code")
_PAGE = 1 << 16  # names that are Python objects at once
_ONE_VALUE_PER_PART = ("side", "fingerprint", "code_length", "bit_order", "packer_version")


class IndexConfig(BaseModel):
    """How parts are cut, which FAISS index each of them is, and how much of it a search looks at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str = "BFlat"  # a FAISS factory string; auto: measured on the first night, then kept
    part_boundary: int = Field(default=64, ge=1)  # units per part on average; 1 makes every unit its own part
    nprobe: int = Field(default=16, ge=1)  # BIVF: lists that a query visits
    nflip: int = Field(default=1, ge=0)  # BHash: bits of a hash in which a row may differ
    ef_search: int = Field(default=64, ge=1)  # BHNSW: nodes that a query keeps in sight
    max_memory: int = Field(default=4 << 30, ge=64 << 20)  # bytes that builds of parts may take together
    quantiser_seed: int = 0
    retrain: bool = False  # train the coarse quantisers anew, though the towers are the same
    target_recall: float = Field(default=0.95, gt=0, le=1)  # auto: of the 10 nearest, ties counted as hits
    target_ms: float | None = Field(
        default=None, gt=0
    )  # auto: time of a query; recall is then the best for it
    target_bytes: int | None = Field(default=None, ge=1)  # auto: memory that the index of a side may take
    sample_rows: int = Field(default=1_000_000, ge=1000)  # auto: codes of a side that are measured

    @field_validator("recipe")
    @classmethod
    def _known(cls, recipe: str) -> str:
        if recipe != AUTO:
            parse_recipe(recipe)
        return recipe

    @property
    def effort(self) -> Effort:
        """How much of an index a search looks at."""
        return Effort(nprobe=self.nprobe, nflip=self.nflip, ef_search=self.ef_search)

    @classmethod
    def from_release(cls, index: Mapping[str, Any]) -> "IndexConfig":
        """Return the settings that a release's parts were built with."""
        return cls(**{name: value for name, value in index.items() if name in cls.model_fields})

    def of_release(self) -> dict[str, Any]:
        """Return what a release says of its index: what its parts and answers depend on."""
        setting = None if self.recipe == AUTO else SETTINGS.get(parse_recipe(self.recipe).kind)
        names = ["recipe", "part_boundary", *([setting] if setting else [])]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class PartFiles:
    """The bytes of one part."""

    index: bytes
    keys: bytes
    rows: int


def part_ends(units: pa.ChunkedArray, *, boundary: int) -> np.ndarray:
    """Cut units into parts whose limits depend on the units' own names only.

    A part ends after each unit the hash of whose name is 0 mod `boundary`, and after the last; so a unit that
    comes or goes changes at most two parts.

    Args:
        units: (N,) names in ascending order: of units with rows on the side that is planned.
        boundary: mean number of units in a part.
    Returns:
        (P,) int64: for each part one past its last unit.
    Raises:
        ValueError: `boundary` is not positive, or names are not distinct and in order.
    """
    if boundary < 1:
        raise ValueError(f"part_boundary must be at least 1, got {boundary}")
    later, earlier = units[1:], units[: max(len(units) - 1, 0)]
    if len(wrong := later.filter(pc.less_equal(later, earlier))):
        raise ValueError(f"units must be distinct and in order, {wrong[0].as_py()!r} is not")
    ends = [
        start + place + 1
        for start in range(0, len(units), _PAGE)
        for place, unit in enumerate(units[start : start + _PAGE].to_pylist())
        if _path_hash(unit) % boundary == 0
    ]
    return np.unique(np.array([*ends, *([len(units)] if len(units) else [])], np.int64))


def build_part(
    codes: Mapping[str, pa.Table], *, recipe: str = "BFlat", quantiser: Quantiser | None = None
) -> PartFiles:
    """Build the two files of one part in memory.

    Args:
        codes: the code table of every unit of the part, by unit path. Tables without rows are fine, a part
            without any row too.
        quantiser: of a recipe with inverted lists.
    Returns:
        the bytes of the FAISS file and of keys.arrow, whose row n describes row n of the index.
    Raises:
        ValueError: no units, an unknown recipe, a table without the columns of a code file, or tables that
            differ in side, fingerprint, code length or packing; the unit is named.
    """
    family = parse_recipe(recipe)
    if not codes:
        raise ValueError("a part needs at least one unit, got none")
    units = sorted(codes)
    kind = CodeKind()
    for unit in units:
        kind = kind.joined(unit, codes[unit].schema)
    with tempfile.TemporaryDirectory() as folder:
        writer = PartWriter(Path(folder), PartRecipe(family, kind.code_size, quantiser))
        writer.add(merge([numbered(codes[unit], number) for number, unit in enumerate(units)]))
        index, keys = writer.finish(units, kind.metadata(recipe))
        return PartFiles(index.read_bytes(), keys.read_bytes(), writer.rows)


@dataclass(frozen=True)
class CodeKind:
    """What the code files of one part have in common."""

    code_size: int = 0
    unit: str = ""  # the first of them
    shared: Mapping[str, tuple[str, str]] = field(
        default_factory=dict
    )  # metadata -> value, unit that says so

    def joined(self, unit: str, schema: pa.Schema) -> "CodeKind":
        """Return what those so far have in common with one more.

        Raises:
            ValueError: it lacks a column, or is of another kind.
        """
        missing = [name for name in COLUMNS if name not in schema.names]
        if missing:
            raise ValueError(f"codes of {unit}: no column {missing[0]!r}; found: {', '.join(schema.names)}")
        kind = schema.field("code").type
        if not pa.types.is_fixed_size_binary(kind) or kind.byte_width < 1:
            raise ValueError(f"codes of {unit}: column 'code' must be fixed_size_binary, got {kind}")
        if self.code_size and kind.byte_width != self.code_size:
            raise ValueError(
                f"codes of {unit} have {8 * kind.byte_width} bits, those of {self.unit} "
                f"{8 * self.code_size}; one part holds one code length"
            )
        shared = dict(self.shared)
        for name in _ONE_VALUE_PER_PART:
            value = (schema.metadata or {}).get(f"hashfleet.{name}".encode())
            if value is None:
                continue
            before, first = shared.setdefault(name, (value.decode(), unit))
            if before != value.decode():
                raise ValueError(
                    f"codes of {unit} have {name} {value.decode()}, those of {first} {before}; "
                    "one part holds one kind of code"
                )
        return CodeKind(kind.byte_width, self.unit or unit, shared)

    def metadata(self, recipe: str) -> dict[str, str]:
        """Return what keys.arrow says of its part."""
        shared = {f"hashfleet.{name}": value for name, (value, _) in self.shared.items()}
        return shared | {"hashfleet.keys_version": str(KEYS_VERSION), "hashfleet.recipe": recipe}


def numbered(codes: pa.Table, unit: int) -> pa.Table:
    """Return the columns of a code table that a part takes, with the number of its unit."""
    return (
        codes.select(COLUMNS)
        .set_column(1, "key", codes["key"].cast(pa.large_string()))
        .append_column("unit", pa.array(np.full(codes.num_rows, unit, np.int32)))
        .replace_schema_metadata(None)
    )


def merge(tables: Sequence[pa.Table]) -> pa.Table:
    """Return all rows in (id, key) order; of rows with the same key, the lower unit number and row first."""
    order = [(name, "ascending") for name in ("id", "key", "unit", "row")]
    return pa.concat_tables(tables).sort_by(order).combine_chunks()


def _path_hash(path: str) -> int:
    return int.from_bytes(blake2b(path.encode(), digest_size=8).digest(), "big")
