"""Code health while training: do all bits work? Counted over the rows of a log window, cheap at any size."""

import torch
from torch import Tensor

COLLAPSED_ENTROPY = 0.3
"""Mean bits of entropy per code bit below which a side is called collapsed; 1.0 is perfect."""


def count_ones(relaxed: Tensor) -> Tensor:
    """Return (L,) how many of the local rows set each bit, as float64: it is summed over ranks and steps."""
    return (relaxed.detach() >= 0).sum(dim=0).to(torch.float64)


def code_health(ones: Tensor, rows: int) -> dict[str, float]:
    """Judge the bits of one side.

    Args:
        ones: (L,) how many of `rows` set each bit.
    Returns:
        balance: mean |share of ones - share of zeros|, 0 is best; entropy: mean binary entropy of a bit,
        1 is best; dead_bits: bits that had one value in all rows.
    """
    share = ones / rows
    entropy = torch.special.entr(share) + torch.special.entr(1 - share)
    return {
        "balance": float((2 * share - 1).abs().mean()),
        "entropy": float(entropy.mean()) / 0.6931471805599453,
        "dead_bits": int(((ones == 0) | (ones == rows)).sum()),
    }


def describe_collapse(side: str, health: dict[str, float], *, code_length: int, rows: int) -> str | None:
    """Say in words that a side's codes have collapsed; None while they have not."""
    if health["entropy"] >= COLLAPSED_ENTROPY and health["dead_bits"] <= code_length // 2:
        return None
    return (
        f"{side} codes are collapsing: {health['dead_bits']} of {code_length} bits had one value in all of "
        f"the last {rows} rows, mean entropy {health['entropy']:.2f} of 1; search cannot tell such rows apart"
    )
