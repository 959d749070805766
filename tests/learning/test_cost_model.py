"""The cost model of a training step, against sums written out by hand."""

import pytest

from benchmarks.train_model import Factors, largest, seconds, step, table

FACTORS = Factors(row=1.0, fixed=10.0, pair=0.5, row_bytes=8.0, hop=0.25, link=4.0, parameters=6.0, calls=3)


def test_one_rank_talks_to_nobody() -> None:
    assert step(FACTORS, 1, 4) == {"networks": 14.0, "loss": 8.0, "gather": 0.0, "gradients": 0.0}


def test_four_ranks_cost_what_the_formulas_say() -> None:
    # Rows of the three others arrive, and hops double twice; the average goes twice round the ring.
    expected = {"networks": 12.0, "loss": 8.0, "gather": 3 * 2 * 0.25 + 3 * 2 * 8 / 4, "gradients": 1.0 + 9.0}
    assert step(FACTORS, 4, 2) == pytest.approx(expected)
    assert seconds(FACTORS, 4, 2) == pytest.approx(sum(expected.values()))


def test_a_part_overtakes_the_networks_at_the_size_that_is_named() -> None:
    ranks = largest(FACTORS, 4, "loss")
    assert step(FACTORS, ranks, 4)["loss"] > 14 >= step(FACTORS, ranks // 2, 4)["loss"]
    assert [line["ranks"] for line in table(FACTORS, 4, (2, 4))] == [2, 4]
