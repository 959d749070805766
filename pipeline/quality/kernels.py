"""Compiled kernels that count and rank rows by Hamming distance. Needs numba (extra `fast`).

Codes and labels come as planes: plane w holds the 64-bit word w of every row, so that one vector instruction
meets the same word of many rows. A row's key is twice its distance, plus one where it is relevant. Keys are
made by vectors; what cannot be, counting and ranking them, runs in four streams with tables of their own, as
a counter that was just written is slow to read back.

Kernels release the GIL and share nothing, so callers run them in threads of their own.
"""

from typing import Any

import numpy as np
from numba import types

from pipeline.search.instructions import instruction
from pipeline.search.ranking import compiled, inlined

BLOCK = 2048  # rows whose keys are made at once: their planes stay in a first-level cache
RUN = 64  # rows that are looked at one by one when one of them is near
STREAMS = 4


@instruction
def _popcount(_typing: Any, word: Any) -> Any:
    """Count the one bits of a 64-bit word."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), build


@inlined
def _make_keys(query, planes, relevant, start, keys):  # type: ignore[no-untyped-def]
    """Write twice the distance of `keys.size` rows from `start` on, and their relevance."""
    word, plane = query[0], planes[0][start : start + keys.size]
    for i in range(keys.size):
        keys[i] = (_popcount(plane[i] ^ word) << np.uint64(1)) + relevant[i]
    for w in range(1, query.size):
        word, plane = query[w], planes[w][start : start + keys.size]
        for i in range(keys.size):
            keys[i] += _popcount(plane[i] ^ word) << np.uint64(1)


@inlined
def _mark_relevant(labels, planes, start, relevant):  # type: ignore[no-untyped-def]
    """Write 1 where a row from `start` on shares a label with the query, else 0."""
    word, plane = labels[0], planes[0][start : start + relevant.size]
    for i in range(relevant.size):
        relevant[i] = (plane[i] & word) != np.uint64(0)
    for w in range(1, labels.size):
        word, plane = labels[w], planes[w][start : start + relevant.size]
        for i in range(relevant.size):
            relevant[i] |= (plane[i] & word) != np.uint64(0)


@compiled
def count(queries, planes, query_labels, label_planes, keys, counts):  # type: ignore[no-untyped-def]
    """Count the rows of each key, for every query and every direction.

    Args:
        queries: (V, Q, W) uint64, a direction of search each.
        planes: (V, W, N) uint64 retrieval rows of each direction.
        query_labels: (Q, C) uint64.
        label_planes: (C, N) uint64.
        keys: (BLOCK,) room for keys, of their type.
        counts: (V, Q, 2 L + 2) int64, added to.
    """
    rows = planes.shape[2]
    room = np.empty(BLOCK, np.uint8)
    tables = np.empty((STREAMS, counts.shape[2]), np.uint32)
    for start in range(0, rows, BLOCK):
        size = min(BLOCK, rows - start)
        relevant = room[:size]
        for q in range(queries.shape[1]):
            _mark_relevant(query_labels[q], label_planes, start, relevant)
            for v in range(queries.shape[0]):
                _make_keys(queries[v, q], planes[v], relevant, start, keys[:size])
                _count_keys(keys[:size], tables)
                for key in range(counts.shape[2]):
                    counts[v, q, key] += tables[0, key] + tables[1, key] + tables[2, key] + tables[3, key]


@compiled
def rank(queries, planes, query_labels, label_planes, keys, counts, cuts, precisions):  # type: ignore[no-untyped-def]
    """Count as `count` does, and rank every row: by distance, then in the order in which rows are given.

    Args:
        keys: (N,) room for the keys of one query.
        counts: (V, Q, 2 L + 2) int64, written.
        cuts: (K,) ascending cut-offs in ranks, the last at most N.
        precisions: (V, Q, K) float64, written: the average precision at each cut-off.
    """
    rows, bins = planes.shape[2], counts.shape[2]
    room = np.empty(BLOCK, np.uint8)
    tables = np.empty((STREAMS, bins), np.uint32)
    places = np.empty((STREAMS, bins), np.uint32)
    ranks = np.empty(rows + 1, np.uint32)
    for q in range(queries.shape[1]):
        for v in range(queries.shape[0]):
            for start in range(0, rows, BLOCK):
                size = min(BLOCK, rows - start)
                _mark_relevant(query_labels[q], label_planes, start, room[:size])
                _make_keys(queries[v, q], planes[v], room[:size], start, keys[start : start + size])
            _count_keys(keys, tables)
            found = _first_places(tables, places, counts[v, q], rows)
            _rank_relevant(keys, tables, places, ranks)
            _average(ranks[:found], cuts, precisions[v, q])


@inlined
def _count_keys(keys, tables):  # type: ignore[no-untyped-def]
    """Count the keys of each stream: four contiguous runs, the last with the rest."""
    quarter = keys.size // STREAMS
    tables[:] = 0
    for i in range(quarter):
        tables[0, keys[i]] += np.uint32(1)
        tables[1, keys[quarter + i]] += np.uint32(1)
        tables[2, keys[2 * quarter + i]] += np.uint32(1)
        tables[3, keys[3 * quarter + i]] += np.uint32(1)
    for i in range(STREAMS * quarter, keys.size):
        tables[3, keys[i]] += np.uint32(1)


@inlined
def _first_places(tables, places, counts, rows):  # type: ignore[no-untyped-def]
    """Turn counts into where each stream starts: ranks of its distances, and places of its relevant rows.

    Afterwards tables[s, 2 d] is the rank before the stream's first row at distance d, and places[s, key]
    where the rank of its next row goes: among those of relevant rows, or to a place that nobody reads.
    """
    rank, found = 0, 0
    for key in range(0, counts.size, 2):
        counts[key] = counts[key + 1] = 0
        for stream in range(STREAMS):
            others, relevant = tables[stream, key], tables[stream, key + 1]
            counts[key] += others
            counts[key + 1] += relevant
            tables[stream, key] = rank
            places[stream, key] = rows
            places[stream, key + 1] = found
            rank += others + relevant
            found += relevant
    return found


@inlined
def _rank_relevant(keys, tables, places, ranks):  # type: ignore[no-untyped-def]
    """Write the ranks of the relevant rows in ascending order, four streams side by side."""
    quarter = keys.size // STREAMS
    for i in range(quarter):
        for stream in range(STREAMS):
            _rank_row(keys[stream * quarter + i], tables[stream], places[stream], ranks)
    for i in range(STREAMS * quarter, keys.size):
        _rank_row(keys[i], tables[3], places[3], ranks)


@inlined
def _rank_row(key, before, places, ranks):  # type: ignore[no-untyped-def]
    relevant = key & 1
    rank = before[key - relevant] + np.uint32(1)
    before[key - relevant] = rank
    place = places[key]
    ranks[place] = rank
    places[key] = place + relevant


@inlined
def _average(ranks, cuts, precisions):  # type: ignore[no-untyped-def]
    """Write the average precision at each cut-off, of the ascending ranks of the relevant rows."""
    total, done = 0.0, 0
    for place in range(cuts.size):
        inside = np.searchsorted(ranks, cuts[place], side="right")
        part = np.zeros(8)  # sums side by side: one would wait for each of its additions
        whole = done + (inside - done) // 8 * 8
        for first in range(done, whole, 8):
            for i in range(8):
                part[i] += (first + i + 1) / ranks[first + i]
        for i in range(whole, inside):
            part[0] += (i + 1) / ranks[i]
        total, done = total + part.sum(), inside
        precisions[place] = total / max(done, 1)


@compiled
def rank_nearest(queries, planes, query_labels, label_planes, keys, counts, cut, precisions):  # type: ignore[no-untyped-def]
    """Count the rows as near as the first `cut`, and rank these; farther rows are only compared.

    Args:
        keys: (BLOCK,) room for the keys of rows.
        counts: (V, Q, 2 L + 2) int64, written: complete up to the distance of row `cut`; all rows that lie
            farther stand, as not relevant, at the largest distance.
        precisions: (V, Q) float64, written: the average precision at `cut`, ties in the order given.
    """
    rows, bins = planes.shape[2], counts.shape[2]
    zeros, near = np.zeros(BLOCK, np.uint8), np.empty(rows, keys.dtype)
    for q in range(queries.shape[1]):
        for v in range(queries.shape[0]):
            table = counts[v, q]
            table[:] = 0
            limit, filled, lowered = np.uint64(bins), 0, 0  # keys below the limit are near enough
            for start in range(0, rows, BLOCK):
                block = keys[: min(BLOCK, rows - start)]
                _make_keys(queries[v, q], planes[v], zeros, start, block)
                if not _any_below(block, limit):
                    continue
                for first in range(0, block.size, RUN):
                    run = block[first : first + RUN]
                    if not _any_below(run, limit):
                        continue
                    for i in range(run.size):
                        if run[i] < limit:
                            key = run[i] + _shares(query_labels[q], label_planes, start + first + i)
                            table[key] += 1
                            near[filled] = key
                            filled += 1
                    if filled >= lowered + cut:
                        limit, lowered = _lowered(table, cut), filled
                limit, lowered = _lowered(table, cut), filled
            table[np.int64(limit) :] = 0
            precisions[v, q] = _rank_near(near[:filled], table, limit, cut)
            table[bins - 2] += rows - table.sum()


@inlined
def _any_below(keys, limit):  # type: ignore[no-untyped-def]
    smallest = keys[0]
    for i in range(keys.size):
        smallest = min(smallest, keys[i])
    return smallest < limit


@inlined
def _shares(labels, planes, row):  # type: ignore[no-untyped-def]
    shared = np.uint64(0)
    for w in range(labels.size):
        shared |= planes[w, row] & labels[w]
    return np.uint64(shared != np.uint64(0))


@inlined
def _lowered(table, cut):  # type: ignore[no-untyped-def]
    """Return the first key past the distance of row `cut` among those counted."""
    inside, key = 0, 0
    while key < table.size and inside < cut:
        inside += table[key] + table[key + 1]
        key += 2
    return np.uint64(key)


@inlined
def _rank_near(near, table, limit, cut):  # type: ignore[no-untyped-def]
    """Return the average precision at `cut` of keys that come in the order of their rows."""
    before, hit, rank = np.empty(table.size, np.int64), np.zeros(cut + 1, np.uint8), 0
    for key in range(0, np.int64(limit), 2):
        before[key] = rank
        rank += table[key] + table[key + 1]
    for i in range(near.size):
        if near[i] < limit:
            relevant = np.int64(near[i] & 1)
            distance = np.int64(near[i]) - relevant
            before[distance] += 1
            if before[distance] <= cut:
                hit[before[distance]] = relevant
    total, found = 0.0, 0
    for place in range(1, cut + 1):
        found += hit[place]
        total += hit[place] * found / place
    return total / max(found, 1)
