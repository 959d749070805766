"""Compiled kernels of the exact scan. Needs numba (extra `fast`).

A block of rows is rewritten as planes: plane w holds the 64-bit word w of each of its codes, so that one
vector instruction meets the same word of many rows. The last word of a code is padded with zeros, as that
of the query is. A test of LANES rows costs three instructions a vector and yields one bit per row; rows that
pass it are rare, and only they are looked at one by one.

Kernels release the GIL and share nothing, so callers run them in threads of their own. They call nothing
compiled in other files, whose changes numba's cache would not see.
"""

from typing import Any, NamedTuple

import numpy as np

from pipeline.search.instructions import (
    LANES,
    distance_at,
    load_byte,
    load_entry,
    load_word,
    popcount,
    test_rows,
)
from pipeline.search.ranking import PART, ROW, Candidates, compiled, inlined

INSTRUCTIONS = "2c07e576078f4733"  # digest of instructions.py, whose changes numba would not see
BLOCK_BYTES = 16 << 10  # planes of one block: half of a first-level cache of 32 KiB
SHORT = 64  # entries: a line of fewer is sorted by insertion
FEW = 8  # queries; for no more than that, copying codes of one word onto cache lines does not pay

_ONE = np.uint64(1)


class Lists(NamedTuple):
    """Runs of codes, each with the numbers of its rows: inverted lists, or a range of a flat part."""

    size: int  # of a code
    codes: np.ndarray  # (L,) int64: addresses of their codes
    numbers: np.ndarray  # (L,) int64: addresses of int64 row numbers; 0 where rows are numbered from 0
    places: np.ndarray  # (L,) int64: what is added to a row number to make it a place
    rows: np.ndarray  # (L,) int64


class _Block(NamedTuple):
    """Rows of a part as planes. All are numbers: arrays would be reference-counted on the way."""

    planes: int  # address of (words, stride) uint64; what stands past `rows` is left over
    words: int
    stride: int
    place: int  # of the first row
    rows: int


@compiled
def open_part(candidates: Candidates) -> int:
    """Make ready for the next part, drop what can no longer be an answer; return the most entries left."""
    most = 0
    for query in range(candidates.filled.shape[0]):
        distances, places, cut = candidates.distances[query], candidates.places[query], candidates.cut[query]
        end = 0
        for entry in range(candidates.filled[query]):
            distance, place = distances[entry], places[entry]
            distances[end], places[end] = distance, place
            end += distance <= cut
        candidates.start[query] = candidates.filled[query] = end
        candidates.ties[query] = candidates.nearer[query] > 0 or cut < candidates.counts.shape[1] - 1
        most = max(most, end)
    return most


@compiled
def search_part(codes: Any, span: Any, queries: Any, candidates: Candidates, k: int) -> None:
    """Note which rows `first <= row < stop` of a part may belong to the k nearest of every query.

    Args:
        codes: (N, S) uint8, C-contiguous, read-only.
        span: the part's number, first, stop.
        queries: (Q, ceil(S / 8)) uint64.
        candidates: with room for 2k + 1 rows, or for all of the span.
    """
    part, start, stop = span
    planes = _new_planes(queries.shape[1])
    for first in range(start, stop, planes.shape[1]):
        block = _fill(planes, _source(codes), (part << PART | first, first, stop), queries.shape[0] <= FEW)
        for query in range(queries.shape[0]):
            words = _address(queries) + 8 * query * block.words
            at = _skip(block, 0, words, candidates.cut[query] + candidates.ties[query])
            if at < block.rows:
                _note(block, at, words, (candidates, query), k)


@compiled
def search_lists(lists: Lists, visits: Any, queries: Any, candidates: Candidates, work: Any) -> None:
    """Note which rows of some lists may belong to the k nearest of the queries that visit them.

    All rows up to the cut are noted, in the order in which they come. A query that has more of them than
    there is room for is marked as lost; its cut is right all the same.

    Args:
        visits: (L + 1,) limits, and the queries that visit each list, list after list.
        work: k, and (Q,) bool to mark the lost.
    """
    k, lost = work
    limits, visitors = visits
    planes = _new_planes(queries.shape[1])
    for number in range(lists.rows.size):
        start, stop, source = limits[number], limits[number + 1], _list_source(lists, number)
        if start == stop:
            continue
        for first in range(0, lists.rows[number], planes.shape[1]):
            block = _fill(planes, source, (first, first, lists.rows[number]), stop - start <= FEW)
            for visit in range(start, stop):
                query = visitors[visit]
                words = _address(queries) + 8 * query * block.words
                at = _skip(block, 0, words, candidates.cut[query] + 1)
                if at < block.rows:
                    _note_all(block, at, words, (candidates, query, lost), (lists, number, k))


@compiled
def count_lists(lists: Lists, visits: Any, queries: Any, nearer_than: Any, counts: Any) -> None:
    """Add to `counts` (Q,) how many rows of the lists that a query visits are nearer than its limit."""
    limits, visitors = visits
    planes = _new_planes(queries.shape[1])
    for number in range(lists.rows.size):
        start, stop, source = limits[number], limits[number + 1], _list_source(lists, number)
        for first in range(0, lists.rows[number] if start < stop else 0, planes.shape[1]):
            block = _fill(planes, source, (first, first, lists.rows[number]), stop - start <= FEW)
            for query in visitors[start:stop]:
                words = _address(queries) + 8 * query * block.words
                for at in range(0, block.rows, LANES):
                    counts[query] += popcount(_near(block, at, words, nearer_than[query]))


@compiled
def collect_lists(lists: Lists, visits: Any, queries: Any, nearer_than: Any, output: Any) -> None:
    """Write those rows to `output`: (Q,) next positions, distances, places."""
    positions, distances, places = output
    limits, visitors = visits
    planes = _new_planes(queries.shape[1])
    for number in range(lists.rows.size):
        start, stop, source = limits[number], limits[number + 1], _list_source(lists, number)
        for first in range(0, lists.rows[number] if start < stop else 0, planes.shape[1]):
            block = _fill(planes, source, (first, first, lists.rows[number]), stop - start <= FEW)
            for query in visitors[start:stop]:
                words = _address(queries) + 8 * query * block.words
                at = _skip(block, 0, words, nearer_than[query])
                while at < block.rows:
                    near = _near(block, at, words, nearer_than[query])
                    while near:
                        row = at + _lowest(near)
                        near &= near - _ONE
                        distances[positions[query]] = _row_distance(block, row, words)
                        places[positions[query]] = _listed_place(lists, number, block.place + row)
                        positions[query] += 1
                    at = _skip(block, at + LANES, words, nearer_than[query])


@compiled
def group_visits(chosen: Any, limits: Any, visitors: Any) -> None:
    """Group the lists that queries visit, (Q, P), by list: fill limits (L + 1,) and visitors (Q * P,)."""
    limits[:] = 0
    for query in range(chosen.shape[0]):
        for number in chosen[query]:
            limits[number + 1] += 1
    for number in range(1, limits.size):
        limits[number] += limits[number - 1]
    for query in range(chosen.shape[0]):
        for number in chosen[query]:
            visitors[limits[number]] = query
            limits[number] += 1
    for number in range(limits.size - 1, 0, -1):
        limits[number] = limits[number - 1]
    limits[0] = 0


@compiled
def _address(array: Any) -> Any:
    """Return where an array starts; signed, as the sum of a signed and an unsigned number is a float."""
    return np.int64(array.ctypes.data)


@compiled
def _new_planes(words: int) -> Any:
    """Return (words, rows of a block) uint64 that start on a cache line, so that no vector crosses two."""
    rows = max(LANES, BLOCK_BYTES // 8 // words // LANES * LANES)
    room = np.empty(words * rows + 8, np.uint64)
    start = -(_address(room) // 8) % 8
    return room[start : start + words * rows].reshape(words, rows)


@compiled
def _source(codes: Any) -> Any:
    """Return where (N, S) codes start, their size, and where they end."""
    return _address(codes), codes.shape[1], _address(codes) + codes.size


@compiled
def _list_source(lists: Any, number: int) -> Any:
    """Return where the codes of a list start, their size, and where they end."""
    start = lists.codes[number]
    return start, lists.size, start + lists.size * lists.rows[number]


@compiled
def _listed_place(lists: Any, number: int, entry: int) -> Any:
    """Return the place of an entry of a list."""
    if lists.numbers[number] == 0:
        return lists.places[number] + entry
    return lists.places[number] + load_entry(lists.numbers[number], entry)


@compiled
def _fill(planes: Any, source: Any, span: Any, few: bool) -> Any:
    """Turn codes into planes, as many as there are and fit.

    Args:
        source: address and size of the first code, and where the last one ends.
        span: place of the first row, its number, and that of the row to stop before.
    """
    start, size, end = source
    place, first, stop = span
    rows, address = min(planes.shape[1], stop - first), start + first * size
    if few and size == 8 and rows == planes.shape[1]:
        return _Block(address, 1, rows, place, rows)
    for word in range(size // 8):
        for row in range(rows):
            planes[word, row] = load_word(address + row * size + 8 * word)
    tail = size % 8
    if tail:
        mask = (_ONE << np.uint64(8 * tail)) - _ONE
        for row in range(rows):
            last = address + (row + 1) * size - tail
            if last + 8 <= end:
                planes[size // 8, row] = load_word(last) & mask
            else:  # a whole word would pass the end of the codes
                value = np.uint64(0)
                for byte in range(tail):
                    value |= load_byte(last + byte) << np.uint64(8 * byte)
                planes[size // 8, row] = value
    return _Block(_address(planes), planes.shape[0], planes.shape[1], place, rows)


@compiled
def _skip(block: Any, at: int, query: int, limit: int) -> int:
    """Return where the next row nearer than `limit` is tested, from `at` on, or the end of the rows.

    This loop is where the time goes: it stands alone, so that it has the registers for itself.
    """
    while at < block.rows and not test_rows(block.planes + 8 * at, block.words, block.stride, query, limit):
        at += LANES
    return at


@compiled
def _near(block: Any, at: int, query: int, limit: int) -> Any:
    """Return the mask of the rows from `at` on that are nearer than `limit`, none past the block's end."""
    near = test_rows(block.planes + 8 * at, block.words, block.stride, query, limit)
    if block.rows - at < LANES:
        near &= (_ONE << np.uint64(block.rows - at)) - _ONE
    return near


@compiled
def _row_distance(block: Any, row: int, query: int) -> int:
    return distance_at(block.planes + 8 * row, block.words, block.stride, query)


@compiled
def _lowest(mask: Any) -> int:
    """Return the place of the lowest bit that is set."""
    return popcount(~mask & (mask - _ONE))


@inlined
def _note(block: Any, at: int, words: int, line: Any, k: int) -> None:
    """Note the rows up to the cut, from `at` on; k of them bring it down to the k-th distance.

    Args:
        words: address of the query.
        line: candidates, and the number of the query in them.
    """
    candidates, query = line
    counts, cut, nearer = candidates.counts[query], candidates.cut[query], candidates.nearer[query]
    distances, places = candidates.distances[query], candidates.places[query]
    ties, end = candidates.ties[query], candidates.filled[query]
    while at < block.rows:
        near = _near(block, at, words, cut + ties)
        while near:
            row = at + _lowest(near)
            near &= near - _ONE
            distance = _row_distance(block, row, words)
            if end == places.size:
                end, missing = _compact(candidates, query, cut, k)
                ties = min(ties, missing)
            if distance >= cut + ties:
                continue
            distances[end], places[end] = distance, block.place + row
            counts[distance] += 1
            nearer += distance < cut
            end += 1
            while nearer >= k:
                cut -= 1
                nearer -= counts[cut]
                ties = candidates.ties[query]
        at = _skip(block, at + LANES, words, cut + ties)
    candidates.cut[query], candidates.nearer[query], candidates.filled[query] = cut, nearer, end


@compiled
def _compact(candidates: Any, query: int, cut: int, k: int) -> Any:
    """Keep the first k rows of this part up to the cut; return the new end, and how many k is short of."""
    distances, places, end = candidates.distances[query], candidates.places[query], candidates.start[query]
    missing = k
    for entry in range(end, places.size):
        missing -= distances[entry] < cut
    for entry in range(end, places.size):
        distance, place = distances[entry], places[entry]
        if distance < cut or (distance == cut and missing > 0):
            missing -= distance == cut
            distances[end], places[end] = distance, place
            end += 1
    return end, missing


@inlined
def _note_all(block: Any, at: int, words: int, line: Any, listed: Any) -> None:
    """Note the rows up to the cut, from `at` on, those at the cut included however many there are.

    Args:
        words: address of the query.
        line: candidates, the number of the query in them, and the marks of the lost.
        listed: lists, the number of the one at hand, and k.
    """
    candidates, query, lost = line
    lists, number, k = listed
    counts, cut, nearer = candidates.counts[query], candidates.cut[query], candidates.nearer[query]
    distances, places, end = candidates.distances[query], candidates.places[query], candidates.filled[query]
    while at < block.rows:
        near = _near(block, at, words, cut + 1)
        while near:
            row = at + _lowest(near)
            near &= near - _ONE
            distance = _row_distance(block, row, words)
            if distance > cut:
                continue
            if end == places.size:
                end = _drop_beyond(distances, places, cut)
            if end < places.size:
                distances[end] = distance
                places[end] = _listed_place(lists, number, block.place + row)
                end += 1
            else:
                lost[query] = True
            counts[distance] += 1
            nearer += distance < cut
            while nearer >= k:
                cut -= 1
                nearer -= counts[cut]
        at = _skip(block, at + LANES, words, cut + 1)
    candidates.cut[query], candidates.nearer[query], candidates.filled[query] = cut, nearer, end


@compiled
def _drop_beyond(distances: Any, places: Any, cut: int) -> int:
    """Keep the entries of a full line up to the cut; return how many they are."""
    end = 0
    for entry in range(places.size):
        distance, place = distances[entry], places[entry]
        distances[end], places[end] = distance, place
        end += distance <= cut
    return end


@compiled
def sort_places(candidates: Candidates, rows: Any) -> bool:
    """Drop what lies beyond the cut and sort lines by place; False if a place is no row of its part."""
    sound = True
    for query in range(candidates.filled.size):
        distances, places, cut = candidates.distances[query], candidates.places[query], candidates.cut[query]
        end = 0
        for entry in range(candidates.filled[query]):
            distance, place = distances[entry], places[entry]
            if distance > cut:
                continue
            sound &= place >= 0 and place & ROW < rows[place >> PART]
            to = end
            while to > 0 and places[to - 1] > place and end < SHORT:
                distances[to], places[to] = distances[to - 1], places[to - 1]
                to -= 1
            distances[to], places[to] = distance, place
            end += 1
        candidates.filled[query] = end
        if end >= SHORT:
            order = np.argsort(places[:end])
            distances[:end], places[:end] = distances[:end][order], places[:end][order]
    return sound
