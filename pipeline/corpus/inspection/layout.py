"""A source as its files describe themselves: footers, columns, keys and splits; no row is decoded."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.readers import read_keys
from pipeline.corpus.schema import SIDES, ColumnMap, Columns, SideColumn, resolve_columns

FOOTERS = 64
"""Files that are opened; of a source with more, these stand for all."""
KEY_ROWS = 2_000_000

OpenFile = Callable[[str], pq.ParquetFile]


@dataclass(frozen=True)
class Footer:
    """What one file says of itself."""

    path: str
    size: int
    metadata: pq.FileMetaData
    columns: ColumnMap


@dataclass
class Layout:
    """A source as its footers show it."""

    files: int
    size: int  # bytes of all files
    footers: list[Footer] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # files that cannot be read or differ from the first

    @property
    def complete(self) -> bool:
        """Whether every file was opened."""
        return len(self.footers) == self.files

    @property
    def rows(self) -> int:
        """Rows of all files; estimated by their bytes where not all were opened."""
        seen = sum(footer.metadata.num_rows for footer in self.footers)
        seen_bytes = sum(footer.size for footer in self.footers)
        return seen if self.complete or not seen_bytes else round(seen * self.size / seen_bytes)

    @property
    def columns(self) -> ColumnMap:
        """The columns of the first file; the others are like it, or a fault says so."""
        return self.footers[0].columns

    def groups(self) -> Iterator[tuple[Footer, int, int, int]]:
        """Yield file, number, rows and stored bytes of each row group."""
        for footer in self.footers:
            for number in range(footer.metadata.num_row_groups):
                group = footer.metadata.row_group(number)
                stored = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
                yield footer, number, group.num_rows, stored

    def bytes_per_row(self) -> dict[str, float]:
        """Return the stored bytes a row of each column."""
        sizes: Counter[str] = Counter()
        for footer in self.footers:
            for number in range(footer.metadata.num_row_groups):
                group = footer.metadata.row_group(number)
                for i in range(group.num_columns):
                    name = group.column(i).path_in_schema.partition(".")[0]
                    sizes[name] += group.column(i).total_compressed_size
        rows = max(sum(footer.metadata.num_rows for footer in self.footers), 1)
        return {name: size / rows for name, size in sizes.items()}


@dataclass
class KeyCounts:
    """What is known of the keys, from the first files that were opened."""

    rows: int = 0
    missing: int = 0
    repeated_in_file: int = 0
    repeated_across_files: int = 0


def read_layout(
    files: Sequence[tuple[str, int]], open_file: OpenFile, columns: Columns, *, at_most: int = FOOTERS
) -> Layout:
    """Open up to `at_most` files, evenly chosen, and compare what they hold.

    Args:
        files: path and bytes of each file.
    """
    layout = Layout(files=len(files), size=sum(size for _, size in files))
    chosen = np.unique(np.linspace(0, len(files) - 1, min(at_most, len(files))).round().astype(int))
    for path, size in (files[i] for i in chosen):
        try:
            with open_file(path) as file:
                found = resolve_columns(file.schema_arrow, columns, where=path, sides=())
                footer = Footer(path, size, file.metadata, found)
        except Exception as error:  # whatever a broken file leads the readers to
            message = " ".join(str(error).split())
            layout.faults.append(message if message.startswith(path) else f"{path}: {message}")
            continue
        difference = _difference(layout.footers[0], footer) if layout.footers else ""
        if difference:
            layout.faults.append(difference)
        else:
            layout.footers.append(footer)
    return layout


def count_keys(layout: Layout, open_file: OpenFile, *, max_rows: int = KEY_ROWS) -> KeyCounts:
    """Count missing and repeated keys, file by file until `max_rows` keys were seen."""
    counts, seen = KeyCounts(), set[str]()
    for footer in layout.footers:
        if counts.rows and counts.rows + footer.metadata.num_rows > max_rows:
            break
        with open_file(footer.path) as file:
            keys = read_keys(file.read([footer.columns.key]).column(0))
        present = [key for key in keys if key is not None]
        unique = set(present)
        counts.rows += len(keys)
        counts.missing += len(keys) - len(present)
        counts.repeated_in_file += len(present) - len(unique)
        counts.repeated_across_files += len(unique & seen)
        seen |= unique
    return counts


def count_splits(layout: Layout, open_file: OpenFile) -> dict[str, int] | None:
    """Count the values of the split column in the files that were opened; None without such a column."""
    name = layout.columns.split
    if name is None:
        return None
    counts: Counter[str] = Counter()
    for footer in layout.footers:
        with open_file(footer.path) as file:
            column = file.read([name]).column(0).cast(pa.string())
        for pair in pc.value_counts(column).to_pylist():
            counts[pair["values"] or ""] += pair["counts"]
    return dict(counts.most_common())


def _difference(first: Footer, other: Footer) -> str:
    for side in SIDES:
        mine, theirs = first.columns.side(side), other.columns.side(side)
        if mine != theirs:
            return (
                f"{other.path}: its {side} side is {_kind(theirs)}, that of {first.path} is {_kind(mine)}; "
                "the files of a source must be alike"
            )
    for role in ("key", "labels", "split"):
        if getattr(first.columns, role) != getattr(other.columns, role):
            names = f"{getattr(other.columns, role)!r}, in {first.path} {getattr(first.columns, role)!r}"
            return f"{other.path}: its {role} column is {names}; the files of a source must be alike"
    return ""


def _kind(column: SideColumn | None) -> str:
    if column is None:
        return "not there"
    width = f" of width {column.width}" if column.width else ""
    return f"{column.kind}{width} in column '{column.name}'"
