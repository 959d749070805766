"""Image and text towers, and the settings that choose them.

Every tower has a fixed description of its inputs, standardised by running moments, and a trained part.
`descriptor` and `features` feed the one to the other; `cnn` and `bag` train on the inputs themselves. None of
these needs a download. `transformers` and `timm` are networks from elsewhere: cmh_models.backbones.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional

from cmh_models import descriptor, words
from cmh_models.backbones import (
    TimmPixels,
    TimmTower,
    TransformersImageTower,
    TransformersPixels,
    TransformersTexts,
    TransformersTextTower,
)
from cmh_models.described import Described, Head, Settings, TowerSettings, pixels
from cmh_models.dropout import RowDropout
from cmh_models.method import HashMethod, HashOutput, Side
from cmh_models.statistics import Scaling, named, under


class DescriptorTower(TowerSettings):
    NEWER: ClassVar[frozenset[str]] = frozenset({"cells"})

    name: Literal["descriptor"] = "descriptor"
    image_size: int = Field(default=64, ge=8, description="side of the square picture, in pixels")
    cells: int = Field(
        default=descriptor.CELLS, ge=1, le=32, description="of gradient directions, to a side of the picture"
    )
    scaling: Scaling = "zscore"


class CnnTower(TowerSettings):
    name: Literal["cnn"] = "cnn"
    image_size: int = Field(default=64, ge=16, description="side of the square picture, in pixels")
    channels: tuple[int, ...] = (32, 64, 128, 128)
    scaling: Scaling = "zscore"


class BagTower(TowerSettings):
    NEWER: ClassVar[frozenset[str]] = frozenset({"rarest", "unit", "trained_on"})

    name: Literal["bag"] = "bag"
    word_buckets: int = Field(default=1024, ge=1)
    pair_buckets: int = Field(default=4096, ge=0)
    max_words: int = Field(default=256, ge=1, description="words beyond it are cut off")
    scaling: Scaling = "idf"
    rarest: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of rows; a word that fewer have is left out of the description",
    )
    unit: bool = Field(default=False, description="descriptions are all of one length")
    trained_on: Literal["tokens", "description"] = Field(
        default="tokens",
        description="tokens: words and pairs, embedded and summed; description: weighed counts, no pairs",
    )


class FeaturesTower(TowerSettings):
    name: Literal["features"] = "features"
    width: int | None = Field(
        default=None, ge=1, description="number of features; the training job fills it in"
    )
    scaling: Scaling = "zscore"


class TowersConfig(Settings):
    """Which tower each side uses."""

    image: Annotated[
        DescriptorTower | CnnTower | FeaturesTower | TransformersImageTower | TimmTower,
        Field(discriminator="name"),
    ] = DescriptorTower()
    text: Annotated[BagTower | FeaturesTower | TransformersTextTower, Field(discriminator="name")] = (
        BagTower()
    )


class DescribedPixels(Described):
    """The head of the `descriptor` tower: two layers on the classical picture descriptor."""

    def __init__(self, settings: DescriptorTower, code_length: int) -> None:
        width = descriptor.width_of(settings.cells)
        super().__init__(settings, width=width, scaling=settings.scaling, code_length=code_length)
        self.image_size, self.cells = settings.image_size, settings.cells
        self.head = Head(width, settings, code_length)

    def collate(self, values: Any) -> Tensor:
        return pixels(values, self.image_size)

    def describe(self, inputs: Tensor) -> Tensor:
        return descriptor.describe_pixels(inputs, self.cells)

    def forward(self, inputs: Tensor, described: Tensor | None = None) -> Tensor:
        return self.head(self.standardised(inputs, described), self.keys(inputs))

    def architecture(self) -> dict[str, Any]:
        return super().architecture() | {"descriptor": descriptor.DESCRIPTOR_VERSION}


class ConvolutionalPixels(Described):
    """The `cnn` tower: strided convolutions with group normalisation, whose rows stay independent."""

    def __init__(self, settings: CnnTower, code_length: int) -> None:
        super().__init__(settings, width=descriptor.WIDTH, scaling=settings.scaling, code_length=code_length)
        self.image_size = settings.image_size
        layers: list[nn.Module] = []
        before = 3
        for channels in settings.channels:
            layers += [nn.Conv2d(before, channels, 3, stride=2, padding=1, bias=False)]
            layers += [nn.GroupNorm(_groups(channels), channels), nn.ReLU()]
            before = channels
        self.stages = nn.Sequential(*layers)
        self.head = Head(2 * before, settings, code_length)

    def collate(self, values: Any) -> Tensor:
        return pixels(values, self.image_size)

    def describe(self, inputs: Tensor) -> Tensor:
        return descriptor.describe_pixels(inputs)

    def forward(self, inputs: Tensor, described: Tensor | None = None) -> Tensor:
        dtype = next(self.parameters()).dtype
        maps = self.stages((inputs.to(dtype) / 127.5 - 1).permute(0, 3, 1, 2))
        return self.head(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1), self.keys(inputs))


class BagOfWords(Described):
    """The `bag` tower: hashed words and pairs of words, embedded, summed, and two layers.

    Or two layers on the description alone, as the `features` tower has them.
    """

    def __init__(self, settings: BagTower, code_length: int) -> None:
        super().__init__(
            settings, width=settings.word_buckets, scaling=settings.scaling, code_length=code_length
        )
        self.standardiser.rarest, self.standardiser.unit = settings.rarest, settings.unit
        self.embeds = settings.trained_on == "tokens"
        self.buckets = settings.word_buckets
        self.pair_buckets = settings.pair_buckets if self.embeds else 0
        self.max_words = settings.max_words
        if not self.embeds:
            self.head: nn.Module = Head(self.width, settings, code_length)
            return
        tokens = 1 + settings.word_buckets + settings.pair_buckets
        embedding = torch.randn(tokens, settings.hidden)
        # A pair starts as no more than its two words, and learns only what it adds to them.
        embedding[1 + settings.word_buckets :] = 0
        self.embedding = nn.Parameter(embedding)
        self.bias = nn.Parameter(torch.zeros(settings.hidden))
        self.drop = RowDropout(settings.dropout, place=0)
        self.head = nn.Linear(settings.hidden, code_length)

    def collate(self, values: Any) -> Tensor:
        if not all(isinstance(value, str) for value in values):
            raise TypeError("the bag tower takes texts (str); choose the features tower for features")
        return torch.from_numpy(
            words.token_ids(values, self.buckets, pair_buckets=self.pair_buckets, max_words=self.max_words)
        )

    def describe(self, inputs: Tensor) -> Tensor:
        """Return (B, word_buckets): 1 + log of how often a word occurs, 0 where it does not."""
        counts = torch.zeros(len(inputs), self.buckets + 1, device=inputs.device)
        only_words = torch.where(inputs <= self.buckets, inputs, 0)
        counts.scatter_add_(1, only_words, torch.ones((), device=inputs.device).expand_as(inputs))
        counts = counts[:, 1:]
        return torch.where(counts > 0, 1 + counts.clamp_min(1).log(), 0.0)

    def forward(self, inputs: Tensor, described: Tensor | None = None) -> Tensor:
        if not self.embeds:
            known: Tensor = self.head(self.standardised(inputs, described), self.keys(inputs))
            return known
        summed = functional.embedding_bag(inputs, self.embedding, mode="sum", padding_idx=0)
        tokens = (inputs != 0).sum(1, keepdim=True).clamp_min(1)
        hidden = torch.relu(summed * tokens.to(summed.dtype).rsqrt() + self.bias)
        values: Tensor = self.head(self.drop(hidden, self.keys(inputs)))
        return values

    def architecture(self) -> dict[str, Any]:
        return super().architecture() | {"tokeniser": words.TOKENISER_VERSION}


class GivenFeatures(Described):
    """The `features` tower: two layers on features that came with the data."""

    def __init__(self, settings: FeaturesTower, code_length: int, side: Side) -> None:
        if settings.width is None:
            raise ValueError(f"towers.{side}.width is not set: give the number of features of a row")
        super().__init__(settings, width=settings.width, scaling=settings.scaling, code_length=code_length)
        self.head = Head(settings.width, settings, code_length)

    def collate(self, values: Any) -> Tensor:
        features = np.asarray(values, dtype=np.float32)
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(
                f"features must have shape (rows, {self.width}), got {features.shape}: "
                "the model was built for another data set"
            )
        return torch.from_numpy(features)

    def describe(self, inputs: Tensor) -> Tensor:
        return inputs

    def forward(self, inputs: Tensor, described: Tensor | None = None) -> Tensor:
        return self.head(self.standardised(inputs, described), self.keys(inputs))


def build_tower(settings: BaseModel, side: Side, code_length: int) -> Described:
    """Build the network of a side from its settings."""
    if isinstance(settings, DescriptorTower):
        return DescribedPixels(settings, code_length)
    if isinstance(settings, CnnTower):
        return ConvolutionalPixels(settings, code_length)
    if isinstance(settings, BagTower):
        return BagOfWords(settings, code_length)
    if isinstance(settings, FeaturesTower):
        return GivenFeatures(settings, code_length, side)
    if isinstance(settings, TransformersImageTower):
        return TransformersPixels(settings, code_length)
    if isinstance(settings, TransformersTextTower):
        return TransformersTexts(settings, code_length)
    if isinstance(settings, TimmTower):
        return TimmPixels(settings, code_length)
    raise TypeError(f"towers.{side}: no tower has settings of type {type(settings).__name__}")


def description_sums(method: HashMethod, output: HashOutput) -> dict[str, Tensor]:
    """Return the sums that `update_descriptions` looks for, from `<side>_described` of an output."""
    sums: dict[str, Tensor] = {}
    for side in ("image", "text"):
        network: Described = getattr(method, side)
        sums |= named(f"features.{side}", network.standardiser.sums(output[f"{side}_described"]))
    return sums


def update_descriptions(method: HashMethod, sums: dict[str, Tensor]) -> None:
    """Add the rows behind `sums` to the moments of both sides' descriptions, if they have such sums."""
    for side in ("image", "text"):
        network: Described = getattr(method, side)
        if found := under(f"features.{side}", sums):
            network.standardiser.update(found)


@contextmanager
def fixed(inputs: Tensor) -> Iterator[None]:
    """Compute without gradient, and in full precision where training itself runs in half."""
    with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
        yield


def _groups(channels: int) -> int:
    """Return the largest number of groups up to 8 that divides the channels."""
    return next(groups for groups in range(8, 0, -1) if channels % groups == 0)
