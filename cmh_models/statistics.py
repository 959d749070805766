"""Running statistics of the data: buffers that are part of a model's state and never lose precision."""

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

Scaling = Literal["zscore", "idf", "centre"]


class Statistics(nn.Module):
    """A module of buffers that keep their precision when the networks around them are cast to a smaller one.

    Training in bfloat16 casts every buffer of a model; counts and moments would not survive it.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype.itemsize < old.dtype.itemsize:
                self._buffers[name] = old.to(new.device)
        return self


class Standardiser(Statistics):
    """Centres and scales features by the moments of all rows seen while it was learning.

    `zscore` divides by the standard deviation, `idf` multiplies by log(1 / share of rows where the feature
    is not zero), `centre` only centres. A feature that never varied is dropped (weight 0), and with `rarest`
    one that is there in a smaller share of the rows. `unit` then scales every row to a mean square of 1 over
    the features that are left.
    """

    mean: Tensor
    square: Tensor
    present: Tensor
    rows: Tensor

    def __init__(
        self, width: int, scaling: Scaling = "zscore", *, rarest: float = 0.0, unit: bool = False
    ) -> None:
        super().__init__()
        self.width = width
        self.scaling = scaling
        self.rarest, self.unit = rarest, unit
        # Double precision: the variance is a difference of two sums that may be almost equal.
        for name in ("mean", "square", "present"):
            self.register_buffer(name, torch.zeros(width, dtype=torch.float64))
        self.register_buffer("rows", torch.zeros((), dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, D) standardised features; before anything was learnt, the features themselves."""
        weight = self.weight()
        scaled = ((features - self.mean) * weight).to(features.dtype)
        if not self.unit:
            return scaled
        left = (weight != 0).sum().clamp_min(1).to(scaled.dtype)
        return functional.normalize(scaled) * left.sqrt()

    def weight(self) -> Tensor:
        """Return the (D,) factor of each centred feature."""
        variance = self.square - self.mean.square()
        varies = (variance > 1e-12 * self.square) | (self.rows == 0)
        if self.scaling == "zscore":
            scale = torch.where(self.rows == 0, 1.0, variance.clamp_min(1e-30).rsqrt())
        elif self.scaling == "idf":
            # Add-one smoothing: a feature seen in every row keeps a small weight, an unseen one a finite.
            scale = ((self.rows + 2) / (self.present * self.rows + 1)).log()
        else:
            scale = torch.ones_like(self.mean)
        return scale * varies * self.is_common() if self.rarest else scale * varies

    def energy(self) -> Tensor:
        """Return the mean square of standardised features over the rows that were seen, about."""
        weight = self.weight()
        if self.unit:
            return (weight != 0).to(weight.dtype).mean()
        return ((self.square - self.mean.square()) * weight.square()).mean()

    def is_common(self) -> Tensor:
        """Return (D,) whether a feature is there in as many rows as it must be."""
        return (self.present >= self.rarest) | (self.rows == 0)

    def sums(self, features: Tensor) -> dict[str, Tensor]:
        """Return the additive statistics of the local rows."""
        wide = features.detach().double()
        return {
            "rows": wide.new_tensor(len(wide)),
            "sum": wide.sum(0),
            "square": wide.square().sum(0),
            "present": (wide != 0).double().sum(0),
        }

    def update(self, sums: dict[str, Tensor]) -> None:
        """Add the rows behind `sums` to the moments."""
        self.rows += sums["rows"]
        share = sums["rows"] / self.rows
        self.mean += (sums["sum"] / sums["rows"] - self.mean) * share
        self.square += (sums["square"] / sums["rows"] - self.square) * share
        self.present += (sums["present"] / sums["rows"] - self.present) * share

    def extra_repr(self) -> str:
        return f"{self.width}, scaling={self.scaling!r}"


def named(prefix: str, sums: dict[str, Any]) -> dict[str, Any]:
    """Return `sums` with a prefix before every name."""
    return {f"{prefix}.{name}": value for name, value in sums.items()}


def under(prefix: str, sums: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of `sums` below a prefix, the prefix taken off; the inverse of `named`."""
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in sums.items() if name.startswith(start)}
