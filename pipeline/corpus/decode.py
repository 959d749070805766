"""From stored rows to what a tower takes: pixels, features or text, with a ledger that balances.

On each side a row is kept, rejected with a reason, or absent (its value is null): nothing vanishes. What a
row becomes depends on its own bytes and the recipe only, never on the rows around it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from pipeline.corpus.readers import Bytes, have_null_labels, read_keys, read_labels
from pipeline.corpus.recipe import DecodeLimits, InputRecipe
from pipeline.corpus.schema import SIDES, ColumnMap, Side, sample_ids
from pipeline.corpus.sides import SideRows, decode_image, open_side

__all__ = [
    "DecodeLimits",
    "DecodedSide",
    "InputRecipe",
    "Known",
    "Pairs",
    "Reject",
    "content_hash",
    "decode_image",
    "decode_pairs",
    "decode_side",
    "decode_table",
]

HASH_SIZE = 16

Known = Callable[[np.ndarray], np.ndarray]
"""From (n, 16) content hashes to (n,) bool: which of these bytes were decoded before, by the same recipe."""


@dataclass(frozen=True)
class Reject:
    """A row that one side could not take."""

    row: int
    key: str  # "" where the key itself is at fault
    reason: str  # one of a few short classes, to count by
    error: str  # what exactly was wrong


@dataclass
class DecodedSide:
    """One side of a range of rows; `read == len(rows) + len(known_rows) + len(rejects) + absent`."""

    read: int
    rows: np.ndarray  # (n,) int64: row numbers inside the unit
    keys: list[str]
    hashes: np.ndarray  # (n, 16) uint8 content hashes; (0, 16) when not asked for
    values: Any  # (n, S, S, 3) uint8 | (n, D) float32 | list of n texts
    rejects: list[Reject] = field(default_factory=list)
    absent: int = 0
    known_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # not decoded: bytes known
    known_hashes: np.ndarray = field(default_factory=lambda: np.empty((0, HASH_SIZE), np.uint8))


@dataclass
class Pairs:
    """Rows that are complete on both sides, for training and evaluation."""

    keys: list[str]
    ids: np.ndarray  # (n,) int64
    rows: np.ndarray  # (n,) int64
    image: Any  # as DecodedSide.values
    text: Any
    labels: list[np.ndarray] | None
    dropped: dict[str, int]  # rows left out, by the reason of the first side that lacks them, or of labels


def content_hash(data: Bytes) -> bytes:
    """Return the 16-byte content hash of the raw bytes of one row's side: the first half of their BLAKE3."""
    return blake3(data).digest(HASH_SIZE)


def decode_table(
    table: pa.Table,
    columns: ColumnMap,
    recipe: InputRecipe,
    *,
    sides: Sequence[Side] = SIDES,
    first_row: int = 0,
    hashes: bool = True,
) -> dict[Side, DecodedSide]:
    """Decode a range of rows of one unit, each side for itself.

    A null value is absent. A row without a usable key (null, empty, not UTF-8) is rejected on every side
    where it has a value. A side that the source has no column for is absent in every row. Of a list of
    texts the first non-empty one is taken.

    Args:
        first_row: number of the first row of `table` inside its unit.
        hashes: also hash the raw bytes of each kept row.
    """
    keys = read_keys(table.column(columns.key))
    decoded = {}
    for side in sides:
        source = open_side(table, columns, recipe, side=side)
        present = np.flatnonzero(source.present).tolist()
        decoded[side] = _decode_rows(keys, source, present, first_row=first_row)
        if hashes:
            decoded[side].hashes = _hashes(source, (decoded[side].rows - first_row).tolist())
    return decoded


def decode_side(
    table: pa.Table,
    columns: ColumnMap,
    recipe: InputRecipe,
    *,
    side: Side,
    keys: list[str | None],
    known: Known,
) -> DecodedSide:
    """Decode one side of rows as `decode_table` does, but those whose bytes are known: these are only hashed.

    Rows are numbered from 0.

    Args:
        keys: of the rows, as `read_keys` gives them.
    """
    source = open_side(table, columns, recipe, side=side)
    asked = np.array([i for i in np.flatnonzero(source.comparable) if keys[i] is not None], dtype=np.int64)
    hashes = np.zeros((table.num_rows, HASH_SIZE), np.uint8)
    hashes[asked] = _hashes(source, asked.tolist())
    rows = asked[known(hashes[asked])]
    others = np.delete(np.arange(table.num_rows), rows)
    decoded = _decode_rows(keys, source, others[source.present[others]].tolist())
    decoded.hashes = hashes[decoded.rows]  # a row that is kept is comparable
    decoded.known_rows, decoded.known_hashes = rows, hashes[rows]
    return decoded


def join_decoded(parts: Sequence[DecodedSide]) -> DecodedSide:
    """Put decoded ranges of one side, which follow each other, together."""
    if len(parts) == 1:
        return parts[0]
    values = [part.values for part in parts if len(part.values)] or [parts[0].values]
    lists = isinstance(values[0], list)
    return DecodedSide(
        read=sum(part.read for part in parts),
        rows=np.concatenate([part.rows for part in parts]),
        keys=[key for part in parts for key in part.keys],
        hashes=np.concatenate([part.hashes for part in parts]),
        values=[value for some in values for value in some] if lists else np.concatenate(values),
        rejects=[reject for part in parts for reject in part.rejects],
        absent=sum(part.absent for part in parts),
    )


def decode_pairs(table: pa.Table, columns: ColumnMap, recipe: InputRecipe, *, first_row: int = 0) -> Pairs:
    """Decode the rows that are complete on both sides; count the others by reason.

    Labels come along where the source has them, an empty array for a null; a row with a null among its labels
    is left out.
    """
    sides = decode_table(table, columns, recipe, first_row=first_row, hashes=False)
    image, text = sides["image"], sides["text"]
    rows, in_image, in_text = np.intersect1d(image.rows, text.rows, assume_unique=True, return_indices=True)
    labels, faulty = None, np.empty(0, np.int64)
    if columns.labels is not None:
        column = table.column(columns.labels)
        labels, faulty = read_labels(column), np.flatnonzero(have_null_labels(column)) + first_row
    kept = ~np.isin(rows, faulty)
    rows, in_image, in_text = rows[kept], in_image[kept], in_text[kept]
    keys = [image.keys[i] for i in in_image]
    return Pairs(
        keys=keys,
        ids=sample_ids(keys),
        rows=rows,
        image=_take(image.values, in_image),
        text=_take(text.values, in_text),
        labels=None if labels is None else [labels[row - first_row] for row in rows],
        dropped=_count_dropped(sides, range(first_row, first_row + table.num_rows), faulty.tolist()),
    )


def _decode_rows(
    keys: list[str | None], source: SideRows, present: list[int], *, first_row: int = 0
) -> DecodedSide:
    """Decode those rows that `present` lists; their hashes are left out."""
    values, faults = source.decode([i for i in present if keys[i] is not None])
    faults |= {
        i: "missing key: must be an integer or a non-empty UTF-8 string" for i in present if keys[i] is None
    }
    kept = [i for i in present if i not in faults]
    return DecodedSide(
        read=len(keys),
        rows=np.array(kept, dtype=np.int64) + first_row,
        keys=[keys[i] or "" for i in kept],
        hashes=np.empty((0, HASH_SIZE), np.uint8),
        values=values,
        rejects=[_reject(first_row + i, keys[i], faults[i]) for i in sorted(faults)],
        absent=len(keys) - int(source.present.sum()),
    )


def _hashes(source: SideRows, positions: Sequence[int]) -> np.ndarray:
    digests = b"".join([content_hash(source.raw(i)) for i in positions])
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, HASH_SIZE)


def _reject(row: int, key: str | None, fault: str) -> Reject:
    reason, _, detail = fault.partition(": ")
    return Reject(row, key or "", reason, detail)


def _take(values: Any, positions: np.ndarray) -> Any:
    if len(positions) == len(values):
        return values
    return values[positions] if isinstance(values, np.ndarray) else [values[i] for i in positions]


def _count_dropped(sides: dict[Side, DecodedSide], rows: range, faulty: Sequence[int]) -> dict[str, int]:
    """Count the rows that lack a side, by the reason of the first side that they lack, and faulty ones."""
    reasons = dict.fromkeys(faulty, "null among labels")
    for side in reversed(SIDES):
        decoded = sides[side]
        rejected = {reject.row: reject.reason for reject in decoded.rejects}
        for row in set(rows).difference(decoded.rows.tolist()):
            reasons[row] = rejected.get(row, f"{side} absent")
    return dict(sorted(Counter(reasons.values()).items()))
