"""The query, retrieval and train sets of a source, encoded while they are read: no picture is kept."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.config import Config
from jobs.source import source_files
from pipeline.corpus.decode import Pairs, decode_pairs
from pipeline.corpus.readers import read_keys
from pipeline.corpus.recipe import InputRecipe
from pipeline.corpus.schema import SIDES, ColumnMap, Side
from pipeline.encoding.decoding import Source
from pipeline.quality.evaluation import CodedPairs
from pipeline.releases.storage import SourceFile, source_root

BATCH_ROWS = 1024

Encoder = Callable[[Pairs], Mapping[Side, np.ndarray]]
"""Turns decoded pairs into an array of rows per side: codes, or features."""

log = logging.getLogger(__name__)


@dataclass
class EncodedSet:
    """The complete pairs of one set: keys, labels, and what each encoder made of them."""

    keys: list[str] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    arrays: dict[tuple[str, str], list[np.ndarray]] = field(default_factory=dict)

    def add(self, pairs: Pairs, encoded: Mapping[str, Mapping[Side, np.ndarray]], chosen: np.ndarray) -> None:
        """Add the chosen rows of a batch; `encoded` is what each encoder made of the whole batch."""
        self.keys += [pairs.keys[row] for row in chosen]
        self.ids.append(pairs.ids[chosen])
        self.labels += [(pairs.labels or [])[row] for row in chosen]
        for name, sides in encoded.items():
            for side, values in sides.items():
                self.arrays.setdefault((name, side), []).append(values[chosen])

    def array(self, name: str, side: str) -> np.ndarray:
        """Return what one encoder made of one side of all rows."""
        return np.concatenate(self.arrays[name, side])

    def coded(self, name: str) -> CodedPairs:
        """Return the set with the codes of one encoder."""
        return self.with_codes({side: self.array(name, side) for side in SIDES})

    def with_codes(self, codes: Mapping[str, np.ndarray]) -> CodedPairs:
        """Return the set with codes from elsewhere, in its own order of rows."""
        return CodedPairs(self.keys, np.concatenate(self.ids), self.labels, codes)


@dataclass
class Sets:
    """Sets by name, and the rows of the source that are in none of them, by reason."""

    sets: dict[str, EncodedSet]
    rows_read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def require(self, name: str, splits: Sequence[str], uri: str) -> EncodedSet:
        """Return a set that must not be empty."""
        found = self.sets[name]
        if not found.keys:
            left_out = ", ".join(
                f"{count} {reason}" for reason, count in sorted(self.dropped.items()) if count
            )
            raise ValueError(
                f"{uri} has no {name} rows among {self.rows_read} (left out: {left_out or 'none'}): column "
                f"'split' must hold one of {', '.join(splits)} for them; see data.split.{name}"
            )
        return found


def encode_sets(
    uri: str,
    config: Config,
    *,
    recipe: InputRecipe,
    splits: Mapping[str, Sequence[str]],
    encoders: Mapping[str, Encoder],
) -> Sets:
    """Read the complete pairs of a source once and encode them into the sets that they belong to.

    Args:
        splits: set -> the values of the split column that belong to it; a row may belong to several. A
            source without that column is all train.
        encoders: what to make of the pairs, by name.
    Raises:
        ValueError: the source is empty, or has no labels to judge by.
    """
    gathered = Sets({name: EncodedSet() for name in splits})
    for columns, table in _batches(Source(source_root(uri), recipe), source_files(uri)):
        gathered.rows_read += table.num_rows
        values = _split_values(table, columns)
        members = {name: np.isin(values, np.array(wanted, object)) for name, wanted in splits.items()}
        wanted = np.logical_or.reduce(list(members.values()))
        gathered.dropped["other split"] += int((~wanted).sum())
        if not wanted.any():
            continue
        pairs = decode_pairs(table.filter(pa.array(wanted)), columns, recipe)
        gathered.dropped.update(pairs.dropped)
        encoded = {name: encoder(pairs) for name, encoder in encoders.items()} if pairs.keys else {}
        for name, member in members.items():
            gathered.sets[name].add(pairs, encoded, np.flatnonzero(member[wanted][pairs.rows]))
    if gathered.rows_read == 0:
        raise ValueError(f"{uri} has no rows")
    return gathered


def check_sets(uri: str, config: Config) -> None:
    """Refuse what could not be judged, by keys, labels and splits alone, before anything is trained.

    Raises:
        ValueError: no query or retrieval rows, no labels, or a query in its own retrieval set.
    """
    split = config.data.split
    found: dict[str, set[str]] = {"query": set(), "retrieval": set()}
    labelled, rows = 0, 0
    recipe = InputRecipe(columns=config.data.columns, limits=config.data.limits)
    for columns, table in _batches(Source(source_root(uri), recipe, sides=()), source_files(uri), cheap=True):
        rows += table.num_rows
        values = _split_values(table, columns)
        keys = np.array([key or "" for key in read_keys(table.column(columns.key))], object)
        for name, wanted in (("query", split.query), ("retrieval", split.retrieval)):
            member = np.isin(values, np.array(wanted, object))
            found[name].update(keys[member].tolist())
            if name == "query" and columns.labels is not None:
                lengths = pc.list_value_length(table.column(columns.labels)).fill_null(0)
                labelled += int((np.asarray(lengths)[member] > 0).sum())
    for name, keys_found in found.items():
        if not keys_found:
            raise ValueError(
                f"{uri} has no {name} rows among {rows}: column 'split' must hold one of "
                f"{', '.join(getattr(split, name))} for them; see data.split.{name}"
            )
    if not labelled:
        raise ValueError(f"{uri}: none of {len(found['query'])} query rows has a label: nothing to judge by")
    shared = found["query"] & found["retrieval"]
    if shared and not config.evaluate.allow_overlap:
        raise ValueError(
            f"{len(shared)} of {len(found['query'])} queries are in the retrieval set, {min(shared)!r} "
            "first; give them another split, or set evaluate.allow_overlap=true"
        )


def _batches(
    source: Source, files: Sequence[SourceFile], *, cheap: bool = False
) -> Iterator[tuple[ColumnMap, pa.Table]]:
    """Yield the rows of a source; with `cheap` their keys, labels and splits alone."""
    filesystem, root = source.root.filesystem()
    for unit in files:
        with filesystem.open_input_file(f"{root}/{unit.path}") as file:
            parquet = _parquet(file, unit.path)
            found = source.columns(parquet.schema_arrow, unit.path)
            if found.labels is None:
                raise ValueError(
                    f"{unit.path}: no column 'labels' to judge by; found: "
                    f"{', '.join(parquet.schema_arrow.names)}; name it under data.columns.labels"
                )
            names = found.names(() if cheap else SIDES, extras=True)
            for batch in parquet.iter_batches(BATCH_ROWS, columns=names):
                yield found, pa.Table.from_batches([batch])


def _parquet(file: pa.NativeFile, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: cannot be read as Parquet: {error}") from error


def _split_values(table: pa.Table, columns: ColumnMap) -> np.ndarray:
    if columns.split is None:
        return np.full(table.num_rows, "train", object)
    return np.array(table[columns.split].cast(pa.string()).to_pylist(), object)
