"""A unit from its footer to its code files: what there is to do, and how it is finished.

The code file is the commit point of a unit and side: rejects are written before it, nothing after it, and
a file that stands already is never replaced. What is wrong with a unit is returned, not raised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.schema import Side
from pipeline.encoding.chunks import CHUNK_BYTES, Chunk, Place, join_chunks, plan_chunks
from pipeline.encoding.codefile import (
    CodeFile,
    CodeFileRecipe,
    Ledger,
    UnitRows,
    make_code_file,
    read_ledger,
)
from pipeline.encoding.decoding import Receipt, Source, one_line
from pipeline.releases.addresses import code_path, rejects_path, sha256
from pipeline.releases.forgetting import NOTHING_FORGOTTEN, Forgotten
from pipeline.releases.storage import SourceFile, Storage

PIECES = 64
"""So many chunks of a unit with earlier codes are encoded together: as a rule few of their rows are left for
the network, and its last pass takes as long for one row as for a whole tile."""
JOINED_ROWS = 1 << 18
"""Fewer chunks if they have more rows: the keys of all of them are held."""


@dataclass(frozen=True)
class UnitWork:
    """A unit to encode: the code files to make of it, and once it is opened its chunks."""

    unit: SourceFile
    files: tuple[CodeFileRecipe, ...]
    row_groups: tuple[int, int] | None = None  # first and one past the last; None: the whole file
    earlier: Mapping[Side, str] = field(default_factory=dict)  # code files that rows may be taken from
    rows: int = 0
    chunks: tuple[Chunk, ...] = ()
    error: str = ""  # why the unit is refused

    @property
    def place(self) -> Place:
        return self.unit.path, self.row_groups and self.row_groups[0]

    @property
    def sides(self) -> tuple[Side, ...]:
        return tuple(file.side for file in self.files)


@dataclass(frozen=True)
class StoredFile:
    """A file of the store, as a release names it."""

    sha256: str
    size: int


@dataclass(frozen=True)
class StoredCodes:
    """A code file that stands in the store, and the rejects beside it if there are any."""

    address: str
    ledger: Ledger
    codes: StoredFile
    rejects: StoredFile | None = None


@dataclass(frozen=True)
class UnitReport:
    """What became of a unit: its code files, or why it was refused."""

    unit: SourceFile
    files: Mapping[Side, StoredCodes] = field(default_factory=dict)
    error: str = ""
    place: Place = ("", None)
    reused: Mapping[Side, int] = field(default_factory=dict)  # rows whose codes an earlier code file had
    forwarded: Mapping[Side, int] = field(default_factory=dict)  # rows that went through the network


def open_unit(work: UnitWork, source: Source, *, max_bytes: int = CHUNK_BYTES, join: bool = True) -> UnitWork:
    """Read a unit's footer, check its columns and cut it into chunks.

    Args:
        join: let a chunk have pieces; False where all rows of a chunk would be held at once.
    """
    try:
        with source.open(work.unit) as opened:
            source.columns(opened.schema_arrow, work.unit.path)
            metadata = opened.metadata
        size = source.recipe.image_size
        chunks = plan_chunks(
            work.unit, metadata, max_bytes=max_bytes, image_size=size, row_groups=work.row_groups
        )
        if join:
            chunks = join_chunks(chunks, PIECES if work.earlier else 1, rows=JOINED_ROWS)
        rows = chunks[-1].stop - chunks[0].start if chunks else 0
        return replace(work, rows=rows, chunks=tuple(chunks))
    except Exception as error:  # whatever a broken file leads the readers to
        return replace(work, error=one_line(error))


def finish_unit(
    work: UnitWork,
    receipts: Sequence[Receipt],
    *,
    source: Source,
    store: Storage,
    forgotten: Forgotten = NOTHING_FORGOTTEN,
) -> UnitReport:
    """Write the code files of a unit whose chunks are all encoded, and its rejects before them.

    Args:
        receipts: one or more of every chunk, in any order; a repeated one changes nothing.
        forgotten: keys that are left out.
    Raises:
        RuntimeError: a receipt is missing, or a ledger does not balance: a fault of ours.
    """
    of_chunk = {receipt.chunk.index: receipt for receipt in receipts}
    refused = next((receipt.error for receipt in of_chunk.values() if receipt.error), "")
    if refused or (refused := _changed(work.unit, source)):
        return UnitReport(work.unit, error=refused, place=work.place)
    if sorted(of_chunk) != list(range(len(work.chunks))):
        raise RuntimeError(f"{work.unit.path}: {len(of_chunk)} receipts for {len(work.chunks)} chunks")
    ordered = [of_chunk[index] for index in range(len(work.chunks))]
    rows = _rows_of(ordered)
    made = {
        file.side: make_code_file(
            file, rows, [receipt.sides[file.side] for receipt in ordered], forgotten=forgotten
        )
        for file in work.files
    }
    return UnitReport(
        work.unit,
        {side: _keep(file, store) for side, file in made.items()},
        place=work.place,
        reused={side: file.reused for side, file in made.items()},
        forwarded={side: file.forwarded for side, file in made.items()},
    )


def _rows_of(receipts: Sequence[Receipt]) -> UnitRows:
    keys = pa.concat_arrays([pa.array([], pa.string()), *(receipt.keys for receipt in receipts)])
    tokens = [receipt.tokens for receipt in receipts if receipt.tokens is not None]
    return UnitRows(
        keys, pa.concat_arrays(tokens) if tokens else None, receipts[0].chunk.start if receipts else 0
    )


def find_codes(address: str, store: Storage) -> StoredCodes | None:
    """Return what stands in the store under an address; None when its code file is missing.

    Reads the files whole: a release names them by their SHA-256.

    Raises:
        RuntimeError: what stands there is no code file, or its rejects are missing.
    """
    path = code_path(address)
    try:
        data = store.read(path)
    except FileNotFoundError:
        return None
    try:
        ledger = read_ledger(pq.read_schema(pa.BufferReader(data)))
        rejects = store.read(rejects_path(address)) if ledger.rejected else None
    except (ValueError, FileNotFoundError) as error:
        raise RuntimeError(f"{store.where(path)} is damaged ({error}); delete it and run again") from error
    return StoredCodes(address, ledger, _stored(data), None if rejects is None else _stored(rejects))


def _keep(made: CodeFile, store: Storage) -> StoredCodes:
    """Write rejects, then codes. A code file that stands already is what counts, and its rejects with it.

    Rejects without a code file are of a run that was ended between the two. They count for nothing and may
    name what was forgotten since, so they are replaced.
    """
    address = made.recipe.address
    codes, rejects, before = code_path(address), rejects_path(address), None
    if made.rejects is not None and not store.create(rejects, made.rejects):
        before = store.read(rejects)
        if before == made.rejects or store.exists(codes):
            before = None
        else:
            store.write(rejects, made.rejects)
    if store.create(codes, made.codes):
        left = None if made.rejects is None else _stored(made.rejects)
        return StoredCodes(address, made.ledger, _stored(made.codes), left)
    if before is not None:  # another was quicker, and these are its own
        store.write(rejects, before)
    found = find_codes(address, store)
    if found is None:
        raise RuntimeError(f"{store.where(codes)} was there a moment ago and is gone; run again")
    return found


def _stored(data: bytes) -> StoredFile:
    return StoredFile(sha256(data), len(data))


def _changed(unit: SourceFile, source: Source) -> str:
    """Say so if a unit is not what was listed any more: its codes would be of two versions."""
    try:
        now = source.root.stat(unit.path)
    except OSError as error:
        return one_line(error)
    return "" if now == unit else "changed while it was read; it is encoded again on the next run"
