"""Adaptive tanh (ATanh): an activation that learns how steep it is, for any method that makes codes.

Source: Li, Hu, Nie, "Deep Binary Reconstruction for Cross-modal Hashing" (ACM MM 2017; IEEE TMM 2019), of
which only abstracts could be read: scaling before tanh, linear and nonlinear, learnt by back-propagation, is
theirs; the inverse-square penalty is remembered; the nonlinear forms, the starting slope and all constants
are ours. Every form is odd and rises strictly, so sign(ATanh(a)) = sign(a): codes at test time need none of
this, and it belongs to no side.
"""

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from cmh_models.method import Progress
from cmh_models.statistics import Statistics

ScaleFn = Literal["fixed", "schedule", "linear", "power", "cubic", "asinh"]


class AtanhConfig(BaseModel):
    """How the values before tanh are scaled; all but the linear form is inferred."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale_fn: ScaleFn = Field(
        default="linear",
        description="fixed: a; schedule: a sqrt(epoch + 1); linear: alpha a; "
        "power: alpha a (a^2 + 0.01)^((p - 1) / 2), p in (0, 1) learnt; cubic: alpha a + beta a^3; "
        "asinh: alpha asinh(beta a) / beta",
    )
    per_bit: bool = Field(default=True, description="each bit learns its own slope; else all share one")
    start: Literal["spread", "one"] = Field(
        default="spread",
        description="spread: a is first divided by its root mean square of the first rounds; one: it is not",
    )
    penalty: float = Field(default=1e-3, ge=0, description="lambda of the sum over bits of alpha^-2")
    smallest: float = Field(default=1e-3, gt=0, lt=1, description="alpha = softplus(rho) + smallest")


class AdaptiveTanh(Statistics):
    """tanh of scaled values; slopes are learnt, the spread of the values is a running statistic."""

    square: Tensor
    rows: Tensor

    def __init__(self, config: AtanhConfig, code_length: int) -> None:
        super().__init__()
        self.config = config
        self.code_length = code_length
        slopes = code_length if config.per_bit else 1
        learnt = config.scale_fn not in ("fixed", "schedule")
        self.rho = (
            nn.Parameter(torch.full((slopes,), _inverse_softplus(1 - config.smallest))) if learnt else None
        )
        shape = {"power": 0.0, "cubic": _inverse_softplus(0.1), "asinh": _inverse_softplus(1.0)}
        has_shape = config.scale_fn in shape
        self.shape = nn.Parameter(torch.full((slopes,), shape[config.scale_fn])) if has_shape else None
        self.register_buffer("square", torch.ones(code_length, dtype=torch.float64))
        self.register_buffer("rows", torch.zeros((), dtype=torch.float64))

    def forward(self, values: Tensor, progress: Progress) -> Tensor:
        """Return (B, L) relaxed codes of (B, L) values."""
        return torch.tanh(self.scaled(values, progress))

    def scaled(self, values: Tensor, progress: Progress) -> Tensor:
        """Return what tanh is taken of."""
        form = self.config.scale_fn
        if self.config.start == "spread":
            values = values * self.square.clamp_min(1e-30).rsqrt().to(values.dtype)
        if self.rho is None:
            return values * ((progress.epoch + 1) ** 0.5 if form == "schedule" else 1.0)
        if self.shape is None:
            return self.slope() * values
        if form == "power":
            power = torch.sigmoid(self.shape)
            return self.slope() * values * (values.square() + 0.01) ** ((power - 1) / 2)
        beta = functional.softplus(self.shape)
        if form == "cubic":
            return self.slope() * values + beta * values**3
        return self.slope() * torch.asinh(beta * values) / beta

    def slope(self) -> Tensor:
        """Return alpha, (L,), always positive; 1 where none is learnt."""
        if self.rho is None:
            return torch.ones_like(self.square)
        return (functional.softplus(self.rho) + self.config.smallest).expand(self.code_length)

    def penalty(self) -> Tensor:
        """Return lambda * sum of alpha^-2 over the bits; its gradient makes slopes steeper."""
        weight = self.config.penalty if self.rho is not None else 0.0
        return weight * self.slope().pow(-2).sum()

    def sums(self, *values: Tensor) -> dict[str, Tensor]:
        """Return the additive statistics behind the spread of (B, L) values."""
        wide = [each.detach().double() for each in values]
        rows = wide[0].new_tensor(float(sum(len(each) for each in wide)))
        return {"rows": rows, "square": torch.stack([each.square().sum(0) for each in wide]).sum(0)}

    def update(self, sums: dict[str, Tensor]) -> None:
        """Add the rows behind `sums` to the spread."""
        self.rows += sums["rows"]
        self.square += (sums["square"] / sums["rows"] - self.square) * (sums["rows"] / self.rows)


def _inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))
