"""Baselines that must learn what there is to learn, and must not look where they may not."""

import numpy as np
import pytest

from pipeline.codes import hamming, unpack
from pipeline.quality.baselines import (
    Features,
    Pair,
    choose,
    choose_cca,
    fit_cca,
    fit_cmfh,
    fit_ridge,
    random_codes,
)
from pipeline.quality.evaluation import CodedPairs, evaluate_codes


def two_views(seed: int, rows: int, *, noise: float = 0.5) -> Features:
    """Return two noisy linear views of six hidden values, labelled by the signs of the first three."""
    rng, world = np.random.default_rng(seed), np.random.default_rng(99)
    hidden = rng.standard_normal((rows, 6))
    image = hidden @ world.standard_normal((6, 20)) + noise * rng.standard_normal((rows, 20))
    text = hidden @ world.standard_normal((6, 30)) + noise * rng.standard_normal((rows, 30))
    return Features(image, text, [np.flatnonzero(row[:3] > 0) for row in hidden])


Codes = dict[str, np.ndarray]


def judge(asked: Codes, codes: Codes, *, query: Features, retrieval: Features) -> float:
    sets = []
    for prefix, features, coded in (("q", query, asked), ("r", retrieval, codes)):
        n = len(features.labels)
        sets.append(CodedPairs([f"{prefix}{i}" for i in range(n)], np.arange(n), features.labels, coded))
    metrics = evaluate_codes(*sets).metrics
    return (metrics["map_i2t"] + metrics["map_t2i"]) / 2


def test_cca_directions_are_uncorrelated_within_a_side_and_ordered_across_sides() -> None:
    features = two_views(1, 500)
    pair = fit_cca(features, 1e-6, code_length=16)
    views = [(getattr(features, side) - pair[side].mean) @ pair[side].weight for side in ("image", "text")]
    for view in views:
        assert np.allclose(view.T @ view / 500, np.eye(16), atol=1e-3)
    cross = views[0].T @ views[1] / 500
    assert np.allclose(cross, np.diag(np.diag(cross)), atol=1e-3)
    assert (np.diff(np.diag(cross)) <= 1e-9).all()
    assert np.diag(cross)[:6].min() > 0.9 > np.diag(cross)[6:].max()


def test_cca_cmfh_and_ridge_beat_random_codes_on_two_views_of_one_thing() -> None:
    train, query = two_views(1, 400), two_views(2, 100)
    drawn = [random_codes(rows, code_length=16, seed=rows) for rows in (100, 400)]
    chance = judge(*drawn, query=query, retrieval=train)
    pairs = (
        fit_cca(train, 0.1, code_length=8),
        fit_cmfh(train, 0.1, code_length=16),
        fit_ridge(train, 0.1, code_length=16),
    )
    for pair in pairs:
        coded = [
            {side: projection.codes(getattr(rows, side)) for side, projection in pair.items()}
            for rows in (query, train)
        ]
        assert judge(*coded, query=query, retrieval=train) > chance + 0.05


def test_the_choice_prefers_what_validation_rows_like_and_repeats_for_a_seed() -> None:
    features = two_views(3, 300, noise=2.0)
    chosen, again = (choose_cca(features, code_length=16, seed=5) for _ in range(2))
    assert chosen["cca"].code_length == 16
    assert chosen["cca_best"].validation_map >= chosen["cca"].validation_map
    assert chosen["cca_best"].code_length in (8, 16, 20)
    for name, choice in chosen.items():
        assert choice.regulariser == again[name].regulariser
        codes = choice.codes(features)
        assert codes["image"].shape == (300, -(-choice.code_length // 8))
        assert np.array_equal(codes["text"], again[name].codes(features)["text"])


def test_more_bits_than_the_narrower_side_has_features_are_refused_by_number() -> None:
    features = two_views(1, 50)
    with pytest.raises(ValueError, match="at most 20 bits on these features, got code_length 24"):
        fit_cca(features, 0.1, code_length=24)
    assert set(choose_cca(features, code_length=24, seed=0)) == {"cca_best"}
    others = choose_cca(features, code_length=16, seed=0, others=(8, 24))
    assert {name: choice.code_length for name, choice in others.items() if name != "cca_best"} == {
        "cca": 16,
        "cca_8": 8,
    }


def test_a_feature_that_never_varies_and_more_features_than_rows_do_no_harm() -> None:
    features = two_views(1, 12)
    constant = Features(
        np.c_[features.image, np.ones(12)], np.c_[features.text, np.zeros(12)], features.labels
    )
    codes = fit_cca(constant, 0.1, code_length=8)["text"].codes(constant.text)
    assert codes.shape == (12, 1)


def test_random_codes_are_balanced_and_differ_between_the_sides() -> None:
    codes = random_codes(4000, code_length=16, seed=1)
    assert abs(unpack(codes["image"]).mean()) < 0.02
    assert (codes["image"] != codes["text"]).mean() > 0.9


def test_bits_beyond_the_directions_that_there_are_change_no_distance() -> None:
    features = two_views(1, 60)
    pair = fit_cca(features, 0.1, code_length=10)
    codes = [pair[side].codes(getattr(features, side)) for side in ("image", "text")]
    assert codes[0].shape == (60, 2)
    values = [(getattr(features, side) - pair[side].mean) @ pair[side].weight for side in ("image", "text")]
    expected = ((values[0] >= 0)[:, None] != (values[1] >= 0)[None]).sum(2)
    assert np.array_equal(hamming(*codes), expected)


def test_cmfh_makes_both_sides_agree_more_from_round_to_round() -> None:
    features = two_views(1, 80)
    gaps = []
    for rounds in (1, 3, 30):
        pair = fit_cmfh(features, 0.01, code_length=8, rounds=rounds)
        sides = [(getattr(features, s) - pair[s].mean) @ pair[s].weight for s in ("image", "text")]
        gaps.append(np.square(sides[0] - sides[1]).mean() / np.square(sides).mean())
    assert gaps[0] > gaps[1] > gaps[2]


def test_siblings_are_never_on_both_sides_of_the_validation_draw() -> None:
    features = two_views(4, 60)
    groups = [str(row // 3) for row in range(60)]
    seen: list[set[float]] = []

    def fit(rows: Features, regulariser: float) -> Pair:
        seen.append(set(rows.image[:, 0].tolist()))
        return fit_cca(rows, regulariser, code_length=8)

    choose(fit, features, lengths=[8], seed=1, groups=groups)
    for rest in seen:
        kept = [row for row in range(60) if features.image[row, 0] in rest]
        assert len(kept) % 3 == 0
        assert {groups[row] for row in kept}.isdisjoint({groups[row] for row in set(range(60)) - set(kept)})
