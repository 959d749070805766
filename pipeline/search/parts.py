"""The files of a part, open for reading: mapped where they lie, or from a cache of a remote store's files."""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from pipeline.releases.addresses import part_keys_path, part_path
from pipeline.releases.manifest import ManifestError
from pipeline.releases.storage import Storage
from pipeline.search.families import Kind, parse_recipe

MEND = "restore it, or delete it and run `hashfleet build_index`, or roll back"

_CLASSES: dict[Kind, str] = {
    "flat": "IndexBinaryFlat",
    "ivf": "IndexBinaryIVF",
    "hnsw": "IndexBinaryHNSW",
    "hash": "IndexBinaryHash",
    "multihash": "IndexBinaryMultiHash",
}
_MULTIHASH: Any = faiss.IndexBinaryMultiHash
_WITH_STORAGE: Any = (faiss.IndexBinaryHNSW, _MULTIHASH)
_CACHE_FAULTS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
)


@dataclass(frozen=True)
class InvertedLists:
    """Where the inverted lists of a part lie: addresses, valid as long as the part is."""

    codes: np.ndarray  # (L,) int64
    numbers: np.ndarray  # (L,) int64: of the int64 row numbers, ascending in every list
    rows: np.ndarray  # (L,) int64


@dataclass(frozen=True)
class Part:
    """An open index part: row n of the index is row n of `keys`, both in (id, key) order."""

    index: Any  # a binary FAISS index
    keys: pa.Table  # id, key, unit, row

    @property
    def rows(self) -> int:
        return int(self.index.ntotal)

    @property
    def code_size(self) -> int:
        return int(self.index.code_size)

    @property
    def ids(self) -> np.ndarray:
        """The (N,) int64 ids, without a copy where the file holds one record batch."""
        column = self.keys["id"]
        return column.chunk(0).to_numpy() if column.num_chunks == 1 else column.to_numpy()

    @property
    def flat(self) -> Any:
        """The flat index that holds the codes row by row; None where there is none."""
        if isinstance(self.index, faiss.IndexBinaryFlat):
            return self.index
        if isinstance(self.index, _WITH_STORAGE):
            return faiss.downcast_IndexBinary(self.index.storage)
        return None

    @property
    def codes(self) -> np.ndarray:
        """The (N, S) packed codes as they lie in a flat index; valid as long as the part is."""
        if self.flat is None:
            raise ValueError(f"a {type(self.index).__name__} does not hold its codes row by row")
        return _view(self.flat.xb.data(), self.rows, self.code_size)

    @cached_property
    def lists(self) -> InvertedLists:
        """The inverted lists of a BIVF part."""
        lists = self._inverted
        rows = np.array([lists.list_size(number) for number in range(lists.nlist)], np.int64)
        filled = np.flatnonzero(rows).tolist()
        codes, numbers = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        for number in filled:
            codes[number], numbers[number] = int(lists.get_codes(number)), int(lists.get_ids(number))
        return InvertedLists(codes, numbers, rows)

    def codes_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the (n, S) codes of some rows.

        Of a BIVF part the row numbers of all lists are read the first time, and 8 bytes a row are kept.

        Raises:
            ValueError: a BHash part, which keeps its codes in pieces.
        """
        if not self.is_inverted:
            return self.codes[rows]
        entries, limits = self._entries
        codes = np.empty((len(rows), self.code_size), np.uint8)
        wanted = entries[rows]
        numbers = np.searchsorted(limits, wanted, side="right") - 1
        for number in np.unique(numbers).tolist():
            mine = np.flatnonzero(numbers == number)
            held = _view(self._inverted.get_codes(number), int(self.lists.rows[number]), self.code_size)
            codes[mine] = held[wanted[mine] - limits[number]]
        return codes

    def rows_in(self, lists: np.ndarray) -> np.ndarray:
        """Return the rows that some inverted lists hold."""
        sizes = self.lists.rows
        numbers = [number for number in lists.tolist() if sizes[number]]
        held = [faiss.rev_swig_ptr(self._inverted.get_ids(number), int(sizes[number])) for number in numbers]
        return np.concatenate([np.empty(0, np.int64), *held])

    @property
    def is_flat(self) -> bool:
        return isinstance(self.index, faiss.IndexBinaryFlat)

    @property
    def is_inverted(self) -> bool:
        return isinstance(self.index, faiss.IndexBinaryIVF)

    @property
    def has_candidates(self) -> bool:
        """Whether FAISS looks at the same rows for a number of them as for a radius: not in a graph."""
        return not isinstance(self.index, faiss.IndexBinaryHNSW)

    @property
    def holds_codes(self) -> bool:
        """Whether the codes of rows can be had: not those of BHash, which keeps them in pieces."""
        return self.is_inverted or self.flat is not None

    @cached_property
    def _inverted(self) -> Any:
        return faiss.downcast_InvertedLists(self.index.invlists)

    @cached_property
    def _entries(self) -> tuple[np.ndarray, np.ndarray]:
        """The entry of each row, all lists put end to end, and where each list starts."""
        sizes = self.lists.rows
        limits = np.concatenate([[0], np.cumsum(sizes)])
        entries = np.empty(self.rows, np.int64)
        for number in np.flatnonzero(sizes).tolist():
            numbers = faiss.rev_swig_ptr(self._inverted.get_ids(number), int(sizes[number]))
            entries[numbers] = np.arange(limits[number], limits[number + 1])
        return entries, limits


def _view(pointer: Any, rows: int, size: int) -> np.ndarray:
    return faiss.rev_swig_ptr(pointer, rows * size).reshape(-1, size)


@dataclass(frozen=True)
class PartsOpening:
    """How the parts of a release are opened."""

    code_length: int
    cache: Path  # folder for the files of a remote store
    recipe: str = "BFlat"  # of the release
    check: bool = False  # read every local file in full and compare its sha256


def open_part(storage: Storage, row: Mapping[str, Any], opening: PartsOpening) -> Part:
    """Map the two files of a part and check that they are what the release says.

    Of a local file the size and the number of codes are checked, the sha256 only where that is asked for:
    it would read all of it. Flat and inverted parts are mapped, those of other families read into memory.

    Args:
        row: of the release's table of parts.
    Raises:
        ManifestError: a file is missing, damaged, or not what the row says; it is named.
    """
    index_name, keys_name = part_path(row["part"]), part_keys_path(row["part"])
    files = [
        _local_file(storage, name, _Named(row[f"{kind}_sha256"], row[f"{kind}_bytes"]), opening)
        for kind, name in (("index", index_name), ("keys", keys_name))
    ]
    index = read_index(files[0], storage.where(index_name))
    keys = read_keys(files[1], storage.where(keys_name))
    code_length = opening.code_length
    if (index.d, index.ntotal, keys.num_rows) != (code_length, row["rows"], row["rows"]):
        raise ManifestError(
            f"{storage.where(index_name)}: the release says {row['rows']} codes of {code_length} bits, the "
            f"files hold {index.ntotal} of {index.d} bits and {keys.num_rows} keys; {MEND}"
        )
    part = Part(index, keys)
    _check_family(part, opening.recipe, storage.where(index_name))
    return part


def read_keys(file: Path, where: str) -> pa.Table:
    """Map a keys.arrow.

    Raises:
        ManifestError: it is none.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{where} is no Arrow file: {error}; {MEND}") from error


def read_index(file: Path, where: str) -> Any:
    """Open a FAISS file, mapped if its family can be.

    Raises:
        ManifestError: it is no binary index.
    """
    try:
        # Each family has a flag of its own; with the other's FAISS reads it into memory, and says nothing.
        index = faiss.read_index_binary(str(file), faiss.IO_FLAG_MMAP_IFC)
        if isinstance(index, faiss.IndexBinaryIVF):
            index = faiss.read_index_binary(str(file), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        try:
            other = faiss.read_index(str(file), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError:
            raise ManifestError(f"{where} is no binary index that FAISS can read; {MEND}") from error
        raise ManifestError(
            f"{where} is a float FAISS index ({type(other).__name__}), a part must be a binary one; {MEND}"
        ) from error
    return mended(index)


def mended(index: Any) -> Any:
    """Return an index as it was before FAISS wrote it.

    A table of multi-index hashing in which all rows, 2**n of them, have one hash is read back as empty (FAISS
    1.15 keeps the size of a bucket in n bits); it is made again from the codes that the file holds.
    """
    rows = int(index.ntotal)
    if not isinstance(index, _MULTIHASH) or not rows or rows & (rows - 1):
        return index
    fresh = faiss.IndexBinaryMultiHash(index.d, index.nhash, index.b)
    held: Any = faiss.downcast_IndexBinary(index.storage)
    fresh.add(_view(held.xb.data(), rows, int(index.code_size)))
    return fresh


def _check_family(part: Part, recipe: str, where: str) -> None:
    """Check that a part is of the family that its release names, and its lists hold every row."""
    family = parse_recipe(recipe)
    name = type(part.index).__name__
    if name != _CLASSES[family.kind]:
        raise ManifestError(f"{where} is a {name}, {recipe} parts are {_CLASSES[family.kind]}; {MEND}")
    if part.is_inverted and (len(part.lists.rows), part.lists.rows.sum()) != (family.lists, part.rows):
        raise ManifestError(
            f"{where}: its {len(part.lists.rows)} lists hold {part.lists.rows.sum()} of {part.rows} rows, "
            f"{recipe} has {family.lists}; {MEND}"
        )


@dataclass(frozen=True)
class _Named:
    """What a release says of a file."""

    sha256: str
    size: int


def _local_file(storage: Storage, path: str, named: _Named, opening: PartsOpening) -> Path:
    """Return the file itself on a local store, else its copy in the cache."""
    local = storage.local(path)
    if local is None:
        return _cached(storage, path, named, opening.cache)
    if not local.is_file():
        raise ManifestError(f"{local} is missing: a part of the release; {MEND}")
    if local.stat().st_size != named.size:
        raise ManifestError(
            f"{local} has {local.stat().st_size} bytes, the release names {named.size} (sha256 "
            f"{named.sha256}); {MEND}"
        )
    if opening.check:
        _check_sha256(local, named, str(local))
    return local


def _check_sha256(file: Path, named: _Named, where: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != named.sha256:
        raise ManifestError(
            f"{where} is damaged: its sha256 is {found}, the release names {named.sha256}; {MEND}"
        )


def _cached(storage: Storage, path: str, named: _Named, cache: Path) -> Path:
    """Return the cached copy of a remote file, downloading and verifying it the first time.

    Raises:
        OSError: the cache folder is full or cannot be written; the message says how to name another.
    """
    copy = cache / (named.sha256 + "".join(Path(path).suffixes))
    if copy.is_file() and copy.stat().st_size == named.size:
        return copy
    fresh = copy.with_name(f"{copy.name}.{secrets.token_hex(4)}")
    try:
        _make_room(cache, named.size)
        storage.download(path, fresh)
        _check_sha256(fresh, named, storage.where(path))
        fresh.replace(copy)
    except FileNotFoundError as error:
        raise ManifestError(f"{storage.where(path)} is missing: a part of the release; {MEND}") from error
    except OSError as error:
        if error.errno not in _CACHE_FAULTS:
            raise
        raise OSError(
            error.errno,
            f"cannot keep {storage.where(path)} ({named.size} bytes): {error.strerror}; free or name another "
            "cache folder (cache=, or XDG_CACHE_HOME)",
            str(cache),
        ) from error
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
    return copy


def _make_room(cache: Path, size: int) -> None:
    """Make the folder, and fail before a download that could not end well."""
    cache.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(cache).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
