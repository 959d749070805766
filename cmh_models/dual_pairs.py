"""Pair losses of a hard and a soft similarity of label sets at once, in column chunks.

Several sets of local codes (levels) meet several sets of gathered codes (sides): targets are made once per
block and serve all of them. Blocks are made again on the way back, so that none is kept and one product
carries the gradient of all classes of pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from cmh_models.label_pairs import LabelSets, similarities

Kind = Literal["hard", "soft"]
LOW, HIGH = 0.01, 0.99  # a pair is soft between them, if it can be one of both only (IDHN's released code)


@dataclass(frozen=True)
class DualPairs:
    """Local rows against the global batch: how alike their label sets are, and which losses a pair gets."""

    rows: LabelSets
    columns: Tensor  # (B, C) label vectors
    kinds: tuple[Kind, ...]
    exclusive: bool  # a pair gets one of both losses (V1), else both (V2)
    separate: bool  # similar and dissimilar pairs are summed each on their own
    scale: float  # of the inner products that a likelihood is taken of
    chunk: int

    def blocks(self) -> Iterator["Block"]:
        """Yield targets and classes of all pairs, some columns at a time."""
        for first in range(0, len(self.columns), self.chunk):
            part = slice(first, min(first + self.chunk, len(self.columns)))
            # Made between sets: rows are many more than the sets they have.
            hard = similarities(self.rows.sets, self.columns[part], soft=False)
            soft = similarities(self.rows.sets, self.columns[part], soft=True)
            masks = self._masks(hard, soft)
            of_row = self.rows.of_row
            yield Block(part, hard[of_row], soft[of_row], masks[:, :, of_row])

    def _masks(self, hard: Tensor, soft: Tensor) -> Tensor:
        between = ((soft >= LOW) & (soft <= HIGH)).to(soft.dtype)
        of_kind = {"hard": 1 - between, "soft": between}
        classes = torch.stack([hard, 1 - hard] if self.separate else [torch.ones_like(hard)])
        return torch.stack([classes * of_kind[kind] if self.exclusive else classes for kind in self.kinds])


@dataclass(frozen=True)
class Block:
    """All local rows against some columns."""

    columns: slice
    hard: Tensor  # (b, c) 1 where a label is shared
    soft: Tensor  # (b, c) cosines of label vectors
    masks: Tensor  # (kinds, classes, b, c) 1 where a pair belongs

    def loss(self, kind: Kind, products: Tensor, scale: float, bits: int) -> tuple[Tensor, Tensor]:
        """Return the losses of pairs and their slopes, of (b, c) inner products of codes."""
        if kind == "hard":
            logits = scale * products
            losses = functional.softplus(logits) - self.hard * logits
            return losses, scale * (torch.sigmoid(logits) - self.hard)
        error = (products + bits) / (2 * bits) - self.soft
        return error.square(), error / bits


def dual_losses(rows: Tensor, columns: Tensor, pairs: DualPairs) -> tuple[Tensor, Tensor]:
    """Sum the losses of all pairs of local rows and columns.

    hard: softplus(theta) - s theta, theta = scale <a, b>; soft: ((<a, b> + L) / 2L - w)^2.

    Args:
        rows: (R, b, L), R sets of local relaxed codes.
        columns: (K, B, L), K sets of codes of the global batch.
    Returns:
        Sums of losses (R, K, kinds, classes), and numbers of pairs (kinds, classes); the classes are similar
        and dissimilar pairs, or all.
    """
    sums, counts = _DualLosses.apply(pairs, rows, columns)
    return sums, counts


class _DualLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: DualPairs, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        shape = len(pairs.kinds), 2 if pairs.separate else 1
        sums, counts = rows.new_zeros(len(rows), len(columns), *shape), rows.new_zeros(shape)
        for block in pairs.blocks():
            counts += block.masks.sum((2, 3))
            for r, k, products in _products(rows, columns, block):
                for number, kind in enumerate(pairs.kinds):
                    losses, _ = block.loss(kind, products, pairs.scale, rows.shape[2])
                    sums[r, k, number] += (block.masks[number] * losses).sum((1, 2))
        ctx.pairs = pairs
        ctx.save_for_backward(rows, columns)
        ctx.mark_non_differentiable(counts)
        return sums, counts

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        rows, columns = ctx.saved_tensors
        row_grads, column_grads = torch.zeros_like(rows), torch.zeros_like(columns)
        for block in ctx.pairs.blocks():
            for r, k, products in _products(rows, columns, block):
                slope = torch.zeros_like(products)
                for number, kind in enumerate(ctx.pairs.kinds):
                    _, slopes = block.loss(kind, products, ctx.pairs.scale, rows.shape[2])
                    slope += torch.tensordot(outer[0][r, k, number], block.masks[number], dims=1) * slopes
                row_grads[r].addmm_(slope, columns[k, block.columns])
                column_grads[k, block.columns].addmm_(slope.T, rows[r])
        return None, row_grads, column_grads


def _products(rows: Tensor, columns: Tensor, block: Block) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the (b, c) inner products of each set of rows with each set of columns."""
    for r in range(len(rows)):
        for k in range(len(columns)):
            yield r, k, rows[r] @ columns[k, block.columns].T
