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

from pipeline.corpus.schema import Side
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


class EarlierCodes:
    """The rows of one code file, to be found by what they are.

    Args:
        table: a code file.
    """

    def __init__(self, table: pa.Table) -> None:
        self.hashes = _bytes_of(table["content_hash"])
        self.codes = _bytes_of(table["code"])
        self._keys = _whole(table["key"])
        self._tokens = _whole(table["token"]) if "token" in table.column_names else None
        prefix = _prefixes(self.hashes)
        self._order = np.argsort(prefix, kind="stable")
        self._prefix = prefix[self._order]

    def by_hash(self, hashes: np.ndarray) -> np.ndarray:
        """Return, for (n, 16) content hashes, the (n,) rows of the file that have them; -1 where none has."""
        if not len(self._prefix):
            return np.full(len(hashes), -1, np.int64)
        at = np.minimum(np.searchsorted(self._prefix, _prefixes(hashes)), len(self._prefix) - 1)
        found = self._order[at]
        # Of two hashes with equal halves only one is found: the other row is encoded again.
        return np.where((self.hashes[found] == hashes).all(axis=1), found, -1)

    def by_token(self, keys: pa.Array, tokens: pa.Array | None) -> np.ndarray:
        """Return the (n,) rows of the file with the same key and the same token; -1 where there is none."""
        nothing = np.full(len(keys), -1, np.int64)
        if tokens is None or self._tokens is None:
            return nothing
        found = pc.index_in(keys, value_set=self._keys, skip_nulls=True)
        same = pc.fill_null(pc.equal(self._tokens.take(found), tokens), False)
        return np.where(_numpy(same), _numpy(pc.fill_null(found, -1)), nothing)


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
