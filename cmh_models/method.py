"""The contract that every hashing method keeps, and what passes through it.

A method knows no rank, no device and no cluster. It sees the rows of its own rank (`output`), the rows of
the whole global batch (`everyone`) and sums over the global batch (`sums`). The training loop does the
communication in between, with gradients, so that 1 x B rows and N x B/N rows give the same loss.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.codes import check_code_length

Side = Literal["image", "text"]
SIDES: tuple[Side, Side] = ("image", "text")

Batch = dict[str, Tensor]
"""Tensors of the local rows: `image` and `text` (what the towers take); `labels` (B, C) if any."""

HashOutput = dict[str, Tensor]
"""What `forward` returns: `image` and `text`, the (B, L) relaxed codes, and whatever else the loss needs.

Each of (B, ...), one row per row of the batch, or a scalar that depends on weights alone.
"""


@dataclass(frozen=True)
class Progress:
    """How far training has come: what schedules may depend on."""

    epoch: int  # whole epochs done, 0-based
    step: int  # optimiser steps done in the whole run
    total_steps: int


@dataclass(frozen=True)
class Term:
    """One weighted loss term: the sum over the local rows and the local count that belongs to it.

    The loop adds numerators and denominators over the ranks and divides; `numerator` carries gradient,
    `denominator` does not.
    """

    numerator: Tensor
    denominator: Tensor


class Everyone(Mapping[str, Tensor]):
    """The gathered outputs of the global batch, and where the local rows stand among them."""

    def __init__(self, tensors: dict[str, Tensor], start: int) -> None:
        self._tensors = tensors
        self.start = start

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def binarize(relaxed: Tensor) -> Tensor:
    """Return hash codes in {-1, +1}; 0 becomes +1."""
    return torch.where(relaxed >= 0, 1.0, -1.0).to(relaxed.dtype)


class MethodConfig(BaseModel):
    """The settings that every method has; a method's own stand in a subclass."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    code_length: int = 64

    @field_validator("code_length")
    @classmethod
    def _whole_bytes(cls, value: int) -> int:
        return check_code_length(value)


class SideNetwork(nn.Module):
    """The network of one side: from what `collate` makes to the (B, L) values whose signs are the code.

    It also describes its inputs by fixed features, which no training changes: similarity targets and
    baselines are computed from them.
    """

    image_size: int | None = None
    """Side of the square pictures it takes; None for texts and features."""

    def collate(self, values: Any) -> Tensor:
        """Turn decoded values of B rows into one tensor."""
        raise NotImplementedError

    def describe(self, inputs: Tensor) -> Tensor:
        """Return (B, D) fixed features of the inputs."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, described: Tensor | None = None) -> Tensor:
        """Return (B, L) values; `described` saves computing the description again."""
        raise NotImplementedError

    def checkpoint_activations(self) -> None:
        """From now on keep its inputs alone; what its layers make of them is computed again going back."""
        self.__dict__["forward"] = partial(checkpoint, self.forward, use_reentrant=False)

    def architecture(self) -> dict[str, Any]:
        """Return all that its output depends on besides inputs and weights, as plain JSON values."""
        raise NotImplementedError


class HashMethod(nn.Module):
    """Networks and loss of one paper.

    A subclass sets `self.image` and `self.text`, the two side networks. All that a side's codes depend on
    lives under its own attribute: the fingerprint of a side covers nothing else.
    """

    gathers: tuple[str, ...] = ()
    """Names of outputs that every rank needs from every rank."""
    needs_labels: ClassVar[bool] = False

    Config: ClassVar[type[MethodConfig]] = MethodConfig

    image: SideNetwork
    text: SideNetwork
    code_length: int
    spec: dict[str, Any]
    """The settings it was built from, defaults filled in: `method` and `towers`."""
    global_rows: int | None = None
    """Rows of a global batch, as the training loop says: the cheaper of two equal ways may depend on it."""
    statistics_rounds: int = 0
    """Rounds of forward, sums and update_statistics, without gradient, to run before the first step."""

    def forward(self, batch: Batch, progress: Progress) -> HashOutput:
        """Return the relaxed codes of both sides and whatever else the loss needs."""
        raise NotImplementedError

    def sums(self, output: HashOutput) -> dict[str, Tensor]:
        """Return additive statistics of the local rows; the loop adds them over ranks, gradient included."""
        return {}

    def update_statistics(self, everyone: Everyone, sums: dict[str, Tensor]) -> None:
        """Update registered buffers, once per optimiser step and before the loss; runs without gradient."""

    def loss(
        self, output: HashOutput, everyone: Everyone, sums: dict[str, Tensor], progress: Progress
    ) -> dict[str, Term]:
        """Return the weighted terms of the loss over the local rows."""
        raise NotImplementedError

    def encode(self, side: Side, inputs: Tensor) -> Tensor:
        """Return the (B, L) relaxed codes of one side, as search will use them."""
        return torch.tanh(getattr(self, side)(inputs))

    @property
    def image_size(self) -> int | None:
        """Side of the square pictures that the image network takes, in pixels; None for features."""
        return self.image.image_size

    def collate(self, side: Side, values: Any) -> Tensor:
        """Turn decoded values of one side into what its network takes.

        Args:
            values: image pixels (B, H, W, 3) uint8, features (B, D) float32, or a list of B texts.
        """
        network: SideNetwork = getattr(self, side)
        return network.collate(values)
