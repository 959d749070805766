"""The order of answers, (distance, id, key), and the shapes they come in: what both scans share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.search.parts import Part

NO_DISTANCE = np.iinfo(np.int32).max
"""Stands, with -1 for id, part and row, where fewer than k rows were found: FAISS's own sign."""


@dataclass(frozen=True)
class Nearest:
    """The k nearest rows of each query, (Q, k) each, nearest first."""

    distances: np.ndarray  # int32
    ids: np.ndarray  # int64
    part: np.ndarray  # int32: position among the parts
    row: np.ndarray  # int64: row of that part

    @staticmethod
    def joined(blocks: Sequence["Nearest"]) -> "Nearest":
        """Return the answers of different queries as one."""
        columns = ("distances", "ids", "part", "row")
        if len(blocks) == 1:
            return blocks[0]
        return Nearest(*(np.concatenate([getattr(block, name) for block in blocks]) for name in columns))

    def of(self, queries: np.ndarray) -> "Nearest":
        """Return the answers of some queries, in the order given."""
        return Nearest(self.distances[queries], self.ids[queries], self.part[queries], self.row[queries])


@dataclass(frozen=True)
class Within:
    """The rows within a radius, nearest first; those of query q stand at limits[q]:limits[q + 1]."""

    limits: np.ndarray  # (Q + 1,) int64
    distances: np.ndarray  # int32
    ids: np.ndarray  # int64
    part: np.ndarray  # int32: position among the parts
    row: np.ndarray  # int64: row of that part


@dataclass(frozen=True)
class Found:
    """Rows of parts that were found for queries, in no order: flat arrays of equal length."""

    query: np.ndarray  # int64
    distance: np.ndarray  # int32
    part: np.ndarray  # int32
    row: np.ndarray  # int64

    @staticmethod
    def in_part(part: int, *, query: np.ndarray, distance: np.ndarray, row: np.ndarray) -> "Found":
        """Return rows of one part, each array as long as `query` or to be repeated so often."""
        n = len(query)
        distances = np.broadcast_to(np.asarray(distance, np.int32), n)
        return Found(query.astype(np.int64), distances, np.full(n, part, np.int32), row.astype(np.int64))

    @staticmethod
    def joined(pieces: Sequence["Found"]) -> "Found":
        """Return the rows of all pieces."""
        nothing = np.empty(0, np.int64)
        pieces = [Found.in_part(0, query=nothing, distance=nothing, row=nothing), *pieces]
        return Found(
            np.concatenate([piece.query for piece in pieces]),
            np.concatenate([piece.distance for piece in pieces]),
            np.concatenate([piece.part for piece in pieces]),
            np.concatenate([piece.row for piece in pieces]),
        )


def sort_found(parts: Sequence[Part], found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of the rows, and the order that sorts them by (query, distance, id, key)."""
    ids = np.empty(len(found.query), np.int64)
    for number in np.unique(found.part):
        mine = found.part == number
        ids[mine] = parts[number].ids[found.row[mine]]
    order = np.lexsort((ids, found.distance, found.query))
    tied = np.zeros(len(order) + 1, bool)  # tied[n]: row n is tied with the row before it
    if len(order):
        tied[1:-1] = True
        for column in (ids, found.distance, found.query):
            tied[1:-1] &= column[order][1:] == column[order][:-1]
    starts, ends = np.flatnonzero(tied[1:] & ~tied[:-1]), np.flatnonzero(tied[:-1] & ~tied[1:]) + 1
    for start, end in zip(starts, ends, strict=True):
        run = order[start:end]
        order[start:end] = sorted(run, key=lambda n: identity(parts, int(found.part[n]), int(found.row[n])))
    return ids, order


def first_of(parts: Sequence[Part], found: Found, *, queries: int, k: int) -> Nearest:
    """Order what was found for every query and keep the first k; where there are fewer, NOTHING follows."""
    ids, order = sort_found(parts, found)
    starts = np.searchsorted(found.query[order], np.arange(queries + 1))
    wanted = starts[:-1, None] + np.arange(k)
    there = wanted < starts[1:, None]
    kept = np.append(order, -1)[np.where(there, wanted, len(order))]
    columns = (found.distance, ids, found.part, found.row)
    nothing = (NO_DISTANCE, -1, -1, -1)
    return Nearest(
        *(
            np.append(column, none)[kept].astype(column.dtype)
            for column, none in zip(columns, nothing, strict=True)
        )
    )


def sort_within(parts: Sequence[Part], pieces: Sequence[Found], *, queries: int) -> Within:
    """Return the rows of all pieces as the answers of `queries` queries."""
    found = Found.joined(pieces)
    ids, order = sort_found(parts, found)
    limits = np.searchsorted(found.query[order], np.arange(queries + 1))
    return Within(limits, found.distance[order], ids[order], found.part[order], found.row[order])


def identity(parts: Sequence[Part], part: int, row: int) -> tuple[bytes, bytes, int]:
    """Return what orders rows of equal distance and id: key, then unit and row of the unit."""
    keys = parts[part].keys
    return keys["key"][row].as_py().encode(), keys["unit"][row].as_py().encode(), keys["row"][row].as_py()
