"""Exact search by a GPU's candidates: the ties are ours, whichever rows the device prefers."""

import numpy as np
import pytest

from pipeline.search import fallback, gpu, scan
from pipeline.search.parts import Part
from tests import reference
from tests.search.layouts import Rows, hits, lay_out


def prefers_high_rows(part: Part, codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest rows, of tied ones the last: no order that a scan relies on."""
    distances, rows = part.flat.search(codes, part.rows)
    order = np.lexsort((-rows, distances), axis=1)[:, :n]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(rows, order, axis=1)


def corpus() -> tuple[Rows, np.ndarray]:
    rng = np.random.default_rng(4)
    return Rows.of(rng.integers(0, 3, (400, 2), dtype=np.uint8)), rng.integers(0, 3, (7, 2), dtype=np.uint8)


@pytest.mark.parametrize("k", [1, 30, 400])
def test_the_cut_is_right_whichever_of_the_tied_rows_are_found(k: int) -> None:
    rows, queries = corpus()
    wanted = reference.search(queries, rows.codes, ids=rows.ids, keys=rows.keys, k=k)
    for parts in (1, 5):
        laid_out = lay_out(rows, parts=parts, seed=1)
        assert hits(laid_out, fallback.nearest(laid_out, queries, k, fetch=prefers_high_rows)) == wanted


@pytest.mark.gpu
@pytest.mark.skipif(not gpu.is_there(), reason="needs a GPU and the package faiss-gpu")
@pytest.mark.parametrize("k", [1, 30, 400])
def test_a_gpu_answers_as_the_cpu_does(k: int) -> None:
    rows, queries = corpus()
    wanted = reference.search(queries, rows.codes, ids=rows.ids, keys=rows.keys, k=k)
    laid_out = lay_out(rows, parts=3, seed=1)
    assert all(map(gpu.holds, laid_out))
    assert hits(laid_out, scan.nearest(laid_out, queries, k)) == wanted
