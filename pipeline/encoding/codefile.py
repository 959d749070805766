"""The code file: one unit's packed codes of one side, and the rejects that stand beside it.

Both are pure functions of what their address names: the same unit, tower and recipe give the same bytes,
whoever encoded which chunk and in which order. The code file carries the ledger of its side in its schema
metadata; nothing here decodes, computes codes or writes a store.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.codes import BIT_ORDER, PACKER_VERSION, code_size
from pipeline.corpus.decode import HASH_SIZE, Reject
from pipeline.corpus.schema import Side, sample_ids
from pipeline.releases.forgetting import NOTHING_FORGOTTEN, Forgotten

CODE_FILE_VERSION = 1
DUPLICATE = "duplicate key"
FORGOTTEN = "forgotten"
_FORGOTTEN_ERROR = "its key was forgotten by `hashfleet releases forget`"


@dataclass(frozen=True)
class Ledger:
    """What became of the rows of one unit on one side; `read == encoded + rejected + absent`."""

    read: int
    encoded: int
    rejected: int
    absent: int
    reasons: dict[str, int] = field(default_factory=dict)  # rejected rows by reason

    @property
    def balanced(self) -> bool:
        return self.read == self.encoded + self.rejected + self.absent


@dataclass(frozen=True)
class CodeFileRecipe:
    """What a code file is of: its address and all that the address covers."""

    side: Side
    address: str
    unit_token: str
    fingerprint: str
    input_recipe: str
    code_length: int


@dataclass(frozen=True)
class EncodedSide:
    """One side of a range of rows after the network: packed codes, rejects, and the count of absent rows."""

    read: int
    absent: int
    rows: np.ndarray  # (n,) int64: row numbers inside the file
    hashes: np.ndarray  # (n, 16) uint8
    codes: np.ndarray  # (n, S) uint8
    rejects: tuple[Reject, ...] = ()
    reused: np.ndarray | None = None  # (n,) bool: codes that come from an earlier code file; None: not one
    forwarded: int = 0  # rows that went through the network


@dataclass(frozen=True)
class CodeFile:
    """The bytes of one side of a unit; `rejects` is None where no row was rejected."""

    recipe: CodeFileRecipe
    ledger: Ledger
    codes: bytes
    rejects: bytes | None
    reused: int = 0  # rows of it that an earlier code file had; no byte of it depends on that
    forwarded: int = 0  # rows that went through the network for it


@dataclass(frozen=True)
class UnitRows:
    """What every row of a unit is told by, in row order."""

    keys: pa.Array  # null where a row has no usable key
    tokens: pa.Array | None = None  # int64 change tokens; None where the source has no column of them
    first_row: int = 0  # number of the first row in its file

    @cached_property
    def ids(self) -> np.ndarray:
        """The (N,) ids of the keys; of rows without one, nothing that means anything."""
        return sample_ids(key or "" for key in self.keys.to_pylist())

    @cached_property
    def first_of_key(self) -> np.ndarray:
        """For each row the first row with its key, from 0; of rows without one, as above."""
        groups = pc.fill_null(self.keys.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
        _, first, group_of_row = np.unique(groups, return_index=True, return_inverse=True)
        return first[group_of_row]


def make_code_file(
    recipe: CodeFileRecipe,
    unit: UnitRows,
    parts: Sequence[EncodedSide],
    *,
    forgotten: Forgotten = NOTHING_FORGOTTEN,
) -> CodeFile:
    """Put the encoded ranges of a unit together.

    Of rows with the same key the first is kept and the others are rejected, whatever became of the first: the
    two sides of a unit thus agree on which row a key stands for.

    Args:
        parts: encoded ranges that cover every row once, in any order.
        forgotten: keys that become rejects without a key.
    Raises:
        RuntimeError: the ledger does not balance: a row was lost or counted twice.
    """
    side = _drop_duplicates(join_encoded(parts, code_size(recipe.code_length)), unit)
    if len(forgotten):
        side = _drop_forgotten(side, forgotten.mask(unit.keys.to_pylist()), unit.first_row)
    ledger = _ledger(side)
    if not ledger.balanced or ledger.read != len(unit.keys):
        raise RuntimeError(
            f"the ledger of {recipe.side} code file {recipe.address} does not balance over {len(unit.keys)} "
            f"rows: {ledger}; nothing was written"
        )
    metadata = _metadata(recipe, ledger)
    rejects = parquet_bytes(_reject_table(side.rejects, metadata)) if side.rejects else None
    codes = parquet_bytes(_code_table(side, unit, metadata))
    return CodeFile(recipe, ledger, codes, rejects, int(_reused(side).sum()), side.forwarded)


def read_ledger(schema: pa.Schema) -> Ledger:
    """Return the ledger that a code file carries.

    Raises:
        ValueError: the schema is not that of a code file.
    """
    metadata = schema.metadata or {}
    if b"hashfleet.ledger" not in metadata:
        raise ValueError(
            f"not a code file: no hashfleet.ledger in its schema; found {', '.join(schema.names)}"
        )
    return Ledger(**json.loads(metadata[b"hashfleet.ledger"]))


def code_schema(code_length: int, *, tokens: bool = False) -> pa.Schema:
    """Return the columns of a code file; with `tokens` those of a source whose rows have change tokens."""
    return pa.schema(
        [
            ("id", pa.int64()),
            ("key", pa.string()),
            ("row", pa.int64()),
            ("content_hash", pa.binary(HASH_SIZE)),
            ("code", pa.binary(code_size(code_length))),
            *([("token", pa.int64())] if tokens else []),
        ]
    )


REJECT_SCHEMA = pa.schema(
    [("row", pa.int64()), ("key", pa.string()), ("reason", pa.string()), ("error", pa.string())]
)


def join_encoded(parts: Sequence[EncodedSide], size: int) -> EncodedSide:
    """Put encoded ranges together, in row order; `size` is that of a code in bytes."""
    rows = np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)])
    order = np.argsort(rows, kind="stable")
    hashes = np.concatenate([np.empty((0, HASH_SIZE), np.uint8), *(part.hashes for part in parts)])
    codes = np.concatenate([np.empty((0, size), np.uint8), *(part.codes for part in parts)])
    reused = np.concatenate([np.empty(0, bool), *(_reused(part) for part in parts)])
    return EncodedSide(
        read=sum(part.read for part in parts),
        absent=sum(part.absent for part in parts),
        rows=rows[order],
        hashes=hashes[order],
        codes=codes[order],
        rejects=tuple(sorted((reject for part in parts for reject in part.rejects), key=lambda r: r.row)),
        reused=reused[order],
        forwarded=sum(part.forwarded for part in parts),
    )


def _reused(side: EncodedSide) -> np.ndarray:
    return np.zeros(len(side.rows), bool) if side.reused is None else side.reused


def _keep(side: EncodedSide, kept: np.ndarray, rejects: Sequence[Reject]) -> EncodedSide:
    """Return a side with some of its encoded rows and these rejects."""
    return replace(
        side,
        rows=side.rows[kept],
        hashes=side.hashes[kept],
        codes=side.codes[kept],
        reused=_reused(side)[kept],
        rejects=tuple(sorted(rejects, key=lambda reject: reject.row)),
    )


def _drop_duplicates(side: EncodedSide, unit: UnitRows) -> EncodedSide:
    """Turn the encoded rows whose key an earlier row of the unit has into rejects."""
    start = unit.first_row
    first = unit.first_of_key + start
    duplicate = first[side.rows - start] != side.rows
    if not duplicate.any():
        return side
    rejects = [
        Reject(
            row,
            unit.keys[row - start].as_py(),
            DUPLICATE,
            f"row {first[row - start]} of this unit has the same key",
        )
        for row in side.rows[duplicate].tolist()
    ]
    return _keep(side, ~duplicate, [*side.rejects, *rejects])


def _drop_forgotten(side: EncodedSide, mask: np.ndarray, start: int) -> EncodedSide:
    """Turn every row of a forgotten key into a reject that does not name it; the mask is of all rows."""
    if not mask.any():
        return side
    kept = ~mask[side.rows - start]
    rejects = [reject for reject in side.rejects if not mask[reject.row - start]]
    hidden = {reject.row for reject in side.rejects if mask[reject.row - start]}
    hidden.update(side.rows[~kept].tolist())
    return _keep(side, kept, [*rejects, *(forgotten_row(row) for row in hidden)])


def forgotten_row(row: int) -> Reject:
    """Return the reject of a row whose key was forgotten."""
    return Reject(row, "", FORGOTTEN, _FORGOTTEN_ERROR)


def _ledger(side: EncodedSide) -> Ledger:
    reasons = [reject.reason for reject in side.rejects]
    return Ledger(
        read=side.read,
        encoded=len(side.rows),
        rejected=len(reasons),
        absent=side.absent,
        reasons={reason: reasons.count(reason) for reason in sorted(set(reasons))},
    )


def recipe_metadata(recipe: CodeFileRecipe) -> dict[str, str]:
    """Return what a code file says of how its codes were made: equal for two whose codes are exchangeable."""
    values: dict[str, Any] = {
        "version": CODE_FILE_VERSION,
        "side": recipe.side,
        "fingerprint": recipe.fingerprint,
        "input_recipe": recipe.input_recipe,
        "code_length": recipe.code_length,
        "bit_order": BIT_ORDER,
        "packer_version": PACKER_VERSION,
    }
    return {f"hashfleet.{name}": str(value) for name, value in values.items()}


def _metadata(recipe: CodeFileRecipe, ledger: Ledger) -> dict[str, str]:
    mine = {
        "hashfleet.unit_token": recipe.unit_token,
        "hashfleet.ledger": json.dumps(asdict(ledger), sort_keys=True),
    }
    return recipe_metadata(recipe) | mine


def _code_table(side: EncodedSide, unit: UnitRows, metadata: dict[str, str]) -> pa.Table:
    at = side.rows - unit.first_row
    rows = pa.array(at)
    columns = {
        "id": unit.ids[at],
        "key": unit.keys.take(rows),
        "row": side.rows,
        "content_hash": _fixed_binary(side.hashes),
        "code": _fixed_binary(side.codes),
    }
    if unit.tokens is not None:
        columns["token"] = unit.tokens.take(rows)
    schema = code_schema(8 * side.codes.shape[1], tokens=unit.tokens is not None)
    table = pa.table(columns, schema=schema.with_metadata(metadata))
    return table.sort_by([("id", "ascending"), ("key", "ascending")])


def _reject_table(rejects: Sequence[Reject], metadata: dict[str, str]) -> pa.Table:
    columns = {name: [getattr(reject, name) for reject in rejects] for name in REJECT_SCHEMA.names}
    return pa.table(columns, schema=REJECT_SCHEMA.with_metadata(metadata))


def _fixed_binary(values: np.ndarray) -> pa.Array:
    """Turn (N, W) uint8 into N binary values of width W without a copy."""
    width = values.shape[1]
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
    )


def parquet_bytes(table: pa.Table) -> bytes:
    """Write Parquet whose bytes depend on the table alone: codes do not compress and take no dictionary."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=["reason"],
        write_statistics=["id"],
        write_page_checksum=True,  # a later night takes codes from here
    )
    return sink.getvalue().to_pybytes()
