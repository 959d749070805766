"""Search among some of the rows of open parts: those of chosen keys, and never those of forgotten ones.

Few rows are copied and scanned. Where there are many, or their codes cannot be had, more hits are fetched
than were asked for until enough of them remain: the order of answers is that of the search itself.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.releases.forgetting import Forgotten
from pipeline.search import scan
from pipeline.search.order import NO_DISTANCE, Nearest, Within
from pipeline.search.parts import Part

COPIED_ROWS = 1 << 20
"""A filter of at most so many rows is an exact scan of copies of their codes: 8 MiB at 64 bits."""
_BEYOND = 64  # hidden rows that are allowed for in the first fetch
_HELD = 1 << 22  # hits fetched at once, 24 bytes each

Ask = Callable[[np.ndarray, int], Nearest]
"""From (q, S) codes and a number of hits to the nearest of all rows."""


@dataclass(frozen=True)
class Selection:
    """Some rows of the parts of a side: of every part their numbers, ascending, each once."""

    rows: tuple[np.ndarray, ...]  # (n,) int64 each
    release: str = ""  # digest of the release whose rows they are, and their side: of another the same
    side: str = ""  # numbers are other rows. '' where it does not leave the release

    @property
    def count(self) -> int:
        return sum(map(len, self.rows))

    def without(self, other: "Selection") -> "Selection":
        """Return the rows that another selection does not hold."""
        pairs = zip(self.rows, other.rows, strict=True)
        return replace(
            self, rows=tuple(np.setdiff1d(mine, theirs, assume_unique=True) for mine, theirs in pairs)
        )

    def holds(self, part: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Tell which (part, row) are of the selection, in the shape of both; part -1 never is."""
        held = np.zeros(part.shape, bool)
        for number, rows in enumerate(self.rows):
            mine = part == number
            if len(rows) and mine.any():
                wanted = row[mine]
                place = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
                held[mine] = rows[place] == wanted
        return held


def of_forgotten(parts: Sequence[Part], forgotten: Forgotten) -> Selection:
    """Select the rows of forgotten keys."""
    if not len(forgotten):
        return Selection(tuple(np.empty(0, np.int64) for _ in parts))
    return Selection(tuple(forgotten.rows(part.ids, part.keys["key"]) for part in parts))


def of_keys(parts: Sequence[Part], keys: Sequence[str], ids: np.ndarray) -> Selection:
    """Select the rows of some keys; those that no part holds select nothing.

    Args:
        ids: (N,) int64 ids of the keys.
    """
    order = np.argsort(ids, kind="stable")
    wanted = pa.array([keys[place] for place in order.tolist()], pa.string())
    return Selection(tuple(_rows_of(part, wanted, ids[order]) for part in parts))


def nearest_of(
    parts: Sequence[Part], codes: np.ndarray, k: int, *, selection: Selection, ask: Ask
) -> Nearest:
    """Find the k nearest of the selected rows; NO_DISTANCE and -1 follow where there are fewer.

    Args:
        ask: the search of all rows; used where the selection is large, or its codes cannot be had.
    """
    count = selection.count
    found = min(k, count)
    if not found:
        return _padded(_nothing(len(codes)), k)
    if count <= COPIED_ROWS and parts[0].holds_codes:
        return _padded(scan.nearest(parts, codes, found, allowed=selection.rows), k)
    total = sum(part.rows for part in parts)
    kept = Fetching(k, fetch=min(total, 2 * k * -(-total // count)), total=total, most=found)
    return kept.nearest(codes, ask, lambda hits: selection.holds(hits.part, hits.row))


def nearest_without(
    parts: Sequence[Part], codes: np.ndarray, k: int, *, hidden: Selection, ask: Ask
) -> Nearest:
    """Find the k nearest of the rows that are not hidden."""
    if not hidden.count:
        return ask(codes, k)
    total = sum(part.rows for part in parts)
    fetching = Fetching(
        k, fetch=min(total, k + min(hidden.count, _BEYOND)), total=total, most=total - hidden.count
    )
    return fetching.nearest(codes, ask, lambda hits: ~hidden.holds(hits.part, hits.row))


def within_without(found: Within, kept: np.ndarray) -> Within:
    """Return those hits of a range search that are kept, (N,) bool."""
    before = np.concatenate([[0], np.cumsum(kept)])
    return Within(
        before[found.limits], found.distances[kept], found.ids[kept], found.part[kept], found.row[kept]
    )


@dataclass(frozen=True)
class Fetching:
    """Fetches more hits than k until k of them remain, or there are no more."""

    k: int
    fetch: int  # hits to begin with
    total: int  # rows of all parts
    most: int  # rows that can remain

    def nearest(self, codes: np.ndarray, ask: Ask, keep: Callable[[Nearest], np.ndarray]) -> Nearest:
        """Return the k nearest hits of each query that are kept; fetched 4 times as many as often as needed.

        Args:
            keep: from hits to (q, fetched) bool.
        """
        blocks, place, left = [], [], np.arange(len(codes))
        fetch = self.fetch
        while True:
            short = []
            step = max(1, _HELD // fetch)
            for start in range(0, max(len(left), 1), step):
                queries = left[start : start + step]
                hits = ask(codes[queries], fetch)
                kept = keep(hits) & (hits.part >= 0)
                # Hits that a hash or a graph did not find will not be found by asking for more.
                ended = (kept.sum(axis=1) >= min(self.k, self.most)) | (hits.part[:, -1] < 0)
                done = ended | (fetch == self.total)
                blocks.append(_first(hits, kept, self.k).of(np.flatnonzero(done)))
                place.append(queries[done])
                short.append(queries[~done])
            left = np.concatenate(short)
            if not len(left):
                return Nearest.joined(blocks).of(np.argsort(np.concatenate(place)))
            fetch = min(self.total, 4 * fetch)


def _rows_of(part: Part, keys: pa.Array, ids: np.ndarray) -> np.ndarray:
    """Return the rows of a part that hold one of some keys, whose ids are ascending."""
    first, last = (np.searchsorted(part.ids, ids, side=side) for side in ("left", "right"))
    places = np.flatnonzero(first < last)
    counts = (last - first)[places]
    starts = np.repeat(first[places] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    rows = starts + np.arange(counts.sum())
    names = part.keys["key"].take(pa.array(rows)).to_pylist()
    wanted = keys.take(pa.array(np.repeat(places, counts))).to_pylist()
    # Two keys may have one id.
    same = np.array([name == key for name, key in zip(names, wanted, strict=True)], bool)
    return np.unique(rows[same]).astype(np.int64)


def _first(hits: Nearest, kept: np.ndarray, k: int) -> Nearest:
    """Return the first k hits of each line that are kept, in their order, filled up with nothing."""
    width = kept.shape[1]
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    there = np.arange(min(k, width)) < kept.sum(axis=1, keepdims=True)

    def chosen(column: np.ndarray, none: int) -> np.ndarray:
        return np.where(there, np.take_along_axis(column, order, axis=1), none).astype(column.dtype)

    return _padded(
        Nearest(
            chosen(hits.distances, NO_DISTANCE),
            chosen(hits.ids, -1),
            chosen(hits.part, -1),
            chosen(hits.row, -1),
        ),
        k,
    )


def _padded(found: Nearest, k: int) -> Nearest:
    """Return lines of k hits."""
    missing = ((0, 0), (0, k - found.distances.shape[1]))
    fill: Iterable[tuple[np.ndarray, int]] = (
        (found.distances, NO_DISTANCE),
        (found.ids, -1),
        (found.part, -1),
        (found.row, -1),
    )
    return Nearest(*(np.pad(column, missing, constant_values=none) for column, none in fill))


def _nothing(queries: int) -> Nearest:
    shape = (queries, 0)
    return Nearest(
        np.empty(shape, np.int32),
        np.empty(shape, np.int64),
        np.empty(shape, np.int32),
        np.empty(shape, np.int64),
    )
