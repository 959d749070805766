"""Slow, obvious oracles: plain loops over what the definitions say. Never imported by the product."""

import numpy as np


def pack(values: np.ndarray) -> np.ndarray:
    """Return packed codes, bit by bit: bit j of a row is in byte j // 8, most significant first."""
    packed = np.zeros((len(values), values.shape[1] // 8), np.uint8)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value >= 0:
                packed[i, j // 8] |= 1 << (7 - j % 8)
    return packed


def hamming(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (Q, N) Hamming distances of packed codes by comparing bit strings."""

    def bits(row: np.ndarray) -> str:
        return "".join(f"{byte:08b}" for byte in row)

    return np.array([[sum(x != y for x, y in zip(bits(q), bits(n), strict=True)) for n in b] for q in a])
