"""From chunk to decoded rows, and what passes between the stages of encoding. No torch here.

Errors are data: a row that cannot be taken is a reject, a chunk that cannot be read says why, and neither
raises. Nothing here knows how the work is distributed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.decode import HASH_SIZE, DecodedSide, decode_side, decode_table
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


def decode_pieces(
    chunk: Chunk,
    source: Source,
    *,
    sides: Sequence[Side] = SIDES,
    earlier: Mapping[Side, EarlierCodes] | None = None,
) -> Iterator[DecodedChunk]:
    """Read and decode these sides of a chunk in one pass; yield its pieces, or the chunk if it has none.

    What is wrong with the unit comes back as `error`: that piece is the last.

    Args:
        earlier: by side, codes of an earlier night. A row whose key and change token are there is not read;
            one whose content hash is there is read and not decoded.
    """
    piece, earlier = chunk, earlier or {}
    try:
        reader = source.rows(chunk.unit)
        columns = source.columns(reader.file.schema_arrow, chunk.unit.path)
        opened = _OpenChunk(chunk, source, reader, columns)
        marks = _read_marks(opened, earlier) if earlier and columns.updated is not None else None
        for piece in chunk.pieces or (chunk,):
            yield _decode(replace(opened, chunk=piece), sides, earlier, marks)
    except Exception as error:  # whatever a broken file leads the readers to; it must not end the night
        yield DecodedChunk(piece, error=one_line(error))


@dataclass(frozen=True)
class _OpenChunk:
    chunk: Chunk
    source: Source
    reader: RowReader
    columns: ColumnMap


@dataclass(frozen=True)
class _Marks:
    """What the rows of a chunk are known again by; read for all of its pieces at once."""

    start: int  # number of the first row
    keys: list[str | None]
    tokens: pa.Array
    found: Mapping[Side, np.ndarray]  # rows of the earlier code file of a side; -1 where it has none

    def of(self, piece: Chunk) -> "_Marks":
        start, stop = piece.start - self.start, piece.stop - self.start
        found = {side: rows[start:stop] for side, rows in self.found.items()}
        return _Marks(piece.start, self.keys[start:stop], self.tokens.slice(start, stop - start), found)


def _read_marks(opened: _OpenChunk, earlier: Mapping[Side, EarlierCodes]) -> _Marks:
    chunk, columns = opened.chunk, opened.columns
    updated = str(columns.updated)
    table = opened.reader.read_rows(chunk, list(dict.fromkeys([columns.key, updated])))
    keys, tokens = read_keys(table.column(columns.key)), read_tokens(table.column(updated))
    named = pa.array(keys, pa.string())
    found = {side: codes.by_token(named, tokens, first_row=chunk.start) for side, codes in earlier.items()}
    return _Marks(chunk.start, keys, tokens, found)


def _decode(
    opened: _OpenChunk, sides: Sequence[Side], earlier: Mapping[Side, EarlierCodes], marks: _Marks | None
) -> DecodedChunk:
    chunk, columns, recipe = opened.chunk, opened.columns, opened.source.recipe
    fresh = [side for side in sides if side not in earlier]
    decoded, reused = {}, {}
    if marks is not None:  # the other columns are read for the rows that need it
        mine = marks.of(chunk)
        keys, tokens = mine.keys, mine.tokens
        for side in sides:
            if side in earlier:
                decoded[side], reused[side] = _decode_some(opened, side, earlier[side], marks=mine)
        table = opened.reader.read_rows(chunk, columns.names(fresh)) if fresh else None
    else:
        updated = [] if columns.updated is None else [columns.updated]
        table = opened.reader.read_rows(chunk, list(dict.fromkeys([*columns.names(sides), *updated])))
        keys = read_keys(table.column(columns.key))
        tokens = read_tokens(table.column(columns.updated)) if columns.updated is not None else None
        for side in sides:
            if side in earlier:
                numbers = np.arange(chunk.start, chunk.stop)
                decoded[side], reused[side] = _decode_unknown(
                    table, opened, side, earlier[side], keys=keys, numbers=numbers
                )
    if fresh:
        decoded |= decode_table(table, columns, recipe, sides=fresh, first_row=chunk.start)
    return DecodedChunk(chunk, keys, decoded, tokens=tokens, reused=reused)


def _decode_some(
    opened: _OpenChunk, side: Side, codes: EarlierCodes, *, marks: _Marks
) -> tuple[DecodedSide, ReusedRows]:
    """Read and decode the rows that no row of an earlier code file was found for."""
    found = marks.found[side]
    changed, known = np.flatnonzero(found < 0), np.flatnonzero(found >= 0)
    reused = ReusedRows(known + marks.start, codes.hashes[found[known]], codes.codes[found[known]])
    if not len(changed):
        nothing = np.empty(0, np.int64)
        return DecodedSide(len(found), nothing, [], np.empty((0, HASH_SIZE), np.uint8), []), reused
    column = opened.columns.side(side)
    names = [opened.columns.key if column is None else column.name]
    table = opened.reader.read_some(opened.chunk, names, rows=changed)
    keys, numbers = [marks.keys[row] for row in changed], changed + marks.start
    decoded, same = _decode_unknown(table, opened, side, codes, keys=keys, numbers=numbers)
    decoded.read = len(found)
    return decoded, reused.and_those(same)


def _decode_unknown(
    table: pa.Table,
    opened: _OpenChunk,
    side: Side,
    codes: EarlierCodes,
    *,
    keys: list[str | None],
    numbers: np.ndarray,
) -> tuple[DecodedSide, ReusedRows]:
    """Decode those rows of a table whose bytes an earlier code file does not know."""

    def known(hashes: np.ndarray) -> np.ndarray:
        return codes.by_hash(hashes) >= 0

    columns, recipe = opened.columns, opened.source.recipe
    decoded = decode_side(table, columns, recipe, side=side, keys=keys, known=known)
    decoded.rows = numbers[decoded.rows]
    decoded.rejects = [replace(reject, row=int(numbers[reject.row])) for reject in decoded.rejects]
    found = codes.by_hash(decoded.known_hashes)
    return decoded, ReusedRows(numbers[decoded.known_rows], decoded.known_hashes, codes.codes[found])


def one_line(error: Exception) -> str:
    """Return an error as one line, with its class."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
