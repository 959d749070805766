"""Levels at several scales against loops over bins, windows and cells; none sees another row."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cmh_models.levels import LevelsConfig, MapLevels, MapScales, PyramidLevels, VectorLevels, VectorScales
from tests import reference_hsidhn as reference

START = 0.5


def small(**options: Any) -> LevelsConfig:
    return LevelsConfig.model_validate(
        {"width": 8, "start": START, "bins": (1, 2, 4), "windows": (7, 3, 2)} | options
    )


def linear(layer: Any, values: np.ndarray) -> np.ndarray:
    """Return a linear layer or a 1x1 convolution of one place."""
    weight = layer.weight.detach().numpy()
    return weight.reshape(len(weight), -1) @ values + layer.bias.detach().numpy()


@settings(max_examples=15)
@given(hidden=st.integers(2, 9), multi_scale=st.booleans())
def test_a_vector_at_several_scales_equals_its_means_over_bins_fused(hidden: int, multi_scale: bool) -> None:
    torch.manual_seed(hidden)
    scales = VectorScales(hidden, small(multi_scale=multi_scale)).double()
    values = torch.randn(3, hidden, dtype=torch.float64)
    for row, ours in zip(values.numpy(), scales(values).detach().numpy(), strict=True):
        parts = [row]
        for bins, part in zip((1, 2, min(4, hidden)) if multi_scale else (), scales.parts, strict=True):
            parts.append(START * np.maximum(linear(part, reference.bin_means(row, bins)), 0))
        fused = reference.layer_norm(linear(scales.fuse, np.concatenate(parts)))
        assert np.allclose(ours, np.maximum(fused, 0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("multi_scale", [True, False])
@pytest.mark.parametrize("size", [(4, 4), (5, 3), (1, 1)])
def test_a_map_at_several_scales_equals_its_means_over_cells_fused(size: tuple, multi_scale: bool) -> None:
    torch.manual_seed(0)
    scales = MapScales(4, small(multi_scale=multi_scale)).double()
    maps = torch.randn(2, 4, *size, dtype=torch.float64)
    for row, ours in zip(maps.numpy(), scales(maps).detach().numpy(), strict=True):
        places = np.zeros((8, *size))
        for y, x in np.ndindex(*size):
            parts = [row[:, y, x]]
            for bins, part in zip((1, 2, 4) if multi_scale else (), scales.parts, strict=True):
                cell = reference.grid_means(row, bins)[:, y * bins // size[0], x * bins // size[1]]
                parts.append(START * np.maximum(linear(part, cell), 0))
            places[:, y, x] = linear(scales.fuse, np.concatenate(parts))
        # Eight channels in eight groups: each channel is normalised on its own.
        normed = np.stack([reference.layer_norm(channel) for channel in places])
        assert np.allclose(ours, np.maximum(normed, 0).mean((1, 2)), rtol=1e-9, atol=1e-12)


@settings(max_examples=15)
@given(width=st.integers(1, 20))
def test_the_pyramid_holds_the_means_over_windows_and_the_values(width: int) -> None:
    levels = PyramidLevels(width, small()).double()
    values = torch.randn(2, width, dtype=torch.float64)
    mixes: Any = levels.mixes
    pyramid = levels.pyramid(values).detach().numpy()
    assert pyramid.shape == (2, 1, width, 4)
    for row, ours in zip(values.numpy(), pyramid[:, 0], strict=True):
        assert np.array_equal(ours[:, 3], row)
        for number, (window, mix) in enumerate(zip((7, 3, 2), mixes, strict=True)):
            means = reference.window_means(row, min(window, width))
            mixed = np.maximum(mix.weight.item() * means + mix.bias.item(), 0)
            assert np.allclose(ours[:, number], reference.spread(mixed, width), rtol=1e-12)


@pytest.mark.parametrize("windows", [(), (3,), (7, 3), (50, 30, 15, 10, 5)])
@pytest.mark.parametrize("multi_scale", [True, False])
def test_a_pyramid_of_any_number_of_scales_has_four_levels(windows: tuple, multi_scale: bool) -> None:
    levels = PyramidLevels(12, small(windows=windows, multi_scale=multi_scale))
    assert levels.eval()(torch.randn(3, 12), None).shape == (3, 4, 8)


def level_modules(**options: Any) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    config = small(**options)
    stages = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), nn.ReLU())
    return {
        "mlp": (VectorLevels(nn.Linear(6, 5), 5, config), torch.randn(4, 6)),
        "pyramid": (PyramidLevels(6, config), torch.randn(4, 6)),
        "maps": (MapLevels(stages, (4, 8), config), torch.randn(4, 3, 16, 16)),
    }


@pytest.mark.parametrize("kind", ["mlp", "pyramid", "maps"])
def test_a_row_has_the_same_levels_alone(kind: str) -> None:
    levels, inputs = level_modules()[kind]
    levels.eval().double()
    together = levels(inputs.double(), None)
    alone = torch.cat([levels(row[None].double(), None) for row in inputs])
    assert torch.allclose(together, alone, rtol=1e-10)


@pytest.mark.parametrize("kind", ["mlp", "pyramid", "maps"])
@pytest.mark.parametrize("multi_scale", [True, False])
@pytest.mark.parametrize("use", ["all", "last"])
def test_no_weight_stands_idle(kind: str, use: str, multi_scale: bool) -> None:
    levels, inputs = level_modules(use=use, multi_scale=multi_scale, dropout=0.0)[kind]
    found = levels(inputs, None)
    assert found.shape == (4, {"mlp": 4, "pyramid": 4, "maps": 2}[kind] if use == "all" else 1, 8)
    found.square().sum().backward()
    assert [name for name, weight in levels.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("kind", ["mlp", "maps"])
def test_what_starts_at_nothing_leaves_a_plain_network(kind: str) -> None:
    levels, inputs = level_modules(start=0.0, dropout=0.0)[kind]
    found = levels(inputs, None)
    if kind == "mlp":
        assert isinstance(levels, VectorLevels)
        first = torch.relu(levels.first(inputs))
        assert torch.equal(found, torch.stack([scale(first) for scale in levels.scales], dim=1))
        return
    assert isinstance(levels, MapLevels)
    maps = inputs
    for number, (stage, scale) in enumerate(zip(levels.stages, levels.scales, strict=True)):
        maps = torch.relu(stage(maps))
        assert torch.equal(found[:, number], scale(maps))
