"""The files of a part, open for reading: mapped where they lie, or from a cache of a remote store's files."""

import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from pipeline.releases.addresses import part_keys_path, part_path
from pipeline.releases.manifest import ManifestError
from pipeline.releases.storage import Storage

MEND = "restore it, or delete it and run `hashfleet build_index`, or roll back"


@dataclass(frozen=True)
class Part:
    """An open index part: row n of the index is row n of `keys`, both in (id, key) order."""

    index: Any  # faiss.IndexBinaryFlat
    keys: pa.Table  # id, key, unit, row

    @property
    def rows(self) -> int:
        return int(self.index.ntotal)

    @property
    def ids(self) -> np.ndarray:
        """The (N,) int64 ids, without a copy where the file holds one record batch."""
        column = self.keys["id"]
        return column.chunk(0).to_numpy() if column.num_chunks == 1 else column.to_numpy()

    @property
    def codes(self) -> np.ndarray:
        """The (N, S) packed codes as they lie in the index; valid as long as the part is."""
        size = int(self.index.code_size)
        return faiss.rev_swig_ptr(self.index.xb.data(), self.rows * size).reshape(-1, size)


def open_part(storage: Storage, row: Mapping[str, Any], *, code_length: int, cache: Path) -> Part:
    """Map the two files of a part and check that they are what the release says.

    Of a local file the size and the number of codes are checked, not the sha256: that would read all of it.

    Args:
        row: of the release's table of parts.
        cache: folder for the files of a remote store.
    Raises:
        ManifestError: a file is missing, damaged, or not what the row says; it is named.
    """
    index_name, keys_name = part_path(row["part"]), part_keys_path(row["part"])
    files = [
        _local_file(storage, name, sha256=row[f"{kind}_sha256"], size=row[f"{kind}_bytes"], cache=cache)
        for kind, name in (("index", index_name), ("keys", keys_name))
    ]
    try:
        # Without this flag FAISS reads a flat index into memory, and says nothing.
        index = faiss.read_index_binary(str(files[0]), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise ManifestError(
            f"{storage.where(index_name)} is no binary index that FAISS can read; {MEND}"
        ) from error
    if not isinstance(index, faiss.IndexBinaryFlat):
        raise ManifestError(
            f"{storage.where(index_name)} is a {type(index).__name__}; this version searches IndexBinaryFlat"
        )
    try:
        keys = pa.ipc.open_file(pa.memory_map(str(files[1]))).read_all()
    except pa.ArrowException as error:
        raise ManifestError(f"{storage.where(keys_name)} is no Arrow file: {error}; {MEND}") from error
    if (index.d, index.ntotal, keys.num_rows) != (code_length, row["rows"], row["rows"]):
        raise ManifestError(
            f"{storage.where(index_name)}: the release says {row['rows']} codes of {code_length} bits, the "
            f"files hold {index.ntotal} of {index.d} bits and {keys.num_rows} keys; {MEND}"
        )
    return Part(index, keys)


def cache_folder() -> Path:
    """Return the folder that holds the files of remote stores unless another is asked for."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "hashfleet" / "parts"


def _local_file(storage: Storage, path: str, *, sha256: str, size: int, cache: Path) -> Path:
    """Return the file itself on a local store, else its copy in the cache."""
    local = storage.local(path)
    if local is None:
        return _cached(storage, path, sha256=sha256, size=size, cache=cache)
    if not local.is_file():
        raise ManifestError(f"{local} is missing: a part of the release; {MEND}")
    if local.stat().st_size != size:
        raise ManifestError(
            f"{local} has {local.stat().st_size} bytes, the release names {size} (sha256 {sha256}); {MEND}"
        )
    return local


def _cached(storage: Storage, path: str, *, sha256: str, size: int, cache: Path) -> Path:
    """Return the cached copy of a remote file, downloading and verifying it the first time."""
    copy = cache / (sha256 + "".join(Path(path).suffixes))
    if copy.is_file() and copy.stat().st_size == size:
        return copy
    fresh = copy.with_name(f"{copy.name}.{secrets.token_hex(4)}")
    try:
        storage.download(path, fresh)
        with fresh.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256:
            raise ManifestError(
                f"{storage.where(path)} is damaged: its sha256 is {found}, the release names {sha256}; {MEND}"
            )
        fresh.replace(copy)
    except FileNotFoundError as error:
        raise ManifestError(f"{storage.where(path)} is missing: a part of the release; {MEND}") from error
    finally:
        fresh.unlink(missing_ok=True)
    return copy
