"""Chunks as rows of a dataset: what each stage of a distributed encode takes and gives, as plain bytes.

These are callables for whatever moves rows between processes; nothing here knows what that is.
"""

import pickle
from collections.abc import Iterator
from typing import Any

from pipeline.encoding.chunks import Chunk
from pipeline.encoding.decoding import DecodedChunk, Receipt, Source, decode_pieces
from pipeline.encoding.encoder import EncodeChunk
from pipeline.encoding.models import load_encoder
from pipeline.encoding.reuse import open_earlier
from pipeline.encoding.units import UnitWork
from pipeline.releases.storage import Storage

Row = dict[str, Any]


def chunk_row(chunk: Chunk, work: UnitWork) -> Row:
    """Return the row that asks for a chunk of a unit."""
    return {"chunk": pickle.dumps((chunk, work.files, dict(work.earlier)))}


def decode_row(row: Row, source: Source, store: Storage) -> Row:
    """Read and decode the chunk that a row asks for; the store holds the codes that are there already."""
    chunk, decoded = _decode(row, source, store)
    return {"decoded": pickle.dumps((chunk, list(decoded)))}


def _decode(row: Row, source: Source, store: Storage) -> tuple[Chunk, Iterator[DecodedChunk]]:
    chunk, files, earlier = pickle.loads(row["chunk"])
    sides, codes = tuple(file.side for file in files), open_earlier(files, earlier, store)
    return chunk, decode_pieces(chunk, source, sides=sides, earlier=codes)


def receipt_of(row: Row) -> Receipt:
    """Return the receipt in a row."""
    receipt: Receipt = pickle.loads(row["receipt"])
    return receipt


class EncodeRow:
    """Turns rows into receipts; loads the model once per process.

    Args:
        model: digest of a model in the store.
        source: decode here what a row asks for; None takes rows that are decoded already.
    """

    def __init__(
        self, model: str, store: Storage, *, tile: int, gpu: bool = False, source: Source | None = None
    ) -> None:
        self._encode = EncodeChunk(load_encoder(model, store, gpu=gpu), tile=tile)
        self._source, self._store = source, store

    def __call__(self, row: Row) -> Row:
        if self._source is None:
            chunk, decoded = pickle.loads(row["decoded"])
        else:
            chunk, decoded = _decode(row, self._source, self._store)
        return {"receipt": pickle.dumps(self._encode.together(chunk, decoded))}
