"""Thresholds estimated from a stream of similarities, and running statistics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmh_models.similarity import JointSimilarity, SimilarityConfig, _add_to_histogram
from cmh_models.statistics import Standardiser


def similarity_of(values: np.ndarray, **options: float) -> JointSimilarity:
    """Return a similarity whose histogram holds these values, its thresholds renewed."""
    made = JointSimilarity(SimilarityConfig(**options), 3, 3)
    for part in np.array_split(values, 4):
        _add_to_histogram(made.histogram, torch.from_numpy(part))
    made.thresholds.copy_(made._estimate())
    return made


def draw_similarities(rows: int, mode: float, sigma: float, scale: float) -> np.ndarray:
    """Return draws that are half-normal left of the mode, half-Laplace right of it, without a step there."""
    generator = np.random.default_rng(0)
    heights = sigma * np.sqrt(np.pi / 2), scale
    lefts = round(rows * heights[0] / sum(heights))
    left = mode - np.abs(generator.normal(0, sigma, lefts))
    return np.concatenate([left, mode + generator.exponential(scale, rows - lefts)])


@pytest.mark.parametrize(
    ("mode", "sigma", "scale"), [(-0.49, 0.019, 0.088), (0.1, 0.05, 0.04), (-0.6, 0.1, 0.1)]
)
def test_thresholds_lie_where_the_two_half_distributions_put_them(
    mode: float, sigma: float, scale: float
) -> None:
    values = draw_similarities(200_000, mode, sigma, scale)
    left, right, lowest, highest = similarity_of(values).thresholds.tolist()
    assert left == pytest.approx(mode - 2 * sigma, abs=0.35 * sigma)
    assert right == pytest.approx(mode + 4 * scale, abs=0.35 * scale)
    assert lowest == pytest.approx(np.quantile(values, 1e-4), abs=0.004)
    assert highest == pytest.approx(np.quantile(values, 1 - 1e-4), abs=0.004)


def test_a_rounding_error_in_a_similarity_does_not_move_a_threshold() -> None:
    values = draw_similarities(2_000, 0.0, 0.05, 0.05)
    noise = np.random.default_rng(1).uniform(-1e-15, 1e-15, len(values))
    one, other = similarity_of(values), similarity_of(values + noise)
    assert torch.allclose(one.thresholds, other.thresholds, rtol=0, atol=1e-11)


def test_all_similarities_equal_gives_finite_thresholds() -> None:
    assert similarity_of(np.full(50, 0.25)).thresholds.isfinite().all()


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_running_moments_are_those_of_all_rows_at_once(sizes: list[int], seed: int) -> None:
    rows = torch.from_numpy(np.random.default_rng(seed).normal(100, 1, (sum(sizes), 4)))
    rows[:, 2] = 7.0
    standardiser = Standardiser(4)
    for part in rows.split(sizes):
        standardiser.update(standardiser.sums(part))
    assert torch.allclose(standardiser.mean, rows.mean(0))
    assert standardiser(rows)[:, 2].eq(0).all(), "a constant feature carries nothing"
    if sum(sizes) > 1:
        expected = (rows[:, 0] - rows[:, 0].mean()) / rows[:, 0].std(correction=0)
        assert torch.allclose(standardiser(rows)[:, 0], expected, rtol=1e-6, atol=1e-9)


def test_idf_weighs_a_rare_word_more_than_a_common_one() -> None:
    standardiser = Standardiser(3, "idf")
    counts = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    standardiser.update(standardiser.sums(counts))
    weight = standardiser.weight()
    assert weight[1] == pytest.approx(np.log(6 / 2))
    assert 0 < weight[0] < weight[1]
    assert weight[2] == 0


@settings(max_examples=30)
@given(
    rows=st.integers(1, 12),
    width=st.integers(1, 6),
    rarest=st.sampled_from((0.0, 0.2, 0.5)),
    seed=st.integers(0, 999),
)
def test_rare_words_are_left_out_and_rows_have_one_length(
    rows: int, width: int, rarest: float, seed: int
) -> None:
    counts = np.random.default_rng(seed).poisson(0.5, (rows, width)).astype(np.float64)
    plain, unit = Standardiser(width, "idf"), Standardiser(width, "idf", rarest=rarest, unit=True)
    for standardiser in (plain, unit):
        standardiser.update(standardiser.sums(torch.from_numpy(counts)))
    kept = [j for j in range(width) if np.mean(counts[:, j] > 0) >= rarest and np.ptp(counts[:, j]) > 0]
    for before, after in zip(plain(torch.from_numpy(counts)), unit(torch.from_numpy(counts)), strict=True):
        length = math.sqrt(sum(float(before[j]) ** 2 for j in kept))
        for j in range(width):
            scale = math.sqrt(len(kept)) / length if length > 1e-9 else 0.0
            assert float(after[j]) == pytest.approx(float(before[j]) * scale if j in kept else 0.0, abs=1e-9)
    assert float(unit.energy()) == pytest.approx(len(kept) / width)
    assert float(plain.energy()) == pytest.approx(float(plain(torch.from_numpy(counts)).square().mean()))
