"""Samples of codes, drawn by a seed: what quantisers are trained on and recipes are measured with."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.releases.addresses import code_path
from pipeline.releases.manifest import code_file
from pipeline.releases.storage import Storage
from pipeline.search.partfiles import code_matrix

UNITS = 64
"""A sample comes from so many units at least, where there are as many."""


def sample_codes(units: pa.Table, side: str, storage: Storage, *, rows: int, seed: int) -> np.ndarray:
    """Return (n, S) codes of a side, n at most `rows`: of units in a drawn order, an equal share of each.

    Args:
        units: table `units` of a release, whose code files stand in the store.
    Raises:
        OSError: a code file is missing or cannot be read.
    """
    rng = np.random.default_rng(seed)
    mine = units.filter(pc.and_(pc.equal(units["side"], side), pc.greater(units["encoded"], 0)))
    order = rng.permutation(len(mine))
    sizes = mine["encoded"].to_numpy()[order]
    drawn = [
        _draw(_read(mine.slice(int(row), 1).to_pylist()[0], storage), int(count), rng)
        for row, count in zip(order, shares(sizes, rows), strict=True)
        if count
    ]
    return np.concatenate(drawn) if drawn else np.empty((0, 0), np.uint8)


def shares(sizes: np.ndarray, rows: int) -> np.ndarray:
    """Deal `rows` out to units, none more than it has: evenly to the first 64, the rest wherever there is."""
    dealt = np.minimum(sizes, -(-rows // UNITS))
    missing = min(rows, int(sizes.sum())) - int(np.minimum(np.cumsum(dealt), rows)[-1] if len(sizes) else 0)
    dealt = np.diff(np.minimum(np.cumsum(dealt), rows), prepend=0)
    spare = np.minimum(np.cumsum(sizes - dealt), missing)
    return dealt + np.diff(spare, prepend=0)


def _read(unit: Mapping[str, Any], storage: Storage) -> np.ndarray:
    data = storage.read(code_path(code_file(unit)))
    codes = pq.read_table(pa.BufferReader(data), columns=["code"])["code"]
    return code_matrix(codes, codes.type.byte_width)


def _draw(codes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return codes[np.sort(rng.choice(len(codes), min(count, len(codes)), replace=False))]
