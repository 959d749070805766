"""Forgotten keys: hidden from every reader of a store at once, whichever release and channel it opens.

They stand in a log of their own beside those of the channels, so a rollback does not bring them back. The
table that its newest entry names holds ids and digests, not the keys: what is forgotten must not be kept by
the list of what is forgotten. (A digest does not protect a key that can be guessed.)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.releases.addresses import sha256, table_path
from pipeline.releases.heads import FORGOTTEN_LOG, Entry, Log
from pipeline.releases.manifest import ManifestError, to_parquet
from pipeline.releases.storage import Storage

_DIGEST_SIZE = 16
FORGOTTEN = pa.schema([("id", pa.int64()), ("digest", pa.binary(_DIGEST_SIZE))])
"""One row per forgotten key, sorted: its id as code files and parts have it, and blake2b of its UTF-8."""


@dataclass(frozen=True)
class Forgotten:
    """The forgotten keys of a store; empty where none is. `key in forgotten` tells of one."""

    ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # (F,) sorted
    digests: frozenset[bytes] = frozenset()
    table: str | None = None  # SHA-256 of the table they were read from

    def __len__(self) -> int:
        return len(self.digests)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bool(self.digests) and _digest(key) in self.digests

    def rows(self, ids: np.ndarray, keys: pa.ChunkedArray | pa.Array) -> np.ndarray:
        """Return the rows of an index part, or of a code file, that hold a forgotten key.

        Args:
            ids: (N,) int64 in ascending order.
            keys: the N keys they belong to; only those of equal id are looked at.
        Returns:
            (M,) int64, ascending.
        """
        starts, ends = (np.searchsorted(ids, np.unique(self.ids), side=side) for side in ("left", "right"))
        candidates = [row for start, end in zip(starts, ends, strict=True) for row in range(start, end)]
        return np.array([row for row in candidates if keys[row].as_py() in self], np.int64)

    def mask(self, keys: Sequence[str | None]) -> np.ndarray:
        """Return (N,) bool: which of some keys are forgotten."""
        if not self.digests:
            return np.zeros(len(keys), bool)
        return np.fromiter((key in self for key in keys), bool, len(keys))


NOTHING_FORGOTTEN = Forgotten()


def forgotten_keys(log: Log) -> Forgotten:
    """Return what readers of a channel must not show. Three requests, one more where keys are forgotten.

    Raises:
        ManifestError: the log or its table is missing or damaged; then nothing may be shown at all.
    """
    newest = Log(log.storage, FORGOTTEN_LOG).newest()
    return _read(log.storage, newest.forgotten if newest else None)


def forget(log: Log, keys: Iterable[str], *, ids: np.ndarray, owner: str) -> Entry | None:
    """Hide keys from now on, in every channel of the store; None if all of them are hidden already.

    Args:
        keys: as the source has them; keys that no release holds are fine.
        ids: their ids, as code files have them.
        owner: who does it, for the log.
    """
    added = set(zip((int(number) for number in ids), map(_digest, keys), strict=True))
    chain = Log(log.storage, FORGOTTEN_LOG)
    while True:
        newest = chain.newest()
        before = newest.forgotten if newest else None
        known = _pairs(log.storage, before)
        if added <= known:
            return None
        rows = sorted(known | added)
        columns = [[row[0] for row in rows], [row[1] for row in rows]]
        data = to_parquet(pa.table(columns, schema=FORGOTTEN))
        log.storage.create(table_path(sha256(data)), data)
        entry = chain.forget(sha256(data), owner, replaces=before)
        if entry is not None:  # else another was quicker, and its keys must stay hidden too
            return entry


def _pairs(storage: Storage, table: str | None) -> set[tuple[int, bytes]]:
    rows = _read_table(storage, table)
    return set(zip(rows["id"].to_pylist(), rows["digest"].to_pylist(), strict=True))


def _read(storage: Storage, table: str | None) -> Forgotten:
    if table is None:
        return Forgotten()
    rows = _read_table(storage, table)
    return Forgotten(rows["id"].to_numpy(), frozenset(rows["digest"].to_pylist()), table)


def _read_table(storage: Storage, table: str | None) -> pa.Table:
    if table is None:
        return FORGOTTEN.empty_table()
    where = storage.where(table_path(table))
    try:
        data = storage.read(table_path(table))
        if sha256(data) != table:
            raise ManifestError(f"{where} is damaged: its sha256 is {sha256(data)}; restore the file")
        return pq.read_table(pa.BufferReader(data)).cast(FORGOTTEN)
    except FileNotFoundError as error:
        raise ManifestError(
            f"{where} is missing: the forgotten keys of the store; restore the file"
        ) from error
    except (pa.ArrowException, ValueError) as error:
        raise ManifestError(f"{where}: {error}") from error


def _digest(key: str) -> bytes:
    return blake2b(key.encode(), digest_size=_DIGEST_SIZE).digest()
