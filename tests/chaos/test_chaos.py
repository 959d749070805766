"""The short form: a few points of a small night, drawn by a seed; `make chaos` runs them all."""

import os
import random

import pytest

from tests.chaos.__main__ import enumerated
from tests.chaos.points import faults, leases, steps
from tests.chaos.trial import run_trial
from tests.chaos.world import World
from tests.proxy import KINDS

POINTS = 3
SEED = int(os.environ.get("TEST_CHAOS_SEED", "20"))


@pytest.mark.slow
def test_a_night_disturbed_at_any_point_and_run_again_ends_as_if_undisturbed(world: World) -> None:
    points = enumerated(world)
    assert len(points) >= 40
    chosen = random.Random(SEED).sample(points, POINTS)
    print(f"seed {SEED}: {[point.name for point in chosen]}")
    wrong = {}
    for number, point in enumerate(chosen):
        outcome = run_trial(world, point, f"trial-{number}")
        assert outcome.looks > 0
        if outcome.wrong:
            wrong[point.name] = outcome.wrong
    assert not wrong


SEEN = [
    "GET /b/w/calm/store.json",
    "GET /b?list-type=2&prefix=w%2Fsource-2%2F&encoding-type=url",
    "PUT /b/w/calm/heads/.probe-0123456789abcdef",
    "PUT /b/w/calm/heads/.probe-0123456789abcdef",
    "DELETE /b/w/calm/heads/.probe-0123456789abcdef",
    "PUT /b/w/calm/codes/0123456789abcdef0123456789abcdef.parquet",
]


def test_every_write_of_a_night_is_a_point_before_and_after_it() -> None:
    points = list(steps(SEEN))
    assert [point.name for point in points[2:4]] == [
        "driver killed before PUT heads/.probe (2)",
        "driver killed after PUT heads/.probe (2)",
    ]
    assert [(point.times, point.after) for point in points] == [
        (1, False), (1, True), (2, False), (2, True), (1, False), (1, True), (1, False), (1, True),
    ]  # fmt: skip


def test_every_kind_of_request_meets_faults_and_every_fault_some_request() -> None:
    points = list(faults([f"{verb} /b/w/calm/{n}/x" for n in range(6) for verb in ("GET", "PUT")]))
    assert len(points) == 12 * 3
    assert {point.fault for point in points} == set(KINDS)
    assert sum(point.lasting for point in points) == 12
    assert len({point.name for point in leases()}) == len(list(leases()))
