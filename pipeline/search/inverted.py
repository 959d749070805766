"""Search of inverted lists with numba: every list is read once for all the queries that visit it.

A query first visits its nearest lists, whose rows bring its cut down, and then the others, of whose rows few
are still of interest. All rows up to the cut are kept, so the answer is that of (distance, id, key) over the
rows visited. A query with more ties than there is room for is answered again, with room made to measure.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.search import compiled, kernels
from pipeline.search.compiled import Visits
from pipeline.search.order import Found, Nearest, Within, first_of, sort_within
from pipeline.search.parts import Part
from pipeline.search.ranking import PART, ROW, Ranking

_FIRST = 2  # lists that a query visits first
_QUERIES = 1024  # that visit the lists side by side
_WORKSPACE = 64 << 20  # bytes that one thread may need for them
_THREAD_QUERIES = 64  # worth a thread
_DAMAGED = "an inverted list names a row that its part does not have; verify the release"
_FOUND = 1 << 22  # rows of lost queries held at once, about 40 bytes each


@dataclass(frozen=True)
class _Lists:
    """The lists of all parts as the kernels take them, and how to check what they hold."""

    parts: Sequence[Part]

    def __iter__(self) -> Iterator[kernels.Lists]:
        for number, part in enumerate(self.parts):
            lists = part.lists
            places = np.full(len(lists.rows), number << PART, np.int64)
            yield kernels.Lists(part.code_size, lists.codes, lists.numbers, places, lists.rows)

    @property
    def rows(self) -> np.ndarray:
        """The rows of each part, which a damaged list must not lead past."""
        return np.array([part.rows for part in self.parts])


def rows_of_lists(parts: Sequence[Part]) -> np.ndarray:
    """Return the rows of each list over all parts."""
    return np.sum([part.lists.rows for part in parts], axis=0)


def nearest(parts: Sequence[Part], codes: np.ndarray, k: int, *, chosen: np.ndarray, threads: int) -> Nearest:
    """Find the k rows nearest to each query among those of the lists that it visits.

    Args:
        parts: BIVF parts of one quantiser.
        chosen: (Q, P) int64: the lists of each query, nearest first; they hold k rows at least.
    """
    words = compiled.words(codes)
    count = max(1, min(threads, len(words) // _THREAD_QUERIES))
    cuts = [len(words) * n // count for n in range(count + 1)]
    shares = [slice(a, b) for a, b in pairwise(cuts)]

    def answer(share: slice) -> list[Nearest]:
        mine, lists = words[share], chosen[share]
        room = 10 * _capacity(parts, k) + 64 * parts[0].code_size
        step = max(1, min(_QUERIES, _WORKSPACE // room))
        steps = range(0, max(len(mine), 1), step)
        return [_block(parts, mine[n : n + step], lists[n : n + step], k) for n in steps]

    if count == 1:
        return Nearest.joined(answer(shares[0]))
    with ThreadPoolExecutor(count - 1) as pool:
        others = [pool.submit(answer, share) for share in shares[1:]]
        blocks = [*answer(shares[0]), *(block for other in others for block in other.result())]
    return Nearest.joined(blocks)


def within(parts: Sequence[Part], codes: np.ndarray, radius: int) -> Within:
    """Find the rows at most `radius` away from each query, in whatever list."""
    limits = np.full(len(codes), radius + 1, np.int64)
    lists = len(parts[0].lists.rows)
    everyone = np.arange(lists + 1) * len(codes), np.tile(np.arange(len(codes)), lists)
    pieces = _collect(_Lists(parts), everyone, compiled.words(codes), limits)
    return sort_within(parts, pieces, queries=len(codes))


def _capacity(parts: Sequence[Part], k: int) -> int:
    """Return for how many candidates of a query there is room: ties need some beyond k."""
    return min(8 * k + 256, sum(part.rows for part in parts))


def _block(parts: Sequence[Part], words: np.ndarray, chosen: np.ndarray, k: int) -> Nearest:
    lists = _Lists(parts)
    candidates = compiled.new_candidates(len(words), _capacity(parts, k), bits=8 * parts[0].code_size)
    lost = np.zeros(len(words), np.bool_)
    count = len(parts[0].lists.rows)
    for visited in (chosen[:, :_FIRST], chosen[:, _FIRST:]):
        if visited.size:
            visits = _visits(visited, count)
            for mine in lists:
                kernels.search_lists(mine, visits, words, candidates, (k, lost))
    if not kernels.sort_places(candidates, lists.rows):
        raise ValueError(_DAMAGED)
    best = compiled.rank(parts, candidates, k)
    for queries in _shares(parts, chosen, np.flatnonzero(lost)):
        _answer_lost(lists, words[queries], chosen[queries], (best, queries, candidates.cut[queries]))
    part, row = (best.places >> PART).astype(np.int32), best.places & ROW
    return Nearest(best.distances.astype(np.int32), best.ids, part, row)


def _visits(chosen: np.ndarray, lists: int) -> Visits:
    """Group the visits of queries by list."""
    limits, visitors = np.empty(lists + 1, np.int64), np.empty(chosen.size, np.int64)
    kernels.group_visits(chosen, limits, visitors)
    return limits, visitors


def _shares(parts: Sequence[Part], chosen: np.ndarray, queries: np.ndarray) -> list[np.ndarray]:
    """Deal queries out, so that the rows they visit are no more than may be held at once, one at least."""
    if not len(queries):
        return []
    visited = rows_of_lists(parts)[chosen[queries]].sum(axis=1)
    return np.split(queries, np.flatnonzero(np.diff(np.cumsum(visited) // _FOUND)) + 1)


def _answer_lost(
    lists: _Lists, words: np.ndarray, chosen: np.ndarray, answer: tuple[Ranking, np.ndarray, np.ndarray]
) -> None:
    """Write the answers of queries whose cut is known and whose rows up to it did not fit."""
    best, queries, cut = answer
    pieces = _collect(lists, _visits(chosen, len(lists.parts[0].lists.rows)), words, cut + 1)
    found = first_of(lists.parts, Found.joined(pieces), queries=len(words), k=best.places.shape[1])
    best.distances[queries], best.ids[queries] = found.distances, found.ids
    best.places[queries] = found.part.astype(np.int64) << PART | found.row


def _collect(lists: _Lists, visits: Visits, words: np.ndarray, limits: np.ndarray) -> list[Found]:
    pieces = [compiled.collect(mine, visits, words, limits=limits) for mine in lists]
    for piece in pieces:
        if (piece.row >= lists.rows[piece.part]).any():
            raise ValueError(_DAMAGED)
    return pieces
