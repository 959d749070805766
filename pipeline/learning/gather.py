"""Sums and gathers over the ranks, through which gradients pass exactly. No method, no batch, no file.

Every rank computes the same loss. The backward pass of each collective is its transpose, so after it every
rank holds its share of the gradient of *the sum of the ranks' losses*; the average of those shares over the
ranks, which every data-parallel engine takes anyway, is the gradient of the one loss.

All ranks must call the same collectives in the same order, forward and backward: whether a tensor carries
gradient must not depend on the rank or on the data. Without a process group each function is the identity.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return this process's rank; 0 without a process group."""
    return dist.get_rank() if _in_group() else 0


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if _in_group() else 1


def all_sum(tensor: Tensor) -> Tensor:
    """Add a tensor up over the ranks; every rank gets bit-equal results."""
    if world_size() == 1:
        return tensor
    return _AllSum.apply(tensor.to(torch.int64) if tensor.dtype == torch.bool else tensor)


def all_gather(tensor: Tensor) -> Tensor:
    """Stack the rows of all ranks, in rank order.

    Args:
        tensor: (b, ...), of the same shape on every rank.
    Returns:
        (N b, ...); its gradient returns to each rank summed over what all ranks made of its rows.
    """
    if world_size() == 1:
        return tensor
    if tensor.dtype == torch.bool:
        return _AllGather.apply(tensor.view(torch.uint8)).view(torch.bool)
    return _AllGather.apply(tensor)


def gather_objects(value: Any) -> list[Any]:
    """Return the small picklable values of all ranks, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        everyone = tensor.new_empty((world_size(), *tensor.shape))
        dist.all_gather(list(everyone.unbind()), tensor)
        return everyone.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0]
        if dist.get_backend() != "nccl":  # gloo has no reduce-scatter: sum it all, keep the own rows
            return _summed(gradient).chunk(world_size())[rank()]
        own = gradient.new_empty((len(gradient) // world_size(), *gradient.shape[1:]))
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own


def _summed(tensor: Tensor) -> Tensor:
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
