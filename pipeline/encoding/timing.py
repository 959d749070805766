"""How fast a network encodes, for estimates before a long run."""

import time
from typing import Any

import torch

from cmh_models.method import HashMethod
from pipeline.corpus.schema import Side
from pipeline.encoding.encoder import TILE, encode_side


def seconds_per_row(method: HashMethod, side: Side, values: Any, *, tile: int = TILE) -> float:
    """Encode decoded values of one side, on one core or on the GPU where the method is.

    Args:
        values: as `encode_side` takes them; at least one row, and better several tiles.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as encoders run: one core each
    try:
        encode_side(method, side, values[:1], tile=tile)  # the first pass sets things up
        started = time.perf_counter()
        encode_side(method, side, values, tile=tile)
        return (time.perf_counter() - started) / len(values)
    finally:
        torch.set_num_threads(threads)
