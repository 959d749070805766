"""The average of gradients over ranks that each hold all weights: one collective, in a buffer that stays."""

from collections.abc import Iterable
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor


class FlatAverage:
    """Averages the gradients of weights; afterwards they are views of the buffer.

    A buffer made anew for every step costs more than the collective where the system hands memory out page by
    page, and gradients that are views of it need not be copied back.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights = list(weights)
        ends = accumulate((weight.numel() for weight in self._weights), initial=0)
        self._flat = torch.empty(
            sum(weight.numel() for weight in self._weights),
            dtype=self._weights[0].dtype,
            device=self._weights[0].device,
        )
        self._places = [
            self._flat[start:stop].view_as(weight)
            for (start, stop), weight in zip(pairwise(ends), self._weights, strict=True)
        ]

    def __call__(self) -> None:
        """Average; called by all ranks. A weight that has no gradient here counts as one of zeros."""
        for weight, place in zip(self._weights, self._places, strict=True):
            if weight.grad is None:
                place.zero_()
            else:
                place.copy_(weight.grad)
            weight.grad = place
        dist.all_reduce(self._flat)
        self._flat.mul_(1 / dist.get_world_size())
