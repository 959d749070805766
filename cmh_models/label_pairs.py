"""Losses of pairs of rows judged by their label sets, in column chunks: never a (B, B) matrix in memory.

Rows with equal label sets are alike to every target, so targets are made once per distinct set, and codes
that follow from the label set alone stand for all rows that have it (`weights`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

PairLoss = Literal["likelihood", "soft_likelihood", "divergence"]


@dataclass(frozen=True)
class LabelSets:
    """The label vectors of some rows, each distinct one once."""

    sets: Tensor  # (U, C)
    of_row: Tensor  # (B,) which of them each row has
    counts: Tensor  # (U,) how many rows have each

    @staticmethod
    def of(labels: Tensor) -> "LabelSets":
        """Find the distinct rows of (B, C) label vectors."""
        sets, of_row, counts = torch.unique(labels, dim=0, return_inverse=True, return_counts=True)
        return LabelSets(sets, of_row, counts)


@dataclass(frozen=True)
class Pairs:
    """Local rows against columns, and how alike their label sets are."""

    rows: LabelSets
    columns: Tensor  # (c, C) label vectors
    weights: Tensor  # (c,) how many rows of the global batch each column stands for
    kind: PairLoss
    separate: bool  # similar and dissimilar pairs are summed each on their own
    chunk: int

    def blocks(self) -> Iterator[tuple[slice, Tensor, tuple[Tensor, ...]]]:
        """Yield columns, the (b, c) targets in [0, 1], and the (b, c) weights of each class of pairs."""
        for first in range(0, len(self.columns), self.chunk):
            part = slice(first, min(first + self.chunk, len(self.columns)))
            # Made between sets: rows are many more than the sets they have.
            target = similarities(self.rows.sets, self.columns[part], soft=self.kind != "likelihood")
            target = target[self.rows.of_row]
            weights = self.weights[part].to(target.dtype)
            if self.separate:
                similar = (target > 0) * weights
                yield part, target, (similar, weights - similar)
            else:
                yield part, target, (weights.expand_as(target),)


def similarities(labels: Tensor, others: Tensor, *, soft: bool) -> Tensor:
    """Return (n, m) in [0, 1]: the cosine of label vectors (soft), or whether they share a label."""
    if soft:
        return functional.normalize(labels) @ functional.normalize(others).T
    return (labels @ others.T > 0).to(labels.dtype)


def pair_losses(rows: Tensor, columns: Tensor, pairs: Pairs, *, scale: float) -> tuple[Tensor, Tensor]:
    """Sum the losses of all pairs of local rows and columns.

    Args:
        rows: (b, L) local relaxed codes.
        columns: (c, L) codes that belong to `pairs.columns`.
        scale: of the inner products that a likelihood is taken of; a divergence compares cosines.
    Returns:
        Sums of losses and numbers of pairs, each (classes,): all pairs, or similar and dissimilar ones.
    """
    if pairs.kind == "divergence":
        rows, columns, scale = functional.normalize(rows), functional.normalize(columns), 1.0
    sums, counts = _PairLosses.apply(pairs, scale, rows, columns)
    return sums, counts


class _PairLosses(torch.autograd.Function):
    """Gradients are taken block by block in the forward pass, so that no block is kept."""

    @staticmethod
    def forward(ctx: Any, pairs: Pairs, scale: float, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        classes = 2 if pairs.separate else 1
        sums, counts = rows.new_zeros(classes), rows.new_zeros(classes)
        row_grads = rows.new_zeros(classes, *rows.shape)
        column_grads = columns.new_zeros(classes, *columns.shape)
        for part, target, weights in pairs.blocks():
            losses, slopes = LOSSES[pairs.kind](scale * rows @ columns[part].T, target)
            for number, weight in enumerate(weights):
                counts[number] += weight.sum()
                sums[number] += (weight * losses).sum()
                weighted = weight * slopes
                row_grads[number].addmm_(weighted, columns[part], alpha=scale)
                if ctx.needs_input_grad[3]:
                    column_grads[number, part].addmm_(weighted.T, rows, alpha=scale)
        ctx.save_for_backward(row_grads, column_grads)
        ctx.mark_non_differentiable(counts)
        return sums, counts

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        row_grads, column_grads = (torch.tensordot(outer[0], kept, dims=1) for kept in ctx.saved_tensors)
        return None, None, row_grads, column_grads


def _likelihood(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """softplus(theta) - s theta and its slope."""
    return functional.softplus(logits) - target * logits, torch.sigmoid(logits) - target


def _divergence(cosines: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(w - r) log((w + t) / (r + t)), r the positive part of the cosine, and its slope; t = 1e-5."""
    positive = cosines.clamp_min(0)
    difference = target - positive
    ratio = ((target + 1e-5) / (positive + 1e-5)).log()
    slope = -(ratio + difference / (positive + 1e-5)) * (cosines > 0)
    return difference * ratio, slope


LOSSES: dict[PairLoss, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "likelihood": _likelihood,
    "soft_likelihood": _likelihood,
    "divergence": _divergence,
}
"""Kind of loss -> its values and slopes at (b, c) products, for (b, c) targets."""
