"""DJSRH against its definition, through moments and through arrays, and at any number of ranks."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmh_models import build_method
from cmh_models.djsrh import DJSRH
from cmh_models.method import SIDES, Progress
from tests import reference
from tests.models.simulation import assert_equal_steps, simulate
from tests.models.test_jdsh import WIDTHS, draw, scaled

LATER = Progress(epoch=3, step=7, total_steps=10)


def small_djsrh(seed: int = 0, **options: Any) -> DJSRH:
    torch.manual_seed(seed)
    towers = {side: {"name": "features", "width": WIDTHS[side], "hidden": 6} for side in SIDES}
    method = {"name": "djsrh", "code_length": 8, "feature_rounds": 2, **options}
    built = build_method(method, towers).double()
    assert isinstance(built, DJSRH)
    return built


@settings(max_examples=20)
@given(
    share=st.integers(1, 6),
    seed=st.integers(0, 999),
    rounds=st.integers(0, 3),
    tell_rows=st.booleans(),
    form=st.sampled_from(("released", "centred")),
    second_order=st.sampled_from((0.0, 0.4, 1.0)),
    image_weight=st.sampled_from((0.0, 0.3, 1.0)),
)
def test_one_two_and_four_ranks_make_the_same_step_both_ways(
    share: int, seed: int, rounds: int, tell_rows: bool, **options: Any
) -> None:
    method = small_djsrh(seed, **options)
    for number in range(rounds):
        method = simulate(method, draw(4 * share, seed + number), 1).method  # type: ignore[assignment]
        method.zero_grad()
    batch = draw(4 * share, seed + rounds)
    one = simulate(method, batch, 1, progress=LATER, tell_rows=False)
    for ranks in (1, 2, 4):
        assert_equal_steps(one, simulate(method, batch, ranks, progress=LATER, tell_rows=tell_rows))


@pytest.mark.parametrize("form", ["released", "centred"])
@pytest.mark.parametrize(("rows", "tell_rows"), [(6, True), (40, True), (6, False)])
def test_loss_and_gradient_equal_the_all_pairs_definition(form: str, rows: int, tell_rows: bool) -> None:
    method = small_djsrh(form=form, image_weight=0.7, second_order=0.3, intra_weight=0.2)
    for number in range(3):
        method = simulate(method, draw(12, seed=number), 1).method  # type: ignore[assignment]
        method.zero_grad()
    batch = draw(rows, seed=8)
    step = simulate(method, batch, 1, progress=LATER, tell_rows=tell_rows)
    target = reference.djsrh_target(*scaled(method, batch), form=form, weights=(0.7, 0.3, 1.5))  # type: ignore
    image, text = (torch.tanh(2 * getattr(method, side)(batch[side])) for side in SIDES)
    expected = reference.djsrh_terms(image, text, target)
    for name, factor in (("image_image", 0.2), ("text_text", 0.2), ("image_text", 1.0)):
        assert step.terms[name].item() == pytest.approx(factor * expected[name].item(), rel=1e-10), name
    (0.2 * (expected["image_image"] + expected["text_text"]) + expected["image_text"]).backward()
    for name, weight in method.named_parameters():
        assert torch.allclose(step.gradients[name], weight.grad, rtol=1e-9, atol=1e-13), name


def test_small_batches_gather_rows_and_large_ones_gather_nothing() -> None:
    method, batch = small_djsrh(), draw(4, seed=1)
    for rows, gathered in ((4, True), (400, False), (None, False)):
        method.global_rows = rows
        output = method(batch, LATER)
        assert bool(method.gathers) is gathered
        assert any(name.startswith("batch.") for name in method.sums(output)) is not gathered
