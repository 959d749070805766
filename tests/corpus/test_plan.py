"""The epoch plan: every row once, the same order for every number of ranks, and a tail for every step."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.plan import EpochPlan

plans = st.builds(
    lambda counts, seed, epoch, share, mix, rows: (
        counts,
        {
            "seed": seed,
            "epoch": epoch,
            "global_batch_size": 12 * share,
            "mix_chunks": mix,
            "mix_rows": rows,
        },
    ),
    st.lists(st.integers(1, 40), min_size=0, max_size=20),
    st.integers(-5, 2**63),
    st.integers(0, 9),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from([0, 1, 50, 5000]),
)


def order(plan: EpochPlan, first_step: int = 0, **ranks: int) -> np.ndarray:
    windows = list(plan.windows(first_step, **ranks))
    return np.concatenate(windows) if windows else np.empty(0, dtype=np.int64)


@given(plans)
def test_a_row_comes_at_most_once_and_only_the_last_partial_batch_is_left_out(drawn: tuple) -> None:
    counts, settings = drawn
    plan = EpochPlan(counts, **settings)
    rows = order(plan)
    assert len(np.unique(rows)) == len(rows) == sum(counts) // settings["global_batch_size"] * plan._batch
    assert rows.size == 0 or (rows.min() >= 0 and rows.max() < sum(counts))


@given(plans, st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_the_global_batches_do_not_depend_on_the_number_of_ranks(drawn: tuple, ranks: int) -> None:
    counts, settings = drawn
    plan = EpochPlan(counts, **settings)
    share = settings["global_batch_size"] // ranks
    parts = [order(plan, rank=rank, ranks=ranks).reshape(-1, share) for rank in range(ranks)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1).ravel(), order(plan))


@given(plans, st.integers(0, 30))
def test_a_run_that_starts_at_a_step_gets_the_tail_of_the_plan(drawn: tuple, step: int) -> None:
    counts, settings = drawn
    plan = EpochPlan(counts, **settings)
    tail = order(plan)[step * settings["global_batch_size"] :]
    np.testing.assert_array_equal(order(plan, step), tail)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        order(EpochPlan([50] * 40, seed=seed, epoch=epoch, global_batch_size=64)).tobytes()
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_rows_of_one_window_are_mixed_over_all_its_chunks() -> None:
    rows = order(EpochPlan([100] * 8, seed=1, epoch=0, global_batch_size=80, mix_chunks=8))
    per_batch = [len(np.unique(batch // 100)) for batch in rows.reshape(-1, 80)]
    assert min(per_batch) == 8


def test_windows_of_small_chunks_hold_as_many_rows_as_those_of_large_ones() -> None:
    small = order(EpochPlan([32] * 512, seed=1, epoch=0, global_batch_size=256))
    chunks = [len(np.unique(batch // 32)) for batch in small.reshape(-1, 256)]
    assert min(chunks) > 64  # of 128 in a window; 8 chunks were one batch
    large = EpochPlan([1024] * 20, seed=1, epoch=0, global_batch_size=256)
    assert [len(rows) for rows in large.windows()] == [8192, 8192, 4096]


def test_a_source_in_the_order_of_its_classes_gives_every_batch_several() -> None:
    rows = order(EpochPlan([1024] * 64, seed=1, epoch=0, global_batch_size=256))
    pairs = [
        np.square(np.unique(batch // 1024, return_counts=True)[1]).sum() for batch in rows.reshape(-1, 256)
    ]
    same_chunk = (np.mean(pairs) - 256) / (256 * 255)
    assert abs(same_chunk - 1 / 8) < 0.002  # of a shuffle of all rows: 1 / 64
