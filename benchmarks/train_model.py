"""A cost model of a training step: compute, loss columns, gathered bytes, gradients. It measures nothing.

At N ranks of b rows, global batch B = N b:

    networks   b * row + fixed                         forward, backward; the optimiser
    loss       b * B * pair                            every rank: its rows against the columns of all
    gather     log2(N) * hop + (N - 1) b * bytes / link    a row's codes and targets, to all; and back
    gradients  2 log2(N) * hop + 2 (N - 1) / N * 4 P / link

Nothing overlaps: an upper bound where an engine hides the average of gradients behind the backward pass.
Ranks that share a machine's memory or cores slow each other down: their factors are those of as many
processes side by side.
"""

import math
from dataclasses import dataclass

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Factors:
    """What a machine and a method take, in seconds and bytes."""

    row: float  # seconds of forward and backward a row
    fixed: float  # seconds of a step whatever its rows
    pair: float  # seconds of the loss a row and column
    row_bytes: float  # gathered of a row, both ways
    hop: float  # seconds until the first byte of a collective, a doubling of ranks
    link: float  # bytes a second of one rank
    parameters: float
    calls: int = 2  # collectives of a step besides that of gradients


def step(factors: Factors, ranks: int, rows: float) -> dict[str, float]:
    """Return the seconds of the parts of a step.

    Args:
        rows: of a rank; the global batch is `ranks * rows`.
    """
    doublings = math.log2(ranks)
    gathered = (ranks - 1) * rows * factors.row_bytes
    averaged = 2 * (ranks - 1) / ranks * 4 * factors.parameters
    return {
        "networks": rows * factors.row + factors.fixed,
        "loss": rows * rows * ranks * factors.pair,
        "gather": factors.calls * doublings * factors.hop + gathered / factors.link,
        "gradients": 2 * doublings * factors.hop + averaged / factors.link,
    }


def seconds(factors: Factors, ranks: int, rows: float) -> float:
    """Return the seconds of a step."""
    return sum(step(factors, ranks, rows).values())


def gpu_factors() -> Factors:
    """Return the factors of an H200 with a ViT-B/16 and a text transformer of 63 M weights: arithmetic.

    17.6 + 5.9 GFLOP a row forward, three times that with backward, at half of 788 TFLOP/s (bf16). JDSH on
    descriptions of 768 and 512 features and 64 bits: 2 (2 768 + 2 512 + 2 64) FLOP a pair at half of 67
    TFLOP/s (fp32); gathered: 2 64 + 768 + 512 + 2 floats, and the gradient of the codes back. 400 Gbit/s a
    GPU between nodes, 20 microseconds a hop.
    """
    return Factors(
        row=3 * 23.5e9 / (788e12 / 2),
        fixed=2e-3,
        pair=2 * (2 * 768 + 2 * 512 + 2 * 64) / (67e12 / 2),
        row_bytes=4 * (2 * 64 + 768 + 512 + 2 + 2 * 64),
        hop=20e-6,
        link=50e9,
        parameters=150e6,
    )


def table(factors: Factors, rows: int, sizes: tuple[int, ...] = GPUS) -> list[dict[str, float]]:
    """Return the milliseconds of the parts of a step at each number of ranks, and the share of linear."""
    alone = seconds(factors, 1, rows)
    lines = []
    for ranks in sizes:
        parts = {name: 1e3 * value for name, value in step(factors, ranks, rows).items()}
        total = sum(parts.values())
        lines.append({"ranks": ranks, **parts, "step": total, "of_linear": 1e3 * alone / total})
    return lines


def largest(factors: Factors, rows: int, part: str) -> int:
    """Return the smallest number of ranks, a power of two, at which a part takes longer than the networks."""
    ranks = 1
    while ranks < 2**24 and step(factors, ranks, rows)[part] <= step(factors, ranks, rows)["networks"]:
        ranks *= 2
    return ranks
