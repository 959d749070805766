"""The network of one side of HSIDHN: levels of a tower, their interaction, and the codes made of them."""

from functools import partial
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmh_models.backbones import Backbone
from cmh_models.dropout import row_keys
from cmh_models.interaction import build_interaction
from cmh_models.levels import (
    BackboneLevels,
    LevelsConfig,
    MapLevels,
    PyramidLevels,
    VectorLevels,
    Vectors,
)
from cmh_models.method import Side, SideNetwork
from cmh_models.statistics import Standardiser
from cmh_models.towers import BagOfWords, ConvolutionalPixels, Described, build_tower

Levels = BackboneLevels | MapLevels | PyramidLevels | VectorLevels


class LevelNetwork(SideNetwork):
    """A tower whose trained part gives way to levels; how inputs come and are described stays the tower's."""

    def __init__(self, settings: BaseModel, side: Side, code_length: int, *, config: LevelsConfig) -> None:
        super().__init__()
        self.config = config
        self.vectors: Vectors = config.image_vectors if side == "image" else config.text_vectors
        self.tower = build_tower(settings, side, code_length)
        self.image_size = self.tower.image_size
        self.levels = _take_over(self.tower, self.vectors, config)
        count = len(self.levels.scales)
        self.interaction = build_interaction(count, config.width, config.interaction, start=config.start)
        self.heads: nn.Module
        if config.interaction.reading == "pairs":
            self.heads = JoinedHead(count * (count - 1) * config.width, code_length)
        elif count == 1:
            self.heads = JoinedHead(config.width, code_length)
        else:
            self.heads = LevelHeads(count, config.width, code_length)

    def collate(self, values: Any) -> Tensor:
        return self.tower.collate(values)

    def describe(self, inputs: Tensor) -> Tensor:
        return self.tower.describe(inputs)

    def standardise(self, described: Tensor) -> Tensor:
        """Return the (B, D) description with each feature centred and scaled."""
        return self.tower.standardise(described)

    @property
    def standardiser(self) -> Standardiser:
        """The scaling of the description."""
        return self.tower.standardiser

    @property
    def width(self) -> int:
        """Number of features of the description."""
        return self.tower.width

    def forward(self, inputs: Tensor, described: Tensor | None = None) -> Tensor:
        _, values = self.codes(inputs, described)
        return values

    def codes(self, inputs: Tensor, described: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (B, n, L) relaxed level codes and the (B, L) values of the final code."""
        keys = row_keys(inputs) if self.training else None
        levels = self.levels(self._prepared(inputs, described), keys)
        made: tuple[Tensor, Tensor] = self.heads(self.interaction(levels))
        return made

    def checkpoint_activations(self) -> None:
        if isinstance(self.levels, BackboneLevels):
            self.tower.checkpoint_activations()
        else:
            self.__dict__["codes"] = partial(checkpoint, self.codes, use_reentrant=False)

    def architecture(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude={"image_vectors", "text_vectors"})
        return self.tower.architecture() | {"levels": settings | {"vectors": self.vectors}}

    def _prepared(self, inputs: Tensor, described: Tensor | None) -> Any:
        """Return what the levels start from: pixels, the first layer of a bag of words, or a vector; of a
        backbone what its layers make, in a list."""
        if isinstance(self.levels, BackboneLevels) and isinstance(self.tower, Backbone):
            return self.tower.levels(inputs, self.levels.count)
        dtype = next(self.levels.parameters()).dtype
        if isinstance(self.levels, MapLevels):
            return (inputs.to(dtype) / 127.5 - 1).permute(0, 3, 1, 2)
        if isinstance(self.tower, BagOfWords) and self.tower.embeds and self.vectors == "mlp":
            first: Tensor = self.tower(inputs)
            return first
        description = self.describe(inputs) if described is None else described
        return self.standardise(description).to(dtype)


class LevelHeads(nn.Module):
    """A hash head per level, and the weights with which level codes make the final one."""

    def __init__(self, levels: int, width: int, code_length: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, code_length) for _ in range(levels))
        self.mix = nn.Parameter(1 / levels + torch.randn(levels, code_length) / code_length)

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, n, L) level codes and the (B, L) values of the final code, of (B, n, d)."""
        made = [torch.tanh(head(level)) for head, level in zip(self.heads, levels.unbind(1), strict=True)]
        codes = torch.stack(made, dim=1)
        return codes, (self.mix * codes).sum(1)


class JoinedHead(nn.Module):
    """One hash layer on everything; there are no level codes."""

    def __init__(self, width: int, code_length: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, code_length)

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return no level codes, (B, 0, L), and the (B, L) values of the final code."""
        values = self.head(levels.flatten(1))
        return values[:, None][:, :0], values


def _take_over(tower: Described, vectors: Vectors, config: LevelsConfig) -> Levels:
    """Build the levels on a tower and take off what they replace of it."""
    settings: Any = tower.settings
    if isinstance(tower, Backbone) and tower.trained:
        del tower.head, tower.norm
        return BackboneLevels(tower.level_widths(config.depth), config, maps=tower.maps)
    if isinstance(tower, ConvolutionalPixels):
        maps = MapLevels(tower.stages, settings.channels, config)
        del tower.stages, tower.head
        return maps
    if isinstance(tower, BagOfWords) and tower.embeds and vectors == "mlp":
        tower.register_module("head", nn.Identity())
        return VectorLevels(nn.Identity(), settings.hidden, config)
    for name in ("embedding", "bias", "head"):
        if hasattr(tower, name):
            delattr(tower, name)
    if vectors == "pyramid":
        return PyramidLevels(tower.width, config)
    return VectorLevels(nn.Linear(tower.width, settings.hidden), settings.hidden, config)
