"""Exact nearest codes over any number of parts, in the order (distance, id, key), the cut at k included.

FAISS scans; which of the tied rows it returns at a cut is not relied on. A part holds its rows in (id, key)
order, so of the rows at one distance the first ones are wanted: they are found again by distance alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.codes import hamming
from pipeline.search.parts import Part

_BEYOND = 16  # rows fetched past k: most ties at the cut then end within them
_CANDIDATES = 1 << 22  # held at once, 28 bytes each


@dataclass(frozen=True)
class Nearest:
    """The k nearest rows of each query, (Q, k) each, nearest first."""

    distances: np.ndarray  # int32
    ids: np.ndarray  # int64
    part: np.ndarray  # int32: position among the parts
    row: np.ndarray  # int64: row of that part


def nearest(parts: Sequence[Part], codes: np.ndarray, k: int) -> Nearest:
    """Find the k rows nearest to each query.

    Args:
        parts: of one side and one code length.
        codes: (Q, S) packed codes.
        k: at least 1, at most the rows of all parts.
    """
    width = sum(min(part.rows, k + _BEYOND) for part in parts)
    step = max(1, _CANDIDATES // max(width, 1))
    blocks = [_block(parts, codes[start : start + step], k) for start in range(0, len(codes), step)]
    if not blocks:
        empty = np.empty((0, k), np.int64)
        return Nearest(empty.astype(np.int32), empty, empty.astype(np.int32), empty)
    joined = {
        name: np.concatenate([getattr(block, name) for block in blocks])
        for name in ("distances", "ids", "part", "row")
    }
    return Nearest(**joined)


@dataclass(frozen=True)
class _Candidates:
    """Rows that may be among the k nearest, in no order: flat arrays of equal length."""

    query: np.ndarray
    distance: np.ndarray
    part: np.ndarray
    row: np.ndarray


def _block(parts: Sequence[Part], codes: np.ndarray, k: int) -> Nearest:
    fetched = [
        (number, *part.index.search(codes, min(part.rows, k + _BEYOND)))
        for number, part in enumerate(parts)
        if part.rows
    ]
    everything = np.concatenate([distances for _, distances, _ in fetched], axis=1)
    cut = np.partition(everything, k - 1, axis=1)[:, k - 1]
    found: list[_Candidates] = []
    for number, distances, rows in fetched:
        # Only where the last row fetched is at the cut can the part hold others at the same distance.
        open_end = (distances[:, -1] == cut) & (distances.shape[1] < parts[number].rows)
        wanted = (distances < cut[:, None]) | ((distances == cut[:, None]) & ~open_end[:, None])
        query, column = np.nonzero(wanted)
        found.append(_candidates(query, distances[query, column], number, rows=rows[query, column]))
        for tied in np.flatnonzero(open_end):
            last = int(rows[tied][distances[tied] == cut[tied]].max())
            first = _first_at(parts[number], codes[tied], last=last, distance=int(cut[tied]))[:k]
            found.append(_candidates(np.full(len(first), tied), cut[tied], number, rows=first))
    names = ("query", "distance", "part", "row")
    joined = {name: np.concatenate([getattr(one, name) for one in found]) for name in names}
    return _cut(parts, _Candidates(**joined), queries=len(codes), k=k)


def _candidates(query: np.ndarray, distance: np.ndarray, part: int, *, rows: np.ndarray) -> _Candidates:
    n = len(query)
    return _Candidates(query, np.broadcast_to(distance, n), np.full(n, part, np.int32), rows)


def _first_at(part: Part, code: np.ndarray, *, last: int, distance: int) -> np.ndarray:
    """Return the rows up to `last` at a distance from one query.

    `last` is the last row that FAISS returned at that distance. It returned enough of them, so the first as
    many all lie before it; where FAISS prefers low rows, as it does today, that is a small share of the part.
    """
    distances = hamming(code[None], part.codes[: last + 1])[0]
    return np.flatnonzero(distances == distance)


def _cut(parts: Sequence[Part], found: _Candidates, *, queries: int, k: int) -> Nearest:
    """Order the candidates of every query and keep the first k."""
    ids = np.empty(len(found.query), np.int64)
    for number in np.unique(found.part):
        mine = found.part == number
        ids[mine] = parts[number].ids[found.row[mine]]
    order = np.lexsort((ids, found.distance, found.query))
    order = _order_equal_ids(parts, found, ids=ids, order=order)
    starts = np.searchsorted(found.query[order], np.arange(queries))
    kept = order[starts[:, None] + np.arange(k)]
    return Nearest(found.distance[kept].astype(np.int32), ids[kept], found.part[kept], found.row[kept])


def _order_equal_ids(
    parts: Sequence[Part], found: _Candidates, *, ids: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """Order by key, then unit and row, what distance and id leave tied; seldom more than a few rows."""
    same = np.ones(max(len(order) - 1, 0), bool)
    for column in (ids, found.distance, found.query):
        same &= column[order][1:] == column[order][:-1]
    if not same.any():
        return order
    order = order.copy()
    for run in np.split(np.arange(len(order)), np.flatnonzero(~same) + 1):
        if len(run) > 1:
            order[run] = sorted(order[run], key=lambda one: _identity(parts, found, one))
    return order


def _identity(parts: Sequence[Part], found: _Candidates, one: int) -> tuple[bytes, bytes, int]:
    keys = parts[found.part[one]].keys
    row = int(found.row[one])
    key, unit = keys["key"][row].as_py(), keys["unit"][row].as_py()
    return key.encode(), unit.encode(), keys["row"][row].as_py()
