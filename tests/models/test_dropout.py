"""Dropout that belongs to the rows: no draw depends on the batch around a row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmh_models.dropout import RowDropout, row_keys


def dropped(inputs: torch.Tensor, *, seed: int = 0, share: float = 0.5, place: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return RowDropout(share, place)(torch.ones(len(inputs), 400), row_keys(inputs))


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=15)
@given(order=st.permutations(range(6)), share=st.sampled_from((0.1, 0.5, 0.9)))
def test_a_row_loses_the_same_values_in_any_order_and_any_part_of_a_batch(order: list, share: float) -> None:
    inputs = rows(6)
    whole = dropped(inputs, share=share)
    assert torch.equal(dropped(inputs[order], share=share), whole[order])
    assert torch.equal(dropped(inputs[2:4], share=share), whole[2:4])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_the_share_is_kept_and_the_mean_stays(share: float) -> None:
    values = dropped(rows(200), share=share)
    assert (values == 0).float().mean().item() == pytest.approx(share, abs=0.01)
    assert values.mean().item() == pytest.approx(1.0, abs=0.03)


def test_rows_places_seeds_and_columns_draw_on_their_own() -> None:
    inputs = rows(50)
    first = dropped(inputs) != 0
    for other in (dropped(inputs, seed=1), dropped(inputs, place=1), dropped(inputs.flip(0))):
        assert ((other != 0) == first).float().mean().item() == pytest.approx(0.5, abs=0.02)
    neighbours = first[:, 1:] == first[:, :-1]
    assert neighbours.float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_padding_changes_no_key() -> None:
    tokens = torch.tensor([[3, 9, 0], [4, 0, 0]])
    padded = torch.cat([tokens, torch.zeros(2, 5, dtype=torch.int64)], dim=1)
    assert torch.equal(row_keys(tokens), row_keys(padded))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bfloat16, torch.float32, torch.float64])
def test_rows_of_any_type_have_keys_of_their_own(dtype: torch.dtype) -> None:
    pictures = (torch.arange(5 * 2 * 3 * 3).reshape(5, 2, 3, 3) % 251).to(dtype)
    assert len(row_keys(pictures).unique()) == 5


def test_outside_training_nothing_is_dropped() -> None:
    values = torch.ones(3, 8)
    assert torch.equal(RowDropout(0.5, 0).eval()(values, row_keys(values)), values)
