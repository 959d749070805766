"""Loss terms over pairs of the global batch, in column chunks: never a (B, B) matrix in memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """The targets of all local rows against some columns of the global batch."""

    columns: slice
    target: Tensor  # (b, c)
    classes: tuple[Tensor, ...]  # (b, c) bool masks that split the pairs; empty: one class of all pairs


def pair_errors(
    codes: tuple[Tensor, Tensor], everyone: tuple[Tensor, Tensor], start: int, *, blocks: Iterable[Block]
) -> Tensor:
    """Sum the squared errors of cosines against targets over pairs of different rows.

    Args:
        codes: image and text, each (b, L): the local relaxed codes, rows of unit length.
        everyone: the same of the global batch, (B, L).
        start: where the local rows stand in the global batch.
        blocks: cover the B columns once.
    Returns:
        (3, classes): image-image, text-text and local image against all texts; pairs (i, i) are left out.
    """
    result: Tensor = _PairErrors.apply(blocks, start, *codes, *everyone)
    return result


class _PairErrors(torch.autograd.Function):
    """Gradients are taken block by block in the forward pass, so that no block is kept."""

    @staticmethod
    def forward(
        ctx: Any, blocks: Iterable[Block], start: int, image: Tensor, text: Tensor, *everyone: Tensor
    ) -> Tensor:
        pairs = ((image, everyone[0]), (text, everyone[1]), (image, everyone[1]))
        sums: list[list[Tensor]] = [[], [], []]
        row_grads: list[dict[int, Tensor]] = [{}, {}, {}]
        column_grads: list[dict[int, Tensor]] = [{}, {}, {}]
        for block in blocks:
            for which, (rows, columns) in enumerate(pairs):
                part = columns[block.columns]
                error = rows @ part.T - block.target
                _clear_diagonal(error, start - block.columns.start)
                per_class = [error * mask for mask in block.classes] or [error]
                sums[which].append(torch.stack([(chosen * error).sum() for chosen in per_class]))
                for number, chosen in enumerate(per_class):
                    grads = row_grads[which].setdefault(number, torch.zeros_like(rows))
                    grads.addmm_(chosen, part, alpha=2)
                    grads = column_grads[which].setdefault(number, torch.zeros_like(columns))
                    grads[block.columns] = 2 * chosen.T @ rows
        kept = [torch.stack(list(grads.values())) for grads in row_grads + column_grads]
        ctx.save_for_backward(*kept)
        return torch.stack([torch.stack(parts).sum(0) for parts in sums])

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        weights = outer[0]
        grads = [
            torch.tensordot(weights[number % 3], kept, dims=1)
            for number, kept in enumerate(ctx.saved_tensors)
        ]
        image, text, cross, all_image, all_text, all_cross = grads
        return None, None, image + cross, text, all_image, all_text + all_cross


def _clear_diagonal(error: Tensor, shift: int) -> None:
    """Zero the entries of pairs (i, i): local row i is column i + shift of this block."""
    error.diagonal(shift).zero_()
