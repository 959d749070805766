"""Chunks as rows of a dataset: what each stage of a distributed encode takes and gives, as plain bytes.

These are callables for whatever moves rows between processes; nothing here knows what that is.
"""

import pickle
from collections.abc import Sequence
from typing import Any

from pipeline.corpus.schema import Side
from pipeline.encoding.chunks import Chunk
from pipeline.encoding.decoding import Receipt, Source, decode_chunk
from pipeline.encoding.encoder import EncodeChunk
from pipeline.encoding.models import load_encoder
from pipeline.releases.storage import Storage

Row = dict[str, Any]


def chunk_row(chunk: Chunk, sides: Sequence[Side]) -> Row:
    """Return the row that asks for these sides of a chunk."""
    return {"chunk": pickle.dumps((chunk, tuple(sides)))}


def decode_row(row: Row, source: Source) -> Row:
    """Read and decode the chunk that a row asks for."""
    chunk, sides = pickle.loads(row["chunk"])
    return {"decoded": pickle.dumps(decode_chunk(chunk, source, sides=sides))}


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
        self._source = source

    def __call__(self, row: Row) -> Row:
        if self._source is None:
            decoded = pickle.loads(row["decoded"])
        else:
            chunk, sides = pickle.loads(row["chunk"])
            decoded = decode_chunk(chunk, self._source, sides=sides)
        return {"receipt": pickle.dumps(self._encode(decoded))}
