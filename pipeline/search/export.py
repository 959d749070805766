"""The codes of a release in the files that other libraries read; forgotten keys are left out.

Row n of every file is row n of keys.parquet beside it. Bytes are those of the release, bit for bit: the first
bit most significant, which Hamming distances do not depend on.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.codes import BIT_ORDER, PACKER_VERSION
from pipeline.search.order import Nearest
from pipeline.search.retrieval import Release

BLOCK_ROWS = 1 << 18
_KEYS = ("id", "key", "unit", "row")


@dataclass(frozen=True)
class Codes:
    """The codes of one side of a release, read block by block."""

    release: Release
    side: str
    block_rows: int = BLOCK_ROWS

    @property
    def rows(self) -> int:
        return self.release.rows(self.side)

    @property
    def size(self) -> int:
        return self.release.code_length // 8

    @property
    def metadata(self) -> dict[str, str]:
        """What a reader must know of the codes, as code files have it."""
        recipe = self.release.recipe
        facts = {
            "side": self.side,
            "release": self.release.digest,
            "model": recipe.model,
            "fingerprint": recipe.fingerprints.get(self.side, ""),
            "code_length": str(recipe.code_length),
            "bit_order": BIT_ORDER,
            "packer_version": str(PACKER_VERSION),
        }
        return {f"hashfleet.{name}": value for name, value in facts.items()}

    def blocks(self) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Yield (n, S) codes and their n keys; parts in the order of the release, rows by (id, key)."""
        for part, rows in self.release.visible(self.side):
            for start in range(0, len(rows), self.block_rows):
                some = rows[start : start + self.block_rows]
                yield part.codes_of(some), part.keys.select(_KEYS).take(pa.array(some))

    def numbers(self, found: Nearest) -> np.ndarray:
        """Return the (Q, k) rows of the export that were found, -1 for nothing."""
        starts, numbers = 0, np.full(found.row.shape, -1, np.int64)
        for number, (_, rows) in enumerate(self.release.visible(self.side)):
            mine = found.part == number
            numbers[mine] = starts + np.searchsorted(rows, found.row[mine])
            starts += len(rows)
        return numbers


def export_codes(release: Release, folder: Path, *, side: str, kind: str, queries: Any = None) -> Path:
    """Write the codes of a side into a new folder, which appears whole or not at all.

    Args:
        kind: one of KINDS.
        queries: for u8bin, `Questions` whose exact answers are written as ground truth.
    Returns:
        The folder.
    Raises:
        ValueError: an unknown kind, or an index of BHash, which keeps its codes in pieces.
        FileExistsError: the folder exists.
        ImportError: the library that writes this kind is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown format {kind!r}; known: {', '.join(KINDS)}")
    if folder.exists():
        raise FileExistsError(f"{folder} exists; name a new folder")
    if any(not part.holds_codes for part, _ in release.visible(side)):
        raise ValueError(
            f"release {release.digest} has a BHash index, which keeps its codes in pieces; export one of "
            "another recipe, or read the code files"
        )
    codes = Codes(release, side)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        KINDS[kind](codes, made)
        _write_keys(codes, made / "keys.parquet")
        if queries is not None:
            queries.write(codes, made)
        made.chmod(0o755)  # mkdtemp makes folders that only their owner may read
        made.replace(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class Questions:
    """Queries whose exact answers are the ground truth of a benchmark."""

    codes: np.ndarray  # (Q, S) uint8
    k: int = 100

    def write(self, codes: Codes, folder: Path) -> None:
        """Write queries.u8bin and groundtruth.ibin: rows of the export, nearest first, ties by (id, key)."""
        found = codes.release.exact(self.codes, self.k, codes.side)
        _write_bin(folder / "queries.u8bin", self.codes.shape, [np.ascontiguousarray(self.codes)])
        numbers = codes.numbers(found).astype("<i4")
        _write_bin(folder / "groundtruth.ibin", numbers.shape, [numbers])


def _write_parquet(codes: Codes, folder: Path) -> None:
    """One table: id, key, unit, row and code, as code files have them."""
    _write_tables(
        folder / "codes.parquet",
        (keys.append_column("code", _binary(block)) for block, keys in codes.blocks()),
        schema=_key_schema(codes)
        .append(pa.field("code", pa.binary(codes.size)))
        .with_metadata(codes.metadata),
    )


def _write_milvus(codes: Codes, folder: Path) -> None:
    """What Milvus's bulk import takes: `key` VARCHAR, `id` INT64 and `code` BINARY_VECTOR, bytes as uint8."""
    schema = pa.schema([("key", pa.string()), ("id", pa.int64()), ("code", pa.list_(pa.uint8()))])
    _write_tables(
        folder / "codes.parquet",
        (
            pa.table([keys["key"], keys["id"], _lists(block)], schema=schema.remove_metadata())
            for block, keys in codes.blocks()
        ),
        schema=schema,
    )


def _write_faiss(codes: Codes, folder: Path) -> None:
    """A flat binary index, whose ids are row numbers."""
    index = faiss.IndexBinaryFlat(8 * codes.size)
    for block, _ in codes.blocks():
        index.add(block)
    faiss.write_index_binary(index, str(folder / "codes.faiss"))


def _write_u8bin(codes: Codes, folder: Path) -> None:
    """Rows and bytes as two uint32, then the codes: the format of big-ann-benchmarks."""
    _write_bin(folder / "codes.u8bin", (codes.rows, codes.size), (block for block, _ in codes.blocks()))


def _write_ubinary(codes: Codes, folder: Path) -> None:
    """The (N, S) uint8 array of sentence-transformers' precision `ubinary`, as a .npy file."""
    shape, start = (codes.rows, codes.size), 0
    array = np.lib.format.open_memmap(folder / "codes.npy", mode="w+", dtype=np.uint8, shape=shape)
    for block, _ in codes.blocks():
        array[start : start + len(block)] = block
        start += len(block)
    array.flush()


def _write_usearch(codes: Codes, folder: Path) -> None:
    """An index of usearch over b1 vectors by Hamming distance, whose keys are row numbers."""
    try:
        from usearch.index import Index
    except ImportError as error:
        raise ImportError("the format usearch needs the package usearch; install it") from error
    index, start = Index(ndim=8 * codes.size, metric="hamming", dtype="b1"), 0
    for block, _ in codes.blocks():
        index.add(np.arange(start, start + len(block)), block)
        start += len(block)
    index.save(str(folder / "codes.usearch"))


KINDS: Mapping[str, Callable[[Codes, Path], None]] = {
    "parquet": _write_parquet,
    "faiss": _write_faiss,
    "u8bin": _write_u8bin,
    "ubinary": _write_ubinary,
    "usearch": _write_usearch,
    "milvus": _write_milvus,
}
"""Name of a format -> what writes it."""


def _write_bin(file: Path, shape: tuple[int, ...], blocks: Any) -> None:
    with file.open("wb") as out:
        out.write(np.array(shape, "<u4").tobytes())
        for block in blocks:
            out.write(block.tobytes())


def _write_keys(codes: Codes, file: Path) -> None:
    _write_tables(file, (keys for _, keys in codes.blocks()), schema=_key_schema(codes))


def _write_tables(file: Path, tables: Iterator[pa.Table], *, schema: pa.Schema) -> None:
    with pq.ParquetWriter(file, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))


def _key_schema(codes: Codes) -> pa.Schema:
    kinds = {"id": pa.int64(), "key": pa.string(), "unit": pa.string(), "row": pa.int64()}
    return pa.schema(list(kinds.items())).with_metadata(codes.metadata)


def _binary(block: np.ndarray) -> pa.Array:
    data = pa.py_buffer(np.ascontiguousarray(block))
    return pa.Array.from_buffers(pa.binary(block.shape[1]), len(block), [None, data])


def _lists(block: np.ndarray) -> pa.Array:
    limits = np.arange(0, block.size + 1, block.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(limits), pa.array(block.reshape(-1)))
