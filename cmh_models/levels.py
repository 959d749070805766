"""Levels of a side: features at several depths of its network, each seen at several scales and fused.

Nothing here sees other rows than its own: norms are over layers and groups, dropout belongs to the row.
What the paper does in detail is not known: the residual stages follow its lab's image network, the pyramid
its text network; all else is inferred.
"""

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from cmh_models.dropout import RowDropout
from cmh_models.interaction import InteractionConfig, gains

Vectors = Literal["mlp", "pyramid"]


class LevelsConfig(BaseModel):
    """How level features are made and how they interact; all of it is inferred."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    use: Literal["all", "last"] = Field(default="all", description="last: only the deepest level is coded")
    depth: int = Field(default=4, ge=1, description="levels of an mlp; a cnn has one per stage, a pyramid 4")
    image_vectors: Vectors = Field(
        default="mlp",
        description="levels of what comes as one vector per picture. mlp: residual layers; pyramid: means "
        "over windows of neighbouring values, and residual blocks over the scales (SCAHN's text network)",
    )
    text_vectors: Vectors = Field(default="mlp", description="the same of texts; a bag of words is a vector")
    width: int = Field(default=256, ge=1, description="d, of a level feature")
    multi_scale: bool = Field(default=True, description="each level is seen at several scales, then fused")
    bins: tuple[int, ...] = Field(default=(1, 2, 4), description="of pooled maps and vectors, to a side")
    windows: tuple[int, ...] = Field(default=(50, 30, 15, 10, 5), description="of the pyramid, in values")
    interaction: InteractionConfig = InteractionConfig()
    dropout: float = Field(default=0.5, ge=0, lt=1, description="of hidden values of an mlp")
    start: float = Field(
        default=0.1,
        ge=0,
        description="of the learnt factors of what is added to a plain network (residual layers and blocks, "
        "coarser scales, products of levels); 1: all begin at full size, and training starts far rougher",
    )


class VectorScales(nn.Module):
    """A level that is a vector: means over coarser and coarser bins of it, and itself, fused."""

    def __init__(self, before: int, config: LevelsConfig) -> None:
        super().__init__()
        self.bins = tuple(min(before, bins) for bins in config.bins) if config.multi_scale else ()
        part = max(1, before // 4)
        self.parts = nn.ModuleList(nn.Linear(bins, part) for bins in self.bins)
        self.gains = gains([part] * len(self.bins), config.start)
        self.fuse = nn.Linear(before + part * len(self.bins), config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, values: Tensor) -> Tensor:
        """Return (B, d) of (B, H)."""
        scales = [values]
        for bins, part, gain in zip(self.bins, self.parts, self.gains, strict=True):
            scales.append(gain * torch.relu(part(functional.adaptive_avg_pool1d(values, bins))))
        return torch.relu(self.norm(self.fuse(torch.cat(scales, dim=1))))


class MapScales(nn.Module):
    """A level that is a map: pooled to coarser and coarser grids, and itself, fused and averaged."""

    def __init__(self, channels: int, config: LevelsConfig) -> None:
        super().__init__()
        self.bins = config.bins if config.multi_scale else ()
        part = max(1, channels // 4)
        self.parts = nn.ModuleList(nn.Conv2d(channels, part, 1) for _ in self.bins)
        self.gains = gains([part] * len(self.bins), config.start)
        self.fuse = nn.Conv2d(channels + part * len(self.bins), config.width, 1)
        self.norm = _group_norm(config.width)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, d) of (B, C, H, W)."""
        scales = [maps]
        for bins, part, gain in zip(self.bins, self.parts, self.gains, strict=True):
            pooled = gain[:, None, None] * torch.relu(part(functional.adaptive_avg_pool2d(maps, bins)))
            scales.append(functional.interpolate(pooled, size=maps.shape[2:]))
        return torch.relu(self.norm(self.fuse(torch.cat(scales, dim=1)))).mean((2, 3))


class VectorLevels(nn.Module):
    """Depths of a residual MLP; the first layer is the input's own."""

    def __init__(self, first: nn.Module, hidden: int, config: LevelsConfig) -> None:
        super().__init__()
        self.first = first
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(config.depth - 1))
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(config.depth - 1))
        self.gains = gains([hidden] * (config.depth - 1), config.start)
        self.drops = nn.ModuleList(RowDropout(config.dropout, place) for place in range(config.depth))
        used = config.depth if config.use == "all" else 1
        self.scales = nn.ModuleList(VectorScales(hidden, config) for _ in range(used))

    def forward(self, inputs: Tensor, keys: Tensor | None) -> Tensor:
        """Return (B, n, d) of (B, D)."""
        values = [self.drops[0](torch.relu(self.first(inputs)), keys)]
        steps = zip(self.norms, self.layers, self.drops[1:], self.gains, strict=True)
        for norm, layer, drop, gain in steps:
            values.append(values[-1] + gain * drop(torch.relu(layer(norm(values[-1]))), keys))
        return _scaled(self.scales, values)


class MapLevels(nn.Module):
    """Stages of a convolutional network, each followed by a residual block."""

    def __init__(self, stages: nn.Sequential, channels: tuple[int, ...], config: LevelsConfig) -> None:
        super().__init__()
        length = len(stages) // len(channels)
        self.stages = nn.ModuleList(stages[i * length : (i + 1) * length] for i in range(len(channels)))
        self.blocks = nn.ModuleList(ResidualMaps(each, config.start) for each in channels)
        used = channels if config.use == "all" else channels[-1:]
        self.scales = nn.ModuleList(MapScales(each, config) for each in used)

    def forward(self, pixels: Tensor, keys: Tensor | None) -> Tensor:
        """Return (B, n, d) of (B, 3, S, S) values from -1 to 1."""
        maps = [pixels]
        for stage, block in zip(self.stages, self.blocks, strict=True):
            maps.append(block(stage(maps[-1])))
        return _scaled(self.scales, maps)


class ResidualMaps(nn.Module):
    """Two convolutions and what went in."""

    def __init__(self, channels: int, start: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((channels, 1, 1), start))
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _group_norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _group_norm(channels),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu(maps + self.gain * self.body(maps))


class BackboneLevels(nn.Module):
    """Layers of a network from elsewhere, each as it is: such a network has residual paths of its own."""

    def __init__(self, widths: list[int], config: LevelsConfig, *, maps: bool) -> None:
        """`widths` are the features, or channels, of each level; `maps` says what levels are."""
        super().__init__()
        used = widths if config.use == "all" else widths[-1:]
        kind = MapScales if maps else VectorScales
        self.count = len(used)
        self.scales = nn.ModuleList(kind(each, config) for each in used)

    def forward(self, values: list[Tensor], keys: Tensor | None) -> Tensor:
        """Return (B, n, d) of n levels, the deepest last."""
        dtype = next(self.parameters()).dtype
        return _scaled(self.scales, [value.to(dtype) for value in values])


class PyramidLevels(nn.Module):
    """The text network of HSIDHN's lab (SCAHN, SAALDH): means over windows, blocks over the scales.

    Deviations: norms over layers for norms over the batch and over neighbouring channels; a window that does
    not fill averages what it has; any number of scales; dropout.
    """

    CHANNELS = (64, 128, 256, 512)

    def __init__(self, width: int, config: LevelsConfig) -> None:
        super().__init__()
        windows = config.windows if config.multi_scale else ()
        self.windows = tuple(min(width, window) for window in windows)
        self.mixes = nn.ModuleList(nn.Conv1d(1, 1, 1) for _ in self.windows)
        left, before, kernel = 1 + len(windows), 1, (width, 1)
        blocks, heads = [], []
        for place, channels in enumerate(self.CHANNELS):
            blocks.append(ResidualScales(before, channels, kernel, scales=left))
            left -= kernel[1] - 1
            heads.append(LevelProjection(channels * left, place, config))
            before, kernel = channels, (1, min(3, left))
        self.blocks = nn.ModuleList(blocks)
        self.scales = nn.ModuleList(heads if config.use == "all" else heads[-1:])

    def forward(self, inputs: Tensor, keys: Tensor | None) -> Tensor:
        """Return (B, n, d) of (B, T)."""
        values = [self.pyramid(inputs)]
        for block in self.blocks:
            values.append(block(values[-1]))
        chosen = zip(self.scales, values[-len(self.scales) :], strict=True)
        return torch.stack([project(value, keys) for project, value in chosen], dim=1)

    def pyramid(self, inputs: Tensor) -> Tensor:
        """Return (B, 1, T, scales): the means over windows, spread out again, and the values themselves."""
        values = inputs[:, None]
        scales = []
        for window, mix in zip(self.windows, self.mixes, strict=True):
            means = functional.avg_pool1d(values, window, ceil_mode=True)
            scales.append(functional.interpolate(torch.relu(mix(means)), size=inputs.shape[1]))
        return torch.stack([*scales, values], dim=3)


class LevelProjection(nn.Module):
    """A level of the pyramid: all its scales, flat, to the common width."""

    def __init__(self, before: int, place: int, config: LevelsConfig) -> None:
        super().__init__()
        self.drop = RowDropout(config.dropout, place)
        self.project = nn.Linear(before, config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, values: Tensor, keys: Tensor | None) -> Tensor:
        """Return (B, d) of (B, C, 1, scales)."""
        return torch.relu(self.norm(self.project(self.drop(values.flatten(1), keys))))


class ResidualScales(nn.Module):
    """Two convolutions over the scales, the first only where there are several, beside one shortcut."""

    def __init__(self, before: int, after: int, kernel: tuple[int, int], *, scales: int) -> None:
        super().__init__()
        over = nn.Conv2d(before, before, (1, 3), padding=(0, 1), bias=False)
        self.body = nn.Sequential(
            over if scales > 1 else nn.Identity(),
            # The norm after the next convolution undoes what one factor for all would do.
            nn.GroupNorm(1, before, affine=before > 1),
            nn.ReLU(),
            nn.Conv2d(before, after, kernel, bias=False),
            nn.GroupNorm(1, after),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, kernel, bias=False), nn.GroupNorm(1, after))

    def forward(self, values: Tensor) -> Tensor:
        return torch.relu(self.body(values) + self.shortcut(values))


def _scaled(scales: nn.ModuleList, values: list[Tensor]) -> Tensor:
    """Return (B, n, d): the last n of the values, each seen at its scales."""
    chosen = zip(scales, values[-len(scales) :], strict=True)
    return torch.stack([scale(value) for scale, value in chosen], dim=1)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)
