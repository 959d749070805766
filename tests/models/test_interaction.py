"""Both readings of the bilinear interaction against loops over rows and ranks."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmh_models.interaction import AllPairs, Bilinear, InteractionConfig, Passing, build_interaction
from tests import reference_hsidhn as reference

WIDTH, RANK = 5, 3


def made(levels: int, *, start: float = 1.0, **options: Any) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(levels)
    config = InteractionConfig(rank=RANK, **options)
    built = build_interaction(levels, WIDTH, config, start=start).double()
    return built, torch.randn(2, levels, WIDTH, dtype=torch.float64)


def weights(product: torch.nn.Module) -> tuple:
    assert isinstance(product, Bilinear)
    return tuple(layer.weight.detach().numpy() for layer in (product.left, product.right, product.out))


@settings(max_examples=20)
@given(
    levels=st.integers(1, 5),
    reading=st.sampled_from(("none", "bottom_up", "top_down", "both")),
    scale=st.sampled_from(("plain", "rooted")),
    start=st.sampled_from((0.0, 0.5, 1.0)),
)
def test_what_is_passed_up_and_down_equals_its_recursion(
    levels: int, reading: str, scale: str, start: float
) -> None:
    interaction, features = made(levels, start=start, reading=reading, scale=scale)
    assert isinstance(interaction, Passing)
    up, down = ([weights(step) for step in steps] for steps in (interaction.up, interaction.down))
    for row, ours in zip(features.numpy(), interaction(features).detach().numpy(), strict=True):
        means = reference.passed(row, up, down, rooted=scale == "rooted", factor=start)
        assert np.allclose(ours, [reference.layer_norm(level) for level in means], rtol=1e-9)


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_the_other_reading_holds_both_orders_of_every_two_levels(levels: int) -> None:
    interaction, features = made(levels, reading="pairs")
    assert isinstance(interaction, AllPairs)
    ours = interaction(features).detach().numpy()
    assert ours.shape == (2, levels * (levels - 1), WIDTH)
    products = iter(enumerate(interaction.products))
    for a in range(levels):
        for b in range(a + 1, levels):
            for first, second in ((a, b), (b, a)):
                number, product = next(products)
                for row in range(2):
                    pair = features[row, first].numpy(), features[row, second].numpy()
                    expected = reference.bilinear(*pair, weights(product), rooted=False)
                    assert np.allclose(ours[row, number], reference.layer_norm(expected), rtol=1e-9)


def test_pairs_of_one_level_are_refused() -> None:
    with pytest.raises(ValueError, match="pairs needs two levels or more, got 1"):
        build_interaction(1, WIDTH, InteractionConfig(reading="pairs"))


def test_a_rooted_product_of_nothing_has_a_finite_gradient() -> None:
    product = Bilinear(WIDTH, InteractionConfig(rank=RANK, scale="rooted"))
    nothing = torch.zeros(1, WIDTH, requires_grad=True)
    product(nothing, nothing).sum().backward()
    assert nothing.grad is not None
    assert nothing.grad.isfinite().all()
