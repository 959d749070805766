"""Exact search by looking at every code: the k nearest rows, or all within a radius.

Answers come in the order (distance, id, key), the cut at k included, whatever the parts and the threads.
With numba (extra `fast`) the scan is compiled, on the first call of a machine, in seconds; without it FAISS
scans: the same answers, several times slower. Parts are read where they lie, mapped files included.
"""

import logging
import os
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np

from pipeline.search import fallback
from pipeline.search.order import Nearest, Within
from pipeline.search.parts import Part

_LOG = logging.getLogger(__name__)


def nearest(parts: Sequence[Part], codes: np.ndarray, k: int, *, threads: int | None = None) -> Nearest:
    """Find the k rows nearest to each query.

    Args:
        parts: of one side and one code length.
        codes: (Q, S) packed codes.
        k: at least 1, at most the rows of all parts.
        threads: at most so many; by default one for each core that this process may use. FAISS, where
            numba is missing, follows its own setting.
    Raises:
        ValueError: codes that are not (Q, S) uint8 of the parts' size, or k out of range.
    """
    codes = _checked(parts, codes)
    rows = sum(part.rows for part in parts)
    if not 1 <= k <= rows:
        raise ValueError(f"k must be within 1 and the {rows} rows of all parts, got {k}")
    compiled = _compiled()
    if compiled is None or codes.shape[1] > compiled.CODE_SIZE:
        return fallback.nearest(parts, codes, k)
    return compiled.nearest(parts, codes, k, threads=threads or _cores())


def within(parts: Sequence[Part], codes: np.ndarray, radius: int, *, threads: int | None = None) -> Within:
    """Find all rows at most `radius` away from each query; memory grows with their number.

    Args:
        parts, codes, threads: as for `nearest`.
        radius: Hamming distance, itself included.
    Raises:
        ValueError: codes that are not (Q, S) uint8 of the parts' size, or a negative radius.
    """
    codes = _checked(parts, codes)
    if radius < 0:
        raise ValueError(f"radius must be at least 0, got {radius}")
    compiled = _compiled()
    if compiled is None:
        return fallback.within(parts, codes, radius)
    return compiled.within(parts, codes, radius, threads=threads or _cores())


def _checked(parts: Sequence[Part], codes: np.ndarray) -> np.ndarray:
    sizes = sorted({int(part.index.code_size) for part in parts})
    if len(sizes) > 1:
        raise ValueError(f"parts must have one code size, got {sizes} bytes")
    if codes.ndim != 2 or codes.dtype != np.uint8 or (sizes and codes.shape[1] != sizes[0]):
        wanted = sizes[0] if sizes else "S"
        raise ValueError(f"codes must be (Q, {wanted}) uint8, got {codes.shape} {codes.dtype}")
    return np.ascontiguousarray(codes)


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
