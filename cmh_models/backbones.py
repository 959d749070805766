"""Towers on networks from elsewhere: any encoder of transformers, any picture network of timm.

What such a network is stands in the tower's settings, filled in by the training job from the folder that its
weights came in (`cmh_models.pretrained`): building one reads no file and asks no hub. No code of a model
repository is ever run. Nothing here is imported before it is used: transformers and timm are an extra.

The networks' own dropout is switched off, and their batch norms keep the statistics they came with: a row's
code, and the loss, may not depend on how many ranks share a batch.
"""

from collections.abc import Iterator
from copy import deepcopy
from hashlib import blake2b
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional

from cmh_models import descriptor
from cmh_models.described import Described, Head, TowerSettings, pixels
from cmh_models.foreign import spelled, timm_network, tokeniser, transformers_network
from cmh_models.statistics import Scaling

PLAIN_BUCKETS = 1024
"""Width of the plain description of a text: how often its tokens occur, by number modulo this."""


class BackboneTower(TowerSettings):
    """What the towers on foreign networks have in common."""

    name: str
    model: str = Field(min_length=1, description="name on the hub or of timm's, folder or URI")
    weights: str | None = Field(
        default=None,
        description="folder or URI; none: random ones; not given: those published with the model",
    )
    trained: bool = Field(default=True, description="false: only the head learns")
    described_by: Literal["backbone", "plain"] = Field(
        default="backbone",
        description="what targets are made of. backbone: its features as it came, by a frozen copy where it "
        "is trained; plain: the classical picture descriptor, or counts of tokens",
    )
    scaling: Scaling = "zscore"
    config: dict[str, Any] | None = Field(default=None, description="of the network; the job fills it in")

    @model_validator(mode="after")
    def _described(self) -> Self:
        if not self.trained and self.described_by == "plain":
            raise ValueError("a backbone that is not trained is described by itself: leave described_by out")
        return self


class _Pictures(BackboneTower):
    image_size: int | None = Field(default=None, ge=8, description="of its pictures; the job fills it in")
    mean: tuple[float, float, float] | None = Field(default=None, description="of channels from 0 to 1")
    std: tuple[float, float, float] | None = None


class TransformersImageTower(_Pictures):
    name: Literal["transformers"] = "transformers"
    pooling: Literal["mean", "first"] = Field(default="mean", description="of the last layer's patches")


class TimmTower(_Pictures):
    name: Literal["timm"] = "timm"


class TransformersTextTower(BackboneTower):
    name: Literal["transformers"] = "transformers"
    pooling: Literal["mean", "first", "last"] = Field(
        default="mean", description="of the last layer's tokens"
    )
    max_tokens: int = Field(default=64, ge=2, description="texts are cut or padded to so many tokens")
    vocabulary: str | None = Field(
        default=None, description="the tokeniser, as its tokenizer.json; the job fills it in"
    )

    @field_validator("vocabulary")
    @classmethod
    def _one_spelling(cls, value: str | None) -> str | None:
        return value if value is None else spelled(value)


class Backbone(Described):
    """A tower around a network: features of its last layer, pooled, and a head of two layers."""

    maps: bool = False
    """Its layers make (B, C, h, w) maps, not (B, T, H) rows."""

    def __init__(
        self, settings: BackboneTower, code_length: int, network: nn.Module, *, widths: list[int], plain: int
    ) -> None:
        hidden = widths[-1]
        width = plain if settings.described_by == "plain" else hidden
        super().__init__(settings, width=width, scaling=settings.scaling, code_length=code_length)
        self.widths = widths
        self.trained = settings.trained
        self.by_itself = settings.described_by == "backbone"
        self.backbone: Any = network.requires_grad_(settings.trained)
        self.reference: Any = None
        if settings.trained and self.by_itself:
            self.reference = deepcopy(network).requires_grad_(False)
        self.norm = nn.LayerNorm(hidden) if settings.trained else nn.Identity()
        self.head = Head(hidden, settings, code_length)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what is frozen, and every batch norm, stays as search will use it."""
        super().train(mode)
        if not self.trained:
            self.backbone.eval()
        if self.reference is not None:
            self.reference.eval()
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Take the weights that the network starts from."""
        for network in self._networks():
            network.load_state_dict(state)

    def describe(self, inputs: Tensor) -> Tensor:
        if not self.by_itself:
            return self.plain(inputs)
        network = self.backbone if self.reference is None else self.reference
        return self.pool(self.outputs(network, inputs)[-1], inputs)

    def forward(self, inputs: Tensor, described: Tensor | None = None) -> Tensor:
        if self.trained:
            features: Tensor = self.norm(self.pool(self.outputs(self.backbone, inputs)[-1], inputs))
        else:
            features = self.standardised(inputs, described)
        values: Tensor = self.head(features, self.keys(inputs))
        return values

    def levels(self, inputs: Tensor, count: int) -> list[Tensor]:
        """Return `count` depths, the deepest last: the last (B, C, h, w) maps, or (B, H) spread evenly."""
        found = self.outputs(self.backbone, inputs)
        if self.maps:
            return found[-count:]
        step = (len(found) - 1) / count
        return [self.pool(found[round((place + 1) * step)], inputs) for place in range(count)]

    def level_widths(self, most: int) -> list[int]:
        """Return the features of each of at most so many levels."""
        return self.widths[-most:]

    def outputs(self, network: nn.Module, inputs: Tensor) -> list[Tensor]:
        """Return what comes out of each layer: (B, T, H) rows, with what goes into the first before them, or
        (B, C, h, w) maps."""
        raise NotImplementedError

    def pool(self, output: Tensor, inputs: Tensor) -> Tensor:
        """Return (B, H) of one of the outputs."""
        raise NotImplementedError

    def plain(self, inputs: Tensor) -> Tensor:
        """Return the description that needs no network."""
        raise NotImplementedError

    def checkpoint_activations(self) -> None:
        """Keep the input of every layer and compute the rest again on the way back."""
        if hasattr(self.backbone, "gradient_checkpointing_enable"):
            self.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        elif hasattr(self.backbone, "set_grad_checkpointing"):
            for module in self.backbone.modules():
                if hasattr(module, "inplace"):
                    module.inplace = False  # what is computed from again must be as it was
            self.backbone.set_grad_checkpointing()
        else:
            super().checkpoint_activations()

    def architecture(self) -> dict[str, Any]:
        # Where weights came from is not what they are; nor does a code depend on what targets were made of.
        settings = self.settings.model_dump(
            mode="json", exclude={"dropout", "model", "weights", "described_by", "vocabulary"}
        )
        return {"tower": settings, "code_length": self.code_length}

    def _networks(self) -> Iterator[nn.Module]:
        yield self.backbone
        if self.reference is not None:
            yield self.reference


class _PictureBackbone(Backbone):
    mean: Tensor
    std: Tensor

    def __init__(
        self, settings: _Pictures, code_length: int, network: nn.Module, *, widths: list[int]
    ) -> None:
        super().__init__(settings, code_length, network, widths=widths, plain=descriptor.WIDTH)
        self.image_size = _filled(settings, "image_size")
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(_filled(settings, name)) * 255, persistent=False)

    def collate(self, values: Any) -> Tensor:
        return pixels(values, self.image_size)

    def plain(self, inputs: Tensor) -> Tensor:
        return descriptor.describe_pixels(inputs)

    def prepared(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Return (B, 3, S, S) of uint8 pixels, scaled as the network was trained."""
        scaled = (inputs - self.mean) / self.std
        return scaled.to(next(network.parameters()).dtype).permute(0, 3, 1, 2)


class TransformersPixels(_PictureBackbone):
    """A picture encoder of transformers."""

    def __init__(self, settings: TransformersImageTower, code_length: int) -> None:
        network = transformers_network(_filled(settings, "config"), "image")
        super().__init__(settings, code_length, network, widths=_widths(network))
        self.maps = hasattr(network.config, "hidden_sizes")
        self.first = settings.pooling == "first"

    def outputs(self, network: nn.Module, inputs: Tensor) -> list[Tensor]:
        made = network(pixel_values=self.prepared(network, inputs), output_hidden_states=True)
        return [*made.hidden_states[:-1], made.last_hidden_state]

    def pool(self, output: Tensor, inputs: Tensor) -> Tensor:
        if self.maps:
            return output.mean((2, 3))
        return output[:, 0] if self.first else output.mean(1)


class TimmPixels(_PictureBackbone):
    """A picture network of timm, as its stages (`features_only`)."""

    def __init__(self, settings: TimmTower, code_length: int) -> None:
        config = _filled(settings, "config")
        network = timm_network(config["architecture"])
        super().__init__(settings, code_length, network, widths=list(network.feature_info.channels()))
        self.maps = True

    def outputs(self, network: nn.Module, inputs: Tensor) -> list[Tensor]:
        return list(network(self.prepared(network, inputs)))

    def pool(self, output: Tensor, inputs: Tensor) -> Tensor:
        return output.mean((2, 3))


class TransformersTexts(Backbone):
    """A text encoder of transformers, with its tokeniser. Token numbers count from 1; 0 is padding."""

    def __init__(self, settings: TransformersTextTower, code_length: int) -> None:
        network = transformers_network(_filled(settings, "config"), "text")
        super().__init__(settings, code_length, network, widths=_widths(network), plain=PLAIN_BUCKETS)
        self.max_tokens = settings.max_tokens
        self.pooling = settings.pooling
        self.vocabulary: str = _filled(settings, "vocabulary")
        self.tokeniser = tokeniser(self.vocabulary, settings.max_tokens)
        configured: Any = network.config
        self.padding = int(getattr(configured, "pad_token_id", None) or 0)
        most = getattr(configured, "max_position_embeddings", None)
        if most is not None and settings.max_tokens > most:
            raise ValueError(f"towers.text.max_tokens is {settings.max_tokens}, the backbone takes {most}")

    def collate(self, values: Any) -> Tensor:
        if not all(isinstance(value, str) for value in values):
            raise TypeError("a text backbone takes texts (str); choose the features tower for features")
        ids = torch.zeros(len(values), self.max_tokens, dtype=torch.int64)
        for row, encoding in zip(ids, self.tokeniser.encode_batch(list(values)), strict=True):
            row[: len(encoding.ids)] = torch.tensor(encoding.ids, dtype=torch.int64) + 1
        return ids

    def outputs(self, network: nn.Module, inputs: Tensor) -> list[Tensor]:
        there = inputs != 0
        ids = torch.where(there, inputs - 1, self.padding)
        # A text without a token still needs something to attend to.
        there[:, 0] = True
        made = network(input_ids=ids, attention_mask=there.long(), output_hidden_states=True)
        return [*made.hidden_states[:-1], made.last_hidden_state]

    def pool(self, output: Tensor, inputs: Tensor) -> Tensor:
        if self.pooling == "first":
            return output[:, 0]
        tokens = (inputs != 0).sum(1).clamp_min(1)
        if self.pooling == "last":
            return output[torch.arange(len(output), device=output.device), tokens - 1]
        mask = torch.arange(output.shape[1], device=output.device) < tokens[:, None]
        return (output * mask[:, :, None]).sum(1) / tokens[:, None]

    def plain(self, inputs: Tensor) -> Tensor:
        counts = torch.zeros(len(inputs), PLAIN_BUCKETS + 1, device=inputs.device)
        buckets = torch.where(inputs != 0, inputs % PLAIN_BUCKETS + 1, 0)
        counts.scatter_add_(1, buckets, torch.ones((), device=inputs.device).expand_as(inputs))
        return functional.relu(counts[:, 1:]).log1p()

    def architecture(self) -> dict[str, Any]:
        digest = blake2b(self.vocabulary.encode(), digest_size=16).hexdigest()
        return super().architecture() | {"vocabulary": digest}


def _widths(network: Any) -> list[int]:
    """Return the features of each layer of an encoder of transformers."""
    config = network.config
    if hasattr(config, "hidden_sizes"):
        return list(config.hidden_sizes)
    return [config.hidden_size] * config.num_hidden_layers


def _filled(settings: BackboneTower, name: str) -> Any:
    value = getattr(settings, name)
    if value is None:
        raise ValueError(
            f"{name} of the {settings.name} tower {settings.model!r} is not filled in: give its settings "
            "through the training job, which reads them from the model's folder"
        )
    return value
