"""Published losses as their authors' code has them, by autograd over all pairs; see loss.py.

Operation by operation as released: where a similarity is scaled before or after its product, and how often a
mask is made, is theirs. What their code computes and does not use (JDSH's mask of the diagonal) is left out.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cmh_models.label_pairs import LabelSets, Pairs, pair_losses

BITS = 64
DSDW = (-0.6, -0.25, -1.0, 1.0)  # left, right, lowest, highest: about one pair in ten is decided
GAINS = (0.1, 0.2)


@dataclass(frozen=True)
class Rows:
    """Raw features and relaxed codes of a global batch."""

    features: tuple[Tensor, Tensor]
    codes: tuple[Tensor, Tensor]

    def leaves(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return the codes of the first rows as leaves of a new graph."""
        image, text = (each[:rows].detach().clone().requires_grad_() for each in self.codes)
        return image, text


def draw(rows: int, widths: tuple[int, int], seed: int = 0) -> Rows:
    """Return rows whose sides have topics in common, and features that are not negative."""
    generator = torch.Generator().manual_seed(seed)
    topic = torch.randn(rows, 16, generator=generator)
    features, codes = [], []
    for width in widths:
        mixed = topic @ torch.randn(16, width, generator=generator) / 4
        features.append((mixed + torch.randn(rows, width, generator=generator)).clamp_min(0))
        codes.append(torch.tanh(topic @ torch.randn(16, BITS, generator=generator) / 4))
    return Rows((features[0], features[1]), (codes[0], codes[1]))


def published_djsrh(rows: Rows) -> tuple[Tensor, Tensor]:
    """Run loss and gradient over all pairs: b .3, eta .4, mu 1.5, lambda .1."""
    image, text = rows.leaves(len(rows.codes[0]))
    f, g = (functional.normalize(each) for each in rows.features)
    own = f.mm(f.t()) * 2 - 1, g.mm(g.t()) * 2 - 1
    similarity = 0.3 * own[0] + 0.7 * own[1]
    target = (0.6 * similarity + 0.4 * similarity.mm(similarity) / len(f)) * 1.5
    u, v = functional.normalize(image), functional.normalize(text)
    loss = functional.mse_loss(u @ v.T, target)
    loss = loss + 0.1 * functional.mse_loss(u @ u.T, target) + 0.1 * functional.mse_loss(v @ v.T, target)
    loss.backward()
    return image.grad, text.grad  # type: ignore[return-value]


def published_jdsh(rows: Rows) -> tuple[Tensor, Tensor]:
    """Run loss and gradient over all pairs: weights .5, .1, .4, mu 1.4, eta .1, DSDW with fixed constants."""
    image, text = rows.leaves(len(rows.codes[0]))
    f, g = (functional.normalize(each) for each in rows.features)
    own = f.mm(f.t()) * 2 - 1, g.mm(g.t()) * 2 - 1
    cross = functional.normalize(own[0]) @ functional.normalize(own[1]).T
    fused = 0.5 * own[0] + 0.1 * own[1] + 0.4 * (cross + cross.T) / 2
    left, right, lowest, highest = DSDW
    fused[fused < left] = (1 + GAINS[0] * torch.exp(-(fused[fused < left] - lowest))) * fused[fused < left]
    fused[fused > right] = (1 + GAINS[1] * torch.exp(fused[fused > right] - highest)) * fused[fused > right]
    target = fused * 1.4
    u, v = functional.normalize(image), functional.normalize(text)
    loss = 0.1 * functional.mse_loss(u @ u.T, target) + 0.1 * functional.mse_loss(v @ v.T, target)
    loss = loss + functional.mse_loss(u @ v.T, target) + functional.mse_loss(v @ u.T, target)
    loss = loss - (u * v).sum(1).mean()
    loss.backward()
    return image.grad, text.grad  # type: ignore[return-value]


@dataclass
class DcmhStep:
    """A step of DCMH's image side: 128 new codes against 10,000 stored ones, 24 labels, no image network."""

    rows: int = 128
    stored: int = 10_000

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = (torch.rand(self.stored, 24, generator=generator) < 0.1).float()
        self.labels[:, 0] += self.labels.sum(1) == 0
        self.other = torch.randn(self.stored, BITS, generator=generator)
        self.own = torch.randn(self.stored, BITS, generator=generator)
        self.binary = torch.sign(self.own + self.other)
        self.code_sum = self.own.sum(0)
        self.codes = torch.randn(self.rows, BITS, generator=generator)
        self.ones = torch.ones(self.stored)
        self.chosen = torch.randperm(self.stored, generator=generator)[: self.rows]

    def recipe(self) -> Tensor:
        """Run the step of the released code, operation by operation, over all stored codes."""
        codes, chosen = self.codes.clone().requires_grad_(), self.chosen.numpy()
        others = np.setdiff1d(range(self.stored), chosen)
        similarity = (self.labels[chosen].matmul(self.labels.t()) > 0).float()
        self.own[chosen, :] = codes.data
        theta = 1.0 / 2 * torch.matmul(codes, self.other.t())
        likelihood = -torch.sum(similarity * theta - torch.log(1.0 + torch.exp(theta)))
        quantisation = torch.sum(torch.pow(self.binary[chosen, :] - codes, 2))
        ones, rest = torch.ones(self.rows, 1), torch.ones(len(others), 1)
        balance = torch.sum(torch.pow(codes.t().mm(ones) + self.own[others].t().mm(rest), 2))
        loss = likelihood + 1.0 * quantisation + 1.0 * balance
        loss /= self.rows * self.stored
        loss.backward()
        return codes.grad  # type: ignore[return-value]

    def ours(self) -> Tensor:
        """Run the same with label sets, the closed gradient and a running sum of stored codes."""
        codes, chosen = self.codes.clone().requires_grad_(), self.chosen
        sets = LabelSets.of(self.labels[chosen])
        pairs = Pairs(sets, self.labels, self.ones, kind="likelihood", separate=False, chunk=2048)
        losses, _ = pair_losses(codes, self.other, pairs, scale=0.5)
        with torch.no_grad():
            others = self.code_sum - self.own[chosen].sum(0)
            self.own[chosen] = codes
            self.code_sum = others + codes.sum(0)
        quantisation = (self.binary[chosen] - codes).square().sum()
        balance = (codes.sum(0) + others).square().sum()
        ((losses.sum() + quantisation + balance) / (self.rows * self.stored)).backward()
        return codes.grad  # type: ignore[return-value]
