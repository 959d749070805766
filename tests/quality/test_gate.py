"""The checks of the gate at their limits: what passes, what is refused and why, what is skipped by name."""

import numpy as np
import pytest

from pipeline.quality.gate import (
    Check,
    GateConfig,
    GateReport,
    PartSample,
    check_bits,
    check_canary,
    check_flips,
    check_recall,
    check_row_drop,
    check_self_hits,
)

LIMITS = GateConfig()


def sample(found: list[list[int]], exact: list[list[int]], own: list[bool] | None = None) -> PartSample:
    return PartSample(np.array(found), np.array(exact), np.array(own or [], bool))


def test_recall_counts_ties_and_is_weighted_by_what_was_asked() -> None:
    tied = sample([[0, 3, 3]], [[0, 3, 3]])
    assert check_recall("image", [tied], LIMITS).measured == 1
    half = sample([[1, 99], [1, 99]], [[1, 2], [1, 2]])
    both = check_recall("image", [tied, half], LIMITS)
    assert both.measured == pytest.approx((3 + 2) / (3 + 4))
    assert both.verdict == "refused"
    assert "gate.min_recall" in both.words
    exact = GateConfig(min_recall=(3 + 2) / (3 + 4))
    assert check_recall("image", [tied, half], exact).verdict == "passed"


def test_an_index_of_other_codes_is_refused_and_not_a_crash() -> None:
    check = check_recall("text", [sample([[0]], [[1]])], LIMITS)
    assert (check.verdict, "of different data" in check.words) == ("refused", True)


def test_self_hits_are_a_share_of_all_that_was_asked() -> None:
    parts = [sample([], [], [True, True]), sample([], [], [True, False])]
    check = check_self_hits("image", parts, LIMITS)
    assert (check.measured, check.verdict) == (0.75, "refused")
    assert check_self_hits("image", parts[:1], LIMITS).verdict == "passed"


def test_a_side_without_codes_is_skipped_and_says_so() -> None:
    for check in (check_recall("text", [], LIMITS), check_self_hits("text", [], LIMITS)):
        assert (check.verdict, check.words) == ("skipped", "the side has no code")
    assert check_flips("text", 0, 0, LIMITS).verdict == "skipped"


def test_collapsed_codes_are_refused_and_random_ones_pass() -> None:
    rng = np.random.default_rng(0)
    random = rng.integers(0, 256, (1000, 8), np.uint8)
    assert [check.verdict for check in check_bits("image", random, LIMITS)] == ["passed"] * 3
    collapsed = np.zeros((2000, 8), np.uint8)
    assert [check.verdict for check in check_bits("image", collapsed, LIMITS)] == ["refused"] * 3
    half = random.copy()
    half[:, :4] = 7  # exactly half of the bits are dead: at the limit
    names = {check.name: check for check in check_bits("image", half, LIMITS)}
    assert (names["dead bits, image"].measured, names["dead bits, image"].verdict) == (0.5, "passed")
    half[:, 4] &= 0x7F
    names = {check.name: check for check in check_bits("image", half, LIMITS)}
    assert names["dead bits, image"].verdict == "refused"
    (few,) = check_bits("image", collapsed[:99], LIMITS)
    assert few.verdict == "skipped"


def test_one_flipped_bit_is_refused_unless_it_is_allowed() -> None:
    assert check_flips("image", 0, 10, LIMITS).verdict == "passed"
    assert check_flips("image", 1, 10, LIMITS).verdict == "refused"
    assert check_flips("image", 1, 10, GateConfig(max_flips=1)).verdict == "passed"


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [(10, 8, "passed"), (10, 7, "refused"), (10, 12, "passed"), (10, 0, "refused"), (0, 0, "passed")],
)
def test_a_side_may_lose_a_fifth_of_its_codes(before: int, now: int, verdict: str) -> None:
    assert check_row_drop("text", before, now, LIMITS).verdict == verdict


def test_the_canary_is_judged_by_itself_and_against_the_parent() -> None:
    assert [check.verdict for check in check_canary(None, None, LIMITS)] == ["skipped"]
    first = check_canary({"map_i2t": 0.5}, None, LIMITS)
    assert [check.verdict for check in first] == ["passed", "skipped"]
    worse = check_canary({"map_i2t": 0.5, "map_t2i": 0.5}, {"map_i2t": 0.56, "map_t2i": 0.54}, LIMITS)
    assert [check.verdict for check in worse] == ["passed", "refused", "passed", "passed"]
    asked = check_canary({"map_i2t": 0.5}, None, GateConfig(min_canary_map=0.6))
    assert asked[0].verdict == "refused"


def test_a_report_is_refused_by_one_check_and_told_line_by_line() -> None:
    passed, refused = Check("a", "passed", "fine", 1.0), Check("b", "refused", "not fine", 0.0)
    assert not GateReport((passed, Check("c", "skipped", "nothing"))).refused
    report = GateReport((passed, refused))
    assert report.refused
    assert report.lines() == ["gate: passed  a: fine", "gate: refused b: not fine"]
    assert report.as_json()["checks"][1]["verdict"] == "refused"
