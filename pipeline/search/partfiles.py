"""How the two files of a part are written: row by row to disk, so that memory does not follow their size.

Rows arrive in (id, key) order. What has no more than a few bytes a row (its inverted list) is held in memory;
all else goes to spill files beside the output. Graphs and hash tables are built in memory, as FAISS does it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
import pyarrow as pa

from pipeline.search.families import Family
from pipeline.search.quantisers import Quantiser, one_thread

KEYS_VERSION = 1
KEYS_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("key", pa.large_string()),  # 64-bit offsets: the keys of one part may exceed 2 GiB
        ("unit", pa.dictionary(pa.int32(), pa.string())),
        ("row", pa.int64()),
    ]
)
_COLUMNS = ("id", "key_ends", "key_text", "unit", "row", "code")
_GATHER = 4 << 20  # bytes of inverted lists put together at once


@dataclass(frozen=True)
class PartRecipe:
    """What a part is made with, besides its rows."""

    family: Family
    code_size: int  # bytes of a code
    quantiser: Quantiser | None = None

    def __post_init__(self) -> None:
        self.family.check_fits(8 * self.code_size)
        if self.family.has_quantiser != (self.quantiser is not None):
            raise ValueError(f"{self.family.recipe} parts have a quantiser if and only if they have lists")
        if self.quantiser is None:
            return
        found = self.quantiser.lists, self.quantiser.code_size
        if found != (self.family.lists, self.code_size):
            raise ValueError(
                f"{self.family.recipe} over codes of {8 * self.code_size} bits needs {self.family.lists} "
                f"centroids of as many bits, quantiser {self.quantiser.digest} has {found[0]} of "
                f"{8 * found[1]}"
            )


class PartWriter:
    """Takes rows in (id, key) order and leaves `part.faiss` and `part.keys.arrow` in a folder."""

    def __init__(self, folder: Path, recipe: PartRecipe) -> None:
        self.folder = folder
        self.recipe = recipe
        self.rows = 0
        self._text_bytes = 0
        self._lists: list[np.ndarray] = []
        self._spills: dict[str, BinaryIO] = {
            name: (folder / f"{name}.spill").open("wb", buffering=1 << 20) for name in _COLUMNS
        }

    def add(self, rows: pa.Table) -> None:
        """Append rows: id, key, unit (number), row, code."""
        codes = code_matrix(rows["code"], self.recipe.code_size)
        keys = rows["key"].cast(pa.large_string()).combine_chunks()
        ends, text = _text(keys)
        values = {name: rows[name].to_numpy() for name in ("id", "unit", "row")}
        values |= {"key_ends": ends + self._text_bytes, "key_text": text, "code": codes}
        for name, value in values.items():
            self._spills[name].write(np.ascontiguousarray(value).data)
        if self.recipe.quantiser is not None:
            self._lists.append(self.recipe.quantiser.assign(codes).astype(np.uint32))
        self.rows += len(codes)
        self._text_bytes += len(text)

    def finish(self, units: list[str], metadata: dict[str, str]) -> tuple[Path, Path]:
        """Write both files and return where the FAISS file and keys.arrow lie.

        Args:
            units: paths, by the number that rows name.
        """
        for spill in self._spills.values():
            spill.close()
        index, keys = self.folder / "part.faiss", self.folder / "part.keys.arrow"
        self._write_keys(keys, units, metadata)
        with index.open("wb", buffering=1 << 20) as sink:
            self._write_index(sink)
        for name in _COLUMNS:
            (self.folder / f"{name}.spill").unlink()
        return index, keys

    def _write_keys(self, path: Path, units: list[str], metadata: dict[str, str]) -> None:
        """Write one record batch, uncompressed, so that a reader maps it and looks rows up without a copy."""
        key = pa.LargeStringArray.from_buffers(self.rows, self._ends(), self._buffer("key_text"))
        unit = pa.DictionaryArray.from_arrays(self._array("unit", pa.int32()), pa.array(units, pa.string()))
        columns = [self._array("id", pa.int64()), key, unit, self._array("row", pa.int64())]
        schema = KEYS_SCHEMA.with_metadata(metadata)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(pa.table(columns, schema=schema))

    def _array(self, name: str, kind: pa.DataType) -> pa.Array:
        return pa.Array.from_buffers(kind, self.rows, [None, self._buffer(name)])

    def _ends(self) -> pa.Buffer:
        """Return the offsets of the keys: where each starts is where the one before it ends."""
        path = self.folder / "key_ends.spill"
        with path.open("rb") as ends, (self.folder / "offsets.spill").open("wb") as offsets:
            offsets.write(bytes(8))
            while block := ends.read(_GATHER):
                offsets.write(block)
        (self.folder / "offsets.spill").replace(path)
        return self._buffer("key_ends")

    def _buffer(self, name: str) -> pa.Buffer:
        path = self.folder / f"{name}.spill"
        if not path.stat().st_size:
            return pa.py_buffer(b"")
        return pa.memory_map(str(path)).read_buffer()

    def _write_index(self, sink: BinaryIO) -> None:
        codes = np.frombuffer(self._buffer("code"), np.uint8).reshape(-1, self.recipe.code_size)
        match self.recipe.family.kind:
            case "flat":
                sink.write(_flat_head(codes))
                sink.write(codes.data)
            case "ivf":
                lists = np.concatenate([np.empty(0, np.uint32), *self._lists])
                self._lists.clear()
                for block in _inverted(codes, lists, self.recipe):
                    sink.write(block)
            case _:
                sink.write(_built(codes, self.recipe.family).data)


def write_codes(codes: np.ndarray, recipe: PartRecipe, folder: Path) -> tuple[Path, Path]:
    """Write both files of a part of bare codes, whose ids and keys are the numbers of its rows."""
    writer = PartWriter(folder, recipe)
    for start in range(0, len(codes), 1 << 20):
        block = np.ascontiguousarray(codes[start : start + (1 << 20)])
        numbers = pa.array(np.arange(start, start + len(block)))
        values = [None, pa.py_buffer(block)]
        columns = {
            "id": numbers,
            "key": numbers.cast(pa.large_string()),
            "unit": pa.array(np.zeros(len(block), np.int32)),
            "row": numbers,
            "code": pa.FixedSizeBinaryArray.from_buffers(pa.binary(codes.shape[1]), len(block), values),
        }
        writer.add(pa.table(columns))
    return writer.finish(["codes"], {})


def code_matrix(column: pa.ChunkedArray, size: int) -> np.ndarray:
    """Return fixed-size binary values as (N, size) uint8."""
    array = column.combine_chunks()
    values = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    return values[array.offset * size : (array.offset + len(array)) * size].reshape(-1, size)


def _text(keys: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each key ends in the text of all of them, and that text."""
    _, offsets, text = keys.buffers()
    if offsets is None or not len(keys):
        return np.empty(0, np.int64), np.empty(0, np.uint8)
    limits = np.frombuffer(offsets, np.int64)[keys.offset : keys.offset + len(keys) + 1]
    return limits[1:] - limits[0], np.frombuffer(text or b"", np.uint8)[limits[0] : limits[-1]]


def _flat_head(codes: np.ndarray) -> bytes:
    """Return what FAISS writes before the codes of a flat index."""
    empty = faiss.IndexBinaryFlat(8 * codes.shape[1])
    empty.ntotal = len(codes)
    return faiss.serialize_index_binary(empty).tobytes()[:-8] + np.uint64(codes.size).tobytes()


def _inverted(codes: np.ndarray, lists: np.ndarray, recipe: PartRecipe) -> Iterator[Any]:
    """Yield the bytes of an IndexBinaryIVF whose lists hold the rows in ascending order.

    FAISS writes the same, except that it names the sizes of few filled lists in pairs.
    """
    assert recipe.quantiser is not None  # of a family with lists
    size, count = codes.shape[1], recipe.family.lists
    empty = faiss.IndexBinaryIVF(recipe.quantiser.index, 8 * size, count)
    empty.ntotal, empty.is_trained = len(codes), True
    head = faiss.serialize_index_binary(empty).tobytes()
    yield head[: head.rindex(b"ilar")]
    sizes = np.bincount(lists, minlength=count).astype(np.uint64)
    yield b"ilar" + np.array([count, size], np.uint64).tobytes() + b"full" + np.uint64(count).tobytes()
    yield sizes.data
    rows = np.argsort(lists, kind="stable")
    limits = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    for number in range(count):
        mine = rows[limits[number] : limits[number + 1]]
        for start in range(0, len(mine), _GATHER):
            yield codes[mine[start : start + _GATHER]].data
        yield mine.data


def _built(codes: np.ndarray, family: Family) -> np.ndarray:
    """Return the FAISS file of a family that is built in memory."""
    index = faiss.index_binary_factory(8 * codes.shape[1], family.recipe)
    if len(codes):
        with one_thread():
            index.add(np.ascontiguousarray(codes))
    return faiss.serialize_index_binary(index)
