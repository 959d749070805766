"""How the parts of a release are made from the code files of a store.

A part's address covers its members and its quantiser, so what an earlier release or an ended run left is
taken as it is. keys.arrow is written first, the FAISS file last: where it stands, the part is whole.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.releases.addresses import code_path, part_keys_path, part_path
from pipeline.releases.manifest import PARTS, ManifestError
from pipeline.releases.storage import Storage
from pipeline.search.assembly import assemble
from pipeline.search.part_plans import PartPlan
from pipeline.search.parts import read_index, read_keys
from pipeline.search.quantisers import open_quantiser

REQUESTS = 16
"""Threads that wait for the storage while it looks for parts."""
_PAGE = 1 << 12
"""So many parts are Python objects at once."""


def standing_parts(parent_parts: pa.Table, storage: Storage) -> pa.Table:
    """Return the rows of a table `parts` whose files stand in the store with the sizes that it names."""

    def stands(row: dict[str, Any]) -> bool:
        names = {"index": part_path(row["part"]), "keys": part_keys_path(row["part"])}
        try:
            return all(storage.size(name) == row[f"{kind}_bytes"] for kind, name in names.items())
        except FileNotFoundError:
            return False

    with ThreadPoolExecutor(REQUESTS) as pool:
        pages = parent_parts.to_batches(max_chunksize=_PAGE)
        standing = [pa.array(list(pool.map(stands, page.to_pylist())), pa.bool_()) for page in pages]
    return parent_parts.filter(pa.chunked_array(standing, pa.bool_()))


def make_part(plan: PartPlan, storage: Storage) -> dict[str, Any]:
    """Build a part from its code files, unless it stands in the store, and return its row of `parts`.

    Files are spilled to the folder for temporary files (TMPDIR), about twice the size of the part.

    Raises:
        ValueError: the code files do not belong together.
        OSError: a code file is missing, or the storage fails.
        ManifestError: a code file is not the one that the release names, or what stands is no such part.
        RuntimeError: the files do not hold as many codes as the release counts.
    """
    with tempfile.TemporaryDirectory(prefix="hashfleet-part-") as name:
        folder = Path(name)
        if storage.exists(part_path(plan.address)) and storage.exists(part_keys_path(plan.address)):
            files = _standing(plan, storage, folder)
        else:
            files = _make(plan, storage, folder)
        index, keys = ((_sha256(file), file.stat().st_size) for file in files)
        return part_row(plan, index=index, keys=keys)


def part_row(plan: PartPlan, *, index: tuple[str, int], keys: tuple[str, int]) -> dict[str, Any]:
    """Return the row of a part in the table `parts`.

    Args:
        index, keys: sha256 and bytes of its two files.
    """
    return {
        "side": plan.side,
        "ordinal": plan.ordinal,
        "part": plan.address,
        "units": len(plan.members),
        "rows": plan.rows,
        "index_sha256": index[0],
        "index_bytes": index[1],
        "keys_sha256": keys[0],
        "keys_bytes": keys[1],
    }


def parts_table(reused: pa.Table, made: Iterable[dict[str, Any]]) -> pa.Table:
    """Return the table `parts` of a release, of rows as they come."""
    tables, rows = [reused], iter(made)
    while page := list(islice(rows, _PAGE)):
        tables.append(pa.Table.from_pylist(page, schema=PARTS))
    return pa.concat_tables(tables).sort_by([("side", "ascending"), ("ordinal", "ascending")])


def _make(plan: PartPlan, storage: Storage, folder: Path) -> tuple[Path, Path]:
    quantiser = open_quantiser(plan.quantiser, storage) if plan.quantiser else None
    with _code_files(plan, storage, folder) as files:
        index, keys, rows = assemble(
            files, plan.recipe, quantiser=quantiser, folder=folder, memory=plan.memory
        )
    if rows != plan.rows:
        raise RuntimeError(
            f"part {plan.address}: its code files hold {rows} rows, the release counts {plan.rows}"
        )
    keys = _put(storage, keys, part_keys_path(plan.address), folder)
    return _put(storage, index, part_path(plan.address), folder), keys


def _put(storage: Storage, file: Path, path: str, folder: Path) -> Path:
    """Put a file; what stands there already is what counts."""
    if storage.exists(path):
        return _fetched(storage, path, folder / "standing")
    storage.upload(file, path)
    return file


@contextmanager
def _code_files(plan: PartPlan, storage: Storage, folder: Path) -> Iterator[dict[str, Path]]:
    """Give the checked code files of a part: those of a local store where they lie, others as copies."""
    copies = folder / "codes"
    files = {}
    for (unit, code), expected in zip(plan.members, plan.sha256s, strict=True):
        path = code_path(code)
        files[unit] = _fetched(storage, path, copies)
        found = _sha256(files[unit]) if files[unit].is_file() else ""
        mend = "`hashfleet encode` under a new store.channel makes again what the store lacks"
        if not found:
            raise FileNotFoundError(
                f"{storage.where(path)} is missing: the codes of unit {unit}; restore it, or: {mend}"
            )
        if found != expected:
            raise ManifestError(
                f"{storage.where(path)} is damaged: its sha256 is {found}, the release names {expected} "
                f"for unit {unit}; restore it, or delete it: {mend}"
            )
    yield files
    for copy in copies.glob("*"):
        copy.unlink()


def _fetched(storage: Storage, path: str, folder: Path) -> Path:
    """Return the file itself on a local store, else a copy; where there is none, a path without a file."""
    local = storage.local(path)
    if local is not None:
        return local
    copy = folder / Path(path).name
    try:
        storage.download(path, copy)
    except FileNotFoundError:
        return copy
    return copy


def _standing(plan: PartPlan, storage: Storage, folder: Path) -> tuple[Path, Path]:
    """Return the files of a part that stands, if they hold as many codes and keys as the release counts."""
    names = part_path(plan.address), part_keys_path(plan.address)
    index, keys = (_fetched(storage, name, folder) for name in names)
    try:
        counts = (
            read_index(index, storage.where(names[0])).ntotal,
            len(read_keys(keys, storage.where(names[1]))),
        )
    except ManifestError as error:
        raise ManifestError(
            f"{storage.where(names[0])} or its keys is damaged ({error}); delete both and run again"
        ) from error
    if counts != (plan.rows, plan.rows):
        raise ManifestError(
            f"{storage.where(names[0])} and its keys hold {counts[0]} and {counts[1]} rows, "
            f"the release counts {plan.rows}; delete both and run again"
        )
    return index, keys


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
