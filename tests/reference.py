"""Slow, obvious oracles: plain loops over what the definitions say. Never imported by the product."""

import itertools
from fractions import Fraction

import numpy as np

from pipeline.codes import PACKER_VERSION
from pipeline.releases.addresses import code_address, unit_token


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


def search(query: np.ndarray, codes: np.ndarray, *, ids: list[int], keys: list[str], k: int) -> list[list]:
    """Return per query the first k of all rows ordered by (distance, id, key), as (distance, id, key)."""
    distances = hamming(query, codes)
    return [sorted(zip(row.tolist(), ids, keys, strict=True))[:k] for row in distances]


def average_precision(ranked: list[bool], k: int) -> Fraction:
    """Return AP@k of one ranked list: mean precision at the relevant ranks within k, 0 without any."""
    precisions, found = [], 0
    for rank, relevant in enumerate(ranked[:k], 1):
        if relevant:
            found += 1
            precisions.append(Fraction(found, rank))
    return sum(precisions, Fraction(0)) / max(len(precisions), 1)


def average_precision_over_ties(
    distances: list[int], relevant: list[bool], k: int
) -> tuple[Fraction, Fraction, Fraction]:
    """Return lowest, mean and highest AP@k over every order of the rows at equal distance."""
    groups = [
        [hit for value, hit in zip(distances, relevant, strict=True) if value == distance]
        for distance in sorted(set(distances))
    ]
    orders = itertools.product(*(list(itertools.permutations(group)) for group in groups))
    values = [average_precision(list(itertools.chain(*order)), k) for order in orders]
    return min(values), sum(values, Fraction(0)) / len(values), max(values)


def plan_night(
    files: list, towers: dict[str, str], recipe: str, parent: list[dict]
) -> tuple[list, list, list]:
    """Return what a night encodes and reuses, as (path, side, code), and which paths vanished."""
    encode: list = []
    reuse: list = []
    for file in sorted(files, key=lambda file: file.path):
        for side in sorted(towers):
            unit = unit_token(file.size, file.token)
            code = code_address(
                unit, side, fingerprint=towers[side], recipe=recipe, packer_version=PACKER_VERSION
            )
            known = any(row["code"] == code for row in parent)
            (reuse if known else encode).append((file.path, side, code))
    now = [file.path for file in files]
    return encode, reuse, sorted({row["path"] for row in parent if row["path"] not in now})
