"""The plan of an epoch: which row stands where, as a pure function of counts. No file, no row, no rank in it.

Chunks are shuffled; the rows of neighbours in that order (a window: `mix_chunks` of them, more where they are
small) are then shuffled together.
Step s of an epoch takes the positions [s B, (s + 1) B), and rank r of N the r-th N-th of them. So a run can
go on from any (epoch, step), on any number of ranks, and every row still comes once.
"""

from collections.abc import Iterator, Sequence

import numpy as np

MIX_ROWS = 4096


class EpochPlan:
    """The order of one epoch. Rows are numbered through all chunks, in the order in which chunks are given.

    A corpus that is not a multiple of the global batch leaves a rest at the end of the order, another one in
    every epoch; it is not visited.

    Args:
        counts: rows of each chunk.
        mix_chunks: chunks that are shuffled together. More mix better and hold more rows in memory.
        mix_rows: rows that are shuffled together at least, by more chunks where these are small.
    """

    def __init__(
        self,
        counts: Sequence[int] | np.ndarray,
        *,
        seed: int,
        epoch: int,
        global_batch_size: int,
        mix_chunks: int = 8,
        mix_rows: int = MIX_ROWS,
    ) -> None:
        self._counts = np.asarray(counts, dtype=np.int64)
        self._first_rows = np.concatenate([[0], np.cumsum(self._counts)[:-1]])
        self._draw = [seed % 2**64, epoch]
        self._mix, self._mix_rows = mix_chunks, mix_rows
        self._batch = global_batch_size
        self._chunks = np.random.default_rng(self._draw).permutation(len(self._counts))
        self.rows = int(self._counts.sum())
        self.steps = self.rows // global_batch_size

    def windows(self, first_step: int = 0, *, rank: int = 0, ranks: int = 1) -> Iterator[np.ndarray]:
        """Yield the rows of one rank from a step on, in order, window by window: (n,) int64, some empty."""
        share = self._batch // ranks
        stop = 0
        for first, last in self._cuts():
            chunks = self._chunks[first:last]
            start, stop = stop, stop + int(self._counts[chunks].sum())
            from_, to = max(start, first_step * self._batch), min(stop, self.steps * self._batch)
            if from_ >= to:
                continue
            rows = self._shuffled(chunks, window=first)[from_ - start : to - start]
            yield rows[np.arange(from_, to) % self._batch // share == rank]

    def _cuts(self) -> Iterator[tuple[int, int]]:
        """Yield first and last + 1 of the chunks of each window."""
        ends = np.cumsum(self._counts[self._chunks])
        first = 0
        while first < len(ends):
            before = int(ends[first - 1]) if first else 0
            enough = int(np.searchsorted(ends, before + self._mix_rows)) + 1
            last = min(len(ends), max(first + self._mix, enough))
            yield first, last
            first = last

    def _shuffled(self, chunks: np.ndarray, *, window: int) -> np.ndarray:
        rows = [np.arange(self._counts[c]) + self._first_rows[c] for c in chunks]
        return np.random.default_rng([*self._draw, 1 + window]).permutation(np.concatenate(rows))
