"""From chunk to decoded rows, and what passes between the stages of encoding. No torch here.

Errors are data: a row that cannot be taken is a reject, a chunk that cannot be read says why, and neither
raises. Nothing here knows how the work is distributed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.decode import DecodedSide, decode_side, decode_table
from pipeline.corpus.readers import read_keys, read_tokens
from pipeline.corpus.recipe import InputRecipe
from pipeline.corpus.schema import SIDES, ColumnMap, SchemaError, Side, resolve_columns
from pipeline.encoding.chunks import Chunk
from pipeline.encoding.codefile import EncodedSide
from pipeline.encoding.reading import RowReader
from pipeline.encoding.reuse import EarlierCodes, ReusedRows
from pipeline.releases.addresses import check_path
from pipeline.releases.storage import SourceFile, Storage


@dataclass(frozen=True)
class Source:
    """Where units lie, how their rows are decoded, and which sides every unit must have."""

    root: Storage
    recipe: InputRecipe
    sides: tuple[Side, ...] = SIDES

    def open(self, unit: SourceFile) -> pq.ParquetFile:
        """Open a unit.

        Raises:
            ValueError: it is no Parquet, its path leads out of the source, or its size is not the one listed.
            OSError: it cannot be read.
        """
        return pq.ParquetFile(self._open(unit))

    def rows(self, unit: SourceFile) -> RowReader:
        """Open a unit to read rows of it; raises as `open` does."""
        return RowReader(self._open(unit), seeks=self.root.local(unit.path) is not None)

    def _open(self, unit: SourceFile) -> pa.NativeFile:
        filesystem, root = self.root.filesystem()
        file = filesystem.open_input_file(f"{root}/{check_path(unit.path)}")
        if file.size() != unit.size:
            raise ValueError(f"changed after it was listed: {unit.size} bytes then, {file.size()} now")
        return file

    def columns(self, schema: pa.Schema, path: str) -> ColumnMap:
        """Find the columns of a unit.

        Raises:
            SchemaError: a column is missing, or holds what the model does not take.
        """
        found = resolve_columns(schema, self.recipe.columns, where=path, sides=self.sides)
        for side in self.sides:
            column, taken = found.side(side), self._taken(side)
            if column is not None and column.kind != taken:
                raise SchemaError(
                    f"{path}: column '{column.name}' holds {column.kind}, the {side} tower of the model "
                    f"takes {taken}; name such a column under data.columns, or choose another model"
                )
        return found

    def _taken(self, side: Side) -> str:
        if side == "image":
            return "pixels" if self.recipe.image_size else "features"
        return "features" if self.recipe.text_width else "text"


@dataclass(frozen=True)
class DecodedChunk:
    """A chunk between the two stages. Of each side, `reused` holds the rows that need no network."""

    chunk: Chunk
    keys: list[str | None] = field(default_factory=list)  # of every row
    sides: Mapping[Side, DecodedSide] = field(default_factory=dict)
    error: str = ""  # why the unit cannot be read
    tokens: pa.Array | None = None  # change tokens of every row; None where the source has none
    reused: Mapping[Side, ReusedRows] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """What is known of a chunk once it is encoded: tens of bytes a row."""

    chunk: Chunk
    keys: pa.Array  # of every row
    sides: Mapping[Side, EncodedSide] = field(default_factory=dict)
    error: str = ""
    tokens: pa.Array | None = None


def decode_chunk(
    chunk: Chunk,
    source: Source,
    *,
    sides: Sequence[Side] = SIDES,
    earlier: Mapping[Side, EarlierCodes] | None = None,
) -> DecodedChunk:
    """Read and decode these sides of a chunk; what is wrong with the unit comes back as `error`.

    Args:
        earlier: by side, codes of an earlier night. A row whose key and change token are there is not read;
            one whose content hash is there is read and not decoded.
    """
    return next(_decode_all((chunk,), source, sides, earlier or {}))


def decode_pieces(
    chunk: Chunk,
    source: Source,
    *,
    sides: Sequence[Side] = SIDES,
    earlier: Mapping[Side, EarlierCodes] | None = None,
) -> Iterator[DecodedChunk]:
    """Yield the pieces of a chunk as `decode_chunk` gives them, or the chunk itself; read in one pass."""
    return _decode_all(chunk.pieces or (chunk,), source, sides, earlier or {})


def _decode_all(
    chunks: Sequence[Chunk], source: Source, sides: Sequence[Side], earlier: Mapping[Side, EarlierCodes]
) -> Iterator[DecodedChunk]:
    """Decode chunks of one unit; the first that cannot be read is the last."""
    chunk = chunks[0]
    try:
        reader = source.rows(chunk.unit)
        columns = source.columns(reader.file.schema_arrow, chunk.unit.path)
        for chunk in chunks:
            yield _decode(_OpenChunk(chunk, source, reader, columns), sides, earlier)
    except Exception as error:  # whatever a broken file leads the readers to; it must not end the night
        yield DecodedChunk(chunk, error=one_line(error))


@dataclass(frozen=True)
class _OpenChunk:
    chunk: Chunk
    source: Source
    reader: RowReader
    columns: ColumnMap

    @property
    def updated(self) -> list[str]:
        return [] if self.columns.updated is None else [self.columns.updated]


def _decode(opened: _OpenChunk, sides: Sequence[Side], earlier: Mapping[Side, EarlierCodes]) -> DecodedChunk:
    chunk, columns = opened.chunk, opened.columns
    narrow = bool(earlier and opened.updated)  # the other columns are read for the rows that need it
    names = columns.names(() if narrow else sides)
    table = opened.reader.read_rows(chunk, list(dict.fromkeys([*names, *opened.updated])))
    keys = read_keys(table.column(columns.key))
    tokens = read_tokens(table.column(columns.updated)) if columns.updated is not None else None
    fresh = [side for side in sides if side not in earlier]
    decoded, reused = {}, {}
    if fresh and narrow:
        table = opened.reader.read_rows(chunk, columns.names(fresh))
    if fresh:
        decoded = decode_table(table, columns, opened.source.recipe, sides=fresh, first_row=chunk.start)
    for side in sides:
        if side in earlier and narrow:
            found = earlier[side].by_token(pa.array(keys, pa.string()), tokens)
            decoded[side], reused[side] = _decode_some(opened, side, earlier[side], found=found)
        elif side in earlier:
            decoded[side], reused[side] = _decode_unknown(
                table, opened, side=side, codes=earlier[side], numbers=np.arange(chunk.start, chunk.stop)
            )
    return DecodedChunk(chunk, keys, decoded, tokens=tokens, reused=reused)


def _decode_some(
    opened: _OpenChunk, side: Side, codes: EarlierCodes, *, found: np.ndarray
) -> tuple[DecodedSide, ReusedRows]:
    """Read and decode the rows that `found` has no row of an earlier code file for."""
    changed = np.flatnonzero(found < 0)
    table = opened.reader.read_some(opened.chunk, opened.columns.names([side]), rows=changed)
    numbers = changed + opened.chunk.start
    decoded, same = _decode_unknown(table, opened, side=side, codes=codes, numbers=numbers)
    decoded.read = len(found)
    known = np.flatnonzero(found >= 0)
    return decoded, ReusedRows(
        np.concatenate([known + opened.chunk.start, same.rows]),
        np.concatenate([codes.hashes[found[known]], same.hashes]),
        np.concatenate([codes.codes[found[known]], same.codes]),
    )


def _decode_unknown(
    table: pa.Table, opened: _OpenChunk, *, side: Side, codes: EarlierCodes, numbers: np.ndarray
) -> tuple[DecodedSide, ReusedRows]:
    """Decode the rows of a table whose bytes an earlier code file does not know; they have these numbers."""

    def known(hashes: np.ndarray) -> np.ndarray:
        return codes.by_hash(hashes) >= 0

    decoded = decode_side(table, opened.columns, opened.source.recipe, side=side, known=known)
    decoded.rows = numbers[decoded.rows]
    decoded.rejects = [replace(reject, row=int(numbers[reject.row])) for reject in decoded.rejects]
    found = codes.by_hash(decoded.known_hashes)
    return decoded, ReusedRows(numbers[decoded.known_rows], decoded.known_hashes, codes.codes[found])


def one_line(error: Exception) -> str:
    """Return an error as one line, with its class."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
