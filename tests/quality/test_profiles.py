"""Curves, bits and the ranking by relaxed codes, against plain loops."""

import numpy as np
import pytest

from pipeline.codes import pack
from pipeline.quality.evaluation import DIRECTIONS, CodedPairs, evaluate_codes
from pipeline.quality.profiles import (
    evaluate_relaxed,
    measure_curves,
    pair_distances,
    profile_bits,
    rank_steps,
)
from tests import reference
from tests.quality.test_evaluation import draw_pairs


def relevance(query: CodedPairs, retrieval: CodedPairs) -> np.ndarray:
    return np.array([[bool(set(a) & set(b)) for b in retrieval.labels] for a in query.labels])


def test_curves_equal_what_a_loop_over_queries_counts() -> None:
    query, retrieval = draw_pairs(1, 9, prefix="q"), draw_pairs(2, 57, prefix="r")
    relevant = relevance(query, retrieval)
    curves = measure_curves(query, retrieval)
    for direction, (asked, found) in DIRECTIONS.items():
        distances = reference.hamming(query.codes[asked], retrieval.codes[found])
        curve = curves[direction]
        assert curve.chance == pytest.approx(relevant.mean())
        assert curve.related.tolist() == pytest.approx(
            [np.mean(distances[relevant] == distance) for distance in range(17)]
        )
        assert curve.unrelated.tolist() == pytest.approx(
            [np.mean(distances[~relevant] == distance) for distance in range(17)]
        )
        for radius in range(17):
            inside = distances <= radius
            hits = (inside & relevant).sum(axis=1)
            precision = np.mean(hits / np.maximum(inside.sum(axis=1), 1))
            assert curve.precision[radius] == pytest.approx(precision)
            assert curve.recall[radius] == pytest.approx(np.mean(hits / np.maximum(relevant.sum(axis=1), 1)))
        assert curve.ranks[-1] == 57
        assert curve.precision_at[-1] == pytest.approx(curve.chance)


def test_the_sides_of_a_pair_are_compared_row_by_row() -> None:
    pairs = draw_pairs(1, 9, prefix="q")
    every = reference.hamming(pairs.codes["image"], pairs.codes["text"])
    assert pair_distances(pairs).tolist() == np.diag(every).tolist()


@pytest.mark.parametrize(
    ("rows", "steps"), [(1, [1]), (2, [1, 2]), (10, [1, 2, 5, 10]), (11, [1, 2, 5, 10, 11])]
)
def test_rank_steps_end_at_the_number_of_rows(rows: int, steps: list[int]) -> None:
    assert rank_steps(rows).tolist() == steps


def test_bits_that_agree_differ_or_never_change_are_told_apart() -> None:
    first = np.array([1, 1, -1, -1])
    bits = np.stack([first, first, -first, np.ones(4), *[[1, -1, 1, -1]] * 4], axis=1)
    profile = profile_bits(pack(bits))
    assert profile.ones.tolist() == [0.5, 0.5, 0.5, 1.0, 0.5, 0.5, 0.5, 0.5]
    assert profile.correlation[0, :4].tolist() == pytest.approx([1, 1, -1, 0])
    assert profile.correlation[0, 4] == pytest.approx(0)
    assert profile.sharing == 0
    assert profile_bits(np.array([[1], [2], [1], [1]], np.uint8)).sharing == 3


def test_relaxed_codes_are_ranked_by_cosine() -> None:
    query, retrieval = draw_pairs(1, 5, prefix="q"), draw_pairs(2, 40, prefix="r")
    rng = np.random.default_rng(3)
    floats = [{side: rng.standard_normal((rows, 8)) for side in ("image", "text")} for rows in (5, 40)]
    asked_by = CodedPairs(query.keys, query.ids, query.labels, floats[0])
    found_in = CodedPairs(retrieval.keys, retrieval.ids, retrieval.labels, floats[1])
    relevant = relevance(query, retrieval)
    values = evaluate_relaxed(asked_by, found_in, ks=(None, 10))
    for direction, (asked, found) in DIRECTIONS.items():
        expected: dict[int, list[float]] = {40: [], 10: []}
        for row, hits in zip(floats[0][asked], relevant, strict=True):
            cosine = [row @ other / np.linalg.norm(other) for other in floats[1][found]]
            ranked = [bool(hits[n]) for n in sorted(range(40), key=lambda n, by=cosine: -by[n])]
            for k, found_values in expected.items():
                found_values.append(float(reference.average_precision(ranked, k)))
        assert values[direction] == pytest.approx([np.mean(expected[40]), np.mean(expected[10])])


def test_codes_ranked_as_floats_score_within_what_their_ties_allow() -> None:
    query, retrieval = draw_pairs(1, 6, prefix="q"), draw_pairs(2, 50, prefix="r")
    bounds = evaluate_codes(query, retrieval).ties
    signs = [
        CodedPairs(
            pairs.keys,
            pairs.ids,
            pairs.labels,
            {side: np.unpackbits(codes, axis=1) * 2.0 - 1 for side, codes in pairs.codes.items()},
        )
        for pairs in (query, retrieval)
    ]
    for direction, (value,) in evaluate_relaxed(*signs).items():
        assert bounds[f"map_{direction}"]["lowest"] <= value <= bounds[f"map_{direction}"]["highest"]
