"""Small code tables for the tests of this room, made without any model."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa


def sample_id(key: str) -> int:
    """Return the first 63 bits of blake2b(key)."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def code_table(
    keys: Sequence[str],
    *,
    size: int,
    seed: int = 0,
    ids: Sequence[int] | None = None,
    fingerprint: str = "f",
) -> pa.Table:
    """Return the code table of one unit with drawn codes, sorted by (id, key) as code files are."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (len(keys), size), dtype=np.uint8)
    numbers = [sample_id(key) for key in keys] if ids is None else list(ids)
    table = pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "key": pa.array(list(keys), pa.string()),
            "row": pa.array(range(len(keys)), pa.int64()),
            "content_hash": pa.array([bytes(16)] * len(keys), pa.binary(16)),
            "code": pa.array([code.tobytes() for code in codes], pa.binary(size)),
        },
        metadata={"hashfleet.fingerprint": fingerprint},
    )
    return table.sort_by([("id", "ascending"), ("key", "ascending")])
