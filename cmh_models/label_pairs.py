"""Losses of pairs of rows judged by their label sets, in column chunks: never a (B, B) matrix in memory.

Rows with equal label sets are alike to every target, so targets are made once per distinct set, and codes
that follow from the label set alone stand for all rows that have it (`weights`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

PairLoss = Literal["likelihood", "soft_likelihood", "divergence"]
_PAIRS_AT_ONCE = 1 << 17


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

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Yield columns, the (b, c) targets in [0, 1], and for separate sums 1 where a pair is similar.

        A block takes the place of the one before.
        """
        rows = len(self.rows.of_row)
        width = min(self.chunk, len(self.columns))
        if self.columns.device.type == "cpu":  # what fits its cache; a GPU would wait for many small kernels
            width = min(width, max(1, _PAIRS_AT_ONCE // rows))
        places = self.columns.new_empty(2, rows * width)
        for first in range(0, len(self.columns), width):
            part = slice(first, min(first + width, len(self.columns)))
            # Made between sets: rows are many more than the sets they have.
            of_sets = similarities(self.rows.sets, self.columns[part], soft=self.kind != "likelihood")
            target, similar = self._of_rows(of_sets, places[0]), None
            if self.separate:
                hard = self.kind == "likelihood"
                similar = target if hard else self._of_rows((of_sets > 0).to(of_sets.dtype), places[1])
            yield part, target, similar

    def _of_rows(self, of_sets: Tensor, place: Tensor) -> Tensor:
        made = place[: len(self.rows.of_row) * of_sets.shape[1]].view(-1, of_sets.shape[1])
        return torch.index_select(of_sets, 0, self.rows.of_row, out=made)


def similarities(labels: Tensor, others: Tensor, *, soft: bool) -> Tensor:
    """Return (n, m) in [0, 1]: the cosine of label vectors (soft), or whether they share a label."""
    if soft:
        return functional.normalize(labels) @ functional.normalize(others).T
    # Labels are 0 or 1: two rows share as many as their product says.
    return (labels @ others.T).clamp_max_(1)


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
        # The last class is that of all pairs, until the similar ones are taken off.
        classes = 2 if pairs.separate else 1
        sums, counts = rows.new_zeros(classes), rows.new_zeros(classes)
        row_grads = rows.new_zeros(classes, *rows.shape)
        back = ctx.needs_input_grad[3]
        column_grads = columns.new_zeros(classes, *columns.shape) if back else None
        scaled, places = rows * scale, rows.new_empty(3, 0)
        for part, target, similar in pairs.blocks():
            if not places.numel():
                places = rows.new_empty(3, target.numel())
            slopes, *spare = (place[: target.numel()].view_as(target) for place in places)
            torch.mm(scaled, columns[part].T, out=slopes)
            losses = LOSSES[pairs.kind](slopes, target, similar, spare)
            weights = pairs.weights[part].to(rows.dtype)
            weighted = columns[part] * (weights * scale)[:, None]
            masks = [None] if similar is None else [None, similar]
            for number, mask, loss in zip((-1, 0), masks, losses, strict=False):
                if mask is not None:
                    slopes.mul_(mask)
                pairs_of_column = len(rows) if mask is None else mask.sum(0).to(weights)
                counts[number] += (weights * pairs_of_column).sum()
                sums[number] += loss.to(weights) @ weights
                row_grads[number].addmm_(slopes, weighted)
                if column_grads is not None:
                    torch.mm(slopes.T, scaled, out=column_grads[number, part]).mul_(weights[:, None])
        if pairs.separate:
            for each in (sums, counts, row_grads, *([] if column_grads is None else [column_grads])):
                each[1] -= each[0]
        ctx.save_for_backward(row_grads, column_grads)
        ctx.mark_non_differentiable(counts)
        return sums, counts

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        grads = [
            None if kept is None else torch.tensordot(outer[0], kept, dims=1) for kept in ctx.saved_tensors
        ]
        return None, None, *grads


def _likelihood(
    logits: Tensor, target: Tensor, similar: Tensor | None, spare: Sequence[Tensor]
) -> list[Tensor]:
    """softplus(theta) - s theta; softplus(x) = max(x, 0) - log max(p, 1 - p), p = sigmoid(x)."""
    direct, shares = spare
    torch.clamp_min(logits, 0, out=direct).addcmul_(target, logits, value=-1)
    slopes = logits.sigmoid_()
    torch.sub(slopes, 0.5, out=shares).abs_().sub_(0.5)
    slopes.sub_(target)
    sums = [direct.sum(0)]
    if similar is not None:
        sums.append(direct.mul_(similar).sum(0))
        sums[1] -= _sum_of_logs(torch.mul(shares, similar, out=direct).add_(1))
    sums[0] -= _sum_of_logs(shares.add_(1))
    return sums


def _sum_of_logs(values: Tensor) -> Tensor:
    """Return (c,) sums of logarithms of (b, c) values from 1/2 to 1, one logarithm for 64 of them."""
    return torch.stack([rows.prod(0) for rows in values.split(64)]).log_().sum(0)


def _divergence(
    cosines: Tensor, target: Tensor, similar: Tensor | None, spare: Sequence[Tensor]
) -> list[Tensor]:
    """(w - r) log((w + t) / (r + t)), r the positive part of the cosine; t = 1e-5."""
    positive = cosines.clamp_min(0)
    difference = target - positive
    ratio = ((target + 1e-5) / (positive + 1e-5)).log()
    losses = difference * ratio
    cosines.copy_(-(ratio + difference / (positive + 1e-5)) * (cosines > 0))
    return [losses.sum(0)] if similar is None else [losses.sum(0), (losses * similar).sum(0)]


LOSSES: dict[PairLoss, Callable[[Tensor, Tensor, Tensor | None, Sequence[Tensor]], list[Tensor]]] = {
    "likelihood": _likelihood,
    "soft_likelihood": _likelihood,
    "divergence": _divergence,
}
"""Kind of loss -> its (c,) sums over rows, of all and of similar pairs, from (b, c) products and targets.

Slopes take the place of the products; two more places may be used.
"""
