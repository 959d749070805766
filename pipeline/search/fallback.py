"""The exact scan without numba: FAISS finds the nearest rows, numpy those within a radius.

Which of the tied rows FAISS returns at a cut is not relied on. A part holds its rows in (id, key) order, so
of the rows at one distance the first ones are wanted: they are found again by distance alone.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipeline.codes import hamming
from pipeline.search.order import Found, Nearest, Within, first_of, sort_within
from pipeline.search.parts import Part

BEYOND = 16  # rows fetched past k: most ties at the cut then end within them
_CANDIDATES = 1 << 22  # held at once, 24 bytes each
_DISTANCES = 1 << 22  # computed at once by numpy, about 10 bytes each


Fetch = Callable[[Part, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def on_cpu(part: Part, codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the (Q, n) distances and rows of the nearest codes of a part, in any order of ties."""
    distances, rows = part.flat.search(codes, n)
    return distances, rows


def nearest(parts: Sequence[Part], codes: np.ndarray, k: int, *, fetch: Fetch = on_cpu) -> Nearest:
    """Find the k rows nearest to each query, on the threads that FAISS is set to use.

    Args:
        fetch: finds candidates in one part.
    """
    width = sum(min(part.rows, k + BEYOND) for part in parts)
    step = max(1, _CANDIDATES // width)
    blocks = [
        _block(parts, codes[start : start + step], k, fetch=fetch)
        for start in range(0, max(len(codes), 1), step)
    ]
    return Nearest.joined(blocks)


def within(parts: Sequence[Part], codes: np.ndarray, radius: int) -> Within:
    """Find the rows at most `radius` away from each query."""
    return sort_within(parts, list(_within(parts, codes, radius)), queries=len(codes))


def visit(parts: Sequence[Part], codes: np.ndarray, k: int, *, chosen: np.ndarray) -> Nearest:
    """Find the k rows nearest to each query in the inverted lists that it visits, one query at a time."""
    pieces: list[Found] = []
    for number, part in enumerate(parts):
        for query, lists in enumerate(chosen):
            rows = part.rows_in(lists)
            distances = hamming(codes[query : query + 1], part.codes_of(rows))[0]
            if len(rows) > k:
                near = distances <= np.partition(distances, k - 1)[k - 1]
                rows, distances = rows[near], distances[near]
            asked = np.full(len(rows), query)
            pieces.append(Found.in_part(number, query=asked, distance=distances, row=rows))
    return first_of(parts, Found.joined(pieces), queries=len(codes), k=k)


def _within(parts: Sequence[Part], codes: np.ndarray, radius: int) -> Iterator[Found]:
    step = max(1, _DISTANCES // max(len(codes), 1))
    for number, part in enumerate(parts):
        for first in range(0, part.rows, step):
            distances = hamming(codes, part.codes_of(np.arange(first, min(first + step, part.rows))))
            query, row = np.nonzero(distances <= radius)
            yield Found.in_part(number, query=query, distance=distances[query, row], row=first + row)


def _block(parts: Sequence[Part], codes: np.ndarray, k: int, *, fetch: Fetch) -> Nearest:
    fetched = [
        (number, *fetch(part, codes, min(part.rows, k + BEYOND)))
        for number, part in enumerate(parts)
        if part.rows
    ]
    everything = np.concatenate([distances for _, distances, _ in fetched], axis=1)
    cut = np.partition(everything, k - 1, axis=1)[:, k - 1]
    pieces: list[Found] = []
    for number, distances, rows in fetched:
        # Only where the last row fetched is at the cut can the part hold others at the same distance.
        open_end = (distances[:, -1] == cut) & (distances.shape[1] < parts[number].rows)
        wanted = (distances < cut[:, None]) | ((distances == cut[:, None]) & ~open_end[:, None])
        query, column = np.nonzero(wanted)
        found = Found.in_part(number, query=query, distance=distances[query, column], row=rows[query, column])
        pieces.append(found)
        for tied in np.flatnonzero(open_end):
            last = int(rows[tied][distances[tied] == cut[tied]].max())
            first = _first_at(parts[number], codes[tied], last=last, distance=int(cut[tied]))[:k]
            query = np.full(len(first), tied)
            pieces.append(Found.in_part(number, query=query, distance=cut[tied], row=first))
    return first_of(parts, Found.joined(pieces), queries=len(codes), k=k)


def _first_at(part: Part, code: np.ndarray, *, last: int, distance: int) -> np.ndarray:
    """Return the rows up to `last` at a distance from one query.

    `last` is the last row that FAISS returned at that distance. It returned enough of them, so the first as
    many all lie before it; where FAISS prefers low rows, as it does today, that is a small share of the part.
    """
    distances = hamming(code[None], part.codes[: last + 1])[0]
    return np.flatnonzero(distances == distance)
