"""What earlier runs of a channel have left in the store, noted, so that a later one need not read it again.

A release names code files by their SHA-256, and to know that of a file which no release names yet, the file
is read whole. A model that fills its channel over several nights would thus read every night all that the
nights before have made. The notes are a hint and may be deleted: they are believed of files that stand, and
what is not noted is read.
"""

import logging
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.encoding.outcome import STORED
from pipeline.releases.addresses import heads_folder
from pipeline.releases.storage import Storage

log = logging.getLogger(__name__)

NOTES = STORED


def read_notes(store: Storage, channel: str) -> pa.Table:
    """Return the notes of a channel (NOTES); none where there are none that can be read."""
    try:
        data = pa.BufferReader(store.read(_path(channel)))
        return pq.read_table(data, page_checksum_verification=True).select(NOTES.names).cast(NOTES)
    except FileNotFoundError:
        return NOTES.empty_table()
    except (OSError, ValueError, pa.ArrowException, KeyError) as error:
        log.warning("%s is passed over: %s", store.where(_path(channel)), error)
        return NOTES.empty_table()


def find_noted(notes: pa.Table, addresses: Sequence[str]) -> pa.Table:
    """Return what is noted of the code files at some addresses (NOTES)."""
    return notes.filter(pc.is_in(notes["code"], value_set=pa.array(addresses, pa.string())))


def write_notes(store: Storage, channel: str, new: pa.Table, *, before: pa.Table) -> None:
    """Note code files that stand in the store, beside those noted before; a failure is only told.

    Args:
        new, before: NOTES.
    """
    kept = before.filter(pc.invert(pc.is_in(before["code"], value_set=new["code"])))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables([kept, new]), sink, compression="zstd", write_page_checksum=True)
    try:
        store.write(_path(channel), sink.getvalue().to_pybytes())
    except OSError as error:
        log.warning("what this run has made is not noted, the next one reads it: %s", error)


def drop_notes(store: Storage, channel: str) -> None:
    """Remove the notes of a channel: its release names all that they named."""
    store.delete(_path(channel))


def _path(channel: str) -> str:
    return f"hints/{heads_folder(channel).removeprefix('heads/')}.parquet"
