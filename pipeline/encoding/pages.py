"""Single pages of a Parquet column, where few of its rows are wanted: pyarrow alone reads whole row groups.

A column of pictures has pages of a few rows each where its writer bounds them (`max_rows_per_page`, or
content-defined chunking). The headers say which rows a page holds; the pages that hold wanted ones are
copied, as they are, into a small Parquet file in memory, which pyarrow reads: no value is decoded here. What
is not plain enough for that is not read here at all. Formats: parquet.thrift of Apache Parquet, and the
compact protocol of Apache Thrift.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_CODECS = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "BROTLI": 4, "ZSTD": 6}
_BYTE_ARRAY = 6
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_PLAIN = 0
_MAGIC = b"PAR1"
_HEADER = 512
_LONGEST_HEADER = 1 << 16
_WORTH_IT = 0.5
"""Pages are picked where they hold less than this of the bytes of their column."""


@dataclass(frozen=True)
class RowsOfGroup:
    """Some rows of one row group, ascending, counted in it."""

    group: int
    rows: np.ndarray  # (n,) int64


@dataclass(frozen=True)
class _Page:
    start: int  # bytes [start, stop) of the file, its header included
    stop: int
    size: int  # uncompressed
    rows: int  # 0: a dictionary
    coded: bool  # its values are places in the dictionary


@dataclass(frozen=True)
class _Leaf:
    """A column of byte strings: on the top level, or the field `bytes` of a struct."""

    path: tuple[str, ...]
    index: int  # among the columns of the file
    optional: bool
    codec: int


def read_pages(
    raw: pa.NativeFile, file: pq.ParquetFile, name: str, wanted: Sequence[RowsOfGroup]
) -> pa.ChunkedArray | None:
    """Read some rows of a column of byte strings from the pages that hold them.

    Args:
        raw: the file under `file`; many small reads of it must be cheap.
        name: of a column on the top level; of a struct only the field `bytes` is read.
        wanted: row groups, ascending.
    Returns:
        The values, row by row; None where the column is of another kind, or its pages are too large for
        this to read less than half of it.
    """
    try:
        leaf = _find_leaf(file, name, [some.group for some in wanted])
        if leaf is None:
            return None
        budget = _WORTH_IT * sum(_chunk_size(file, leaf, some.group) for some in wanted)
        groups = []
        for some in wanted:
            groups.append(_pick(raw, file, leaf, some))
            budget -= sum(page.stop - page.start for page in groups[-1][0])
            if budget < 0:
                return None
        small = _small_file(raw, leaf, [pages for pages, _ in groups])
        read = pq.ParquetFile(pa.BufferReader(small)).read(use_threads=False).column(0)
        at, before = [], 0
        for pages, positions in groups:
            at.append(positions + before)
            before += sum(page.rows for page in pages)
        return read.take(pa.array(np.concatenate(at))) if len(read) == before else None
    except (pa.ArrowInvalid, OSError, ValueError, IndexError, KeyError):
        return None  # the usual way says what is wrong, if anything is


def _find_leaf(file: pq.ParquetFile, name: str, groups: Sequence[int]) -> _Leaf | None:
    for index in range(file.metadata.num_columns):
        column = file.schema.column(index)
        path = tuple(column.path.split("."))
        if path != (name,) and path != (name, "bytes"):
            continue
        # Of a struct and its field either both may be null or neither: else a level could mean two things.
        plain = column.max_repetition_level == 0 and column.max_definition_level in (0, len(path))
        codecs = {file.metadata.row_group(group).column(index).compression for group in groups}
        if not plain or column.physical_type != "BYTE_ARRAY" or len(codecs) != 1:
            return None
        codec = _CODECS.get(codecs.pop())
        return None if codec is None else _Leaf(path, index, column.max_definition_level > 0, codec)
    return None


def _chunk_size(file: pq.ParquetFile, leaf: _Leaf, group: int) -> int:
    size: int = file.metadata.row_group(group).column(leaf.index).total_compressed_size
    return size


def _pick(
    raw: pa.NativeFile, file: pq.ParquetFile, leaf: _Leaf, wanted: RowsOfGroup
) -> tuple[list[_Page], np.ndarray]:
    """Return the pages that hold wanted rows, a dictionary before them, and where in them these rows are."""
    pages: list[_Page] = []
    positions: list[np.ndarray] = []
    first = held = 0  # rows of all pages so far, and of the picked ones
    for page in _walk(raw, file.metadata.row_group(wanted.group).column(leaf.index)):
        start, stop = np.searchsorted(wanted.rows, [first, first + page.rows])
        if start < stop:
            positions.append(wanted.rows[start:stop] - first + held)
            held += page.rows
        if start < stop or not page.rows:
            pages.append(page)
        first += page.rows
        if stop == len(wanted.rows) and page.rows:
            coded = any(page.coded for page in pages)
            return [page for page in pages if page.rows or coded], np.concatenate(positions)
    raise ValueError("a column chunk ends before its last row")


def _walk(raw: pa.NativeFile, column: Any) -> Iterator[_Page]:
    """Yield the pages of a column chunk, from their headers."""
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        start = min(start, column.dictionary_page_offset)
    end = start + column.total_compressed_size
    while start < end:
        header, length = _read_header(raw, start)
        kind, stop = header[1], start + length + header[3]
        if kind in (_DATA, _DATA_V2):
            inner = header[5 if kind == _DATA else 8]
            coded = inner[2 if kind == _DATA else 4] != _PLAIN
            yield _Page(start, stop, length + header[2], inner[1], coded)
        elif kind == _DICTIONARY:
            yield _Page(start, stop, length + header[2], 0, False)
        start = stop


def _read_header(raw: pa.NativeFile, start: int) -> tuple[dict[int, Any], int]:
    size = _HEADER
    while True:
        try:
            return _read_struct(raw.read_at(size, start), 0)
        except IndexError:
            if size >= _LONGEST_HEADER:
                raise
            size = _LONGEST_HEADER


def _small_file(raw: pa.NativeFile, leaf: _Leaf, groups: Sequence[Sequence[_Page]]) -> bytearray:
    """Return a Parquet file of one column that holds these pages, row group by row group."""
    described, written = [], len(_MAGIC)
    for pages in groups:
        begin, dictionary, data = written, None, None
        for page in pages:
            if page.rows and data is None:
                data = written
            elif not page.rows:
                dictionary = written
            written += page.stop - page.start
        rows, size = sum(page.rows for page in pages), sum(page.size for page in pages)
        path = _list(8, [_binary(step) for step in leaf.path])
        column = [(1, 5, _int(_BYTE_ARRAY)), (2, 9, _list(5, [_int(0), _int(3), _int(8)])), (3, 9, path)]
        column += [(4, 5, _int(leaf.codec)), (5, 6, _int(rows)), (6, 6, _int(size))]
        column += [(7, 6, _int(written - begin)), (9, 6, _int(data or begin))]
        column += [] if dictionary is None else [(11, 6, _int(dictionary))]
        chunk = _struct([(2, 6, _int(begin)), (3, 12, _struct(column))])
        described.append(
            (rows, _struct([(1, 9, _list(12, [chunk])), (2, 6, _int(size)), (3, 6, _int(rows))]))
        )
    fields = [(1, 5, _int(2)), (2, 9, _schema(leaf)), (3, 6, _int(sum(rows for rows, _ in described)))]
    footer = _struct([*fields, (4, 9, _list(12, [group for _, group in described]))])
    end = footer + len(footer).to_bytes(4, "little") + _MAGIC
    file = bytearray(written + len(end))
    file[: len(_MAGIC)], file[written:] = _MAGIC, end
    _read_into(memoryview(file)[len(_MAGIC) : written], raw, [page for pages in groups for page in pages])
    return file


def _read_into(place: memoryview, raw: pa.NativeFile, pages: Sequence[_Page]) -> None:
    """Read pages one behind the other into their place: copies would cost more than the reading."""
    at = 0
    for page in pages:
        raw.seek(page.start)
        at += raw.readinto(place[at : at + page.stop - page.start])
    if at != len(place):
        raise ValueError("the file ends inside a page")


def _schema(leaf: _Leaf) -> bytes:
    repetition = (3, 5, _int(1 if leaf.optional else 0))
    *structs, last = leaf.path
    elements = [_struct([(4, 8, _binary("schema")), (5, 5, _int(1))])]
    elements += [_struct([repetition, (4, 8, _binary(name)), (5, 5, _int(1))]) for name in structs]
    elements.append(_struct([(1, 5, _int(_BYTE_ARRAY)), repetition, (4, 8, _binary(last))]))
    return _list(12, elements)


# Thrift's compact protocol. Types: 1 and 2 are booleans, 4 to 6 integers, 8 binary, 9 a list, 12 a struct.


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _read_struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct by number, and where it ends; IndexError where the data ends before."""
    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        step, kind = data[at] >> 4, data[at] & 15
        at += 1
        if step:
            number += step
        else:
            number, at = _varint(data, at)
            number = (number >> 1) ^ -(number & 1)
        fields[number], at = _read_value(data, at, kind)
    return fields, at + 1


def _read_value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind in (4, 5, 6):
        value, at = _varint(data, at)
        return (value >> 1) ^ -(value & 1), at
    if kind == 8:
        length, at = _varint(data, at)
        if at + length > len(data):
            raise IndexError("the data ends inside a value")
        return data[at : at + length], at + length
    if kind == 12:
        return _read_struct(data, at)
    raise ValueError(f"type {kind} is not expected in the header of a page")


def _int(value: int) -> bytes:
    """Return an integer that is not negative."""
    return _unsigned(value << 1)


def _unsigned(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _binary(text: str) -> bytes:
    data = text.encode()
    return _unsigned(len(data)) + data


def _list(kind: int, members: Sequence[bytes]) -> bytes:
    short = len(members) < 15
    head = bytes([(len(members) if short else 15) << 4 | kind])
    return b"".join([head, b"" if short else _unsigned(len(members)), *members])


def _struct(fields: Sequence[tuple[int, int, bytes]]) -> bytes:
    """Write (number, type, value) fields, by ascending number."""
    out, before = [], 0
    for number, kind, value in fields:
        out.append(bytes([(number - before) << 4 | kind]) + value)
        before = number
    return b"".join([*out, b"\0"])
