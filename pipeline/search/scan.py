"""Exact search by looking at every code: the k nearest rows, or all within a radius; of all rows or of some.

Answers come in the order (distance, id, key), the cut at k included, whatever the parts and the threads.
With numba (extra `fast`) the scan is compiled, on the first call of a machine, in seconds; without it FAISS
scans: the same answers, several times slower. Parts are read where they lie, mapped files included. Where
FAISS has a GPU, it finds the candidates, in copies of the codes.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import ModuleType

import faiss
import numpy as np

from pipeline.search import fallback, gpu
from pipeline.search.order import Nearest, Within
from pipeline.search.parts import Part

_LOG = logging.getLogger(__name__)
_VISITS = 1 << 22  # of lists by queries, that are held at once


def nearest(
    parts: Sequence[Part],
    codes: np.ndarray,
    k: int,
    *,
    threads: int | None = None,
    allowed: Sequence[np.ndarray] | None = None,
) -> Nearest:
    """Find the k rows nearest to each query.

    Args:
        parts: of one side and one code length; of any family but BHash.
        codes: (Q, S) packed codes.
        k: at least 1, at most the rows of all parts, or those that are allowed.
        threads: at most so many; by default one for each core that this process may use. FAISS, where
            numba is missing, follows its own setting.
        allowed: for every part the rows to look at, as numbers or as a mask (N,) bool. Their codes are
            copied: S bytes a row.
    Raises:
        ValueError: codes that are not (Q, S) uint8 of the parts' size, or k out of range.
    """
    if allowed is not None:
        return _nearest_allowed(parts, codes, k, allowed=allowed, threads=threads)
    codes = checked(parts, codes, k=k)
    if parts[0].is_inverted:
        return _nearest_listed(parts, codes, k, threads=threads)
    if gpu.is_there() and k + fallback.BEYOND <= gpu.MOST_HITS and all(map(gpu.holds, parts)):
        return fallback.nearest(parts, codes, k, fetch=gpu.fetch)
    compiled = _compiled()
    if compiled is None or codes.shape[1] > compiled.CODE_SIZE:
        return fallback.nearest(parts, codes, k)
    return compiled.nearest(parts, codes, k, threads=threads or _cores())


def visit(
    parts: Sequence[Part], codes: np.ndarray, k: int, *, chosen: np.ndarray, threads: int | None = None
) -> Nearest:
    """Find the k rows nearest to each query in the inverted lists that it visits.

    Args:
        parts: BIVF parts of one quantiser.
        chosen: (Q, P) int64: different lists, which hold k rows at least, nearest first.
    """
    compiled = _compiled()
    if compiled is None or codes.shape[1] > compiled.CODE_SIZE:
        return fallback.visit(parts, codes, k, chosen=chosen)
    from pipeline.search import inverted

    return inverted.nearest(parts, codes, k, chosen=chosen, threads=threads or _cores())


def within(parts: Sequence[Part], codes: np.ndarray, radius: int, *, threads: int | None = None) -> Within:
    """Find all rows at most `radius` away from each query; memory grows with their number.

    Args:
        parts, codes, threads: as for `nearest`.
        radius: Hamming distance, itself included.
    Raises:
        ValueError: codes that are not (Q, S) uint8 of the parts' size, or a negative radius.
    """
    codes = checked(parts, codes, radius=radius)
    compiled = _compiled()
    if compiled is None or codes.shape[1] > compiled.CODE_SIZE:
        return fallback.within(parts, codes, radius)
    if parts and parts[0].is_inverted:
        from pipeline.search import inverted

        return inverted.within(parts, codes, radius)
    return compiled.within(parts, codes, radius, threads=threads or _cores())


def checked(
    parts: Sequence[Part], codes: np.ndarray, *, k: int | None = None, radius: int | None = None
) -> np.ndarray:
    """Return codes that can be searched for, C-contiguous.

    Raises:
        ValueError: they are not (Q, S) uint8 of the parts' size, or k or the radius is out of range.
    """
    sizes = sorted({part.code_size for part in parts})
    if len(sizes) > 1:
        raise ValueError(f"parts must have one code size, got {sizes} bytes")
    if codes.ndim != 2 or codes.dtype != np.uint8 or (sizes and codes.shape[1] != sizes[0]):
        wanted = sizes[0] if sizes else "S"
        raise ValueError(f"codes must be (Q, {wanted}) uint8, got {codes.shape} {codes.dtype}")
    rows = sum(part.rows for part in parts)
    if k is not None and not 1 <= k <= rows:
        raise ValueError(f"k must be within 1 and the {rows} rows of all parts, got {k}")
    if radius is not None and radius < 0:
        raise ValueError(f"radius must be at least 0, got {radius}")
    return np.ascontiguousarray(codes)


def _nearest_listed(parts: Sequence[Part], codes: np.ndarray, k: int, *, threads: int | None) -> Nearest:
    """Visit every inverted list with every query."""
    lists = len(parts[0].lists.rows)
    step = max(1, _VISITS // lists)
    blocks = [codes[start : start + step] for start in range(0, max(len(codes), 1), step)]
    every = [np.tile(np.arange(lists), (len(block), 1)) for block in blocks]
    return Nearest.joined(
        [
            visit(parts, block, k, chosen=all_, threads=threads)
            for block, all_ in zip(blocks, every, strict=True)
        ]
    )


def _nearest_allowed(
    parts: Sequence[Part], codes: np.ndarray, k: int, *, allowed: Sequence[np.ndarray], threads: int | None
) -> Nearest:
    """Scan copies of the rows that are allowed."""
    if len(allowed) != len(parts):
        raise ValueError(
            f"allowed must name the rows of each of {len(parts)} parts, got {len(allowed)} of them"
        )
    rows = [_rows_of(mask, part) for part, mask in zip(parts, allowed, strict=True)]
    some = [_copy(part, mine) for part, mine in zip(parts, rows, strict=True)]
    found = nearest(some, codes, k, threads=threads)
    starts = np.cumsum([0, *(len(mine) for mine in rows)])[:-1]
    every = np.concatenate([np.empty(0, np.int64), *rows])
    return replace(found, row=every[starts[found.part] + found.row])


def _rows_of(mask: np.ndarray, part: Part) -> np.ndarray:
    """Return the rows of a part that are allowed, each once and in order."""
    mask = np.asarray(mask)
    if mask.dtype == np.bool_:
        if mask.shape != (part.rows,):
            raise ValueError(f"a mask of allowed rows must be ({part.rows},), got {mask.shape}")
        return np.flatnonzero(mask)
    rows = np.unique(mask).astype(np.int64)
    if len(rows) and not 0 <= rows[0] <= rows[-1] < part.rows:
        raise ValueError(f"allowed rows must be within 0 and {part.rows - 1}, got {rows[0]} to {rows[-1]}")
    return rows


def _copy(part: Part, rows: np.ndarray) -> Part:
    index = faiss.IndexBinaryFlat(8 * part.code_size)
    index.add(part.codes_of(rows))
    return Part(index, part.keys.take(rows))


@cache
def _compiled() -> ModuleType | None:
    """Return the compiled scan, None where numba cannot be imported."""
    try:
        from pipeline.search import compiled
    except ImportError as error:
        _LOG.info("exact search by FAISS; the extra `fast` makes it several times faster (%s)", error)
        return None
    return compiled


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
