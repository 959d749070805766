"""Counting and ranking rows by Hamming distance, as fast as the machine at hand allows.

With numba (extra `fast`) compiled kernels do it, on as many threads as there are cores; without it the numpy
forms of `metrics` do, several times slower. Both count the same numbers. Memory is bounded by the retrieval
set and the counts, never by Q x N.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.quality import metrics
from pipeline.quality.metrics import DistanceCounts, check_sets

CHUNK = 32  # queries that one task takes: their counters stay in a second-level cache

log = logging.getLogger(__name__)

Direction = tuple[np.ndarray, np.ndarray]
"""Packed codes of queries (Q, S) and of retrieval rows (N, S)."""
Labels = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Ranked:
    """Counts by distance of one direction, and each query's average precision with ties as rows stand."""

    counts: DistanceCounts
    stable: np.ndarray  # (len(cuts), Q)


def count(
    directions: Sequence[Direction],
    labels: Labels,
    *,
    threads: int | None = None,
) -> list[DistanceCounts]:
    """Count the rows, and the relevant ones, at each distance from each query; all directions in one pass.

    Args:
        directions: of equal numbers of queries, of rows and of bits.
        labels: packed label bits, `query_labels` (Q, W) and `retrieval_labels` (N, W).
        threads: at most so many; by default one for each core that this process may use.
    """
    _check(directions, labels)
    kernels = _kernels()
    if kernels is None:
        return [metrics.count_by_distance(*direction, **labels) for direction in directions]
    task = _Task.of(directions, labels)
    counted = task.new_counts()

    def run(chunk: slice) -> None:
        kernels.count(*task.of_queries(chunk), task.keys(kernels.BLOCK), counted[:, chunk])

    task.each_chunk(run, threads)
    return [_as_counts(each) for each in counted]


def rank(
    directions: Sequence[Direction],
    labels: Labels,
    *,
    cuts: Sequence[int],
    threads: int | None = None,
) -> list[Ranked]:
    """Count as `count` does, and rank every row: by distance, ties in the order in which rows are given.

    Args:
        cuts: cut-offs in ranks at which the average precision is taken.
    """
    _check(directions, labels)
    for k in cuts:
        metrics.check_cut(k, len(labels["retrieval_labels"]))
    kernels = _kernels()
    if kernels is None:
        return [_rank_by_sorting(direction, cuts, labels) for direction in directions]
    task = _Task.of(directions, labels)
    counted, order = task.new_counts(), np.argsort(cuts, kind="stable")
    ascending = np.asarray(cuts, np.int64)[order]
    precisions = np.empty((*counted.shape[:2], len(cuts)))

    def run(chunk: slice) -> None:
        room = task.keys(len(labels["retrieval_labels"]))
        kernels.rank(*task.of_queries(chunk), room, counted[:, chunk], ascending, precisions[:, chunk])

    task.each_chunk(run, threads)
    back = np.argsort(order, kind="stable")
    return [
        Ranked(_as_counts(each), values[:, back].T) for each, values in zip(counted, precisions, strict=True)
    ]


def rank_nearest(
    directions: Sequence[Direction],
    labels: Labels,
    *,
    k: int,
    threads: int | None = None,
) -> list[Ranked]:
    """Count and rank the k nearest rows; several times faster than all where k is small.

    Returns:
        Counts that are complete up to the distance of the k-th row; all rows that lie farther are counted,
        as not relevant, at the largest distance. `average_precision` at k, or at less, is exact on them.
    """
    _check(directions, labels)
    metrics.check_cut(k, len(labels["retrieval_labels"]))
    kernels = _kernels()
    if kernels is None:
        return [_rank_by_sorting(direction, [k], labels) for direction in directions]
    task = _Task.of(directions, labels)
    counted = task.new_counts()
    precisions = np.empty(counted.shape[:2])

    def run(chunk: slice) -> None:
        room = task.keys(kernels.BLOCK)
        kernels.rank_nearest(*task.of_queries(chunk), room, counted[:, chunk], k, precisions[:, chunk])

    task.each_chunk(run, threads)
    return [Ranked(_as_counts(each), values[None]) for each, values in zip(counted, precisions, strict=True)]


@dataclass(frozen=True)
class _Task:
    """Codes and labels as the kernels take them."""

    queries: np.ndarray  # (V, Q, W) uint64
    planes: np.ndarray  # (V, W, N) uint64
    query_labels: np.ndarray  # (Q, C) uint64
    label_planes: np.ndarray  # (C, N) uint64
    code_length: int

    @classmethod
    def of(cls, directions: Sequence[Direction], labels: Labels) -> "_Task":
        return cls(
            np.stack([_words(asked) for asked, _ in directions]),
            np.stack([np.ascontiguousarray(_words(found).T) for _, found in directions]),
            np.ascontiguousarray(labels["query_labels"], np.uint64),
            np.ascontiguousarray(labels["retrieval_labels"].T, np.uint64),
            8 * directions[0][0].shape[1],
        )

    def new_counts(self) -> np.ndarray:
        return np.zeros((*self.queries.shape[:2], 2 * self.code_length + 2), np.int64)

    def keys(self, rows: int) -> np.ndarray:
        """Return room for keys, of the smallest type that holds twice the code length and 1."""
        return np.empty(rows, np.uint8 if 2 * self.code_length + 2 <= 256 else np.uint16)

    def of_queries(self, chunk: slice) -> tuple[Any, ...]:
        queries = np.ascontiguousarray(self.queries[:, chunk])
        return queries, self.planes, self.query_labels[chunk], self.label_planes

    def each_chunk(self, run: Callable[[slice], None], threads: int | None) -> None:
        starts = range(0, self.queries.shape[1], CHUNK)
        with ThreadPoolExecutor(min(threads or _cores(), len(starts))) as pool:
            for _ in pool.map(lambda start: run(slice(start, start + CHUNK)), starts):
                pass


def _words(packed: np.ndarray) -> np.ndarray:
    """Return (N, S) packed codes as (N, ceil(S / 8)) words, the last filled up with zeros."""
    padded = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8)))
    return np.ascontiguousarray(padded).view(np.uint64)


def _as_counts(counted: np.ndarray) -> DistanceCounts:
    return DistanceCounts(counted[:, ::2] + counted[:, 1::2], counted[:, 1::2])


def _rank_by_sorting(direction: Direction, cuts: Sequence[int], labels: Labels) -> Ranked:
    stable = [metrics.stable_average_precision(*direction, **labels, k=k) for k in cuts]
    return Ranked(metrics.count_by_distance(*direction, **labels), np.stack(stable))


def _check(directions: Sequence[Direction], labels: Labels) -> None:
    for asked, found in directions:
        check_sets(asked, found, **labels)
        if asked.dtype != np.uint8 or found.dtype != np.uint8:
            raise ValueError(f"packed codes must be uint8, got {asked.dtype} and {found.dtype}")
        if asked.shape[1] != found.shape[1] or asked.shape[1] != directions[0][0].shape[1]:
            raise ValueError(
                f"codes must have equal length, got {asked.shape[1] * 8} and {found.shape[1] * 8} bits"
            )


@cache
def _kernels() -> ModuleType | None:
    """Return the compiled kernels, None where numba cannot be imported."""
    try:
        from pipeline.quality import kernels
    except ImportError as error:
        log.info("judging by numpy; the extra `fast` makes it several times faster (%s)", error)
        return None
    return kernels


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
