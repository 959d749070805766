"""Where an id stands among the ids of a part, from a few small reads of its keys.

The keys of a part are an Arrow file of one record batch, uncompressed, whose first column are the ids in
ascending order. Ids are hashes, so a row lies close to where its id lies between the least and the largest
possible one. Format: encapsulated messages of the Arrow columnar format.
"""

import numpy as np
import pyarrow as pa

HEAD = 1 << 16
"""Bytes at the start of the file that are read at once; as a rule the names of its units are within."""
WINDOW = 4096
"""Ids that are read at once."""

_MAGIC = b"ARROW1\0\0"
_CONTINUATION = b"\xff\xff\xff\xff"
_WIDTH = 8
_GUESSES = 4


def find_id(file: pa.NativeFile, rows: int, number: int) -> tuple[int, int]:
    """Return the rows [start, stop) of a part that have an id.

    Args:
        file: the keys of the part; each `read_at` is one request.
        rows: how many they are.
    Raises:
        ValueError: the file is not laid out like this, nothing is known then.
        OSError: it ends too early, or cannot be read.
    """
    if not rows:
        return 0, 0
    ids = _Ids(file, rows)
    return ids.search(number, "left"), ids.search(number, "right")


class _Ids:
    """The ids of a file of keys, read a window at a time."""

    def __init__(self, file: pa.NativeFile, rows: int) -> None:
        self._file, self._rows = file, rows
        self._start = _start_of_ids(file)
        self._read: dict[tuple[int, int], np.ndarray] = {}

    def search(self, number: int, side: str) -> int:
        """Return what `np.searchsorted` would of all ids."""
        low, high = 0, self._rows
        least, most = 0, 1 << 63  # ids of rows [low, high) are at least the one and below the other
        for guesses in range(self._rows):
            if guesses < _GUESSES:
                guess = low + (high - low) * (number - least) // (most - least)
            else:  # not like hashes
                guess = (low + high) // 2
            start = max(low, min(guess - WINDOW // 2, high - WINDOW))
            stop = min(high, start + WINDOW)
            ids = self._window(start, stop)
            if ids[0] < least or ids[-1] >= most:
                break
            at = start + int(np.searchsorted(ids, number, side=side))  # type: ignore[call-overload]
            if (at > start or start == low) and (at < stop or stop == high):
                return at
            if at == start:
                high, most = start, int(ids[0]) + 1
            else:
                low, least = stop, int(ids[-1])
        raise ValueError("the ids are not in ascending order")

    def _window(self, start: int, stop: int) -> np.ndarray:
        if (start, stop) not in self._read:
            size = (stop - start) * _WIDTH
            data = self._file.read_at(size, self._start + start * _WIDTH)
            ids = np.frombuffer(data, np.int64)
            if len(data) != size or (np.diff(ids) < 0).any():
                raise ValueError("the ids are cut short or not in ascending order")
            self._read[start, stop] = ids
        return self._read[start, stop]


def _start_of_ids(file: pa.NativeFile) -> int:
    """Return where the first column of the only record batch starts: after schema and dictionary."""
    head = file.read_at(HEAD, 0)
    if not head.startswith(_MAGIC):
        raise ValueError("not an Arrow file")
    try:
        stream = pa.BufferReader(head)
        stream.seek(len(_MAGIC))
        kinds = [pa.ipc.read_message(stream).type for _ in range(2)]
        message = stream.read(_WIDTH)
    except (pa.ArrowException, EOFError, OSError) as error:
        raise ValueError(f"the first {HEAD} bytes hold no schema and dictionary: {error}") from error
    if kinds != ["schema", "dictionary"] or not message.startswith(_CONTINUATION) or len(message) < _WIDTH:
        raise ValueError(f"expected a schema, a dictionary and a record batch, found {', '.join(kinds)}")
    return stream.tell() + int.from_bytes(message[len(_CONTINUATION) :], "little")
