"""A code file and its rejects without the rows of forgotten keys: what is left, as new files. Pure."""

import json
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.encoding.codefile import (
    REJECT_SCHEMA,
    Ledger,
    forgotten_row,
    parquet_bytes,
    read_ledger,
)
from pipeline.releases.addresses import digest_json
from pipeline.releases.forgetting import Forgotten


@dataclass(frozen=True)
class Purged:
    """The bytes that stand for a code file and its rejects, and the ledger they carry."""

    codes: bytes
    rejects: bytes
    ledger: Ledger


def purge(codes: bytes, rejects: bytes | None, forgotten: Forgotten) -> Purged | None:
    """Take the rows of forgotten keys out of a code file; each becomes a reject without a key.

    Args:
        codes: bytes of a code file.
        rejects: bytes of the rejects beside it; None where there are none.
    Returns:
        None where neither holds a forgotten key.
    Raises:
        ValueError: the bytes are no code file.
    """
    table = pq.read_table(pa.BufferReader(codes))
    ledger, metadata = read_ledger(table.schema), dict(table.schema.metadata)
    gone = forgotten.rows(table["id"].to_numpy(), table["key"])
    named = _rejected(rejects)
    hidden = forgotten.mask(named["key"].to_pylist())
    if not len(gone) and not hidden.any():
        return None
    kept = np.ones(len(table), bool)
    kept[gone] = False
    rows = [
        *table["row"].take(pa.array(gone)).to_pylist(),
        *named.filter(pa.array(hidden))["row"].to_pylist(),
    ]
    entries = named.filter(pa.array(~hidden)).to_pylist() + [asdict(forgotten_row(row)) for row in rows]
    left = _ledger(ledger, len(gone), [entry["reason"] for entry in entries])
    metadata[b"hashfleet.ledger"] = json.dumps(asdict(left), sort_keys=True).encode()
    entries.sort(key=lambda entry: entry["row"])
    listed = pa.Table.from_pylist(entries, schema=REJECT_SCHEMA.with_metadata(metadata))
    codes_left = table.filter(pa.array(kept)).replace_schema_metadata(metadata)
    return Purged(parquet_bytes(codes_left), parquet_bytes(listed), left)


def purged_address(address: str, forgotten: Forgotten) -> str:
    """Return where what is left of a code file stands, after these keys were purged from the store."""
    return digest_json(["purged", address, forgotten.table])


def _rejected(rejects: bytes | None) -> pa.Table:
    if rejects is None:
        return REJECT_SCHEMA.empty_table()
    return pq.read_table(pa.BufferReader(rejects)).select(REJECT_SCHEMA.names)


def _ledger(before: Ledger, gone: int, reasons: list[str]) -> Ledger:
    counted = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    return replace(before, encoded=before.encoded - gone, rejected=before.rejected + gone, reasons=counted)
