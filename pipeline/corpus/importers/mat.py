"""Cross-modal hashing sets as the field passes them around: MIRFlickr, NUS-WIDE and others as .mat.

Two layouts are known. *All*: one array a side and one of labels over all rows (`XAll` or `IAll` or `images`,
`YAll`, `LAll`), in one file or in several of one folder. *Sets*: the same three for each set, told apart by
an ending (`I_tr`, `T_tr`, `L_tr`, `I_te`, ... `I_db`).
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.corpus.importers.matfile import MatArray, open_mat
from pipeline.corpus.importers.rows import (
    BLOCK_ROWS,
    NOT_FINITE,
    Block,
    ImportReject,
    InputFolder,
    feature_column,
    feature_type,
)

NAMES: dict[str, tuple[str, ...]] = {
    "image": ("XAll", "IAll", "images", "I", "X"),
    "text": ("YAll", "TAll", "tags", "texts", "T", "Y"),
    "labels": ("LAll", "labels", "L"),
    "key": ("FAll", "IDAll"),
}
"""Names under which an array is found when it is not named; the first that is there is taken."""

SETS = {"tr": "train", "train": "train", "db": "retrieval", "retrieval": "retrieval"}
SETS |= {"te": "query", "test": "query", "query": "query"}
_ENDING = re.compile(rf"(.+?)_?({'|'.join(sorted(SETS, key=len, reverse=True))})", re.IGNORECASE)
_READ_BYTES = 64 << 20


@dataclass(frozen=True)
class _Part:
    """The arrays of one set of rows, and the axis of each along which the rows lie."""

    split: str | None
    arrays: dict[str, MatArray]  # by role
    axes: dict[str, int]
    rows: int


class MatFeatures:
    """The rows of one or several .mat files.

    Pictures (four axes, one of them 3) become PNG bytes, matrices of numbers features; labels, 0/1 columns
    or one number a row, become lists. Keys are the file names in `FAll` where there are any, else numbers.
    In the *sets* layout a row of the retrieval set that is equal to a train row in all arrays is that row
    again, and is not written twice.

    Args:
        columns: our column (image, text, labels, key) -> the array's name, for names not in `NAMES`.
    Raises:
        ValueError: no known layout, or arrays that do not have the same number of rows.
    """

    label_names: Sequence[str] = ()

    def __init__(
        self, folder: InputFolder, names: Sequence[str], *, columns: Mapping[str, str] | None = None
    ) -> None:
        self.where = folder.where(names[0]) if len(names) == 1 else folder.root
        arrays: dict[str, MatArray] = {}
        for name in names:
            arrays |= open_mat(folder, name)
        self.parts = [self._part(*found) for found in _layout(arrays, columns or {}, self.where)]
        self.fields = _fields(self.parts[0])
        if any(_fields(part) != self.fields for part in self.parts):
            raise ValueError(f"{self.where}: the sets differ in their arrays or in the width of them")
        split = [("split", pa.string())] if self.parts[0].split is not None else []
        self.schema = pa.schema([("key", pa.string()), *self.fields, *split])

    def blocks(self) -> Iterator[Block]:
        """Yield the rows, set after set, train first."""
        train: set[bytes] = set()
        for part in self.parts:
            step = _rows_at_once(part)
            for start in range(0, part.rows, step):
                stop = min(start + step, part.rows)
                values = {
                    role: array.rows(start, stop, axis=part.axes[role]) for role, array in part.arrays.items()
                }
                fresh = np.ones(stop - start, dtype=bool)
                if part.split == "train":
                    train |= set(_row_digests(values))
                elif part.split == "retrieval" and train:
                    fresh = np.array([row not in train for row in _row_digests(values)])
                yield self._block(part, values, fresh, start)

    def _part(self, split: str | None, arrays: dict[str, MatArray]) -> _Part:
        rows = _row_count(arrays, self.where)
        axes = {role: _row_axis(array.shape, rows) for role, array in arrays.items()}
        return _Part(split, arrays, axes, rows)

    def _block(self, part: _Part, values: dict[str, np.ndarray], fresh: np.ndarray, start: int) -> Block:
        where = f"{self.where} {part.split or 'all'}"
        keys = _keys(values.get("key"), part.split, start, len(fresh))
        columns: dict[str, Any] = {"key": pa.array(keys, pa.string())}
        good = np.ones(len(fresh), dtype=bool)
        for (name, kind), role in zip(self.fields, _roles(part), strict=True):
            if role == "labels":
                columns[name] = pa.array(_labels(values[role]), kind)
            elif name == "image":
                columns[name] = pa.array(_pngs(values[role], self.where), kind)
            else:
                good &= np.isfinite(values[role]).all(axis=1)
                columns[name] = feature_column(values[role])
        if part.split is not None:
            columns["split"] = pa.array([part.split] * len(fresh), pa.string())
        rejects = [
            ImportReject(f"{where} row {start + i}", keys[i], *NOT_FINITE)
            for i in np.flatnonzero(fresh & ~good)
        ]
        table = pa.table(columns, schema=self.schema).filter(pa.array(fresh & good))
        return Block(table, rejects, where)


def _layout(
    arrays: Mapping[str, MatArray], named: Mapping[str, str], where: str
) -> list[tuple[str | None, dict[str, MatArray]]]:
    """Find the arrays of each set of rows by role; one set without a name in the layout *all*."""
    wrong = [name for name in named.values() if name not in arrays]
    if wrong:
        raise _unknown(arrays, f"{where}: no array {wrong[0]!r}")
    found = {role: named.get(role) or _first(NAMES[role], arrays) for role in NAMES}
    if found["image"] and found["text"]:
        return [(None, {role: arrays[name] for role, name in found.items() if name is not None})]
    sets = _sets(arrays)
    if not sets or any(not {"image", "text"} <= members.keys() for members in sets.values()):
        raise _unknown(arrays, f"{where}: no known layout")
    return [(split, sets[split]) for split in ("train", "retrieval", "query") if split in sets]


def _sets(arrays: Mapping[str, MatArray]) -> dict[str, dict[str, MatArray]]:
    """Return the arrays whose names end like a set's, by set and role."""
    sets: dict[str, dict[str, MatArray]] = {}
    for name, array in arrays.items():
        ended = _ENDING.fullmatch(name)
        role = ended and next((role for role, known in NAMES.items() if ended[1] in known), None)
        if ended and role:
            sets.setdefault(SETS[ended[2].lower()], {})[role] = array
    return sets


def _unknown(arrays: Mapping[str, MatArray], what: str) -> ValueError:
    shown = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in arrays.items())
    return ValueError(
        f"{what}; expected YAll and LAll with XAll, IAll or images, or I_tr, T_tr, L_tr, I_te, ...; "
        f"found: {shown or 'no arrays'}; name them with --column image=NAME --column text=NAME"
    )


def _first(names: Sequence[str], arrays: Mapping[str, MatArray]) -> str | None:
    return next((name for name in names if name in arrays), None)


def _row_count(arrays: Mapping[str, MatArray], where: str) -> int:
    """Return the one length that an axis of every array has."""
    shapes = {role: array.shape for role, array in arrays.items()}
    shared = reduce(set.intersection, (set(shape) for shape in shapes.values()))
    shared = shared - {1} or shared
    if len(shared) > 1:  # rows come first in most files
        shared &= {shape[0] for shape in shapes.values() if len(shape) == 2}
    if len(shared) != 1:
        shown = ", ".join(f"{role} {'x'.join(map(str, shape))}" for role, shape in shapes.items())
        what = "cannot tell the rows from the columns of" if shared else "no number of rows is common to"
        raise ValueError(f"{where}: {what} {shown}")
    return shared.pop()


def _row_axis(shape: tuple[int, ...], rows: int) -> int:
    """Return the axis of the rows: the first of that length in a matrix, the last among a picture's four."""
    axes = [axis for axis, size in enumerate(shape) if size == rows]
    return axes[0] if len(shape) == 2 else axes[-1]


def _roles(part: _Part) -> list[str]:
    return [role for role in ("image", "text", "labels") if role in part.arrays]


def _fields(part: _Part) -> list[tuple[str, pa.DataType]]:
    fields = []
    for role in _roles(part):
        shape = part.arrays[role].shape
        if role == "labels":
            fields.append(("labels", pa.list_(pa.int32())))
        elif len(shape) == 4:
            fields.append((role, pa.binary()))
        else:
            width = int(np.prod(shape)) // part.rows
            fields.append((f"{role}_features", feature_type(width)))
    return fields


def _rows_at_once(part: _Part) -> int:
    row_bytes = sum(8 * int(np.prod(array.shape)) // part.rows for array in part.arrays.values())
    return max(1, min(4 * BLOCK_ROWS, _READ_BYTES // max(row_bytes, 1)))


def _row_digests(values: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    arrays = [np.ascontiguousarray(values[role]) for role in ("image", "text", "labels") if role in values]
    for row in zip(*arrays, strict=True):
        yield blake2b(b"".join(array.tobytes() for array in row), digest_size=16).digest()


def _keys(names: np.ndarray | None, split: str | None, start: int, count: int) -> list[str]:
    if names is not None and names.dtype.kind in "US":
        return [str(name) for name in names.reshape(count)]
    prefix = f"{split}-" if split else ""
    return [f"{prefix}{start + i:09d}" for i in range(count)]


def _labels(values: np.ndarray) -> list[list[int]]:
    """Read 0/1 (or -1/1) columns as the numbers of the columns that are set, one column as the label."""
    values = values.reshape(len(values), -1)
    if values.shape[1] == 1:
        return [[int(label)] for label in values[:, 0]]
    return [np.flatnonzero(row > 0).tolist() for row in values]


def _pngs(values: np.ndarray, where: str) -> list[bytes]:
    """Return (N, ...) pictures with the colours on any axis as PNG bytes.

    Raises:
        ValueError: no axis has 3 colours, or the values are no 8-bit pixels.
    """
    colours = next((axis for axis in (3, 1, 2) if values.shape[axis] == 3), None)
    if colours is None:
        raise ValueError(f"{where}: pictures must have an axis of 3 colours, got {values.shape[1:]}")
    pictures = np.moveaxis(values, colours, 3)
    if pictures.dtype != np.uint8:
        if not (pictures == np.clip(np.round(pictures), 0, 255)).all():
            raise ValueError(
                f"{where}: pictures must hold whole numbers from 0 to 255, got {pictures.dtype} from "
                f"{pictures.min():g} to {pictures.max():g}; they are not the plain pixels"
            )
        pictures = pictures.astype(np.uint8)
    encoded = []
    for picture in pictures:
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(picture)).save(stream, "PNG", compress_level=1)
        encoded.append(stream.getvalue())
    return encoded
