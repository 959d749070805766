"""Search of any index family, as much of it as is asked for, in the order that the family promises.

What FAISS does itself here (hash tables and graphs) it does without regard for ties, so the rows at the cut
are asked for again by their distance.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.search import scan
from pipeline.search.families import Effort
from pipeline.search.order import NO_DISTANCE, Found, Nearest, Within, first_of, sort_within
from pipeline.search.parts import Part
from pipeline.search.quantisers import Quantiser

_BEYOND = 16  # rows fetched past k: most ties at the cut then end within them
_CANDIDATES = 1 << 22  # held at once, 24 bytes each


def search(
    parts: Sequence[Part],
    codes: np.ndarray,
    k: int,
    *,
    effort: Effort | None = None,
    quantiser: Quantiser | None = None,
    threads: int | None = None,
) -> Nearest:
    """Find the k nearest of the rows that the parts' family looks at.

    A query of inverted lists visits `nprobe` of them, and twice as many as often as it takes to meet k rows.
    Hash tables and graphs may find fewer: NO_DISTANCE and -1 fill up the answer then.

    Args:
        parts: of one side and one recipe.
        codes: (Q, S) packed codes.
        k: at least 1, at most the rows of all parts.
        effort: how much is looked at; one at a time for the same open parts.
        quantiser: of BIVF parts.
        threads: at most so many; by default one for each core. FAISS follows its own setting.
    Raises:
        ValueError: codes that are not (Q, S) uint8 of the parts' size, or k out of range.
    """
    parts = list(parts)
    if all(part.is_flat for part in parts):
        return scan.nearest(parts, codes, k, threads=threads)
    codes = scan.checked(parts, codes, k=k)
    effort = effort or Effort()
    if parts[0].is_inverted:
        if quantiser is None:
            raise ValueError("BIVF parts are searched with the quantiser of their release, got none")
        return _visit(parts, codes, k, quantiser=quantiser, lists=effort.nprobe, threads=threads)
    step = max(1, _CANDIDATES // sum(min(part.rows, k + _BEYOND) for part in parts))
    starts = range(0, max(len(codes), 1), step)
    return Nearest.joined([_ask_faiss(parts, codes[n : n + step], k, effort) for n in starts])


def within(
    parts: Sequence[Part],
    codes: np.ndarray,
    radius: int,
    *,
    effort: Effort | None = None,
    threads: int | None = None,
) -> Within:
    """Find all rows at most `radius` away from each query; memory grows with their number.

    Every code is looked at, but for BHash parts, whose codes lie in pieces: of those the candidates are.

    Args:
        parts, codes, effort, threads: as for `search`.
        radius: Hamming distance, itself included.
    Raises:
        ValueError: codes that are not (Q, S) uint8 of the parts' size, or a negative radius.
    """
    if not parts or parts[0].holds_codes:
        return scan.within(parts, codes, radius, threads=threads)
    codes = scan.checked(parts, codes, radius=radius)
    pieces = []
    for number, part in enumerate(parts):
        _set(part, effort or Effort())
        pieces.append(_in_range(part, number, codes, np.full(len(codes), radius)))
    return sort_within(parts, pieces, queries=len(codes))


def _visit(
    parts: list[Part], codes: np.ndarray, k: int, *, quantiser: Quantiser, lists: int, threads: int | None
) -> Nearest:
    """Search the inverted lists nearest to each query, more of them where they hold fewer than k rows."""
    lists = min(lists, quantiser.lists)
    chosen = quantiser.nearest_lists(codes, lists, threads=threads)
    held = np.sum([part.lists.rows for part in parts], axis=0)
    short = held[chosen].sum(axis=1) < k
    if not short.any():
        return scan.visit(parts, codes, k, chosen=chosen, threads=threads)
    again = _visit(parts, codes[short], k, quantiser=quantiser, lists=2 * lists, threads=threads)
    if short.all():
        return again
    enough = scan.visit(parts, codes[~short], k, chosen=chosen[~short], threads=threads)
    place = np.empty(len(codes), np.int64)
    place[np.flatnonzero(~short)] = np.arange((~short).sum())
    place[np.flatnonzero(short)] = np.arange(short.sum()) + (~short).sum()
    return Nearest.joined([enough, again]).of(place)


def _ask_faiss(parts: list[Part], codes: np.ndarray, k: int, effort: Effort) -> Nearest:
    """Let FAISS find candidates; where its last one is at the cut, ask for all that are no farther."""
    fetched = []
    for number, part in enumerate(parts):
        if part.rows:
            _set(part, effort)
            fetched.append((number, *part.index.search(codes, min(part.rows, k + _BEYOND))))
    everything = np.concatenate(
        [np.where(rows < 0, NO_DISTANCE, found) for _, found, rows in fetched], axis=1
    )
    cut = np.partition(everything, k - 1, axis=1)[:, k - 1]
    pieces: list[Found] = []
    for number, distances, rows in fetched:
        part = parts[number]
        open_end = (rows[:, -1] >= 0) & (distances[:, -1] == cut) & (distances.shape[1] < part.rows)
        open_end &= part.has_candidates
        query, column = np.nonzero((rows >= 0) & (distances <= cut[:, None]) & ~open_end[:, None])
        distance, row = distances[query, column], rows[query, column]
        pieces.append(Found.in_part(number, query=query, distance=distance, row=row))
        if open_end.any():
            tied = np.flatnonzero(open_end)
            found = _in_range(part, number, codes[tied], cut[tied])
            pieces.append(Found(tied[found.query], found.distance, found.part, found.row))
    return first_of(parts, Found.joined(pieces), queries=len(codes), k=k)


def _in_range(part: Part, number: int, codes: np.ndarray, radius: np.ndarray) -> Found:
    """Return the candidates of FAISS at most `radius` (Q,) away."""
    pieces = []
    for value in np.unique(radius).tolist() if part.rows else []:
        mine = np.flatnonzero(radius == value)
        limits, distances, rows = part.index.range_search(codes[mine], int(value) + 1)
        query = np.repeat(mine, np.diff(limits.astype(np.int64)))
        pieces.append(Found.in_part(number, query=query, distance=distances, row=rows))
    return Found.joined(pieces)


def _set(part: Part, effort: Effort) -> None:
    """Tell a FAISS index how much of it to look at."""
    if hasattr(part.index, "nflip"):
        part.index.nflip = effort.nflip
    elif hasattr(part.index, "hnsw"):
        part.index.hnsw.efSearch = effort.ef_search
