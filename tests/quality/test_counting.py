"""The compiled counts and ranks against the sorting of numpy, at the edges of blocks, words and key types."""

import importlib
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.quality import counting, metrics
from pipeline.quality.counting import count, rank, rank_nearest
from pipeline.quality.metrics import average_precision, count_by_distance, stable_average_precision

pytest.importorskip("numba", reason="numba is not installed (extra `fast`)")
kernels = importlib.import_module("pipeline.quality.kernels")

Case = tuple[list[counting.Direction], dict[str, np.ndarray]]
LENGTHS = st.sampled_from([8, 16, 64, 72, 120, 128, 136])
EDGES = (1, 3, 4, 5, 63, 64, 65, kernels.BLOCK - 1, kernels.BLOCK, kernels.BLOCK + 1, 2 * kernels.BLOCK + 7)


def make_case(seed: int, rows: int, *, queries: int = 3, bits: int = 64, words: int = 1) -> Case:
    """Return codes of few clusters, so that many tie, and label sets of which some are empty."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 256, (4, bits // 8), np.uint8)

    def codes(count: int) -> np.ndarray:
        noise = rng.integers(0, 256, (2, count, bits // 8), np.uint8)
        return centres[rng.integers(0, 4, count)] ^ (
            noise[0] & noise[1] & rng.integers(0, 2, (count, 1), np.uint8) * 255
        )

    directions = [(codes(queries), codes(rows)) for _ in range(2)]
    sets = [rng.integers(0, 2**20, (n, words)) & rng.integers(0, 2**20, (n, words)) for n in (queries, rows)]
    return directions, {
        "query_labels": (sets[0] & (1 << rng.integers(0, 20, sets[0].shape))).astype(np.uint64),
        "retrieval_labels": sets[1].astype(np.uint64),
    }


def check(case: Case, cuts: list[int], threads: int) -> None:
    directions, labels = case
    counted = count(directions, labels, threads=threads)
    ranked = rank(directions, labels, cuts=cuts, threads=threads)
    for direction, counts, own in zip(directions, counted, ranked, strict=True):
        expected = count_by_distance(*direction, **labels)
        for found in (counts, own.counts):
            assert np.array_equal(found.total, expected.total)
            assert np.array_equal(found.relevant, expected.relevant)
        for k, stable in zip(cuts, own.stable, strict=True):
            assert np.allclose(
                stable, stable_average_precision(*direction, **labels, k=k), rtol=1e-13, atol=0
            )
    for k in cuts:
        for direction, own in zip(directions, rank_nearest(directions, labels, k=k), strict=True):
            exact = average_precision(count_by_distance(*direction, **labels), k=k)
            mine = average_precision(own.counts, k=k)
            assert np.array_equal(mine.expected, exact.expected)
            assert np.array_equal(mine.lowest, exact.lowest)
            assert np.array_equal(mine.highest, exact.highest)
            stable = stable_average_precision(*direction, **labels, k=k)
            assert np.allclose(own.stable[0], stable, rtol=1e-13, atol=0)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 300),
    bits=LENGTHS,
    words=st.integers(1, 3),
    threads=st.integers(1, 2),
    data=st.data(),
)
def test_counts_and_ranks_are_those_of_sorting(
    seed: int, rows: int, bits: int, words: int, threads: int, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(1, rows), min_size=1, max_size=3))
    check(make_case(seed, rows, bits=bits, words=words), cuts, threads)


@pytest.mark.parametrize("rows", EDGES)
def test_counts_and_ranks_are_those_of_sorting_at_the_edges_of_blocks(rows: int) -> None:
    check(make_case(rows, rows, queries=2), [1, min(50, rows), rows], threads=1)


def test_more_queries_than_one_task_takes_keep_their_places() -> None:
    check(make_case(1, 40, queries=2 * counting.CHUNK + 1), [7, 40], threads=2)


@pytest.fixture
def without_numba() -> Iterator[None]:
    with mock.patch.object(counting, "_kernels", lambda: None):
        yield


@pytest.mark.usefixtures("without_numba")
def test_the_fallback_gives_the_same_answers() -> None:
    check(make_case(2, 90), [1, 50, 90], threads=1)


def test_codes_of_different_lengths_and_cuts_out_of_range_are_refused() -> None:
    directions, labels = make_case(3, 20)
    short = [(directions[0][0][:, :4], directions[0][1])]
    with pytest.raises(ValueError, match="codes must have equal length, got 32 and 64 bits"):
        count(short, labels)
    with pytest.raises(ValueError, match="k must be within 1 and the 20 retrieval rows, got 21"):
        rank(directions, labels, cuts=[21])
    with pytest.raises(ValueError, match="k must be within 1 and the 20 retrieval rows, got 0"):
        rank_nearest(directions, labels, k=0)
    with pytest.raises(ValueError, match="3 codes but 2 label sets"):
        count(directions, labels | {"query_labels": labels["query_labels"][:2]})


def test_recall_of_an_approximate_search_takes_a_tied_row_for_a_hit() -> None:
    exact = np.array([[1, 2, 2], [0, 0, 5]])
    assert metrics.ann_recall(exact[:, ::-1], exact) == 1
    assert metrics.ann_recall(np.array([[1, 2, 3], [0, 5, -1]]), exact) == pytest.approx(4 / 6)
    with pytest.raises(ValueError, match="nearer than the exact answer"):
        metrics.ann_recall(np.array([[0, 2, 2], [0, 0, 5]]), exact)
    with pytest.raises(ValueError, match=r"\(Q, k\) alike"):
        metrics.ann_recall(exact[:, :2], exact)
