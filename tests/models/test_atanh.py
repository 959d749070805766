"""The adaptive tanh: its forms against the definition, and what makes it safe to leave out at test time."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmh_models.atanh import AdaptiveTanh, AtanhConfig
from cmh_models.method import Progress
from tests import reference

FORMS = ("fixed", "schedule", "linear", "power", "cubic", "asinh")
START = Progress(epoch=0, step=0, total_steps=10)


def activation(form: str, *, length: int = 8, **options: Any) -> AdaptiveTanh:
    return AdaptiveTanh(AtanhConfig.model_validate({"scale_fn": form, **options}), length).double()


def moved(module: AdaptiveTanh, seed: int) -> AdaptiveTanh:
    """Return the module after its weights went somewhere else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight += 2 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return module


def draw(rows: int, length: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, length, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("per_bit", [True, False])
def test_every_form_equals_its_definition(form: str, per_bit: bool) -> None:
    module = moved(activation(form, start="one", per_bit=per_bit), 1)
    values, progress = draw(5, 8, 2), Progress(epoch=3, step=9, total_steps=10)
    shape = torch.ones(8) if module.shape is None else module.shape.expand(8)
    shape = torch.sigmoid(shape) if form == "power" else torch.nn.functional.softplus(shape)
    slope, beta = module.slope().tolist(), shape.tolist()
    for row, codes in zip(values, module(values, progress).detach(), strict=True):
        for bit in range(8):
            expected = reference.adaptive_tanh(
                float(row[bit]), form, slope=slope[bit], shape=beta[bit], epoch=3
            )
            assert float(codes[bit]) == pytest.approx(expected, rel=1e-10)


@given(form=st.sampled_from(FORMS), seed=st.integers(0, 999), scale=st.sampled_from((1e-3, 1.0, 30.0)))
def test_no_form_ever_changes_the_sign_or_the_order_of_values(form: str, seed: int, scale: float) -> None:
    module = moved(activation(form, start="one"), seed)
    values = draw(9, 8, seed, scale).sort(0).values
    scaled = module.scaled(values, START)
    assert torch.equal(scaled >= 0, values >= 0)
    assert (scaled.diff(dim=0) > 0).all()
    assert torch.allclose(module(-values, START), -module(values, START), rtol=1e-12)


def test_what_tanh_is_taken_of_starts_with_a_root_mean_square_of_one_in_every_bit() -> None:
    module = activation("linear")
    batches = [draw(10, 8, seed) * torch.arange(1, 9) for seed in (1, 2)]
    module.update(module.sums(*batches))
    later = [draw(30, 8, 3) * torch.arange(1, 9)]
    module.update(module.sums(*later))
    scaled = module.scaled(torch.cat(batches + later), START)
    assert torch.allclose(scaled.square().mean(0), torch.ones(8, dtype=torch.float64))


def test_the_penalty_is_the_sum_of_inverse_squares_and_makes_slopes_steeper() -> None:
    module = moved(activation("linear", penalty=0.25), 1)
    before = module.slope().detach()
    assert module.penalty().item() == pytest.approx(0.25 * sum(1 / s**2 for s in before.tolist()))
    module.penalty().backward()
    assert module.rho is not None
    with torch.no_grad():
        module.rho -= 0.01 * module.rho.grad
    assert (module.slope() > before).all()


@pytest.mark.parametrize("form", ["fixed", "schedule"])
def test_forms_without_a_learnt_slope_have_no_weights_and_no_penalty(form: str) -> None:
    module = activation(form, penalty=1.0)
    assert not list(module.parameters())
    assert float(module.penalty()) == 0


def test_a_shared_slope_is_one_number() -> None:
    module = activation("linear", per_bit=False)
    assert sum(weight.numel() for weight in module.parameters()) == 1
    assert module.slope().tolist() == pytest.approx([1.0] * 8)
