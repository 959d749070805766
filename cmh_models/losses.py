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

    grams: tuple[Tensor, Tensor]  # U'U and V'V, each (L, L)
    pulls: tuple[Tensor, Tensor]  # the local rows of S U and S V, each (b, L)
    squares: Tensor  # (), the sum of squares of the local rows of S
    own: bool  # pairs (i, i) count; else S holds 0 there and they are left out


def squared_errors(codes: tuple[Tensor, Tensor], products: TargetProducts) -> Tensor:
    """Sum the squared errors of cosines against targets over pairs of local rows and the global batch.

    The gradient is the whole one of the local codes: as rows here, and as columns of the rows of other ranks,
    which equals it because S is symmetric. So nothing flows back into gathered codes, and every rank's sum
    must enter the loss with one and the same weight.

    Args:
        codes: image and text, each (b, L): the local relaxed codes, rows of unit length.
    Returns:
        (3,): image-image, text-text and image-text.
    """
    result: Tensor = _SquaredErrors.apply(products, *codes)
    return result


class _SquaredErrors(torch.autograd.Function):
    """sum (u_i v_j - S_ij)^2 = sum u_i (V'V) u_i' - 2 u_i (S V)_i' + S_ij^2, each as sums over local rows."""

    @staticmethod
    def forward(ctx: Any, products: TargetProducts, image: Tensor, text: Tensor) -> Tensor:
        sums, errors = [], []
        for rows, other, which in ((image, image, 0), (text, text, 1), (image, text, 1), (text, image, 0)):
            # Row i holds the sum over j of (error of the pair) times (code of j).
            drawn = rows @ products.grams[which]
            if not products.own:
                own = (rows * other).sum(1, keepdim=True)
                drawn = torch.addcmul(drawn, own, other, value=-1)
            pull = products.pulls[which]
            sums.append((rows * (drawn - 2 * pull)).sum() + products.squares)
            errors.append(drawn - pull)
        ctx.save_for_backward(*errors)
        return torch.stack(sums[:3])

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        image, text, cross, crossed = ctx.saved_tensors
        within_image, within_text, across = (2 * outer[0]).unbind()
        image_grad = 2 * within_image * image + across * cross
        text_grad = 2 * within_text * text + across * crossed
        return None, image_grad, text_grad


def target_products(
    codes: tuple[Tensor, Tensor], targets: Iterable[tuple[slice, Tensor]], rows: slice
) -> TargetProducts:
    """Return the products of codes of the global batch with targets that come in column chunks.

    Args:
        codes: image and text of the global batch, each (B, L).
        targets: columns and the (b, c) targets of the local rows there, which are changed; they cover B once.
        rows: where the local rows stand in the global batch; pairs (i, i) are left out.
    """
    length = codes[0].shape[1]
    both = torch.cat(codes, dim=1)
    pulls = both.new_zeros(rows.stop - rows.start, 2 * length)
    squares = both.new_zeros(())
    for columns, target in targets:
        target.diagonal(rows.start - columns.start).zero_()
        pulls.addmm_(target, both[columns])
        flat = target.reshape(-1)
        squares = squares + torch.dot(flat, flat)
    grams = codes[0].T @ codes[0], codes[1].T @ codes[1]
    return TargetProducts(grams, (pulls[:, :length], pulls[:, length:]), squares, own=False)


@dataclass(frozen=True)
class Block:
    """The targets of all local rows against some columns of the global batch."""

    columns: slice
    target: Tensor  # (b, c)
    classes: tuple[Tensor, ...]  # (b, c) bool masks that split the pairs


def class_errors(
    codes: tuple[Tensor, Tensor], everyone: tuple[Tensor, Tensor], start: int, *, blocks: Iterable[Block]
) -> tuple[Tensor, Tensor]:
    """Sum the squared errors of cosines against targets over each class of pairs of different rows.

    Args:
        codes: image and text, each (b, L): the local relaxed codes, rows of unit length.
        everyone: the same of the global batch, (B, L), with gradient.
        start: where the local rows stand in the global batch.
        blocks: cover the B columns once.
    Returns:
        (3, classes): image-image, text-text and local image against all texts; and the (classes,) numbers of
        pairs. Pairs (i, i) are left out.
    """
    sums, counts = _ClassErrors.apply(blocks, start, *codes, *everyone)
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
