"""Upkeep of a store: re-hash everything a release names, and say what is wrong. Nothing is repaired here."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.releases.addresses import (
    code_path,
    digest_bytes,
    model_path,
    part_keys_path,
    part_path,
    quantiser_path,
    rejects_path,
)
from pipeline.releases.manifest import ManifestError, ReleaseManifest, code_file, read_release, read_table
from pipeline.releases.storage import Storage

_BLOCK = 8 << 20


@dataclass(frozen=True)
class NamedFile:
    """A file that a release names, as it says the file is."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Verdict:
    """What a verification read, and every fault it found, each in one line that names the file."""

    files: int
    size: int
    faults: tuple[str, ...]


def verify(storage: Storage, digest: str, *, threads: int = 8) -> Verdict:
    """Read every file of a release in full and compare it with what the release says.

    Faults of one file do not hide those of another; only where a table of the release is itself damaged
    there is nothing further to compare.
    """
    try:
        manifest = read_release(storage, digest)
        tables = {name: read_table(storage, manifest, name) for name in ("units", "parts", "rejects")}
    except ManifestError as error:
        return Verdict(0, 0, (str(error),))
    files = sorted(set(named_files(tables)), key=lambda file: file.path)
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda file: _fault(storage, file), files)
        faults = list(found)
    faults += _rows_faults(tables)
    faults += [_quantiser_fault(storage, name) for name in manifest.recipe.quantisers.values()]
    if not storage.list(model_path(manifest.recipe.model)):
        faults.append(f"{storage.where(model_path(manifest.recipe.model))} is missing: the release's model")
    return Verdict(len(files), sum(file.size for file in files), tuple(fault for fault in faults if fault))


def named_files(tables: dict[str, pa.Table]) -> Iterator[NamedFile]:
    """Yield every code file, rejects file and part that the tables of a release name."""
    units = tables["units"].select(["code", "purged", "code_sha256", "code_bytes"])
    for row in _rows(units):
        yield NamedFile(code_path(code_file(row)), row["code_sha256"], row["code_bytes"])
    for row in _rows(tables["rejects"].select(["rejects", "sha256", "bytes"])):
        yield NamedFile(rejects_path(row["rejects"]), row["sha256"], row["bytes"])
    for row in _rows(tables["parts"]):
        yield NamedFile(part_path(row["part"]), row["index_sha256"], row["index_bytes"])
        yield NamedFile(part_keys_path(row["part"]), row["keys_sha256"], row["keys_bytes"])


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, a slice of it at a time: a table may have millions."""
    for batch in table.to_batches(max_chunksize=1 << 14):
        yield from batch.to_pylist()


def stored_releases(storage: Storage) -> dict[str, ReleaseManifest | ManifestError]:
    """Return every release that the store keeps, published or not; a damaged one as its error."""
    releases: dict[str, ReleaseManifest | ManifestError] = {}
    for path in storage.list("releases"):
        digest = path.removeprefix("releases/").removesuffix(".json")
        try:
            releases[digest] = read_release(storage, digest)
        except ManifestError as error:
            releases[digest] = error
    return releases


def _fault(storage: Storage, file: NamedFile) -> str:
    """Say what is wrong with a file, '' if nothing is."""
    where = storage.where(file.path)
    try:
        size, found = _hash(storage, file.path)
    except FileNotFoundError:
        return f"{where} is missing"
    except OSError as error:
        return f"{where} cannot be read: {error}"
    if size != file.size:
        return f"{where} has {size} bytes, the release names {file.size}"
    return (
        "" if found == file.sha256 else f"{where} is damaged: sha256 {found}, the release names {file.sha256}"
    )


def _quantiser_fault(storage: Storage, digest: str) -> str:
    path = quantiser_path(digest)
    try:
        found = digest_bytes(storage.read(path))
    except FileNotFoundError:
        return f"{storage.where(path)} is missing"
    return "" if found == digest else f"{storage.where(path)} is damaged: its digest is {found}"


def _hash(storage: Storage, path: str) -> tuple[int, str]:
    """Return bytes and SHA-256 of a file that may be larger than memory."""
    filesystem, root = storage.filesystem()
    digest, size = hashlib.sha256(), 0
    with filesystem.open_input_file(f"{root}/{path}") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _rows_faults(tables: dict[str, pa.Table]) -> list[str]:
    """Compare the rows of the parts with the encoded rows of the units, side by side."""
    faults = []
    for side in sorted(set(tables["units"]["side"].to_pylist())):
        encoded, indexed = (
            pc.sum(table.filter(pc.equal(table["side"], side))[column]).as_py() or 0
            for table, column in ((tables["units"], "encoded"), (tables["parts"], "rows"))
        )
        if encoded != indexed:
            faults.append(f"{side}: the units hold {encoded} codes, the parts {indexed}")
    return faults
