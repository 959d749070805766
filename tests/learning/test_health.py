"""Code health: known answers, and collapse said in words."""

import torch

from pipeline.learning.health import code_health, count_ones, describe_collapse


def test_balanced_bits_have_full_entropy_and_constant_ones_none() -> None:
    codes = torch.tensor([[1.0, 1.0, -1.0], [-1.0, 1.0, -1.0], [0.0, 0.5, -0.1], [-0.2, 2.0, -3.0]])
    ones = count_ones(codes)
    assert ones.tolist() == [2, 4, 0]  # 0 counts as a one
    health = code_health(ones, 4)
    assert health["dead_bits"] == 2
    assert abs(health["balance"] - 2 / 3) < 1e-12
    assert abs(health["entropy"] - 1 / 3) < 1e-12


def test_collapse_is_said_in_words_and_health_is_not() -> None:
    dead = code_health(torch.zeros(8), 100)
    told = describe_collapse("text", dead, code_length=8, rows=100)
    assert told is not None and "text codes are collapsing: 8 of 8 bits had one value" in told
    assert (
        describe_collapse("text", code_health(torch.full((8,), 50.0), 100), code_length=8, rows=100) is None
    )
