"""From chunk to receipt: rows are read and decoded, then go through the network and are packed.

Errors are data here: a row that cannot be taken is a reject, a chunk that cannot be read is a receipt with
the reason, and neither raises. Nothing here knows how the work is distributed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cmh_models.method import HashMethod
from pipeline.codes import pack
from pipeline.corpus.decode import DecodedSide, InputRecipe, Pairs, Reject, decode_table
from pipeline.corpus.readers import read_keys
from pipeline.corpus.schema import SIDES, ColumnMap, Side, resolve_columns
from pipeline.encoding.chunks import Chunk
from pipeline.encoding.codefile import EncodedSide
from pipeline.releases.storage import SourceFile, Storage

TILE = 64
"""Rows of one forward pass. The last rows are padded up to it, so that every pass has the same shape."""


@dataclass(frozen=True)
class Source:
    """Where units lie, how their rows are decoded, and which sides every unit must have."""

    root: Storage
    recipe: InputRecipe
    sides: tuple[Side, ...] = SIDES

    def open(self, unit: SourceFile) -> pq.ParquetFile:
        """Open a unit.

        Raises:
            ValueError: it is no Parquet, or has another size than when it was listed.
            OSError: it cannot be read.
        """
        filesystem, root = self.root.filesystem()
        file = filesystem.open_input_file(f"{root}/{unit.path}")
        if file.size() != unit.size:
            raise ValueError(f"changed after it was listed: {unit.size} bytes then, {file.size()} now")
        return pq.ParquetFile(file)

    def columns(self, schema: pa.Schema, path: str) -> ColumnMap:
        """Find the columns of a unit; raises SchemaError."""
        return resolve_columns(schema, self.recipe.columns, where=path, sides=self.sides)


@dataclass(frozen=True)
class DecodedChunk:
    """A chunk between the two stages."""

    chunk: Chunk
    keys: list[str | None] = field(default_factory=list)  # of every row
    sides: Mapping[Side, DecodedSide] = field(default_factory=dict)
    error: str = ""  # why the unit cannot be read


@dataclass(frozen=True)
class Receipt:
    """What is known of a chunk once it is encoded: tens of bytes a row."""

    chunk: Chunk
    keys: pa.Array  # of every row
    sides: Mapping[Side, EncodedSide] = field(default_factory=dict)
    error: str = ""


def decode_chunk(chunk: Chunk, source: Source, *, sides: Sequence[Side] = SIDES) -> DecodedChunk:
    """Read and decode these sides of a chunk; what is wrong with the unit comes back as `error`."""
    try:
        with source.open(chunk.unit) as file:
            columns = source.columns(file.schema_arrow, chunk.unit.path)
            table = _read_rows(file, chunk, columns.names(sides))
        decoded = decode_table(table, columns, source.recipe, sides=sides, first_row=chunk.start)
        return DecodedChunk(chunk, read_keys(table.column(columns.key)), decoded)
    except Exception as error:  # whatever a broken file leads the readers to; it must not end the night
        return DecodedChunk(chunk, error=one_line(error))


class EncodeChunk:
    """Turns decoded chunks into receipts; holds the one model of its process.

    Args:
        method: in evaluation mode, on the device where it is to run.
        tile: rows of one forward pass.
    """

    def __init__(self, method: HashMethod, *, tile: int = TILE) -> None:
        self.method = method
        self.tile = tile

    def __call__(self, decoded: DecodedChunk) -> Receipt:
        if decoded.error:
            return Receipt(decoded.chunk, pa.array([], pa.string()), error=decoded.error)
        try:
            sides = {name: self._encode(name, side) for name, side in decoded.sides.items()}
        except Exception as error:  # a tower that cannot take this unit's values must not end the night
            return Receipt(decoded.chunk, pa.array([], pa.string()), error=one_line(error))
        return Receipt(decoded.chunk, pa.array(decoded.keys, pa.string()), sides)

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
        )


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


def encode_pairs(method: HashMethod, pairs: Pairs, *, tile: int = TILE) -> dict[Side, np.ndarray]:
    """Encode both sides of complete pairs; rows stay in order."""
    return {
        "image": encode_side(method, "image", pairs.image, tile=tile),
        "text": encode_side(method, "text", pairs.text, tile=tile),
    }


def relaxed_codes(method: HashMethod, side: Side, values: Any, *, tile: int = TILE) -> np.ndarray:
    """Return the (N, L) float32 relaxed codes of decoded values.

    Every forward pass has exactly `tile` rows: the arithmetic of a row, and so its code, does not depend on
    how many others came with it.
    """
    training = method.training
    method.eval()
    device = next(method.parameters()).device
    codes = np.empty((len(values), method.code_length), dtype=np.float32)
    try:
        with torch.inference_mode():
            for start, rows in _tiles(values, tile):
                inputs = method.collate(side, rows).to(device)
                relaxed = method.encode(side, inputs).float().cpu().numpy()
                stop = min(start + tile, len(values))
                codes[start:stop] = relaxed[: stop - start]
    finally:
        method.train(training)
    return codes


def one_line(error: Exception) -> str:
    """Return an error as one line, with its class."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _read_rows(file: pq.ParquetFile, chunk: Chunk, columns: list[str]) -> pa.Table:
    """Read the rows of a chunk; of a row group that is cut, the rows before are read and dropped."""
    groups, wanted = list(chunk.row_groups), chunk.stop - chunk.start
    if chunk.offset == 0 and wanted == sum(file.metadata.row_group(group).num_rows for group in groups):
        return file.read_row_groups(groups, columns=columns, use_threads=False)
    batches, passed = [], 0
    for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=columns, use_threads=False):
        skip = max(chunk.offset - passed, 0)
        kept = batch.slice(skip, chunk.offset + wanted - passed - skip)
        passed += batch.num_rows
        if kept.num_rows:
            batches.append(kept)
        if passed >= chunk.offset + wanted:
            break
    return pa.Table.from_batches(batches)


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
