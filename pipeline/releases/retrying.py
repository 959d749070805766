"""Units to be read again although nothing of them has changed: how rejected rows get another try.

A code file is never replaced, so a retried one is made at an address of its own, which follows from the
first. Which addresses are retried stands in create-only files of the store; a plan takes their set as an
argument and stays a pure function.
"""

import json
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.releases.addresses import check_digest, digest_json
from pipeline.releases.manifest import ManifestError
from pipeline.releases.storage import Storage

RETRIES = "retries"


def retry(storage: Storage, addresses: Iterable[str]) -> str:
    """Have the code files at these addresses made again, elsewhere; return where that is noted."""
    listed = sorted({check_digest(address) for address in addresses})
    path = f"{RETRIES}/{digest_json(['retry', listed])}.json"
    storage.create(path, json.dumps(listed).encode())
    return path


def retried(storage: Storage) -> frozenset[str]:
    """Return the addresses that are to be made again: one listing, and one request per note.

    Raises:
        ManifestError: a note is damaged.
    """
    return frozenset(address for path in storage.list(RETRIES) for address in read_note(storage, path))


def again(address: str, retries: frozenset[str]) -> str:
    """Return the address at which a code file is wanted, given those that were retried."""
    *_, last = chain(address, retries)
    return last


def chain(address: str, retries: frozenset[str]) -> Iterator[str]:
    """Yield the addresses at which a code file was wanted, one retry after the other."""
    yield address
    while address in retries:
        address = digest_json(["again", address])
        yield address


def again_where(addresses: pa.ChunkedArray, retries: frozenset[str]) -> pa.ChunkedArray:
    """Return `again` of a column of addresses; without retries the column as it is."""
    if not retries or not pc.any(pc.is_in(addresses, value_set=pa.array(sorted(retries)))).as_py():
        return addresses
    return pa.chunked_array([pa.array([again(one, retries) for one in addresses.to_pylist()], pa.string())])


def follow_where(
    addresses: pa.ChunkedArray, codes: pa.ChunkedArray, retries: frozenset[str]
) -> pa.ChunkedArray:
    """Tell of every code file whether it is that of an address, or stands where a retry has led from it."""
    if again_where(addresses, retries) is addresses:
        return pc.equal(addresses, codes)
    pairs = zip(addresses.to_pylist(), codes.to_pylist(), strict=True)
    return pa.chunked_array([pa.array([code in chain(one, retries) for one, code in pairs], pa.bool_())])


def read_note(storage: Storage, path: str) -> list[str]:
    """Return the addresses that one note names."""
    try:
        listed = json.loads(storage.read(path))
        if not isinstance(listed, list):
            raise TypeError("not a list of addresses")
        return [check_digest(address) for address in listed]
    except (ValueError, TypeError) as error:
        raise ManifestError(f"{storage.where(path)}: {error}; restore or delete the file") from error
