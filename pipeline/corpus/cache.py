"""Decoded rows kept in memory, up to a limit. First come, first kept: no eviction, so no timing enters."""

import numpy as np

Arrays = dict[str, np.ndarray]
"""Columns of rows: fixed-width arrays, and object arrays of strings."""

OBJECT_BYTES = 57
"""A short Python string and its place in an array."""


class RowCache:
    """Rows by number.

    Args:
        rows: how many rows there are; no more are ever kept.
        limit: bytes that the kept rows may take.
    """

    def __init__(self, rows: int, limit: int) -> None:
        self._rows, self._limit = rows, limit
        self._slots: dict[int, int] = {}
        self._kept: Arrays = {}

    def holds(self, numbers: np.ndarray) -> np.ndarray:
        """Return (N,) bool: which rows are here."""
        return np.fromiter((n in self._slots for n in numbers.tolist()), dtype=bool, count=len(numbers))

    def take(self, numbers: np.ndarray) -> Arrays:
        """Return a copy of rows that are here, in the order asked for."""
        slots = [self._slots[n] for n in numbers.tolist()]
        return {name: array[slots] for name, array in self._kept.items()}

    def put(self, numbers: np.ndarray, arrays: Arrays) -> None:
        """Keep new rows, as many as there is room for."""
        if not self._kept and len(numbers):
            self._open(arrays)
        first = len(self._slots)
        count = min(len(numbers), self._capacity - first) if self._kept else 0
        for name, array in self._kept.items():
            array[first : first + count] = arrays[name][:count]
        self._slots.update(zip(numbers[:count].tolist(), range(first, first + count), strict=True))

    def _open(self, arrays: Arrays) -> None:
        """Lay out room by the size of the first rows; the system gives memory when it is written to."""
        count = len(arrays["key"])
        self._capacity = min(
            self._rows, self._limit // max(1, sum(map(array_bytes, arrays.values())) // count)
        )
        self._kept = {
            name: np.empty((self._capacity, *array.shape[1:]), array.dtype) for name, array in arrays.items()
        }


def array_bytes(array: np.ndarray) -> int:
    """Return the memory that an array takes, its strings included."""
    if array.dtype != object:
        return array.nbytes
    values: list[str] = array.tolist()
    return sum(OBJECT_BYTES + len(value) for value in values)
