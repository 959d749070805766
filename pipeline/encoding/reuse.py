"""Codes of an earlier night, for the rows of a changed unit that are still what they were.

A row is known again by the content hash of its bytes, or, where the source has a column of change tokens, by
its key and token: then its bytes are not even read. A code that was made by another tower, input recipe or
packer is never taken.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.schema import Side, sample_ids
from pipeline.encoding.codefile import CodeFileRecipe, recipe_metadata
from pipeline.releases.addresses import code_path
from pipeline.releases.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReusedRows:
    """Rows of a chunk whose codes stand in an earlier code file."""

    rows: np.ndarray  # (n,) int64: row numbers inside the file
    hashes: np.ndarray  # (n, 16) uint8
    codes: np.ndarray  # (n, S) uint8

    def and_those(self, others: "ReusedRows") -> "ReusedRows":
        """Return these rows and others."""
        pairs = ((self.rows, others.rows), (self.hashes, others.hashes), (self.codes, others.codes))
        return ReusedRows(*map(np.concatenate, pairs))


class EarlierCodes:
    """The rows of one code file, to be found by what they are.

    Args:
        table: a code file.
    """

    def __init__(self, table: pa.Table) -> None:
        self.hashes = _bytes_of(table["content_hash"])
        self.codes = _bytes_of(table["code"])
        prefix = _prefixes(self.hashes)
        self._order = np.argsort(prefix, kind="stable")
        self._prefix = prefix[self._order]
        self._marked = _MarkedRows(table) if "token" in table.column_names else None

    def by_hash(self, hashes: np.ndarray) -> np.ndarray:
        """Return, for (n, 16) content hashes, the (n,) rows of the file that have them; -1 where none has."""
        if not len(self._prefix):
            return np.full(len(hashes), -1, np.int64)
        at = np.minimum(np.searchsorted(self._prefix, _prefixes(hashes)), len(self._prefix) - 1)
        found = self._order[at]
        # Of two hashes with equal halves only one is found: the other row is encoded again.
        return np.where((self.hashes[found] == hashes).all(axis=1), found, -1)

    def by_token(self, keys: pa.Array, tokens: pa.Array | None, *, first_row: int = 0) -> np.ndarray:
        """Return the (n,) rows of the file with the same key and the same token; -1 where there is none.

        Args:
            first_row: number of the first of these rows in its unit.
        """
        if tokens is None or self._marked is None:
            return np.full(len(keys), -1, np.int64)
        return self._marked.find(keys, tokens, first_row)


class _MarkedRows:
    """The rows of a code file by key and change token.

    A row is looked for where it was, and by the id of its key where another key is there now.
    """

    def __init__(self, table: pa.Table) -> None:
        self._keys, self._tokens = _whole(table["key"]), _whole(table["token"])
        self._ids = _whole(table["id"]).to_numpy()  # ascending
        rows = _whole(table["row"]).to_numpy()
        self._first = int(rows.min()) if len(rows) else 0
        self._places = np.full(np.ptp(rows) + 1 if len(rows) else 0, -1, np.int64)  # of rows from there on
        self._places[rows - self._first] = np.arange(len(rows))

    def find(self, keys: pa.Array, tokens: pa.Array, first_row: int) -> np.ndarray:
        """Return the row of the file for every key and token; -1 where there is none."""
        numbers = np.arange(len(keys)) + first_row - self._first
        inside = (numbers >= 0) & (numbers < len(self._places))
        found = np.full(len(keys), -1, np.int64)
        found[inside] = self._places[numbers[inside]]
        mine = self._have(found, keys)
        others = np.flatnonzero(~mine & _numpy(keys.is_valid()))
        if len(others) and len(self._ids):
            asked = keys.take(pa.array(others))
            at = np.searchsorted(self._ids, sample_ids(asked.to_pylist()))
            # Of two keys with equal ids only one is found: the other row is encoded again.
            at = np.minimum(at, len(self._ids) - 1)
            found[others], mine[others] = at, self._have(at, asked)
        same = self._tokens.take(pa.array(np.maximum(found, 0), mask=~mine))
        return np.where(_numpy(pc.fill_null(pc.equal(same, tokens), False)), found, -1)

    def _have(self, rows: np.ndarray, keys: pa.Array) -> np.ndarray:
        """Tell which of these rows of the file, -1 being none, have just these keys."""
        there = self._keys.take(pa.array(np.maximum(rows, 0), mask=rows < 0))
        return _numpy(pc.fill_null(pc.equal(there, keys), False))


def open_earlier(
    files: tuple[CodeFileRecipe, ...], earlier: Mapping[Side, str], store: Storage
) -> dict[Side, EarlierCodes]:
    """Open the code files that rows may be taken from.

    A file that is missing, damaged or of another tower or recipe is passed over: its rows are encoded.

    Args:
        files: the code files that are to be made.
        earlier: addresses, by side.
    """
    opened = {}
    for file in files:
        address = earlier.get(file.side)
        codes = _open(address, file.side, _expected(file), store) if address else None
        if codes is not None:
            opened[file.side] = codes
    return opened


@lru_cache(maxsize=4)  # the chunks of a unit come one after another
def _open(
    address: str, side: Side, expected: tuple[tuple[str, str], ...], store: Storage
) -> EarlierCodes | None:
    path = code_path(address)
    try:
        data = pa.BufferReader(store.read(path))
        table = pq.read_table(data, page_checksum_verification=True, use_threads=False)
        found = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if all(found.get(name) == value for name, value in expected):
            return EarlierCodes(table)
        reason = "is of another tower, recipe or packer"
    except FileNotFoundError:
        reason = "is gone"
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        reason = f"is damaged ({error})"
    log.warning("%s %s: no %s code is taken from it", store.where(path), reason, side)
    return None


def _expected(file: CodeFileRecipe) -> tuple[tuple[str, str], ...]:
    return tuple(recipe_metadata(file).items())


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def _bytes_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of N binary values of one width as (N, width) uint8."""
    values = _whole(column)
    width = values.type.byte_width
    flat = np.frombuffer(values.buffers()[1] or b"", np.uint8)
    return flat[values.offset * width : (values.offset + len(values)) * width].reshape(-1, width)


def _prefixes(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes[:, :8]).view(np.uint64).reshape(-1)


def _numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)
