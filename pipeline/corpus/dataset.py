"""The rows of one rank, batch by batch, in the order of the epoch plan: from Parquet, by Ray Data, to arrays.

Decoded rows stay in memory as far as `cache_bytes` goes; the others are decoded again in every epoch. The
same rows in the same order come with and without Ray.

A listed row that turns out not to decode (a damaged picture, an empty caption) is replaced by the next row
of its chunk that does, going round: a rule that no rank and no timing enters. Replaced rows are counted.
"""

import logging
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from pipeline.corpus.cache import Arrays, RowCache, array_bytes
from pipeline.corpus.decode import InputRecipe, Pairs, decode_pairs
from pipeline.corpus.listing import Listing, TrainChunk
from pipeline.corpus.plan import MIX_ROWS, EpochPlan
from pipeline.corpus.schema import ColumnMap

log = logging.getLogger(__name__)

START_SECONDS = 4.0
"""Rows that take less to decode are decoded where they are needed: a Ray Data pipeline starts no sooner."""

FEW_RANKS = 8
"""Up to so many ranks each decode all rows that fit in memory; more would do so for the others' sake."""


@dataclass(frozen=True)
class Piece:
    """Rows of one chunk that one task decodes."""

    chunk: TrainChunk
    rows: np.ndarray  # (n,) positions among the chunk's wanted rows


@dataclass(frozen=True)
class Decoded:
    """The rows of a piece, in its order."""

    arrays: Arrays
    replaced: Counter[str]


@dataclass(frozen=True)
class PieceReader:
    """Reads and decodes pieces; all that a task needs, so it is sent with it.

    Args:
        classes: width of the multi-hot labels; 0 leaves labels out.
    """

    filesystem: pyarrow.fs.FileSystem
    recipe: InputRecipe
    classes: int = 0

    def __call__(self, piece: Piece) -> Decoded:
        """Decode a piece.

        Raises:
            ValueError: no wanted row of the chunk can be decoded.
        """
        chunk = piece.chunk
        table = self._read(chunk)
        pairs = self._decode(table.take(piece.rows), chunk)
        at = np.searchsorted(pairs.rows, np.arange(len(piece.rows)))
        found = np.isin(np.arange(len(piece.rows)), pairs.rows)
        if found.all():
            return Decoded(self._arrays(pairs), Counter())
        stand_ins = {row: self._next_good(table, row, chunk) for row in piece.rows[~found].tolist()}
        arrays = [
            self._arrays(pairs, at[i : i + 1]) if found[i] else self._arrays(stand_ins[row])
            for i, row in enumerate(piece.rows.tolist())
        ]
        return Decoded(stacked(arrays), Counter(pairs.dropped))

    def _read(self, chunk: TrainChunk) -> pa.Table:
        with self.filesystem.open_input_file(chunk.path) as file:
            columns = self._columns(chunk)
            names = [*columns.names(), *([columns.labels] if columns.labels else [])]
            try:
                table = pq.ParquetFile(file).read_row_group(chunk.row_group, columns=names)
            except (OSError, pa.ArrowInvalid) as error:
                raise OSError(
                    f"{chunk.path}, row group {chunk.row_group}: cannot be read: {error}"
                ) from error
        table = table.slice(chunk.start, chunk.stop - chunk.start)
        return table if chunk.kept is None else table.take(chunk.kept)

    def _decode(self, table: pa.Table, chunk: TrainChunk) -> Pairs:
        return decode_pairs(table, self._columns(chunk), self.recipe)

    def _columns(self, chunk: TrainChunk) -> ColumnMap:
        return chunk.columns if self.classes else replace(chunk.columns, labels=None)

    def _next_good(self, table: pa.Table, row: int, chunk: TrainChunk) -> Pairs:
        for step in range(1, table.num_rows):
            pairs = self._decode(table.slice((row + step) % table.num_rows, 1), chunk)
            if len(pairs.rows):
                return pairs
        raise ValueError(
            f"{chunk.path}: none of {table.num_rows} rows of row group {chunk.row_group} can be decoded: "
            f"{', '.join(self._decode(table, chunk).dropped)}; `hashfleet encode` lists each with its error"
        )

    def _arrays(self, pairs: Pairs, chosen: Any = slice(None)) -> Arrays:
        arrays = {
            "key": as_objects(pairs.keys),
            "image": pairs.image,
            "text": pairs.text if isinstance(pairs.text, np.ndarray) else as_objects(pairs.text),
        }
        if self.classes:
            arrays["labels"] = multi_hot(pairs.labels or [], self.classes)
        return {name: array[chosen] for name, array in arrays.items()}


Decode = Callable[[PieceReader, Sequence[Piece]], Iterable[Decoded]]
"""How a feed gets its pieces decoded; keeps their order."""


def decode_here(reader: PieceReader, pieces: Sequence[Piece]) -> Iterable[Decoded]:
    """Decode pieces in this process, each when it is asked for."""
    return map(reader, pieces)


class DecodeWithRay:
    """Decodes pieces by Ray Data, ahead of the consumer.

    The first ones are decoded here; the time that they take decides who decodes the others. The tasks reserve
    no CPU of their own: they run within what the rank reserved, `tasks` at a time. So ranks that hold every
    CPU of the cluster cannot starve their own data, and none waits for the other.
    """

    def __init__(self, tasks: int = 2) -> None:
        self.tasks = tasks

    def __call__(self, reader: PieceReader, pieces: Sequence[Piece]) -> Iterator[Decoded]:
        left = sum(len(piece.rows) for piece in pieces)
        for number, piece in enumerate(pieces):
            began = time.perf_counter()
            decoded = reader(piece)
            seconds_a_row = (time.perf_counter() - began) / len(piece.rows)
            yield decoded
            left -= len(piece.rows)
            if left * seconds_a_row > START_SECONDS:
                yield from self._ahead(reader, pieces[number + 1 :])
                return

    def _ahead(self, reader: PieceReader, pieces: Sequence[Piece]) -> Iterator[Decoded]:
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # what fails is raised here anyway
        items = [{"piece": pickle.dumps(piece)} for piece in pieces]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
            lambda item: {"decoded": pickle.dumps(reader(pickle.loads(item["piece"])))},
            num_cpus=0,
            compute=ray.data.TaskPoolStrategy(size=self.tasks),
        )
        dataset.context.enable_progress_bars = False
        dataset.context.execution_options.preserve_order = True
        for row in dataset.iter_rows():
            yield pickle.loads(row["decoded"])


@dataclass(frozen=True)
class FeedConfig:
    """What decides the order and size of batches, and what stays in memory."""

    seed: int
    global_batch_size: int
    mix_chunks: int = 8
    mix_rows: int = MIX_ROWS
    cache_bytes: int = 2 << 30


class Feed:
    """The batches of one rank."""

    def __init__(
        self,
        listing: Listing,
        reader: PieceReader,
        config: FeedConfig,
        *,
        rank: int = 0,
        ranks: int = 1,
        decode: Decode = decode_here,
    ) -> None:
        self._listing, self._reader, self._config = listing, reader, config
        self._rank, self._ranks, self._decode = rank, ranks, decode
        self._first_rows = np.concatenate([[0], np.cumsum(listing.counts)]).astype(np.int64)
        self._cache = RowCache(listing.rows, config.cache_bytes)
        self.replaced: Counter[str] = Counter()
        self.steps_per_epoch = self._plan(0).steps

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Arrays]:
        """Yield this rank's part of each global batch of an epoch, from a step on."""
        windows = list(self._plan(epoch).windows(first_step, rank=self._rank, ranks=self._ranks))
        share = self._config.global_batch_size // self._ranks
        left: Arrays = {}
        for rows in self._windows(windows):
            held = stacked([left, rows]) if left else rows
            whole = len(held["key"]) // share * share
            for start in range(0, whole, share):
                yield {name: array[start : start + share] for name, array in held.items()}
            left = {name: array[whole:] for name, array in held.items()}

    def _plan(self, epoch: int) -> EpochPlan:
        config = self._config
        return EpochPlan(
            self._listing.counts,
            seed=config.seed,
            epoch=epoch,
            global_batch_size=config.global_batch_size,
            mix_chunks=config.mix_chunks,
            mix_rows=config.mix_rows,
        )

    def _windows(self, windows: list[np.ndarray]) -> Iterator[Arrays]:
        """Yield the arrays of each window: from memory where they are, decoded where not."""
        missing = [list(self._pieces(self._missing(rows))) for rows in windows]
        decoded = iter(self._decode(self._reader, [piece for pieces in missing for _, piece in pieces]))
        replaced: Counter[str] = Counter()
        for rows, pieces in zip(windows, missing, strict=True):
            if not len(rows):
                continue
            cached = rows[self._cache.holds(rows)]
            parts, order = [self._cache.take(cached)] if len(cached) else [], [cached]
            for (numbers, _), result in zip(pieces, decoded, strict=False):
                parts.append(result.arrays)
                order.append(numbers)
                replaced += result.replaced
                self._cache.put(numbers, result.arrays)
            yield reordered(stacked(parts), np.concatenate(order), rows)
        self._tell(replaced)

    def _missing(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows to decode for a window: where all may stay in memory, whole chunks at a time.

        Otherwise the other ranks' rows, which the next epochs ask for, would cost every one of these epochs
        a pipeline of its own.
        """
        missing = rows[~self._cache.holds(rows)]
        if not len(missing) or not self._keeps_all:
            return missing
        chunks = np.unique(np.searchsorted(self._first_rows, missing, side="right") - 1)
        every = np.concatenate([np.arange(*self._first_rows[chunk : chunk + 2]) for chunk in chunks])
        return every[~self._cache.holds(every)]

    @cached_property
    def _keeps_all(self) -> bool:
        """Tell whether all rows fit in memory, judged by the first, and are worth it on so many ranks."""
        if self._ranks > FEW_RANKS or not self._config.cache_bytes:
            return False
        first = self._reader(Piece(self._listing.chunks[0], np.arange(1))).arrays
        return self._listing.rows * sum(map(array_bytes, first.values())) <= self._config.cache_bytes

    def _pieces(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Piece]]:
        """Cut rows into pieces of one chunk each, in the order of the source."""
        rows = np.sort(rows)
        chunks = np.searchsorted(self._first_rows, rows, side="right") - 1
        for numbers in np.split(rows, np.flatnonzero(np.diff(chunks)) + 1):
            if len(numbers):
                chunk = int(np.searchsorted(self._first_rows, numbers[0], side="right")) - 1
                yield numbers, Piece(self._listing.chunks[chunk], numbers - self._first_rows[chunk])

    def _tell(self, replaced: Counter[str]) -> None:
        self.replaced += replaced
        if replaced:
            reasons = ", ".join(f"{count} {reason}" for reason, count in replaced.most_common())
            log.warning(
                "%d rows could not be decoded; their neighbours stood in: %s", replaced.total(), reasons
            )


def multi_hot(labels: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Return (N, C) float32 with 1 at each row's labels."""
    hot = np.zeros((len(labels), classes), dtype=np.float32)
    for row, own in enumerate(labels):
        hot[row, own] = 1
    return hot


def as_objects(values: Sequence[Any]) -> np.ndarray:
    """Return (N,) object: an array of strings that can be indexed like the others."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def stacked(parts: Sequence[Arrays]) -> Arrays:
    """Return several parts as one."""
    return parts[0] if len(parts) == 1 else {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}


def reordered(arrays: Arrays, have: np.ndarray, want: np.ndarray) -> Arrays:
    """Return arrays whose rows are numbered `have` in the order of `want`."""
    sorter = np.argsort(have)
    order = sorter[np.searchsorted(have, want, sorter=sorter)]
    return {name: array[order] for name, array in arrays.items()}
