"""What every tower is made of: its settings, a standardised description of its inputs, a head, pixels."""

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from cmh_models.dropout import RowDropout, row_keys
from cmh_models.method import SideNetwork
from cmh_models.statistics import Scaling, Standardiser


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TowerSettings(Settings):
    NEWER: ClassVar[frozenset[str]] = frozenset()
    """Options younger than models that are in use: at its default such a one is no part of a model's name."""

    hidden: int = Field(default=512, ge=1, description="width of the hidden layer")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of hidden values dropped while training; drawn by row"
    )

    def facts(self) -> dict[str, Any]:
        """Return the settings as plain JSON values, without newer options that have their default."""
        newer = {name for name in self.NEWER if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude=newer)


class Described(SideNetwork):
    """A side network with a standardised fixed description of its inputs."""

    def __init__(self, settings: TowerSettings, *, width: int, scaling: Scaling, code_length: int) -> None:
        super().__init__()
        self.settings = settings
        self.code_length = code_length
        self.standardiser = Standardiser(width, scaling)

    @property
    def width(self) -> int:
        """Number of features of the description."""
        return self.standardiser.width

    def standardise(self, described: Tensor) -> Tensor:
        """Return the (B, D) description with each feature centred and scaled."""
        standardised: Tensor = self.standardiser(described)
        return standardised

    def standardised(self, inputs: Tensor, described: Tensor | None) -> Tensor:
        """Return the standardised description in the precision of the trained part."""
        description = self.describe(inputs) if described is None else described
        return self.standardise(description).to(next(self.parameters()).dtype)

    def keys(self, inputs: Tensor) -> Tensor | None:
        """Return the keys by which dropout draws for each row; None where nothing is dropped."""
        return row_keys(inputs) if self.training and self.settings.dropout else None

    def architecture(self) -> dict[str, Any]:
        # A code does not depend on what was dropped while its weights were learnt.
        settings = {name: value for name, value in self.settings.facts().items() if name != "dropout"}
        return {"tower": settings, "code_length": self.code_length}


class Head(nn.ModuleList):
    """Linear, ReLU, linear, with dropout of the hidden values."""

    def __init__(self, width: int, settings: TowerSettings, code_length: int) -> None:
        super().__init__(two_layers(width, settings.hidden, code_length))
        self.drop = RowDropout(settings.dropout, place=0)

    def forward(self, values: Tensor, keys: Tensor | None) -> Tensor:
        """Return (B, L) of (B, D) values of rows with these keys."""
        first, activation, last = self[0], self[1], self[2]
        made: Tensor = last(self.drop(activation(first(values)), keys))
        return made


def two_layers(width: int, hidden: int, code_length: int) -> nn.Sequential:
    """Return linear, ReLU, linear."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, code_length))


def pixels(values: Any, image_size: int | None) -> Tensor:
    """Return (B, S, S, 3) uint8 pixels as a tensor.

    Raises:
        ValueError: another shape or type.
    """
    array = np.asarray(values)
    if array.ndim != 4 or array.shape[1:] != (image_size, image_size, 3) or array.dtype != np.uint8:
        raise ValueError(
            f"pictures must be (rows, {image_size}, {image_size}, 3) uint8, got {array.shape} {array.dtype}"
        )
    return torch.from_numpy(np.ascontiguousarray(array))
