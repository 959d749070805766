"""Exact search on a GPU, where FAISS has one: candidates come from there, the cut is finished here.

The codes of a part are copied to the device the first time it is searched and stay there as long as the part
is open. Which of the tied rows a GPU returns is not relied on.
"""

import logging
from functools import cache
from typing import Any

import faiss
import numpy as np

from pipeline.search.parts import Part

MOST_HITS = 2048
"""FAISS's GPU indexes return no more."""

_LOG = logging.getLogger(__name__)


@cache
def is_there() -> bool:
    """Tell whether this process can search on a GPU."""
    return hasattr(faiss, "GpuIndexBinaryFlat") and faiss.get_num_gpus() > 0


@cache
def _resources() -> Any:
    return faiss.StandardGpuResources()


def holds(part: Part) -> bool:
    """Copy the codes of a flat part to the GPU, if they are not there yet; False if they do not fit."""
    if part.flat is None:
        return False
    if "on_gpu" not in part.__dict__:
        try:
            part.__dict__["on_gpu"] = faiss.GpuIndexBinaryFlat(_resources(), part.flat)
        except RuntimeError as error:
            _LOG.warning("%d codes do not fit on the GPU and are searched on the CPU: %s", part.rows, error)
            part.__dict__["on_gpu"] = None
    return part.__dict__["on_gpu"] is not None


def fetch(part: Part, codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the (Q, n) distances and rows of the nearest codes of a part that the GPU holds."""
    distances, rows = part.__dict__["on_gpu"].search(codes, n)
    return distances, rows
