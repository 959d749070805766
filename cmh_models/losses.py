"""Squared errors of cosines against targets, over all pairs of a batch: never a (B, B) matrix in memory.

Two routes. Where targets are symmetric and all pairs weigh alike, the errors and their gradients follow from
a few products (`TargetProducts`), which a method makes in column chunks or from moments, whichever takes
fewer operations. Where classes of pairs are averaged each on its own, errors are made block by block.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TargetProducts:
    """What errors of local rows need of a symmetric target S and the codes U, V of the global batch."""

    grams: Tensor  # (2L, L): U'U above V'V
    pulls: Tensor  # (b, 2L): the local rows of S U and S V
    squares: Tensor  # (), the sum of squares of the local rows of S
    own: Tensor | None = None  # (b,) S_ii, if pairs (i, i) are left out of all this


def squared_errors(codes: Tensor, products: TargetProducts, weights: Sequence[float]) -> tuple[Tensor, ...]:
    """Sum the squared errors of cosines against targets over pairs of local rows and the global batch.

    The gradient is the whole one of the local codes: as rows here, and as columns of the rows of other ranks,
    which equals it because S is symmetric. So nothing flows back into gathered codes, and every rank's sum
    must enter the loss with one and the same weight.

    Args:
        codes: (b, 2L): image and text codes of the local rows, each of unit length.
        weights: of the sums, in their order.
    Returns:
        Weighted sums: image-image, text-text and image-text errors, and where pairs (i, i) are left out of
        these, the image-text errors of own pairs and their negative cosines.
    """
    return tuple(_SquaredErrors.apply(products, weights, codes))


class _SquaredErrors(torch.autograd.Function):
    """sum (u_i v_j - S_ij)^2 = sum u_i (V'V) u_i' - 2 u_i (S V)_i' + S_ij^2, each as sums over local rows."""

    @staticmethod
    def forward(ctx: Any, products: TargetProducts, weights: Sequence[float], codes: Tensor) -> Any:
        rows, length = len(codes), codes.shape[1] // 2
        sides, pulls = codes.view(rows, 2, length), products.pulls.view(rows, 1, 2, length)
        # [i, a, b]: the sum over j of (error of the pair) times (code of j on side b), i on side a.
        drawn = torch.mm(codes.view(-1, length), products.grams.T).view(rows, 2, 2, length) - pulls
        apart, sums = codes[:, :0], []
        if products.own is not None:
            cosines = torch.bmm(sides, sides.transpose(1, 2))
            drawn.addcmul_(cosines[..., None], sides[:, None], value=-1)
            between = cosines[:, 0, 1:]
            apart = between - products.own[:, None]
            sums = [weights[3] * apart.square().sum(), -weights[4] * between.sum()]
        ctx.weights = weights
        ctx.save_for_backward(codes, drawn, apart)
        errors = (drawn - pulls).mul_(sides[:, :, None]).sum((0, 3)).add_(products.squares).view(4).unbind()
        return *(weights[n] * errors[at] for n, at in enumerate((0, 3, 1))), *sums

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        codes, drawn, apart = ctx.saved_tensors
        weights, sides = ctx.weights, drawn.shape[:2] + drawn.shape[3:]
        across = 2 * weights[2] * outer[2]
        factors = torch.stack([4 * weights[0] * outer[0], across, across, 4 * weights[1] * outer[1]])
        grad = (drawn * factors.view(2, 2, 1)).sum(2)
        if apart.shape[1]:
            pull = 2 * weights[3] * outer[3] * apart - weights[4] * outer[4]
            grad.addcmul_(pull[:, None], codes.view(sides).flip(1))
        return None, None, grad.view_as(codes)


def target_products(codes: Tensor, targets: Iterable[tuple[slice, Tensor]], rows: slice) -> TargetProducts:
    """Return the products of codes of the global batch with targets that come in column chunks.

    Args:
        codes: (B, 2L), image and text codes of the global batch.
        targets: columns, in order, and the (b, c) targets of the local rows there, which are changed.
        rows: where the local rows stand in the global batch; pairs (i, i) are left out.
    """
    pulls = codes.new_zeros(rows.stop - rows.start, codes.shape[1])
    squares, own = codes.new_zeros(()), []
    for columns, target in targets:
        own.append(take_own(target, rows.start - columns.start))
        pulls.addmm_(target, codes[columns])
        flat = target.reshape(-1)
        squares += torch.dot(flat, flat)
        del target, flat  # before the next block is made
    return TargetProducts(grams_of(codes), pulls, squares, torch.cat(own))


def take_own(target: Tensor, shift: int) -> Tensor:
    """Return the targets of pairs (i, i) of a block and put 0 there; local row i is column i + shift."""
    diagonal = target.diagonal(shift)
    own = diagonal.clone()
    diagonal.zero_()
    return own


def grams_of(codes: Tensor) -> Tensor:
    """Return (2L, L): U'U above V'V of (B, 2L) codes."""
    sides = codes.view(len(codes), 2, -1)
    return torch.bmm(sides.permute(1, 2, 0), sides.transpose(0, 1)).flatten(0, 1)


@dataclass(frozen=True)
class Block:
    """The targets of all local rows against some columns of the global batch."""

    columns: slice
    target: Tensor  # (b, c)
    classes: tuple[Tensor, ...]  # (b, c) bool masks that split the pairs


def class_errors(
    codes: Tensor, everyone: Tensor, start: int, *, blocks: Iterable[Block]
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the squared errors of cosines against targets over each class of pairs of different rows.

    Args:
        codes: (b, 2L): image and text codes of the local rows, each of unit length.
        everyone: the same of the global batch, (B, 2L), with gradient.
        start: where the local rows stand in the global batch.
        blocks: cover the B columns once, in order; their targets are changed.
    Returns:
        (3, classes): image-image, text-text and local image against all texts; the (classes,) numbers of
        pairs; and the (b,) targets of pairs (i, i), which are left out of both.
    """
    sums, counts, own = _ClassErrors.apply(blocks, start, *codes.chunk(2, dim=1), *everyone.chunk(2, dim=1))
    return sums, counts, own


class _ClassErrors(torch.autograd.Function):
    """Gradients are taken block by block in the forward pass, so that no block is kept."""

    @staticmethod
    def forward(
        ctx: Any, blocks: Iterable[Block], start: int, image: Tensor, text: Tensor, *everyone: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        pairs = ((image, everyone[0]), (text, everyone[1]), (image, everyone[1]))
        sums: list[list[Tensor]] = [[], [], []]
        counts: list[Tensor] = []
        own: list[Tensor] = []
        row_grads: list[dict[int, Tensor]] = [{}, {}, {}]
        column_grads: list[dict[int, Tensor]] = [{}, {}, {}]
        for block in blocks:
            shift = start - block.columns.start
            numbers = [mask.sum() - mask.diagonal(shift).sum() for mask in block.classes]
            counts.append(torch.stack(numbers).to(image.dtype))
            own.append(take_own(block.target, shift))
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
        numbers_of_pairs, own_targets = torch.stack(counts).sum(0), torch.cat(own)
        ctx.mark_non_differentiable(numbers_of_pairs, own_targets)
        return torch.stack([torch.stack(parts).sum(0) for parts in sums]), numbers_of_pairs, own_targets

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        weights = outer[0]
        grads = [
            torch.tensordot(weights[number % 3], kept, dims=1)
            for number, kept in enumerate(ctx.saved_tensors)
        ]
        image, text, cross, all_image, all_text, all_cross = grads
        return None, None, image + cross, text, all_image, all_text + all_cross
