"""The picture descriptor against a pixel-by-pixel oracle."""

import numpy as np
import pytest
import torch

from cmh_models import descriptor
from cmh_models.descriptor import describe_pixels, width_of
from tests import reference


def draw(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    coarse = np.random.default_rng(seed).integers(0, 256, (rows, -(-size // 4), -(-size // 4), 3))
    pixels = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, :size, :size]
    return torch.from_numpy(pixels.astype(np.uint8))


@pytest.mark.parametrize(("size", "cells"), [(8, 4), (11, 4), (16, 4), (25, 4), (11, 1), (16, 6), (25, 8)])
def test_the_descriptor_is_that_of_the_oracle(size: int, cells: int) -> None:
    pixels = draw(2, size)
    described = describe_pixels(pixels, cells)
    assert described.shape == (2, width_of(cells))
    for row, picture in zip(described, pixels.numpy(), strict=True):
        assert np.allclose(row.numpy(), reference.picture_descriptor(picture, cells), rtol=1e-5, atol=1e-6)


def test_four_cells_to_a_side_are_the_default() -> None:
    pixels = draw(2, 16)
    assert torch.equal(describe_pixels(pixels), describe_pixels(pixels, 4))


def test_a_row_is_described_alike_in_any_batch() -> None:
    pixels = draw(40, 32)
    whole = describe_pixels(pixels)
    for start, stop in ((0, 1), (7, 20), (39, 40)):
        assert torch.equal(describe_pixels(pixels[start:stop]), whole[start:stop])


def test_slices_of_any_size_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = draw(9, 32)
    whole = describe_pixels(pixels)
    for values in (1, 2 * 32 * 32 * 3, 4 * 32 * 32 * 3):
        monkeypatch.setattr(descriptor, "SLICE_VALUES", values)
        assert torch.equal(describe_pixels(pixels), whole)


def test_half_precision_training_does_not_change_a_description() -> None:
    pixels = draw(3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(describe_pixels(pixels), describe_pixels(pixels.clone()))
        under = describe_pixels(pixels)
    assert torch.equal(under, describe_pixels(pixels))


def test_a_black_picture_is_described_without_nan() -> None:
    assert describe_pixels(torch.zeros(1, 16, 16, 3, dtype=torch.uint8)).isfinite().all()


def test_no_picture_is_no_description() -> None:
    some = describe_pixels(torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
    assert describe_pixels(torch.zeros(0, 16, 16, 3, dtype=torch.uint8)).shape == (0, some.shape[1])
