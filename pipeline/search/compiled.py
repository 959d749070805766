"""The exact scan with numba: who scans what, in which thread, and how the pieces become one answer.

Many queries are dealt out to the threads; of few, each thread takes all and an equal share of the rows. The
k-th distance goes from part to part as the limit of the next, so many parts cost little more than one.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby, pairwise
from typing import NamedTuple, TypeVar

import numpy as np

from pipeline.search import kernels, ranking
from pipeline.search.order import Found, Nearest, Within, identity, sort_within
from pipeline.search.parts import Part
from pipeline.search.ranking import PART, ROW, Candidates, Ranking

CODE_SIZE = ranking.CODE_SIZE  # bytes of the longest codes that are scanned here
_QUERIES = 256  # that meet a block of codes while it is in cache
_WORKSPACE = 64 << 20  # bytes that one thread may need for them
_THREAD_WORK = 1 << 21  # 64-bit comparisons worth a thread: about ten times the cost of starting one

Result = TypeVar("Result")
Visits = tuple[np.ndarray, np.ndarray]
_Hit = tuple[int, int, int]  # distance, id, place


class _View(NamedTuple):
    """A part as the kernels take it."""

    number: int
    codes: np.ndarray  # (N, S) uint8
    ids: np.ndarray  # (N,) int64


class _Span(NamedTuple):
    """A range of rows of one part."""

    view: _View
    first: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.first

    @property
    def numbers(self) -> tuple[int, int, int]:
        return self.view.number, self.first, self.stop


class _Task(NamedTuple):
    """What one thread does: a range of queries over some spans."""

    queries: slice
    spans: list[_Span]


def nearest(parts: Sequence[Part], codes: np.ndarray, k: int, *, threads: int) -> Nearest:
    """Find the k rows nearest to each query."""
    asked = words(codes)
    tasks = _tasks(_views(parts), asked, threads=threads)
    rankings = _run(lambda task: _rank(parts, task, asked[task.queries], k=k), tasks)
    by_rows = tasks[0].queries == tasks[-1].queries
    best = merge(parts, rankings, k=k) if by_rows else _joined(rankings)
    part, row = (best.places >> PART).astype(np.int32), best.places & ROW
    return Nearest(best.distances.astype(np.int32), best.ids, part, row)


def within(parts: Sequence[Part], codes: np.ndarray, radius: int, *, threads: int) -> Within:
    """Find the rows at most `radius` away from each query."""
    asked = words(codes)

    def collect(task: _Task) -> list[Found]:
        return [_collect(span, asked, task.queries, limit=radius + 1) for span in task.spans]

    pieces = _run(collect, _tasks(_views(parts), asked, threads=threads))
    return sort_within(parts, [piece for found in pieces for piece in found], queries=len(codes))


def _views(parts: Sequence[Part]) -> list[_View]:
    return [
        _View(number, _read_only(part.codes), _read_only(np.ascontiguousarray(part.ids)))
        for number, part in enumerate(parts)
        if part.rows
    ]


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a view that cannot be written, so that mapped and other arrays share one compiled kernel."""
    view = array.view()
    view.flags.writeable = False
    return view


def words(codes: np.ndarray) -> np.ndarray:
    """Return (Q, ceil(S / 8)) uint64: packed codes, padded with zeros to whole words."""
    padded = np.zeros((len(codes), -(-codes.shape[1] // 8) * 8), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return padded.view(np.uint64)


def _tasks(views: list[_View], words: np.ndarray, *, threads: int) -> list[_Task]:
    """Deal the work out to at most `threads` tasks, by queries if there are enough of them, else by rows."""
    rows = sum(len(view.codes) for view in views)
    threads = max(1, min(threads, rows, words.size * rows // _THREAD_WORK))
    if len(words) >= 4 * threads:
        cuts = [len(words) * n // threads for n in range(threads + 1)]
        spans = _spans(views, 0, rows)
        return [_Task(slice(a, b), spans) for a, b in pairwise(cuts)]
    cuts = [rows * n // threads for n in range(threads + 1)]
    return [_Task(slice(0, len(words)), _spans(views, a, b)) for a, b in pairwise(cuts)]


def _spans(views: list[_View], first: int, stop: int) -> list[_Span]:
    """Return the spans of the rows first:stop of all parts put end to end."""
    spans, start = [], 0
    for view in views:
        a, b = max(first - start, 0), min(stop - start, len(view.codes))
        if a < b:
            spans.append(_Span(view, a, b))
        start += len(view.codes)
    return spans


def _run(work: Callable[[_Task], Result], tasks: list[_Task]) -> list[Result]:
    """Run the tasks side by side, the first in this thread. Threads live as long as the call: a process
    that forks between two calls finds none of them missing."""
    if len(tasks) == 1:
        return [work(tasks[0])]
    with ThreadPoolExecutor(len(tasks) - 1) as pool:
        others = [pool.submit(work, task) for task in tasks[1:]]
        return [work(tasks[0]), *(other.result() for other in others)]


def _rank(parts: Sequence[Part], task: _Task, words: np.ndarray, *, k: int) -> Ranking:
    """Rank the rows of all spans, for one block of queries after the other."""
    bits = 8 * task.spans[0].view.codes.shape[1]
    capacity = min((2 if len(task.spans) == 1 else 6) * k + 512, sum(span.rows for span in task.spans))
    step = max(1, min(_QUERIES, _WORKSPACE // (10 * capacity + 8 * bits)))
    blocks = []
    for start in range(0, max(len(words), 1), step):
        block = words[start : start + step]
        work = _Work(parts, new_candidates(len(block), capacity, bits=bits), k=k)
        for span in task.spans:
            work.search(span, block)
        blocks.append(work.best())
    return _joined(blocks)


class _Work:
    """A block of queries on its way through the parts."""

    def __init__(self, parts: Sequence[Part], candidates: Candidates, *, k: int) -> None:
        self.parts, self.candidates, self.k = parts, candidates, k
        self.capacity = candidates.places.shape[1]
        self.ranked: list[Ranking] = []

    def search(self, span: _Span, words: np.ndarray) -> None:
        """Look for candidates in a span; rank those there are first, where room is short."""
        view = span.view
        if kernels.open_part(self.candidates) + min(2 * self.k + 1, span.rows) > self.capacity:
            self.ranked = [self.best()]
        kernels.search_part(view.codes, span.numbers, words, self.candidates, self.k)

    def best(self) -> Ranking:
        """Return the first k of all so far; no candidates are left."""
        kernels.open_part(self.candidates)
        best = rank(self.parts, self.candidates, self.k)
        self.candidates.filled[:] = self.candidates.start[:] = 0
        return merge(self.parts, [*self.ranked, best], k=self.k)


def rank(parts: Sequence[Part], candidates: Candidates, k: int) -> Ranking:
    """Return the first k candidates of every query; lines are sorted by place, part by part."""
    arrays = [np.ascontiguousarray(part.ids) for part in parts]  # alive as long as their addresses are used
    ids = np.array([array.ctypes.data for array in arrays], np.int64)
    best, line = new_ranking(len(candidates.filled), k), new_ranking(1, candidates.places.shape[1])
    undecided = np.zeros(len(best.filled), np.bool_)
    ranking.rank_candidates(candidates, ids, best, line, undecided)
    for query in np.flatnonzero(undecided).tolist():
        count = candidates.filled[query]
        distances = candidates.distances[query, :count].tolist()
        places = candidates.places[query, :count].tolist()
        found = [int(arrays[place >> PART][place & ROW]) for place in places]
        _rank_by_key(parts, list(zip(distances, found, places, strict=True)), best, query=query)
    return best


def merge(parts: Sequence[Part], rankings: list[Ranking], *, k: int) -> Ranking:
    """Return the first k of several rankings of the same queries."""
    if len(rankings) == 1:
        return rankings[0]
    best = new_ranking(len(rankings[0].filled), k)
    undecided = np.zeros(len(best.filled), np.bool_)
    columns = [[one.places.shape[1], *(column.ctypes.data for column in one)] for one in rankings]
    ranking.merge(np.array(columns, np.int64), best, undecided)
    for query in np.flatnonzero(undecided).tolist():
        _rank_by_key(parts, [hit for one in rankings for hit in _hits(one, query)], best, query=query)
    return best


def _rank_by_key(parts: Sequence[Part], hits: list[_Hit], best: Ranking, *, query: int) -> None:
    """Write the first k of some hits, among which rows of several parts have one distance and one id."""
    ordered: list[_Hit] = []
    for _, tied in groupby(sorted(hits), key=lambda hit: hit[:2]):
        run = list(tied)
        if len(run) > 1:
            run.sort(key=lambda hit: identity(parts, hit[2] >> PART, hit[2] & ROW))
        ordered += run
    kept = ordered[: best.places.shape[1]]
    best.filled[query] = len(kept)
    for column, values in zip(best[1:], zip(*kept, strict=True), strict=True):
        column[query, : len(kept)] = values


def _hits(one: Ranking, query: int) -> list[_Hit]:
    lines = (column[query, : one.filled[query]].tolist() for column in one[1:])
    return list(zip(*lines, strict=True))


def _joined(rankings: list[Ranking]) -> Ranking:
    """Return the rankings of different queries as one."""
    return rankings[0] if len(rankings) == 1 else Ranking(*map(np.concatenate, zip(*rankings, strict=True)))


def new_ranking(queries: int, k: int) -> Ranking:
    return Ranking(
        filled=np.zeros(queries, np.int64),
        distances=np.empty((queries, k), np.int64),
        ids=np.empty((queries, k), np.int64),
        places=np.empty((queries, k), np.int64),
    )


def new_candidates(queries: int, capacity: int, *, bits: int) -> Candidates:
    return Candidates(
        cut=np.full(queries, bits + 1, np.int64),
        nearer=np.zeros(queries, np.int64),
        counts=np.zeros((queries, bits + 2), np.int64),
        ties=np.zeros(queries, np.int64),
        start=np.zeros(queries, np.int64),
        filled=np.zeros(queries, np.int64),
        distances=np.empty((queries, capacity), np.uint16),
        places=np.empty((queries, capacity), np.int64),
    )


def _collect(span: _Span, words: np.ndarray, queries: slice, *, limit: int) -> Found:
    """Return the rows of a span nearer than `limit`: counted first, so that memory is that of the answer."""
    block, view = words[queries], span.view
    size = view.codes.shape[1]
    columns = (view.codes.ctypes.data + span.first * size, 0, view.number << PART | span.first, span.rows)
    lists = kernels.Lists(size, *(np.array([value], np.int64) for value in columns))
    visits = np.array([0, len(block)]), np.arange(len(block))
    found = collect(lists, visits, block, limits=np.full(len(block), limit))
    return replace(found, query=found.query + queries.start)


def collect(lists: kernels.Lists, visits: Visits, words: np.ndarray, *, limits: np.ndarray) -> Found:
    """Return the rows, of the lists that a query visits, that are nearer than its limit.

    Args:
        visits: (L + 1,) limits, and the queries that visit each list, list after list.
        limits: (Q,) int64.
    """
    counts = np.zeros(len(words), np.int64)
    kernels.count_lists(lists, visits, words, limits, counts)
    ends = np.cumsum(counts)
    distances, places = np.empty(counts.sum(), np.int32), np.empty(counts.sum(), np.int64)
    kernels.collect_lists(lists, visits, words, limits, (ends - counts, distances, places))
    query = np.repeat(np.arange(len(words)), counts)
    return Found(query, distances, (places >> PART).astype(np.int32), places & ROW)
