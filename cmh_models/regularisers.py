"""Regularisers of codes that are functions of first and second moments over the global batch.

Ranks exchange sums of L, L x L and L x C numbers, gradient included, whatever the size of the batch.
"""

import torch
from torch import Tensor

from cmh_models.statistics import Statistics


class CodeMoments(Statistics):
    """First and second moments of relaxed codes: of the global batch, or running over the batches."""

    mean: Tensor
    outer: Tensor
    weight: Tensor

    def __init__(self, code_length: int, memory: float) -> None:
        """`memory` is the share of the past that a batch leaves standing; 0 forgets it."""
        super().__init__()
        self.memory = memory
        self.register_buffer("mean", torch.zeros(code_length, dtype=torch.float64))
        self.register_buffer("outer", torch.zeros(code_length, code_length, dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    def sums(self, codes: Tensor) -> dict[str, Tensor]:
        """Return the additive moments of (B, L) relaxed codes."""
        return {"rows": codes.new_tensor(float(len(codes))), "mean": codes.sum(0), "outer": codes.T @ codes}

    @torch.no_grad()
    def update(self, sums: dict[str, Tensor]) -> None:
        """Let the global batch behind `sums` into the running moments."""
        if not self.memory:
            return
        self.weight.mul_(self.memory).add_(1 - self.memory)
        for running, name in ((self.mean, "mean"), (self.outer, "outer")):
            running.mul_(self.memory).add_((1 - self.memory) * sums[name].double() / sums["rows"].double())

    def read(self, sums: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return (L,) means and (L, L) means of outer products, after `update` has seen the same sums.

        Running moments carry gradient through the share that this batch has in them.
        """
        mean, outer = (sums[name] / sums["rows"] for name in ("mean", "outer"))
        if not self.memory or self.weight == 0:
            return mean, outer
        share = ((1 - self.memory) / self.weight).to(mean.dtype)
        running, moments = (self.mean / self.weight).to(mean), (self.outer / self.weight).to(mean)
        return running + share * (mean - mean.detach()), moments + share * (outer - outer.detach())


def imbalance(mean: Tensor) -> Tensor:
    """Return the squared mean of a bit, averaged over the bits.

    Args:
        mean: (L,) means of relaxed codes.
    """
    return mean.square().mean()


def correlation(outer: Tensor) -> Tensor:
    """Return |M - I|^2 / L: how far bits are from being uncorrelated and of unit size.

    Args:
        outer: (L, L) M, mean of outer products of relaxed codes.
    """
    identity = torch.eye(len(outer), dtype=outer.dtype, device=outer.device)
    return (outer - identity).square().sum() / len(outer)


def read_out_error(outer: Tensor, cross: Tensor, energy: Tensor, *, ridge: float) -> Tensor:
    """Return the least mean |l - P' b|^2 + ridge |P|^2 over all linear read-outs P of labels from codes.

    P = (M + ridge I)^-1 K is put in: what remains is the energy of the labels less what P explains.

    Args:
        outer: (L, L) M, mean of b b'.
        cross: (L, C) K, mean of b l'.
        energy: (), mean of |l|^2.
    """
    # Double precision: codes that repeat each other make M nearly singular.
    wide = outer.double()
    wide = wide + ridge * torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    explained = (cross.double() * torch.linalg.solve(wide, cross.double())).sum()
    return energy - explained.to(energy.dtype)
