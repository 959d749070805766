"""Average precision with ties against the enumeration of all tie orders; curves and bit health by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codes import pack
from pipeline.quality import metrics
from pipeline.quality.metrics import (
    DistanceCounts,
    ann_recall,
    average_precision,
    bit_health,
    count_by_distance,
    pack_labels,
    precision_at,
    precision_recall_by_radius,
    shares_label,
    stable_average_precision,
)
from tests import reference

ranked_lists = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6)


def counts_of(distances: list[int], relevant: list[bool]) -> DistanceCounts:
    total = np.bincount(distances, minlength=9)[None]
    return DistanceCounts(total, np.bincount(distances, weights=relevant, minlength=9).astype(int)[None])


def draw_sets(seed: int, *, queries: int, rows: int, bits: int, classes: int) -> dict[str, np.ndarray]:
    """Return codes and packed labels of two sets; few bits make many ties."""
    rng = np.random.default_rng(seed)
    known = np.arange(classes)
    sets = {}
    for name, n in (("query", queries), ("retrieval", rows)):
        sets[name] = rng.integers(0, 256, (n, bits // 8), dtype=np.uint8)
        drawn = [rng.choice(classes, rng.integers(0, 4), replace=False) for _ in range(n)]
        sets[f"{name}_labels"] = pack_labels(drawn, classes=known)
    return sets


@given(rows=ranked_lists, cut=st.integers(0, 5))
def test_mean_lowest_and_highest_equal_those_of_all_tie_orders(rows: list, cut: int) -> None:
    distances, relevant = [row[0] for row in rows], [row[1] for row in rows]
    k = min(cut + 1, len(rows))
    lowest, mean, highest = reference.average_precision_over_ties(distances, relevant, k)
    ours = average_precision(counts_of(distances, relevant), k=k)
    assert ours.expected[0] == pytest.approx(float(mean), abs=1e-14)
    assert ours.lowest[0] == pytest.approx(float(lowest), abs=1e-14)
    assert ours.highest[0] == pytest.approx(float(highest), abs=1e-14)


@given(rows=ranked_lists)
def test_no_cut_is_the_same_as_a_cut_after_the_last_row(rows: list) -> None:
    counts = counts_of([row[0] for row in rows], [row[1] for row in rows])
    everything, cut = average_precision(counts), average_precision(counts, k=len(rows))
    assert everything.expected == cut.expected
    assert everything.lowest <= everything.expected + 1e-15
    assert everything.expected <= everything.highest + 1e-15


def test_an_expectation_over_a_million_tied_rows_keeps_its_digits() -> None:
    """All rows tied: the expected precision at each relevant rank has a closed form by hand."""
    n, r = 10**6, 3
    counts = DistanceCounts(np.array([[n, 0]]), np.array([[r, 0]]))
    ranks = np.arange(1, n + 1, dtype=np.longdouble)
    by_hand = ((1 + (ranks - 1) * (r - 1) / (n - 1)) / ranks).sum() / n
    assert average_precision(counts).expected[0] == pytest.approx(float(by_hand), rel=1e-13)


def test_a_cut_inside_a_large_tied_group_equals_the_sum_over_the_hypergeometric() -> None:
    from math import comb

    n, r, k = 400, 90, 50
    mean = 0.0
    for hits in range(k + 1):
        chance = comb(r, hits) * comb(n - r, k - hits) / comb(n, k)
        ranks = np.arange(k)
        precisions = (1 + ranks * (hits - 1) / (k - 1)) / (ranks + 1)
        mean += chance * (hits / k * precisions.sum() / max(hits, 1))
    counts = DistanceCounts(np.array([[n, 600]]), np.array([[r, 5]]))
    assert average_precision(counts, k=k).expected[0] == pytest.approx(mean, rel=1e-13)


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 18])
def test_counts_equal_a_loop_over_pairs_whatever_the_block(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "BLOCK", block)
    sets = draw_sets(3, queries=5, rows=21, bits=16, classes=70)
    counts = count_by_distance(**sets)
    distances = reference.hamming(sets["query"], sets["retrieval"])
    relevant = shares_label(sets["query_labels"], sets["retrieval_labels"])
    for query in range(5):
        for distance in range(17):
            at = distances[query] == distance
            assert counts.total[query, distance] == at.sum()
            assert counts.relevant[query, distance] == (at & relevant[query]).sum()


@pytest.mark.parametrize("k", [1, 10, 20, 21, None])
def test_stable_order_equals_a_stable_sort_and_lies_between_lowest_and_highest(k: int | None) -> None:
    sets = draw_sets(4, queries=8, rows=21, bits=8, classes=5)
    stable = stable_average_precision(**sets, k=k)
    distances = reference.hamming(sets["query"], sets["retrieval"])
    relevant = shares_label(sets["query_labels"], sets["retrieval_labels"])
    for query in range(8):
        order = sorted(range(21), key=lambda row, query=query: distances[query][row])
        by_hand = reference.average_precision([bool(relevant[query, row]) for row in order], k or 21)
        assert stable[query] == pytest.approx(float(by_hand), abs=1e-14)
    over_ties = average_precision(count_by_distance(**sets), k=k)
    assert (over_ties.lowest <= stable + 1e-14).all()
    assert (stable <= over_ties.highest + 1e-14).all()


def test_a_query_without_relevant_rows_counts_as_0() -> None:
    counts = DistanceCounts(np.array([[2, 3], [2, 3]]), np.array([[0, 0], [2, 0]]))
    assert average_precision(counts).expected.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("classes", [1, 63, 64, 65, 130])
def test_rows_are_relevant_when_they_share_a_label_across_word_limits(classes: int) -> None:
    rng = np.random.default_rng(classes)
    drawn = [set(rng.integers(0, classes, rng.integers(0, 4)).tolist()) for _ in range(30)]
    bits = pack_labels([sorted(row) for row in drawn], classes=np.arange(classes))
    assert bits.shape == (30, -(-classes // 64))
    assert shares_label(bits, bits).tolist() == [[bool(a & b) for b in drawn] for a in drawn]


def test_labels_are_looked_up_among_the_classes_not_used_as_numbers() -> None:
    classes = np.array([-3, 7, 10**9])
    bits = pack_labels([[10**9], [], [-3, 7]], classes=classes)
    assert bits.tolist() == [[4], [0], [3]]
    with pytest.raises(ValueError, match="among the 3 classes"):
        pack_labels([[8]], classes=classes)


def test_topn_precision_counts_a_cut_group_by_its_share() -> None:
    counts = DistanceCounts(np.array([[1, 4, 5]]), np.array([[1, 2, 0]]))
    assert precision_at(counts, [1, 3, 10]).tolist() == pytest.approx([1.0, 2 / 3, 0.3])


def test_precision_and_recall_within_a_radius_include_its_end() -> None:
    counts = DistanceCounts(np.array([[0, 4, 4], [2, 0, 6]]), np.array([[0, 1, 1], [1, 0, 0]]))
    precision, recall = precision_recall_by_radius(counts)
    assert precision.tolist() == [0.25, (0.25 + 0.5) / 2, (0.25 + 0.125) / 2]
    assert recall.tolist() == [0.5, 0.75, 1.0]


def test_bit_health_names_dead_bits_imbalance_and_collisions() -> None:
    values = np.ones((4, 8))
    values[:2, 0] = -1  # balanced
    values[0, 1] = -1  # three to one
    health = bit_health(pack(values))
    assert health["dead_bits"] == 6
    assert health["balance"] == pytest.approx((0 + 0.5 + 6) / 8)
    assert health["worst_balance"] == 1
    assert health["entropy"] == pytest.approx((1 + 0.811278) / 8, abs=1e-6)
    assert (health["distinct_codes"], health["collisions"]) == (3, 0.25)


@pytest.mark.parametrize("k", [0, 22])
def test_a_cut_outside_the_retrieval_set_is_refused(k: int) -> None:
    sets = draw_sets(1, queries=2, rows=21, bits=8, classes=4)
    with pytest.raises(ValueError, match=f"k must be within 1 and the 21 retrieval rows, got {k}"):
        average_precision(count_by_distance(**sets), k=k)
    with pytest.raises(ValueError, match=f"k must be within 1 and the 21 retrieval rows, got {k}"):
        stable_average_precision(**sets, k=k)


def test_sets_that_do_not_fit_together_are_refused() -> None:
    sets = draw_sets(1, queries=2, rows=9, bits=8, classes=4)
    with pytest.raises(ValueError, match="query set: 2 codes but 1 label sets"):
        count_by_distance(**sets | {"query_labels": sets["query_labels"][:1]})
    with pytest.raises(ValueError, match="equal length, got 16 and 8 bits"):
        count_by_distance(**sets | {"query": np.zeros((2, 2), np.uint8)})
    with pytest.raises(ValueError, match="0 queries"):
        count_by_distance(**sets | {"query": sets["query"][:0], "query_labels": sets["query_labels"][:0]})


def test_a_row_beyond_the_last_hit_is_missed_whatever_kind_of_number_distances_are() -> None:
    exact = np.array([[0, 1], [2, 2]])
    for kind in (np.int32, np.int64):
        assert ann_recall(np.array([[0, 5], [2, 2]], kind), exact.astype(kind)) == 0.75
