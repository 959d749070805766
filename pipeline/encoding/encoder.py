"""From decoded rows to packed codes: the network, a fixed tile at a time.

A row whose code is NaN is a reject, a chunk that the network cannot take says why, and neither raises.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cmh_models.method import HashMethod
from pipeline.codes import code_size, pack
from pipeline.corpus.decode import HASH_SIZE, DecodedSide, Reject, join_decoded
from pipeline.corpus.schema import Side
from pipeline.encoding.chunks import Chunk
from pipeline.encoding.codefile import EncodedSide, join_encoded
from pipeline.encoding.decoding import DecodedChunk, Receipt, one_line
from pipeline.encoding.reuse import ReusedRows

TILE = 64
"""Rows of one forward pass. The last rows are padded up to it, so that every pass has the same shape."""
PICTURES = 4
"""On a CPU a pass has so many times fewer rows if they are pictures: more of them gain nothing there, and the
rows that fill up the last pass take as long as the others."""
TILES_HELD = 8
"""So many tiles of decoded rows wait at most for more rows."""


class EncodeChunk:
    """Turns decoded chunks into receipts; holds the one model of its process.

    Args:
        method: in evaluation mode, on the device where it is to run.
        tile: rows of one forward pass.
    """

    def __init__(self, method: HashMethod, *, tile: int = TILE) -> None:
        self.method = method
        self.tile = tile

    def __call__(self, chunk: Chunk, pieces: Iterable[DecodedChunk]) -> Receipt:
        """Encode the decoded pieces of a chunk, held back until the rows of all of them fill some tiles."""
        keys: list[str | None] = []
        tokens: list[pa.Array] = []
        waiting: dict[Side, list[DecodedSide]] = defaultdict(list)
        done: dict[Side, list[EncodedSide]] = defaultdict(list)
        try:
            for piece in pieces:
                if piece.error:
                    return Receipt(chunk, pa.array([], pa.string()), error=piece.error)
                keys += piece.keys
                tokens += [] if piece.tokens is None else [piece.tokens]
                for name, side in piece.sides.items():
                    waiting[name].append(side)
                    done[name].append(_reused_side(piece.reused.get(name), self.method.code_length))
                    if sum(len(held.values) for held in waiting[name]) >= TILES_HELD * self.tile:
                        done[name].append(self._encode(name, join_decoded(waiting.pop(name))))
            for name, sides in waiting.items():
                done[name].append(self._encode(name, join_decoded(sides)))
        except Exception as error:  # a tower that cannot take this unit's values must not end the night
            return Receipt(chunk, pa.array([], pa.string()), error=one_line(error))
        size = code_size(self.method.code_length)
        encoded = {name: join_encoded(parts, size) for name, parts in done.items()}
        marks = pa.concat_arrays(tokens) if tokens else None
        return Receipt(chunk, pa.array(keys, pa.string()), encoded, tokens=marks)

    def _encode(self, name: Side, side: DecodedSide) -> EncodedSide:
        relaxed = relaxed_codes(self.method, name, side.values, tile=self.tile)
        broken = np.isnan(relaxed).any(axis=1)
        rejects = [
            Reject(int(side.rows[i]), side.keys[i], "code is NaN", "the network gave NaN for this row")
            for i in np.flatnonzero(broken)
        ]
        kept = ~broken
        return EncodedSide(
            read=side.read,
            absent=side.absent,
            rows=side.rows[kept],
            hashes=side.hashes[kept],
            codes=pack(relaxed[kept]),
            rejects=(*side.rejects, *rejects),
            forwarded=len(side.values),
        )


def _reused_side(reused: ReusedRows | None, code_length: int) -> EncodedSide:
    """Return the rows that an earlier code file had; they are counted with the others of their piece."""
    if reused is None:
        nothing = np.empty((0, HASH_SIZE), np.uint8), np.empty((0, code_size(code_length)), np.uint8)
        return EncodedSide(0, 0, np.empty(0, np.int64), *nothing)
    mark = np.ones(len(reused.rows), bool)
    return EncodedSide(0, 0, reused.rows, reused.hashes, reused.codes, reused=mark)


def encode_side(method: HashMethod, side: Side, values: Any, *, tile: int = TILE) -> np.ndarray:
    """Encode decoded values of one side, as the nightly run does; for queries and evaluation.

    Args:
        values: (N, S, S, 3) uint8 pixels, (N, D) float32 features, or a list of N texts.
    Returns:
        (N, code size) uint8 packed codes.
    Raises:
        ValueError: the network gave NaN for a row.
    """
    return pack(relaxed_codes(method, side, values, tile=tile))


def relaxed_codes(method: HashMethod, side: Side, values: Any, *, tile: int = TILE) -> np.ndarray:
    """Return the (N, L) float32 relaxed codes of decoded values.

    Every forward pass has exactly `tile` rows, of pictures on a CPU a quarter, and runs on one CPU thread:
    the arithmetic of a row, and so its code, depends neither on how many others came with it nor on the cores
    of the machine. More cores are used by more processes.
    """
    training, threads = method.training, torch.get_num_threads()
    method.eval()
    torch.set_num_threads(1)
    device = next(method.parameters()).device
    codes = np.empty((len(values), method.code_length), dtype=np.float32)
    if side == "image" and method.image_size and device.type == "cpu":
        tile = max(1, tile // PICTURES)
    try:
        with torch.inference_mode():
            for start, rows in _tiles(values, tile):
                inputs = method.collate(side, rows).to(device)
                relaxed = method.encode(side, inputs).float().cpu().numpy()
                stop = min(start + tile, len(values))
                codes[start:stop] = relaxed[: stop - start]
    finally:
        method.train(training)
        torch.set_num_threads(threads)
    return codes


def _tiles(values: Any, tile: int) -> Iterator[tuple[int, Any]]:
    """Yield each `tile` rows and where they start; the last are filled up with copies of their last row."""
    for start in range(0, len(values), tile):
        rows = values[start : start + tile]
        missing = tile - len(rows)
        if missing and isinstance(rows, np.ndarray):
            rows = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
        elif missing:
            rows = [*rows, *(rows[-1:] * missing)]
        yield start, rows
