"""Small code tables and whole stores for the tests of search, made without any model."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.releases.addresses import digest_bytes, part_address, part_keys_path, part_path, sha256
from pipeline.releases.heads import Log
from pipeline.releases.manifest import PARTS, REJECTS, UNITS, ReleaseRecipe, create_store, write_release
from pipeline.releases.storage import Storage
from pipeline.search.indexing import build_part
from pipeline.search.quantisers import keep_quantiser, load_quantiser


def sample_id(key: str) -> int:
    """Return the first 63 bits of blake2b(key)."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def code_table(
    keys: Sequence[str],
    *,
    size: int,
    seed: int = 0,
    ids: Sequence[int] | None = None,
    codes: np.ndarray | None = None,
    fingerprint: str = "f",
) -> pa.Table:
    """Return the code table of one unit, sorted by (id, key); codes that are not given are drawn."""
    drawn = np.random.default_rng(seed).integers(0, 256, (len(keys), size), dtype=np.uint8)
    numbers = [sample_id(key) for key in keys] if ids is None else list(ids)
    table = pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "key": pa.array(list(keys), pa.string()),
            "row": pa.array(range(len(keys)), pa.int64()),
            "content_hash": pa.array([bytes(16)] * len(keys), pa.binary(16)),
            "code": pa.array(
                [code.tobytes() for code in (drawn if codes is None else codes)], pa.binary(size)
            ),
        },
        metadata={"hashfleet.fingerprint": fingerprint},
    )
    return table.sort_by([("id", "ascending"), ("key", "ascending")])


def unit(path: str, rows: int, side: str = "image") -> dict[str, Any]:
    """Return a row of the table `units`, as far as parts are planned with it."""
    return {
        "path": path,
        "side": side,
        "code": digest_bytes(f"{path} {rows} {side}".encode()),
        "encoded": rows,
    }


def units(*rows: dict[str, Any]) -> pa.Table:
    """Return such rows as a table."""
    return pa.Table.from_pylist(list(rows), schema=UNITS)


def write_store(
    uri: str | Path,
    parts: Mapping[str, Sequence[Mapping[str, pa.Table]]],
    *,
    code_length: int,
    model: str = "0" * 32,
    fingerprints: Mapping[str, str] | None = None,
    recipe: str = "BFlat",
    quantiser: bytes = b"",
) -> str:
    """Write a release with the given parts (side -> parts -> unit -> code table) and return its digest."""
    storage = Storage(uri)
    create_store(storage)
    rows = [
        _write_part(storage, side, ordinal, tables=tables, made_with=(recipe, quantiser))
        for side, members in parts.items()
        for ordinal, tables in enumerate(members)
    ]
    release = ReleaseRecipe(
        code_length=code_length,
        model=model,
        fingerprints=dict(fingerprints or {side: f"tower of {side}" for side in parts}),
        input_recipe="0" * 32,
        index={"recipe": recipe} if recipe != "BFlat" else {},
        quantisers={side: keep_quantiser(quantiser, storage) for side in parts} if quantiser else {},
    )
    tables = {
        "units": UNITS.empty_table(),
        "parts": pa.Table.from_pylist(rows, schema=PARTS),
        "rejects": REJECTS.empty_table(),
    }
    return write_release(storage, release, tables=tables)


def publish(uri: str | Path, digest: str) -> None:
    """Make a release the current one of channel `main`."""
    log = Log(Storage(uri))
    lease = log.acquire("test", 60)
    assert lease is not None
    log.publish(lease, digest)
    log.release(lease)


def _write_part(
    storage: Storage, side: str, ordinal: int, *, tables: Mapping[str, pa.Table], made_with: tuple[str, bytes]
) -> dict[str, Any]:
    members = [(unit, digest_bytes(repr(table.to_pydict()).encode())) for unit, table in tables.items()]
    recipe, quantiser = made_with
    address = part_address(members, side, recipe={} if recipe == "BFlat" else {"index": recipe})
    files = build_part(tables, recipe=recipe, quantiser=load_quantiser(quantiser) if quantiser else None)
    storage.create(part_keys_path(address), files.keys)
    storage.create(part_path(address), files.index)
    return {
        "side": side,
        "ordinal": ordinal,
        "part": address,
        "units": len(tables),
        "rows": files.rows,
        "index_sha256": sha256(files.index),
        "index_bytes": len(files.index),
        "keys_sha256": sha256(files.keys),
        "keys_bytes": len(files.keys),
    }
