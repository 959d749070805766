"""How the levels of a network interact: low-rank bilinear products, passed up, down, or over all pairs.

The abstract of HSIDHN names a Bidirectional Bi-linear Interaction between layers and gives no equation. All
here is inferred; the operator is that of hierarchical bilinear pooling (Yu et al., ECCV 2018).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

Reading = Literal["none", "bottom_up", "top_down", "both", "pairs"]
Scale = Literal["plain", "rooted"]


class InteractionConfig(BaseModel):
    """How levels interact; all of it is inferred."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reading: Reading = Field(
        default="both",
        description="bilinear products of levels. bottom_up, top_down, both (BBI): passed from level to "
        "level; pairs: the other reading, products of all ordered pairs of levels side by side make one code "
        "and there are no level codes; none: no products",
    )
    rank: int = Field(default=256, ge=1, description="r, of a product")
    scale: Scale = Field(default="plain", description="of a product; rooted: signed root, then unit length")


def build_interaction(levels: int, width: int, config: InteractionConfig, *, start: float = 1.0) -> nn.Module:
    """Return a module from (B, n, d) levels to (B, n, d) or, of pairs, (B, n (n - 1), d).

    Args:
        start: of the learnt factor of each product that is passed on.
    Raises:
        ValueError: pairs are wanted of a single level.
    """
    if config.reading != "pairs":
        return Passing(levels, width, config, start=start)
    if levels < 2:
        raise ValueError("method.levels.interaction: pairs needs two levels or more, got 1")
    return AllPairs(levels, width, config)


class Bilinear(nn.Module):
    """phi(a, b) = P'[(U'a) . (V'b)], each of its products of rank one."""

    def __init__(self, width: int, config: InteractionConfig) -> None:
        super().__init__()
        self.left = nn.Linear(width, config.rank, bias=False)
        self.right = nn.Linear(width, config.rank, bias=False)
        self.out = nn.Linear(config.rank, width, bias=False)
        self.scale = config.scale

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return (B, d) of two levels, each (B, d)."""
        product: Tensor = self.out(self.left(a) * self.right(b))
        if self.scale == "plain":
            return product
        # The small constant keeps the slope of the root finite at 0.
        rooted = product.sign() * ((product.abs() + 1e-6).sqrt() - 1e-3)
        return functional.normalize(rooted)


class Passing(nn.Module):
    """Levels that pass their features on, upwards, downwards or both ways.

    p_1 = u_1, p_l = u_l + g_l . phi_l(u_l, p_(l-1)), g_l learnt factors; q likewise from the last level down;
    z_l is the normalised mean of p_l and q_l, or of the one that there is.
    """

    def __init__(self, levels: int, width: int, config: InteractionConfig, *, start: float) -> None:
        super().__init__()
        up = levels - 1 if config.reading in ("bottom_up", "both") else 0
        down = levels - 1 if config.reading in ("top_down", "both") else 0
        self.up = nn.ModuleList(Bilinear(width, config) for _ in range(up))
        self.down = nn.ModuleList(Bilinear(width, config) for _ in range(down))
        self.up_gains, self.down_gains = (gains([width] * count, start) for count in (up, down))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(levels))

    def forward(self, levels: Tensor) -> Tensor:
        """Return (B, n, d) of (B, n, d) level features."""
        features = levels.unbind(1)
        ways = []
        if len(self.up):
            ways.append(_passed(features, self.up, self.up_gains))
        if len(self.down):
            ways.append(_passed(features[::-1], self.down, self.down_gains)[::-1])
        ways = ways or [list(features)]
        means = [torch.stack(level).mean(0) for level in zip(*ways, strict=True)]
        return torch.stack([norm(mean) for norm, mean in zip(self.norms, means, strict=True)], dim=1)


class AllPairs(nn.Module):
    """Every two levels in both orders, side by side: phi(u_l, u_m), phi'(u_m, u_l) for l < m."""

    def __init__(self, levels: int, width: int, config: InteractionConfig) -> None:
        super().__init__()
        self.orders = [order for a, b in combinations(range(levels), 2) for order in ((a, b), (b, a))]
        self.products = nn.ModuleList(Bilinear(width, config) for _ in self.orders)
        self.norm = nn.LayerNorm(width)

    def forward(self, levels: Tensor) -> Tensor:
        """Return (B, n (n - 1), d), each normalised, of (B, n, d) level features."""
        features = levels.unbind(1)
        made = [
            product(features[a], features[b])
            for product, (a, b) in zip(self.products, self.orders, strict=True)
        ]
        products: Tensor = self.norm(torch.stack(made, dim=1))
        return products


def gains(widths: Sequence[int], start: float) -> nn.ParameterList:
    """Return learnt factors of branches, one per value (LayerScale, Touvron et al., ICCV 2021)."""
    return nn.ParameterList(nn.Parameter(torch.full((width,), start)) for width in widths)


def _passed(features: tuple[Tensor, ...], steps: nn.ModuleList, factors: nn.ParameterList) -> list[Tensor]:
    passed = [features[0]]
    for feature, step, gain in zip(features[1:], steps, factors, strict=True):
        passed.append(feature + gain * step(feature, passed[-1]))
    return passed
