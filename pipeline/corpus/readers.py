"""From Arrow columns to bytes and arrays, without a Python object per value where that can be helped.

Converting a column of pictures with `to_pylist` costs sixteen times what slicing its buffer does.
"""

from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.schema import is_list, is_text

Bytes = bytes | memoryview


def read_keys(column: pa.ChunkedArray) -> list[str | None]:
    """Return keys as strings, integers in decimal; None where a row has no usable key.

    Null, empty and not UTF-8 are not usable.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type):
        return [None if key is None else str(key) for key in column.to_pylist()]
    return [None if not raw else _utf8_or_none(raw) for raw in read_bytes(column)]


def read_tokens(column: pa.ChunkedArray) -> pa.Array:
    """Return the change tokens of rows as int64, to be compared with those of another night; null for a null.

    Whole numbers, times and dates stand for themselves, everything else for a digest; of two types no token
    is equal, but by chance.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if is_text(kind):
        digests = [None if raw is None else _digest(raw) for raw in read_bytes(column)]
        return pa.array(digests, pa.int64())
    values = _whole(column)
    if pa.types.is_boolean(kind) or (pa.types.is_integer(kind) and kind.bit_width < 64):
        values = values.cast(pa.int64())
    elif pa.types.is_primitive(kind) and kind.bit_width in (32, 64):
        values = values.view(pa.int32() if kind.bit_width == 32 else pa.int64()).cast(pa.int64())
    else:
        digests = [None if value is None else _digest(repr(value).encode()) for value in values.to_pylist()]
        return pa.array(digests, pa.int64())
    return pc.bit_wise_xor(values, pa.scalar(_digest(str(kind).encode()), pa.int64()))


def read_labels(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Return the labels of each row as an int64 array; empty for a null. Nulls in a list are left out."""
    lists = [[label for label in labels or () if label is not None] for labels in column.to_pylist()]
    return [np.asarray(labels, dtype=np.int64) for labels in lists]


def have_null_labels(column: pa.ChunkedArray) -> np.ndarray:
    """Return (N,) bool: which rows have a null among their labels."""
    if pc.list_flatten(column).null_count == 0:
        return np.zeros(len(column), dtype=bool)
    return np.array([None in (labels or ()) for labels in column.to_pylist()], dtype=bool)


def read_bytes(column: pa.ChunkedArray) -> list[Bytes | None]:
    """Return each value's bytes, as views where they stand in Arrow's memory; None for a null.

    Of a struct the field `bytes` is read.
    """
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    # Chunk by chunk: put together they would be copied.
    return [value for chunk in column.cast(pa.large_binary()).chunks for value in _views(chunk)]


def read_texts(column: pa.ChunkedArray) -> list[Bytes | None]:
    """Return each text's bytes; of a list of texts the first that is not blank, or b"" if there is none."""
    if not is_list(column.type):
        return read_bytes(column)
    lists = _whole(column.cast(pa.large_list(pa.large_binary())))
    texts = _views(lists.values)
    bounds = lists.offsets.to_numpy()
    return [
        next((text for text in texts[start:stop] if text is not None and bytes(text).strip()), b"")
        if valid
        else None
        for start, stop, valid in zip(bounds[:-1], bounds[1:], _valid(lists), strict=True)
    ]


class FloatRows:
    """A column of float lists as one flat array: row i is `flat[starts[i] : starts[i] + lengths[i]]`."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        rows = _whole(column)
        if pa.types.is_fixed_size_list(rows.type):
            width = rows.type.list_size
            # `values` ignores the slice that a row array may be of its parent; `offset` says where it starts.
            self.starts = (np.arange(len(rows), dtype=np.int64) + rows.offset) * width
            self.lengths = np.full(len(rows), width, dtype=np.int64)
        else:
            bounds = rows.offsets.to_numpy().astype(np.int64)
            self.starts, self.lengths = bounds[:-1], np.diff(bounds)
        self.flat = rows.values.to_numpy(zero_copy_only=False)  # a null inside becomes NaN
        self.valid = _valid(rows)

    def matrix(self, positions: np.ndarray, width: int) -> np.ndarray:
        """Return these rows, all of length `width`, as (n, width) in the column's own float type.

        Rows that stand side by side, as whole columns do, are a view.
        """
        starts = self.starts[positions]
        if len(starts) and (np.diff(starts) == width).all():
            return self.flat[starts[0] : starts[0] + len(starts) * width].reshape(-1, width)
        return self.flat[self.starts[positions, None] + np.arange(width)]

    def raw(self, position: int) -> bytes:
        """Return one row's bytes as stored."""
        start = self.starts[position]
        return self.flat[start : start + self.lengths[position]].tobytes()


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def _valid(array: pa.Array) -> np.ndarray:
    return array.is_valid().to_numpy(zero_copy_only=False)


def _views(array: pa.Array) -> list[Bytes | None]:
    """Slice the data buffer of a large_binary array by its offsets."""
    _, bounds_buffer, data_buffer = array.buffers()
    if len(array) == 0 or bounds_buffer is None:
        return [None] * len(array)
    bounds = np.frombuffer(bounds_buffer, dtype=np.int64)[
        array.offset : array.offset + len(array) + 1
    ].tolist()
    # Arrow's buffers come as signed bytes, which hashing and image parsers do not take.
    data = memoryview(data_buffer).cast("B") if data_buffer is not None else memoryview(b"")
    return [
        data[start:stop] if valid else None
        for start, stop, valid in zip(bounds[:-1], bounds[1:], _valid(array).tolist(), strict=True)
    ]


def _digest(data: Bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big", signed=True)


def _utf8_or_none(raw: Bytes) -> str | None:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        return None
