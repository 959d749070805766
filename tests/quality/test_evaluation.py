"""Both directions, the order that resolves ties, and the protocol that stands beside the numbers."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.quality.evaluation import CUT, CodedPairs, data_digest, evaluate_codes
from tests import reference


def draw_pairs(seed: int, rows: int, *, prefix: str, bits: int = 16) -> CodedPairs:
    rng = np.random.default_rng(seed)
    return CodedPairs(
        keys=[f"{prefix}{row}" for row in range(rows)],
        ids=rng.integers(0, 1 << 62, rows),
        labels=[rng.choice(6, rng.integers(1, 4), replace=False) for _ in range(rows)],
        codes={side: rng.integers(0, 256, (rows, bits // 8), dtype=np.uint8) for side in ("image", "text")},
    )


def test_each_direction_ranks_the_codes_of_the_other_side_and_the_stable_order_is_by_id() -> None:
    query, retrieval = draw_pairs(1, 7, prefix="q"), draw_pairs(2, 120, prefix="r")
    result = evaluate_codes(query, retrieval)
    order = np.argsort(retrieval.ids)
    for direction, asked, found in (("i2t", "image", "text"), ("t2i", "text", "image")):
        distances = reference.hamming(query.codes[asked], retrieval.codes[found][order])
        for name, k in (("map", 120), ("map50", CUT)):
            values = []
            for labels, row in zip(query.labels, distances, strict=True):
                ranked = sorted(range(120), key=lambda n, row=row: row[n])
                hits = [bool(set(labels) & set(retrieval.labels[order[n]])) for n in ranked]
                values.append(float(reference.average_precision(hits, k)))
            ties = result.ties[f"{name}_{direction}"]
            assert ties["stable"] == pytest.approx(np.mean(values), abs=1e-12)
            assert ties["lowest"] <= result.metrics[f"{name}_{direction}"] <= ties["highest"]


def test_the_order_of_the_retrieval_rows_changes_nothing() -> None:
    query, retrieval = draw_pairs(1, 7, prefix="q", bits=8), draw_pairs(2, 60, prefix="r", bits=8)
    order = np.random.default_rng(3).permutation(60)
    shuffled = CodedPairs(
        keys=[retrieval.keys[row] for row in order],
        ids=retrieval.ids[order],
        labels=[retrieval.labels[row] for row in order],
        codes={side: codes[order] for side, codes in retrieval.codes.items()},
    )
    assert evaluate_codes(query, shuffled) == evaluate_codes(query, retrieval)


def test_perfect_codes_reach_1_and_the_protocol_says_what_was_measured() -> None:
    codes = np.array([[0], [255], [0], [255]], np.uint8)
    labels = [[0], [1], [0], [1]]
    sides = {"image": codes, "text": codes}
    query = CodedPairs(["a", "b", "c", "d"], np.arange(4), labels, sides)
    retrieval = CodedPairs(["e", "f", "g", "h"], np.arange(4), labels, sides)
    result = evaluate_codes(query, retrieval)
    assert set(result.metrics) == {"map_i2t", "map_t2i", "map50_i2t", "map50_t2i"}
    assert set(result.metrics.values()) == {1.0}
    assert (result.protocol.queries, result.protocol.retrieval_rows) == (4, 4)
    assert result.protocol.code_length == 8
    assert result.protocol.query_digest != result.protocol.retrieval_digest


def test_a_query_in_its_own_retrieval_set_is_refused_unless_asked_for() -> None:
    pairs = draw_pairs(1, 5, prefix="q")
    with pytest.raises(ValueError, match="5 of 5 queries are in the retrieval set, 'q0' first"):
        evaluate_codes(pairs, pairs)
    assert evaluate_codes(pairs, pairs, allow_overlap=True).protocol.queries_in_retrieval_set == 5


def test_an_empty_set_is_refused() -> None:
    empty = CodedPairs([], np.empty(0, np.int64), [], {side: np.empty((0, 2), np.uint8) for side in "it"})
    with pytest.raises(ValueError, match="got 0 queries and 5 retrieval rows"):
        evaluate_codes(empty, draw_pairs(1, 5, prefix="r"))


def test_the_data_digest_follows_keys_and_labels_not_codes_or_order() -> None:
    pairs = draw_pairs(1, 5, prefix="q")
    assert data_digest(pairs) == data_digest(replace(pairs, codes={}))
    assert data_digest(pairs) == data_digest(replace(pairs, labels=[row[::-1] for row in pairs.labels]))
    assert data_digest(pairs) != data_digest(replace(pairs, keys=["x", *pairs.keys[1:]]))
    assert data_digest(pairs) != data_digest(replace(pairs, labels=[[5], [4], [3], [2], [1]]))
