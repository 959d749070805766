"""The import itself: blocks of any importer become Parquet files of bounded size, with a ledger.

Rows come out in the order of the source under names that depend on nothing else, so a repeated import
writes the same files. `_import.json` is written first as "started" and last as "done": a folder whose import
was cut short can be told.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.importers.rows import BLOCK_BYTES, BLOCK_ROWS, Block, Importer, ImportReject
from pipeline.corpus.importers.splits import Split

LEDGER = "_import.json"
REJECTS = "_rejects.jsonl"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WriteSettings:
    """How rows are cut into files and what is added to them."""

    rows_per_file: int = 10_000
    limit: int | None = None  # rows to write at most
    prefix: str = ""  # put before every key
    split: Split | None = None

    def __post_init__(self) -> None:
        if self.rows_per_file < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(
                f"rows per file and limit must be at least 1, got {self.rows_per_file} and {self.limit}"
            )


@dataclass
class ImportLedger:
    """What an import did; `rows_read == rows_written + rows_rejected`."""

    state: str = "started"
    rows_read: int = 0
    rows_written: int = 0
    rows_rejected: int = 0
    rows_without_text: int = 0
    files_broken: int = 0  # files that could be read in part or not at all
    files_written: int = 0
    bytes_written: int = 0
    rejects: dict[str, int] = field(default_factory=dict)  # by reason
    columns: dict[str, str] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)

    def text(self) -> bytes:
        """Return it as the content of its file."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False).encode()


def write_import(
    importer: Importer, put: Callable[[Path, str], None], scratch: Path, settings: WriteSettings
) -> ImportLedger:
    """Read a source to its end and write what can be had of it.

    Args:
        put: stores a finished local file under a name, whole or not at all.
        scratch: local folder with room for one Parquet file.
    Raises:
        ValueError: the source is not what the importer reads, or not one row of it can be.
    """
    ledger = ImportLedger(columns={name: str(kind) for name, kind in _fields(importer, settings)})
    _put_ledger(ledger, put, scratch)
    with _RejectsFile(scratch / "rejects") as rejects, _Files(put, scratch, settings, ledger) as files:
        for block in kept_blocks(importer, settings):
            for reject in block.rejects:
                rejects.add(reject)
            files.add(block.table)
    ledger.rows_rejected, ledger.files_broken = rejects.rows, rejects.files
    ledger.rejects = dict(rejects.reasons.most_common())
    ledger.rows_read = ledger.rows_written + ledger.rows_rejected
    ledger.labels = list(importer.label_names)
    put(rejects.file, REJECTS)
    if ledger.rows_written == 0:
        found = ", ".join(f"{count} x {reason}" for reason, count in ledger.rejects.items())
        raise ValueError(f"not one row could be imported; {found or 'the source has no rows'}")
    ledger.state = "done"
    _put_ledger(ledger, put, scratch)
    return ledger


def kept_blocks(importer: Importer, settings: WriteSettings) -> Iterator[Block]:
    """Yield an importer's blocks with keys made, checked and unique, and rows put into their sets.

    A row without a key and a key met before are rejects; of rows with one key the first is kept. Whether a
    key was met costs 16 bytes of memory a row.
    """
    seen, kept = _SeenKeys(), 0
    for block in importer.blocks():
        table, rejects = block.table, list(block.rejects)
        keys = [f"{settings.prefix}{key}" if key else "" for key in table.column("key").to_pylist()]
        fresh = seen.first([*keys])
        usable = np.array([bool(key) for key in keys], dtype=bool)
        for i in np.flatnonzero(~(fresh & usable)):
            reason = "duplicate key" if keys[i] else "missing key"
            rejects.append(ImportReject(block.where, keys[i], reason))
        chosen = np.flatnonzero(fresh & usable)
        if settings.limit is not None:
            chosen = chosen[: settings.limit - kept]
        table, keys = table.take(pa.array(chosen)), [keys[i] for i in chosen]
        yield Block(_complete(table, keys, settings, kept), rejects, block.where)
        kept += len(keys)
        if kept == settings.limit:
            return


def _complete(table: pa.Table, keys: list[str], settings: WriteSettings, first_row: int) -> pa.Table:
    table = table.set_column(0, "key", pa.array(keys, pa.string()))
    if settings.split is None:
        return table
    if first_row + len(keys) > settings.split.rows:
        raise ValueError(
            f"--split has room for {settings.split.rows:.0f} rows and the source has more; "
            "end it with NAME=rest, or give --limit"
        )
    column = pa.array(settings.split.of(keys, first_row=first_row), pa.string())
    if "split" in table.column_names:
        return table.set_column(table.column_names.index("split"), "split", column)
    return table.append_column("split", column)


def _fields(importer: Importer, settings: WriteSettings) -> list[tuple[str, pa.DataType]]:
    fields = [(name, importer.schema.field(name).type) for name in importer.schema.names]
    if settings.split is not None and "split" not in importer.schema.names:
        fields.append(("split", pa.string()))
    return fields


def _put_ledger(ledger: ImportLedger, put: Callable[[Path, str], None], scratch: Path) -> None:
    (scratch / "ledger").write_bytes(ledger.text())
    put(scratch / "ledger", LEDGER)


class _SeenKeys:
    """The digests of all keys met, as sorted runs; runs of like length are merged."""

    def __init__(self) -> None:
        self.runs: list[np.ndarray] = []

    def first(self, keys: list[str]) -> np.ndarray:
        """Tell which of these keys are met for the first time, here included, and remember them."""
        if not keys:
            return np.zeros(0, dtype=bool)
        # A fixed-width string pads with zero bytes, so digests of one length compare as their bytes do.
        digests = np.array([blake2b(key.encode(), digest_size=16).digest() for key in keys], dtype="S16")
        fresh = np.zeros(len(keys), dtype=bool)
        fresh[np.unique(digests, return_index=True)[1]] = True
        for run in self.runs:
            places = np.minimum(np.searchsorted(run, digests), len(run) - 1)
            fresh &= run[places] != digests
        if fresh.any():
            self.runs.append(np.sort(digests[fresh]))
        while len(self.runs) > 1 and len(self.runs[-2]) < 2 * len(self.runs[-1]):
            last, before = self.runs.pop(), self.runs.pop()
            self.runs.append(np.sort(np.concatenate([before, last])))
        return fresh


class _RejectsFile:
    """Rejects as JSON lines, counted."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.reasons: Counter[str] = Counter()
        self.rows = self.files = 0

    def __enter__(self) -> "_RejectsFile":
        self.stream = self.file.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def add(self, reject: ImportReject) -> None:
        line = {name: value for name, value in asdict(reject).items() if value}
        # File names that are no UTF-8 reach us with lone surrogates, which ASCII escapes can hold.
        self.stream.write(json.dumps(line, ensure_ascii=not _printable(line)) + "\n")
        self.reasons[reject.reason] += 1
        if reject.whole_file:
            self.files += 1
        else:
            self.rows += 1


def _printable(line: dict[str, Any]) -> bool:
    return all(character.isprintable() for value in line.values() for character in str(value))


class _Files:
    """Parquet files that are filled one after another, row group by row group."""

    def __init__(
        self, put: Callable[[Path, str], None], scratch: Path, settings: WriteSettings, ledger: ImportLedger
    ) -> None:
        self.put, self.file, self.settings, self.ledger = put, scratch / "part", settings, ledger
        self.pending: list[pa.Table] = []
        self.writer: pq.ParquetWriter | None = None
        self.rows_in_file = 0

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._end_file()
        elif self.writer is not None:
            self.writer.close()  # the scratch file goes with its folder

    def add(self, table: pa.Table) -> None:
        while table.num_rows:
            room = self.settings.rows_per_file - self.rows_in_file
            self._append(table.slice(0, room))
            table = table.slice(room)
            if self.rows_in_file == self.settings.rows_per_file:
                self._end_file()

    def _append(self, rows: pa.Table) -> None:
        self.pending.append(rows)
        self.rows_in_file += rows.num_rows
        self.ledger.rows_written += rows.num_rows
        if "text" in rows.column_names:
            self.ledger.rows_without_text += rows.column("text").null_count
        waiting = sum(table.num_rows for table in self.pending)
        if waiting >= BLOCK_ROWS or sum(table.nbytes for table in self.pending) >= BLOCK_BYTES:
            self._end_row_group()

    def _end_row_group(self) -> None:
        table = pa.concat_tables(self.pending)
        self.pending = []
        if self.writer is None:
            names = table.column_names
            self.writer = pq.ParquetWriter(
                self.file,
                table.schema,
                # Pictures are compressed already; a dictionary of unique values only costs.
                compression={name: "none" if name == "image" else "zstd" for name in names},
                use_dictionary=[name for name in names if name in ("split", "labels")],
            )
        self.writer.write_table(table, row_group_size=max(table.num_rows, 1))

    def _end_file(self) -> None:
        if self.pending:
            self._end_row_group()
        if self.writer is None:
            return
        self.writer.close()
        self.writer = None
        name = f"part-{self.ledger.files_written:06d}.parquet"
        self.ledger.files_written += 1
        self.ledger.bytes_written += self.file.stat().st_size
        self.put(self.file, name)
        log.info("%s: %d rows, %d in all", name, self.rows_in_file, self.ledger.rows_written)
        self.rows_in_file = 0
