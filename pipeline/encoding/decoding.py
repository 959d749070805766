"""From chunk to decoded rows, and what passes between the stages of encoding. No torch here.

Errors are data: a row that cannot be taken is a reject, a chunk that cannot be read says why, and neither
raises. Nothing here knows how the work is distributed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.decode import DecodedSide, decode_table
from pipeline.corpus.readers import read_keys
from pipeline.corpus.recipe import InputRecipe
from pipeline.corpus.schema import SIDES, ColumnMap, SchemaError, Side, resolve_columns
from pipeline.encoding.chunks import Chunk
from pipeline.encoding.codefile import EncodedSide
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
            ValueError: it is no Parquet, or has another size than when it was listed.
            OSError: it cannot be read.
        """
        filesystem, root = self.root.filesystem()
        file = filesystem.open_input_file(f"{root}/{unit.path}")
        if file.size() != unit.size:
            raise ValueError(f"changed after it was listed: {unit.size} bytes then, {file.size()} now")
        return pq.ParquetFile(file)

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
