"""Dropout whose draws belong to the rows: the same for any number of ranks and any order of the batch.

A mask follows from the seed of the step, the content of a row, and the place in the network; so N ranks that
share a batch drop exactly what one rank would. torch's own dropout draws by position in the local batch.
"""

import torch
from torch import Tensor, nn

_WORD = 1 << 64


class RowDropout(nn.Module):
    """Zeroes a share of each row's values and scales up the rest, in training mode only."""

    def __init__(self, share: float, place: int) -> None:
        """`place` tells layers of one network apart."""
        super().__init__()
        self.share = share
        self.place = place

    def forward(self, values: Tensor, keys: Tensor | None) -> Tensor:
        """Return (B, D) values with dropout, of rows with (B,) keys; keys are None outside training."""
        if not self.training or self.share == 0 or keys is None:
            return values
        width = values.shape[1]
        # Each mixed number makes four draws of 16 bits.
        columns = _scrambled(torch.arange(-(-width // 4), device=values.device) + (self.place << 32))
        draws = _scrambled(keys[:, None] + columns).view(torch.int16)[:, :width]
        kept = draws >= round(self.share * 2**16) - 2**15
        return values * kept.to(values.dtype).div_(1 - self.share)

    def extra_repr(self) -> str:
        return f"{self.share}, place={self.place}"


def row_keys(inputs: Tensor) -> Tensor:
    """Return (B,) int64 keys of (B, ...) rows: of their content and the seed that torch was last given.

    Zeros count nothing, so padding changes no key.
    """
    flat = inputs.reshape(len(inputs), -1)
    if flat.is_floating_point():
        flat = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    places = _scrambled(torch.arange(flat.shape[1], device=flat.device))
    # Whole numbers that wrap around: exact in any order of summation.
    return _scrambled((flat.long() * places).sum(1) + _signed(torch.initial_seed()))


def _scrambled(numbers: Tensor) -> Tensor:
    """Mix the bits of int64 numbers (the finaliser of SplitMix64, Steele et al. 2014)."""
    mixed = numbers + _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ _shifted(mixed, shift)) * _signed(factor)
    return mixed ^ _shifted(mixed, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift right without carrying the sign along."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    number %= _WORD
    return number - _WORD if number >= _WORD // 2 else number
