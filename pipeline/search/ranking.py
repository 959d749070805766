"""Compiled kernels that turn candidates into rankings. Needs numba (extra `fast`).

All kernels release the GIL and share nothing. Nothing compiled here is called by another file's kernels:
numba's cache looks only at the file of a kernel to see whether its sources have changed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

from pipeline.search.instructions import load_entry

INSTRUCTIONS = "2c07e576078f4733"  # digest of instructions.py, whose changes numba would not see
PART = 40  # a place is part << PART | row: it orders rows by part and row
ROW = (1 << PART) - 1
CODE_SIZE = 127  # bytes, the most whose distances leave room for an id beside them in 64 bits

_ID, _CUT = 53, 10  # distance << 53 | id >> 10 orders hits, but for ids that differ in the last bits only
_END = np.int64(2**63 - 1)


class Candidates(NamedTuple):
    """Rows that may belong to the answer, by place; one line per query."""

    cut: np.ndarray  # (Q,) int64; the k-th distance of all rows so far, bits + 1 before there are k
    nearer: np.ndarray  # (Q,) int64; rows nearer than that, fewer than k
    counts: np.ndarray  # (Q, bits + 2) int64; rows at each distance up to the cut
    ties: np.ndarray  # (Q,) int64; 1 after the first part: a row at the cut may have a lower id than others
    start: np.ndarray  # (Q,) int64; entry where the part being scanned starts
    filled: np.ndarray  # (Q,) int64; entries in use
    distances: np.ndarray  # (Q, capacity) uint16
    places: np.ndarray  # (Q, capacity) int64


class Ranking(NamedTuple):
    """Hits in the order of their answer, (distance, id, key); one line per query."""

    filled: np.ndarray  # (Q,) int64
    distances: np.ndarray  # (Q, k) int64
    ids: np.ndarray  # (Q, k) int64
    places: np.ndarray  # (Q, k) int64


def compiled(function: Callable) -> Any:
    """Compile on first use, without the GIL; cached on disk where a folder can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no writable folder, neither beside this file nor the user's
        return numba.njit(nogil=True)(function)


def inlined(function: Callable) -> Any:
    """Make a function part of the kernels that call it: arrays handed to a call are reference-counted,
    which costs as much as a block of a scan."""
    return numba.njit(nogil=True, inline="always")(function)


@compiled
def rank_candidates(candidates: Candidates, ids: Any, best: Ranking, line: Ranking, undecided: Any) -> None:
    """Write the first k candidates to `best`; where only keys decide, mark the query instead.

    Args:
        ids: (P,) int64 addresses of the ids of every part.
        line: room to work: a ranking of one line, as long as that of the candidates.
    """
    room = np.empty((2, candidates.places.shape[1]), np.int64)
    for query in range(best.filled.shape[0]):
        undecided[query] = _sort(candidates, query, ids, line, room)
        count = min(line.filled[0], best.places.shape[1])
        best.distances[query, :count] = line.distances[0, :count]
        best.ids[query, :count] = line.ids[0, :count]
        best.places[query, :count] = line.places[0, :count]
        best.filled[query] = count


@compiled
def merge(rankings: Any, best: Ranking, undecided: Any) -> None:
    """Write the first k hits of several rankings to `best`; where only keys decide, mark the query instead.

    Args:
        rankings: (R, 5) int64: entries per line, and the addresses of the four columns.
    """
    lists, k = rankings.shape[0], best.places.shape[1]
    keys, taken = np.empty(lists, np.int64), np.empty(lists, np.int64)
    for query in range(best.filled.shape[0]):
        undecided[query] = False
        for number in range(lists):
            taken[number] = 0
            keys[number] = _head(rankings, query, number, 0)
        to = 0
        while to < k:
            # Nothing foretells which comes next, so the first of them is found without a branch.
            first, low, tied = 0, keys[0], False
            for number in range(1, lists):
                tied |= keys[number] == low
                nearer = keys[number] < low
                first, low = (number if nearer else first), (keys[number] if nearer else low)
            if low == _END:
                break
            if tied:
                first = _first_of_tied(rankings, query, keys, taken)
                if first < 0:
                    undecided[query] = True
                    break
            entry = query * rankings[first, 0] + taken[first]
            best.distances[query, to] = load_entry(rankings[first, 2], entry)
            best.ids[query, to] = load_entry(rankings[first, 3], entry)
            best.places[query, to] = load_entry(rankings[first, 4], entry)
            taken[first] += 1
            keys[first] = _head(rankings, query, first, taken[first])
            to += 1
        best.filled[query] = to


@inlined
def _head(rankings: Any, query: int, number: int, taken: int) -> Any:
    """Return a number that orders the next hit of a ranking, the highest there is when none is left."""
    if taken == load_entry(rankings[number, 1], query):
        return _END
    entry = query * rankings[number, 0] + taken
    return load_entry(rankings[number, 2], entry) << _ID | load_entry(rankings[number, 3], entry) >> _CUT


@compiled
def _first_of_tied(rankings: Any, query: int, keys: Any, taken: Any) -> int:
    """Return the ranking with the first hit among the lowest keys, -1 where the hits' own keys decide."""
    low, first, first_id, first_place, undecided = keys.min(), -1, np.int64(0), np.int64(0), False
    for number in range(keys.size):
        if keys[number] != low:
            continue
        entry = query * rankings[number, 0] + taken[number]
        hit, place = load_entry(rankings[number, 3], entry), load_entry(rankings[number, 4], entry)
        if first >= 0 and hit == first_id and place >> PART != first_place >> PART:
            undecided = True
        elif first < 0 or hit < first_id or (hit == first_id and place < first_place):
            first, first_id, first_place, undecided = number, hit, place, False
    return -1 if undecided else first


@inlined
def _sort(candidates: Any, query: int, ids: Any, line: Any, room: Any) -> bool:
    """Write the candidates to `line` by (distance, id, row); True where only keys decide."""
    count = candidates.filled[query]
    distances, places = candidates.distances[query], candidates.places[query]
    ends = np.zeros(candidates.counts.shape[1], np.int64)  # where a distance starts; once filled, ends
    for entry in range(count):
        ends[np.int64(distances[entry]) + 1] += 1
    for later in range(1, ends.size):
        ends[later] += ends[later - 1]
    to_distances, to_ids, to_places = line.distances[0], line.ids[0], line.places[0]
    for entry in range(count):
        place, distance = places[entry], np.int64(distances[entry])
        to = ends[distance]
        to_distances[to], to_places[to] = distance, place
        to_ids[to] = load_entry(ids[place >> PART], place & ROW)
        ends[distance] += 1
    line.filled[0] = count
    start = 0
    for end in ends:
        if end - start > 1 and to_places[start] >> PART != to_places[end - 1] >> PART:
            _sort_by_id(to_ids[start:end], to_places[start:end], room)
            for entry in range(start + 1, end):
                same = to_ids[entry] == to_ids[entry - 1]
                if same and to_places[entry] >> PART != to_places[entry - 1] >> PART:
                    return True
        start = end
    return False


@compiled
def _sort_by_id(ids: Any, places: Any, room: Any) -> None:
    """Sort by id what is sorted by place: a stable merge sort, quick where ids come in ascending runs."""
    other_ids, other_places = room[0], room[1]
    width = 1
    while width < ids.size:
        for start in range(0, ids.size, 2 * width):
            middle, end = min(start + width, ids.size), min(start + 2 * width, ids.size)
            if middle == end or ids[middle - 1] <= ids[middle]:
                continue
            left, right = start, middle
            for to in range(start, end):
                if right == end or (left < middle and ids[left] <= ids[right]):
                    entry, left = left, left + 1
                else:
                    entry, right = right, right + 1
                other_ids[to], other_places[to] = ids[entry], places[entry]
            ids[start:end] = other_ids[start:end]
            places[start:end] = other_places[start:end]
        width *= 2
