"""Squared errors of cosines against targets, over all pairs of a batch: never a (B, B) matrix in memory.

Two routes. Where targets are symmetric and all pairs weigh alike, the errors and their gradients follow from
a few products (`TargetProducts`), which a method makes in column chunks or from moments, whichever takes
fewer operations. Where classes of pairs are averaged each on its own, errors are made block by block.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TargetProducts:
    """What errors of local rows need of a symmetric target S and the codes U, V of the global batch."""

    grams: Tensor  # (L, 2L): U'U and V'V
    pulls: Tensor  # (b, 2L): the local rows of S U and S V
    squares: Tensor  # (), the sum of squares of the local rows of S
    own: bool  # pairs (i, i) count; else S holds 0 there and they are left out


def squared_errors(codes: Tensor, products: TargetProducts) -> Tensor:
    """Sum the squared errors of cosines against targets over pairs of local rows and the global batch.

    The gradient is the whole one of the local codes: as rows here, and as columns of the rows of other ranks,
    which equals it because S is symmetric. So nothing flows back into gathered codes, and every rank's sum
    must enter the loss with one and the same weight.

    Args:
        codes: (b, 2L): image and text codes of the local rows, each of unit length.
    Returns:
        (3,): image-image, text-text and image-text.
    """
    result: Tensor = _SquaredErrors.apply(products, codes)
    return result


class _SquaredErrors(torch.autograd.Function):
    """sum (u_i v_j - S_ij)^2 = sum u_i (V'V) u_i' - 2 u_i (S V)_i' + S_ij^2, each as sums over local rows."""

    @staticmethod
    def forward(ctx: Any, products: TargetProducts, codes: Tensor) -> Tensor:
        rows, length = products.pulls.shape
        both = codes.view(rows, 2, length // 2)
        sums, errors = [], []
        for side in both.unbind(1):
            # Row i holds the sum over j of (error of the pair) times (code of j), for j of either side.
            error = torch.addmm(products.pulls, side, products.grams, beta=-1).view_as(both)
            if not products.own:
                own = (both * side[:, None]).sum(2, keepdim=True)
                error.addcmul_(own, both, value=-1)
            sums.append(((error - products.pulls.view_as(both)) * side[:, None]).sum((0, 2)))
            errors.append(error)
        ctx.save_for_backward(*errors)
        image, text = sums
        return torch.stack([image[0], text[1], image[1]]) + products.squares

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        image, text = ctx.saved_tensors
        within_image, within_text, across = outer.unbind()
        image_weights = torch.stack([4 * within_image, 2 * across])[:, None]
        text_weights = torch.stack([2 * across, 4 * within_text])[:, None]
        grads = (image * image_weights).sum(1), (text * text_weights).sum(1)
        return None, torch.cat(grads, dim=1)


def target_products(codes: Tensor, targets: Iterable[tuple[slice, Tensor]], rows: slice) -> TargetProducts:
    """Return the products of codes of the global batch with targets that come in column chunks.

    Args:
        codes: (B, 2L), image and text codes of the global batch.
        targets: columns and the (b, c) targets of the local rows there, which are changed; they cover B once.
        rows: where the local rows stand in the global batch; pairs (i, i) are left out.
    """
    pulls = codes.new_zeros(rows.stop - rows.start, codes.shape[1])
    squares = codes.new_zeros(())
    for columns, target in targets:
        target.diagonal(rows.start - columns.start).zero_()
        pulls.addmm_(target, codes[columns])
        flat = target.reshape(-1)
        squares += torch.dot(flat, flat)
    return TargetProducts(grams_of(codes), pulls, squares, own=False)


def grams_of(codes: Tensor) -> Tensor:
    """Return (L, 2L): U'U and V'V of (B, 2L) codes."""
    image, text = codes.chunk(2, dim=1)
    return torch.cat([image.T @ image, text.T @ text], dim=1)


@dataclass(frozen=True)
class Block:
    """The targets of all local rows against some columns of the global batch."""

    columns: slice
    target: Tensor  # (b, c)
    classes: tuple[Tensor, ...]  # (b, c) bool masks that split the pairs


def class_errors(
    codes: Tensor, everyone: Tensor, start: int, *, blocks: Iterable[Block]
) -> tuple[Tensor, Tensor]:
    """Sum the squared errors of cosines against targets over each class of pairs of different rows.

    Args:
        codes: (b, 2L): image and text codes of the local rows, each of unit length.
        everyone: the same of the global batch, (B, 2L), with gradient.
        start: where the local rows stand in the global batch.
        blocks: cover the B columns once.
    Returns:
        (3, classes): image-image, text-text and local image against all texts; and the (classes,) numbers of
        pairs. Pairs (i, i) are left out.
    """
    sums, counts = _ClassErrors.apply(blocks, start, *codes.chunk(2, dim=1), *everyone.chunk(2, dim=1))
    return sums, counts


class _ClassErrors(torch.autograd.Function):
    """Gradients are taken block by block in the forward pass, so that no block is kept."""

    @staticmethod
    def forward(
        ctx: Any, blocks: Iterable[Block], start: int, image: Tensor, text: Tensor, *everyone: Tensor
    ) -> tuple[Tensor, Tensor]:
        pairs = ((image, everyone[0]), (text, everyone[1]), (image, everyone[1]))
        sums: list[list[Tensor]] = [[], [], []]
        counts: list[Tensor] = []
        row_grads: list[dict[int, Tensor]] = [{}, {}, {}]
        column_grads: list[dict[int, Tensor]] = [{}, {}, {}]
        for block in blocks:
            shift = start - block.columns.start
            numbers = [mask.sum() - mask.diagonal(shift).sum() for mask in block.classes]
            counts.append(torch.stack(numbers).to(image.dtype))
            for which, (rows, columns) in enumerate(pairs):
                part = columns[block.columns]
                error = rows @ part.T - block.target
                error.diagonal(shift).zero_()
                per_class = [error * mask for mask in block.classes]
                sums[which].append(torch.stack([(chosen * error).sum() for chosen in per_class]))
                for number, chosen in enumerate(per_class):
                    grads = row_grads[which].setdefault(number, torch.zeros_like(rows))
                    grads.addmm_(chosen, part, alpha=2)
                    grads = column_grads[which].setdefault(number, torch.zeros_like(columns))
                    grads[block.columns] = 2 * chosen.T @ rows
        kept = [torch.stack(list(grads.values())) for grads in row_grads + column_grads]
        ctx.save_for_backward(*kept)
        numbers_of_pairs = torch.stack(counts).sum(0)
        ctx.mark_non_differentiable(numbers_of_pairs)
        return torch.stack([torch.stack(parts).sum(0) for parts in sums]), numbers_of_pairs

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        weights = outer[0]
        grads = [
            torch.tensordot(weights[number % 3], kept, dims=1)
            for number, kept in enumerate(ctx.saved_tensors)
        ]
        image, text, cross, all_image, all_text, all_cross = grads
        return None, None, image + cross, text, all_image, all_text + all_cross
