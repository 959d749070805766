"""From stored rows to what a tower takes: pixels, features or text, with a ledger that balances.

On each side a row is kept, rejected with a reason, or absent (its value is null): nothing vanishes. What a
row becomes depends on its own bytes and the recipe only, never on the rows around it.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from pipeline.corpus.pictures import FORMATS, decode_picture
from pipeline.corpus.readers import Bytes, FloatRows, read_bytes, read_keys, read_labels, read_texts
from pipeline.corpus.schema import SIDES, ColumnMap, Columns, Side, SideColumn, sample_ids

DECODE_VERSION = 1
"""Part of every recipe digest: raise it when the same bytes give other values or other rejects."""
HASH_SIZE = 16


class DecodeLimits(BaseModel):
    """How large a value may be before its row is rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_image_bytes: int = Field(default=32 * 2**20, gt=0)
    max_pixels: int = Field(default=50_000_000, gt=0)
    max_text_bytes: int = Field(default=2**20, gt=0)


class InputRecipe(BaseModel):
    """All that decides how a stored row becomes a tower's input."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: Columns = Columns()
    limits: DecodeLimits = DecodeLimits()
    image_size: int | None = Field(default=None, gt=0)  # side of the square given out; None for features
    resize: Literal["squash", "crop"] = "squash"
    image_width: int | None = Field(default=None, gt=0)  # of feature rows; None takes the column's
    text_width: int | None = Field(default=None, gt=0)

    def digest(self, side: Side) -> str:
        """Return 32 hex digits over all that one side's values depend on, and nothing of the other side."""
        mine = ("key", side, f"{side}_features")
        recipe: dict[str, Any] = {
            "version": DECODE_VERSION,
            "columns": {name: getattr(self.columns, name) for name in mine},
        }
        if side == "image":
            recipe["width"] = self.image_width
            recipe["limits"] = [self.limits.max_image_bytes, self.limits.max_pixels]
            recipe["square"] = [self.image_size, self.resize, FORMATS]
        else:
            recipe["width"] = self.text_width
            recipe["limits"] = [self.limits.max_text_bytes]
        return blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Reject:
    """A row that one side could not take."""

    row: int
    key: str  # "" where the key itself is at fault
    reason: str  # one of a few short classes, to count by
    error: str  # what exactly was wrong


@dataclass
class DecodedSide:
    """One side of a range of rows; `read == len(rows) + len(rejects) + absent`."""

    read: int
    rows: np.ndarray  # (n,) int64: row numbers inside the unit
    keys: list[str]
    hashes: np.ndarray  # (n, 16) uint8 content hashes; (0, 16) when not asked for
    values: Any  # (n, S, S, 3) uint8 | (n, D) float32 | list of n texts
    rejects: list[Reject] = field(default_factory=list)
    absent: int = 0


@dataclass
class Pairs:
    """Rows that are complete on both sides, for training and evaluation."""

    keys: list[str]
    ids: np.ndarray  # (n,) int64
    rows: np.ndarray  # (n,) int64
    image: Any  # as DecodedSide.values
    text: Any
    labels: list[np.ndarray] | None
    dropped: dict[str, int]  # rows left out, by the reason of the first side that lacks them


def decode_image(data: Bytes, recipe: InputRecipe) -> np.ndarray:
    """Decode a picture to (S, S, 3) uint8 RGB, S = `recipe.image_size`; see `pictures.decode_picture`.

    Raises:
        ValueError: "empty image", "not an image", "image too large", "truncated image" or "damaged image",
            then a colon and the detail.
    """
    if recipe.image_size is None:
        raise TypeError("image_size must be set to decode pictures, got None")
    _check_size(data, recipe.limits.max_image_bytes, "image")
    return decode_picture(
        data, recipe.image_size, crop=recipe.resize == "crop", max_pixels=recipe.limits.max_pixels
    )


def content_hash(data: Bytes) -> bytes:
    """Return the 16-byte content hash of the raw bytes of one row's side."""
    return blake2b(data, digest_size=HASH_SIZE).digest()


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
        column = columns.side(side)
        source = _NoRows(side, len(keys)) if column is None else _open(side, table, column, recipe)
        decoded[side] = _decode_side(keys, source, first_row=first_row, hashes=hashes)
    return decoded


def decode_pairs(table: pa.Table, columns: ColumnMap, recipe: InputRecipe, *, first_row: int = 0) -> Pairs:
    """Decode the rows that are complete on both sides; count the others by reason.

    Labels come along where the source has them, an empty array for a null.
    """
    sides = decode_table(table, columns, recipe, first_row=first_row, hashes=False)
    image, text = sides["image"], sides["text"]
    rows, in_image, in_text = np.intersect1d(image.rows, text.rows, assume_unique=True, return_indices=True)
    keys = [image.keys[i] for i in in_image]
    labels = None if columns.labels is None else read_labels(table.column(columns.labels))
    return Pairs(
        keys=keys,
        ids=sample_ids(keys),
        rows=rows,
        image=_take(image.values, in_image),
        text=_take(text.values, in_text),
        labels=None if labels is None else [labels[row - first_row] for row in rows],
        dropped=_count_dropped(sides, range(first_row, first_row + table.num_rows)),
    )


class _Source(Protocol):
    """One side's column: which rows have a value, their raw bytes, and how to decode some of them."""

    present: np.ndarray  # (N,) bool

    def raw(self, position: int) -> Bytes: ...

    def decode(self, positions: list[int]) -> tuple[Any, dict[int, str]]:
        """Return the values of the rows that decode, in order, and of the others "reason: detail"."""


class _NoRows:
    def __init__(self, side: Side, count: int) -> None:
        self.side, self.present = side, np.zeros(count, dtype=bool)

    def raw(self, position: int) -> Bytes:
        raise IndexError(position)

    def decode(self, positions: list[int]) -> tuple[Any, dict[int, str]]:
        return ([] if self.side == "text" else np.empty((0, 0, 0, 3), np.uint8)), {}


class _PictureRows:
    def __init__(self, column: pa.ChunkedArray, recipe: InputRecipe) -> None:
        if recipe.image_size is None:
            raise TypeError("the source holds pictures: image_size must be set to decode them, got None")
        self.raws, self.recipe = read_bytes(column), recipe
        self.present = np.array([raw is not None for raw in self.raws], dtype=bool)

    def raw(self, position: int) -> Bytes:
        return self.raws[position] or b""

    def decode(self, positions: list[int]) -> tuple[Any, dict[int, str]]:
        size = self.recipe.image_size or 0
        pixels = np.empty((len(positions), size, size, 3), dtype=np.uint8)
        faults, count = {}, 0
        for position in positions:
            try:
                pixels[count] = decode_image(self.raw(position), self.recipe)
                count += 1
            except ValueError as error:
                faults[position] = str(error)
        return pixels[:count], faults


class _TextRows:
    def __init__(self, column: pa.ChunkedArray, recipe: InputRecipe) -> None:
        self.raws, self.limit = read_texts(column), recipe.limits.max_text_bytes
        self.present = np.array([raw is not None for raw in self.raws], dtype=bool)

    def raw(self, position: int) -> Bytes:
        return self.raws[position] or b""

    def decode(self, positions: list[int]) -> tuple[Any, dict[int, str]]:
        texts, faults = [], {}
        for position in positions:
            try:
                texts.append(_decode_text(self.raw(position), self.limit))
            except ValueError as error:
                faults[position] = str(error)
        return texts, faults


class _FeatureRows:
    def __init__(self, column: pa.ChunkedArray, width: int | None) -> None:
        if width is None:
            raise TypeError(
                f"a column of type {column.type} has no width: image_width or text_width must be set"
            )
        self.rows, self.width = FloatRows(column), width
        self.present = self.rows.valid

    def raw(self, position: int) -> Bytes:
        return self.rows.raw(position)

    def decode(self, positions: list[int]) -> tuple[Any, dict[int, str]]:
        chosen = np.asarray(positions, dtype=np.int64)
        lengths = self.rows.lengths[chosen]
        faults = {
            int(position): f"wrong feature width: must be {self.width}, got {length}"
            for position, length in zip(chosen, lengths, strict=True)
            if length != self.width
        }
        chosen = chosen[lengths == self.width]
        with np.errstate(over="ignore"):
            values = self.rows.matrix(chosen, self.width).astype(np.float32)
        finite = np.isfinite(values).all(axis=1)
        for position, row in zip(chosen[~finite], values[~finite], strict=True):
            at = int(np.flatnonzero(~np.isfinite(row))[0])
            faults[int(position)] = f"feature not finite: feature {at} is {row[at]} as float32"
        return values[finite], faults


def _open(side: Side, table: pa.Table, column: SideColumn, recipe: InputRecipe) -> _Source:
    values = table.column(column.name)
    if column.kind == "pixels":
        return _PictureRows(values, recipe)
    if column.kind == "text":
        return _TextRows(values, recipe)
    return _FeatureRows(
        values, (recipe.image_width if side == "image" else recipe.text_width) or column.width
    )


def _decode_side(keys: list[str | None], source: _Source, *, first_row: int, hashes: bool) -> DecodedSide:
    present: list[int] = np.flatnonzero(source.present).tolist()
    values, faults = source.decode([i for i in present if keys[i] is not None])
    faults |= {
        i: "missing key: must be an integer or a non-empty UTF-8 string" for i in present if keys[i] is None
    }
    kept = [i for i in present if i not in faults]
    digests = b"".join([content_hash(source.raw(i)) for i in kept]) if hashes else b""
    return DecodedSide(
        read=len(keys),
        rows=np.array(kept, dtype=np.int64) + first_row,
        keys=[keys[i] or "" for i in kept],
        hashes=np.frombuffer(digests, dtype=np.uint8).reshape(-1, HASH_SIZE),
        values=values,
        rejects=[_reject(first_row + i, keys[i], faults[i]) for i in sorted(faults)],
        absent=len(keys) - len(present),
    )


def _reject(row: int, key: str | None, fault: str) -> Reject:
    reason, _, detail = fault.partition(": ")
    return Reject(row, key or "", reason, detail)


def _decode_text(raw: Bytes, limit: int) -> str:
    _check_size(raw, limit, "text")
    try:
        text = str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"text not UTF-8: {error}") from error
    if not text.strip():
        raise ValueError("empty text: must hold more than white space")
    return text


def _check_size(data: Bytes, limit: int, what: str) -> None:
    if len(data) == 0:
        raise ValueError(f"empty {what}: must hold at least one byte")
    if len(data) > limit:
        raise ValueError(f"{what} too large: must have at most {limit} bytes, got {len(data)}")


def _take(values: Any, positions: np.ndarray) -> Any:
    if len(positions) == len(values):
        return values
    return values[positions] if isinstance(values, np.ndarray) else [values[i] for i in positions]


def _count_dropped(sides: dict[Side, DecodedSide], rows: range) -> dict[str, int]:
    """Count the rows that lack a side, by the reason of the first side that they lack."""
    reasons: dict[int, str] = {}
    for side in reversed(SIDES):
        decoded = sides[side]
        rejected = {reject.row: reject.reason for reject in decoded.rejects}
        for row in set(rows).difference(decoded.rows.tolist()):
            reasons[row] = rejected.get(row, f"{side} absent")
    return dict(sorted(Counter(reasons.values()).items()))
