"""Chunks as rows of a dataset: what each stage of a distributed encode takes and gives, as plain bytes.

These are callables for whatever moves rows between processes; nothing here knows what that is.
"""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from pipeline.encoding.chunks import Chunk
from pipeline.encoding.decoding import DecodedChunk, Receipt, Source, decode_pieces
from pipeline.encoding.encoder import EncodeChunk
from pipeline.encoding.models import load_encoder
from pipeline.encoding.reuse import open_earlier
from pipeline.encoding.units import UnitReport, UnitWork, finish_unit
from pipeline.releases.forgetting import Forgotten
from pipeline.releases.storage import Storage

Row = dict[str, Any]


def chunk_row(chunk: Chunk, work: UnitWork) -> Row:
    """Return the row that asks for a chunk of a unit."""
    whole = work if len(work.chunks) == 1 else replace(work, chunks=())  # the others are not its business
    return {"chunk": pickle.dumps((chunk, whole))}


def decode_row(row: Row, source: Source, store: Storage) -> Row:
    """Read and decode the chunk that a row asks for; the store holds the codes that are there already."""
    chunk, work = pickle.loads(row["chunk"])
    return {"decoded": pickle.dumps((chunk, list(_decode(chunk, work, source, store))))}


def _decode(chunk: Chunk, work: UnitWork, source: Source, store: Storage) -> Iterator[DecodedChunk]:
    codes = open_earlier(work.files, work.earlier, store)
    return decode_pieces(chunk, source, sides=work.sides, earlier=codes)


def answer_of(row: Row) -> Receipt | UnitReport:
    """Return what became of the chunk that a row asked for: a receipt, or the report of its whole unit."""
    answer: Receipt | UnitReport = pickle.loads(row["answer"])
    return answer


def receipt_of(row: Row) -> Receipt:
    """Return the receipt in a row of an `EncodeRow` that finishes no unit."""
    return cast(Receipt, answer_of(row))


class EncodeRow:
    """Turns rows into receipts, or units of one chunk into code files; loads the model once per process.

    Args:
        model: digest of a model in the store.
        source: decode here what a row asks for; None takes rows that are decoded already.
        forgotten: with a source, finish a unit that is one chunk at once, without these keys: its codes need
            not cross to another process. None gives receipts only.
    """

    def __init__(
        self,
        model: str,
        store: Storage,
        *,
        tile: int,
        gpu: bool = False,
        source: Source | None = None,
        forgotten: Forgotten | None = None,
    ) -> None:
        self._encode = EncodeChunk(load_encoder(model, store, gpu=gpu), tile=tile)
        self._source, self._store, self._forgotten = source, store, forgotten

    def __call__(self, row: Row) -> Row:
        return {"answer": pickle.dumps(self._answer(row))}

    def _answer(self, row: Row) -> Receipt | UnitReport:
        if self._source is None:
            return self._encode(*pickle.loads(row["decoded"]))
        chunk, work = pickle.loads(row["chunk"])
        decoded = _decode(chunk, work, self._source, self._store)
        receipt = self._encode(chunk, decoded)
        if self._forgotten is None or not work.chunks:
            return receipt
        return finish_unit(work, [receipt], source=self._source, store=self._store, forgotten=self._forgotten)
