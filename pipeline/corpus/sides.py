"""One side of a range of rows: which rows have a value, their raw bytes, and how these become values.

A fault is told as "reason: detail", the reason being one of a few short classes to count by.
"""

from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.corpus.pictures import decode_picture
from pipeline.corpus.readers import Bytes, FloatRows, read_bytes, read_texts
from pipeline.corpus.recipe import InputRecipe
from pipeline.corpus.schema import ColumnMap, Side


class SideRows(Protocol):
    """One side's column: which rows have a value, their raw bytes, and how to decode some of them."""

    present: np.ndarray  # (N,) bool
    comparable: np.ndarray  # (N,) bool: which of them are wholly told by their raw bytes and the recipe

    def raw(self, position: int) -> Bytes: ...

    def decode(self, positions: list[int]) -> tuple[Any, dict[int, str]]:
        """Return the values of the rows that decode, in order, and of the others "reason: detail"."""


def open_side(table: pa.Table, columns: ColumnMap, recipe: InputRecipe, *, side: Side) -> SideRows:
    """Return the rows of one side, not yet decoded; without a column for it, they are all absent.

    Raises:
        TypeError: the recipe lacks the picture size or the feature width that the column needs.
    """
    column = columns.side(side)
    if column is None:
        return _AbsentRows(side, table.num_rows)
    values = table.column(column.name)
    if column.kind == "pixels":
        return _PictureRows(values, recipe)
    if column.kind == "text":
        return _TextRows(values, recipe)
    width = recipe.image_width if side == "image" else recipe.text_width
    return _FeatureRows(values, width or column.width)


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


def decode_text(raw: Bytes, limit: int) -> str:
    """Read a text of at most `limit` bytes.

    Raises:
        ValueError: "empty text", "text too large" or "text not UTF-8", then a colon and the detail.
    """
    _check_size(raw, limit, "text")
    try:
        text = str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"text not UTF-8: {error}") from error
    if not text.strip():
        raise ValueError("empty text: must hold more than white space")
    return text


class _AbsentRows:
    def __init__(self, side: Side, count: int) -> None:
        self.side, self.present = side, np.zeros(count, dtype=bool)
        self.comparable = self.present

    def raw(self, position: int) -> Bytes:
        raise IndexError(f"row {position} has no {self.side}")

    def decode(self, positions: list[int]) -> tuple[Any, dict[int, str]]:
        return ([] if self.side == "text" else np.empty((0, 0, 0, 3), np.uint8)), {}


class _PictureRows:
    def __init__(self, column: pa.ChunkedArray, recipe: InputRecipe) -> None:
        if recipe.image_size is None:
            raise TypeError("the source holds pictures: image_size must be set to decode them, got None")
        self.raws, self.recipe = read_bytes(column), recipe
        self.present = np.array([raw is not None for raw in self.raws], dtype=bool)
        self.comparable = self.present

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
        self.comparable = self.present

    def raw(self, position: int) -> Bytes:
        return self.raws[position] or b""

    def decode(self, positions: list[int]) -> tuple[Any, dict[int, str]]:
        texts, faults = [], {}
        for position in positions:
            try:
                texts.append(decode_text(self.raw(position), self.limit))
            except ValueError as error:
                faults[position] = str(error)
        return texts, faults


class _FeatureRows:
    def __init__(self, column: pa.ChunkedArray, width: int | None) -> None:
        if width is None:
            raise TypeError(f"column type {column.type} has no width: set image_width or text_width")
        self.rows, self.width = FloatRows(column), width
        self.present = self.rows.valid
        # Without the right width, floats of another type could have the bytes of a row that was encoded.
        self.comparable = self.present & (self.rows.lengths == width)

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
            # The one copy on the way to the network: Arrow's memory is not to be written to.
            values = self.rows.matrix(chosen, self.width).astype(np.float32)
        finite = np.isfinite(values).all(axis=1)
        for position, row in zip(chosen[~finite], values[~finite], strict=True):
            at = int(np.flatnonzero(~np.isfinite(row))[0])
            faults[int(position)] = f"feature not finite: feature {at} is {row[at]} as float32"
        return values if finite.all() else values[finite], faults


def _check_size(data: Bytes, limit: int, what: str) -> None:
    if len(data) == 0:
        raise ValueError(f"empty {what}: must hold at least one byte")
    if len(data) > limit:
        raise ValueError(f"{what} too large: must have at most {limit} bytes, got {len(data)}")
