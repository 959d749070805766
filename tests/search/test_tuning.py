"""Choosing an index: what is measured, and that the choice is the one that was asked for."""

import numpy as np
import pytest

from pipeline.search.tuning import Targets, Trial, candidates, choose, draw_sample, measure, table_lines

TRIALS = [
    Trial("BFlat", "", recall=1.0, ms=9.0, bytes_per_code=8.0, build_seconds=0.1),
    Trial("BIVF64", "nprobe=1", recall=0.6, ms=0.1, bytes_per_code=16.0, build_seconds=1.0),
    Trial("BIVF64", "nprobe=8", recall=0.96, ms=0.5, bytes_per_code=16.0, build_seconds=1.0),
    Trial("BIVF64", "nprobe=16", recall=0.99, ms=1.0, bytes_per_code=16.0, build_seconds=1.0),
]


def test_the_fastest_that_reaches_the_recall_is_chosen() -> None:
    assert choose(TRIALS, Targets(0.95), rows=10) is TRIALS[2]
    assert choose(TRIALS, Targets(0.97), rows=10) is TRIALS[3]
    assert choose(TRIALS, Targets(0.995), rows=10) is TRIALS[0]
    assert choose(TRIALS[1:3], Targets(0.995), rows=10) is TRIALS[2]  # the best there is


def test_a_time_asks_for_the_best_recall_within_it_and_bytes_bound_both() -> None:
    assert choose(TRIALS, Targets(0.95, ms=2.0), rows=10) is TRIALS[3]
    assert choose(TRIALS, Targets(0.95, ms=0.2), rows=10) is TRIALS[1]
    assert choose(TRIALS, Targets(0.95, ms=2.0), rows=30, measured=10) is TRIALS[2]
    assert choose(TRIALS, Targets(0.5, bytes=100), rows=10) is TRIALS[0]
    with pytest.raises(ValueError, match=r"index.target_ms is 0.01, the fastest search takes 0.1 ms"):
        choose(TRIALS, Targets(0.5, ms=0.01), rows=10)
    with pytest.raises(
        ValueError, match=r"index.target_bytes is 79, the smallest index of 10 codes takes 80"
    ):
        choose(TRIALS, Targets(0.5, bytes=79), rows=10)


def test_what_is_measured_is_what_the_codes_at_hand_can_train() -> None:
    assert candidates(1_000_000, 1_000_000, 64) == ["BFlat", "BIVF1024", "BIVF4096", "BHash3x20"]
    assert candidates(1_000_000, 50_000, 16) == ["BFlat", "BIVF1024"]
    assert candidates(10, 10, 8) == ["BFlat"]


def test_queries_come_from_the_other_side_or_are_taken_out_of_what_is_indexed() -> None:
    rng = np.random.default_rng(0)
    codes, others = (rng.integers(0, 256, (600, 8), dtype=np.uint8) for _ in range(2))
    asked = draw_sample(codes, others, rows=600, seed=1)
    assert asked.codes is codes
    assert {code.tobytes() for code in asked.queries} <= {code.tobytes() for code in others}
    alone = draw_sample(codes, others[:0], rows=600, seed=1)
    assert (len(alone.codes), len(alone.queries)) == (344, 256)
    assert not {code.tobytes() for code in alone.queries} & {code.tobytes() for code in alone.codes}


def test_the_table_says_what_a_search_would_find() -> None:
    rng = np.random.default_rng(1)
    centres = rng.integers(0, 256, (40, 4), dtype=np.uint8)
    codes, others = (
        centres[rng.integers(0, 40, 4000)] ^ (1 << rng.integers(0, 12, (4000, 4))).astype(np.uint8)
        for _ in range(2)
    )
    trials = measure(
        draw_sample(codes, others, rows=4000, seed=0), ["BFlat", "BIVF16", "BHNSW8", "BHash2x8"], seed=0
    )
    by_recipe = {
        recipe: [trial for trial in trials if trial.recipe == recipe] for recipe in ("BFlat", "BIVF16")
    }
    assert [trial.recall for trial in by_recipe["BFlat"]] == [1.0]
    recalls = [trial.recall for trial in by_recipe["BIVF16"]]
    assert recalls == sorted(recalls)
    assert recalls[-1] > 0.5
    assert all(trial.ms > 0 and trial.bytes_per_code >= 4 for trial in trials)
    assert {trial.recipe for trial in trials} == {"BFlat", "BIVF16", "BHNSW8", "BHash2x8"}
    lines = table_lines(trials, trials[0])
    assert len(lines) == 1 + len(trials)
    assert lines[1].endswith("<- chosen")
