"""The closed form of squared errors against all pairs written out, and what it may cost."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmh_models.cosines import unit_codes
from cmh_models.losses import TargetProducts, grams_of, squared_errors, target_products
from cmh_models.method import Progress
from cmh_models.similarity import JointSimilarity, SimilarityConfig
from tests.models.test_jdsh import draw, small_jdsh, warmed_up


def draws(rows: int, length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes of both sides and a symmetric target."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(2, rows, length, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randn(rows, rows, generator=generator, dtype=torch.float64)
    return codes, target + target.T


@settings(max_examples=25)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 10), st.integers(0, 99), st.booleans())
def test_sums_and_gradients_of_all_ranks_are_those_of_all_pairs(
    rows: int, length: int, chunk: int, seed: int, own: bool
) -> None:
    codes, target = draws(rows, length, seed)
    weights = (0.3, 0.2, 1.5, 0.7, 0.4)
    u, v = (torch.nn.functional.normalize(side) for side in codes)
    counted = torch.ones_like(target) - (0 if own else 1) * torch.eye(rows, dtype=torch.float64)
    expected = [
        weight * (counted * (a @ b.T - target).square()).sum()
        for weight, a, b in zip(weights, (u, v, u), (u, v, v), strict=False)
    ]
    if not own:
        cosines = (u * v).sum(1)
        expected += [weights[3] * (cosines - target.diagonal()).square().sum(), -weights[4] * cosines.sum()]
    (gradient,) = torch.autograd.grad(torch.stack(expected).sum(), codes)

    ours, gradients = [torch.zeros(()) for _ in expected], []
    for row in range(rows):  # as many ranks as rows
        local = codes.detach()[:, row : row + 1].requires_grad_()
        everyone, place = unit_codes(*codes.detach()), slice(row, row + 1)
        blocks = [
            (slice(start, min(start + chunk, rows)), target[place, start : start + chunk].clone())
            for start in range(0, rows, chunk)
        ]
        products = target_products(everyone, blocks, place)
        if own:
            line = target[place]
            products = TargetProducts(grams_of(everyone), line @ everyone, line.square().sum())
        terms = squared_errors(unit_codes(*local), products, weights)
        gradients.append(torch.autograd.grad(torch.stack(terms).sum(), local)[0])
        ours = [one + term.detach() for one, term in zip(ours, terms, strict=True)]
    assert torch.allclose(torch.stack(ours), torch.stack(expected).detach(), rtol=1e-10, atol=1e-10)
    assert torch.allclose(torch.cat(gradients, dim=1), gradient, rtol=1e-9, atol=1e-10)


def test_a_code_of_zeros_has_a_finite_gradient() -> None:
    image = torch.zeros(1, 4, requires_grad=True)
    unit_codes(image, torch.ones(1, 4)).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


@pytest.mark.parametrize("dsdw", [True, False])
def test_deciding_in_place_changes_nothing_but_the_place(dsdw: bool) -> None:
    similarity = JointSimilarity(SimilarityConfig(dsdw=dsdw, left_gain=0.0), 3, 3)
    similarity.thresholds.copy_(torch.tensor([-0.2, 0.3, -0.9, 0.9]))
    fused = torch.randn(150, 7, generator=torch.Generator().manual_seed(0)).double()
    decided = similarity.decide(fused, similarity.limits())
    assert similarity.decide_(fused, similarity.limits()) is fused
    assert torch.equal(fused, decided)


@pytest.mark.parametrize(("rows", "through_arrays"), [(4, True), (400, False), (None, False)])
def test_the_way_to_moments_of_a_batch_is_chosen_by_counted_operations(
    rows: int | None, through_arrays: bool
) -> None:
    similarity: dict[str, Any] = {"moments": "batch"}
    method = warmed_up(small_jdsh(similarity), 8, seed=0)
    method.global_rows = rows
    output = method(draw(4, seed=1), Progress(epoch=1, step=5, total_steps=10))
    assert ("moments.image" in method.sums(output)) is not through_arrays
