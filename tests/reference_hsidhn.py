"""HSIDHN by its definitions: loops over rows, pairs, windows and levels. Never imported by the product."""

from typing import Any

import numpy as np


def similarity(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return whether two label vectors share a label, and their cosine."""
    shared = float(sum(x * y for x, y in zip(a, b, strict=True)))
    norms = float(np.sqrt(sum(x * x for x in a) * sum(y * y for y in b)))
    return float(shared > 0), shared / norms if norms > 0 else 0.0


def pair_loss(kind: str, product: Any, *, similar: tuple[float, float], scale: float, bits: int) -> Any:
    """Return the loss of one pair of codes from their inner product, a torch scalar."""
    hard, soft = similar
    if kind == "soft":
        return ((product + bits) / (2 * bits) - soft) ** 2
    logit = scale * product
    return (1 + logit.exp()).log() - hard * logit


def pair_classes(kinds: tuple, similar: tuple[float, float], *, exclusive: bool, separate: bool) -> list:
    """Return the (kind, class) under which one pair is counted; class 0 is similar, or all."""
    hard, soft = similar
    wanted = list(kinds)
    if exclusive:
        own = "soft" if 0.01 <= soft <= 0.99 else "hard"
        wanted = [kind for kind in kinds if kind == own]
    return [(kind, 0 if hard or not separate else 1) for kind in wanted]


def pair_means(
    levels: dict[str, Any],
    final: dict[str, Any],
    labels: np.ndarray,
    *,
    kinds: tuple,
    exclusive: bool,
    separate: bool,
    scale: float,
    level_weight: float,
) -> dict[tuple[str, str, int], Any]:
    """Return the mean loss of the pairs of each (inter or intra, kind, class), over all levels.

    Args:
        levels: side -> list of (N, L) level codes.
        final: side -> (N, L) final codes.
    """
    sums: dict[Any, Any] = {}
    counts: dict[Any, int] = {}
    for side, other in (("image", "text"), ("text", "image")):
        codes = [*levels[side], final[side]]
        weights = np.array([level_weight] * len(levels[side]) + [1.0])
        for relation, columns in (("inter", final[other]), ("intra", final[side])):
            for i, own in enumerate(labels):
                for j, its in enumerate(labels):
                    similar = similarity(own, its)
                    for kind, number in pair_classes(kinds, similar, exclusive=exclusive, separate=separate):
                        name = (relation, kind, number)
                        counts[name] = counts.get(name, 0) + (side == "image")
                        for weight, rows in zip(weights / weights.sum(), codes, strict=True):
                            product = (rows[i] * columns[j]).sum()
                            loss = pair_loss(kind, product, similar=similar, scale=scale, bits=len(rows[i]))
                            sums[name] = sums.get(name, 0) + weight * loss
    return {name: total / counts[name] for name, total in sums.items()}


def quantisation(image: Any, text: Any, *, absolute: bool) -> Any:
    """Return the mean distance of the codes of both sides from bits, per bit."""
    rows, bits = image.shape
    total = 0.0
    for i in range(rows):
        for j in range(bits):
            sign = 1.0 if (image[i, j] + text[i, j]).item() >= 0 else -1.0
            for code in (image[i, j], text[i, j]):
                total = total + ((code.abs() - 1).abs() if absolute else (sign - code) ** 2)
    return total / (rows * bits)


def bilinear(a: np.ndarray, b: np.ndarray, weights: tuple, *, rooted: bool) -> np.ndarray:
    """Return P[(U a) . (V b)] of one row, as a sum over ranks."""
    left, right, out = weights
    result = np.zeros(len(out))
    for r in range(len(left)):
        result += out[:, r] * (left[r] @ a) * (right[r] @ b)
    if rooted:
        result = np.sign(result) * (np.sqrt(np.abs(result) + 1e-6) - 1e-3)
        result = result / np.sqrt(result @ result)
    return result


def passed(levels: np.ndarray, up: list, down: list, *, rooted: bool, factor: float = 1) -> np.ndarray:
    """Return (n, d) means of what is passed up and down through one row's levels, before any norm.

    `factor` is that of every product.
    """
    n = len(levels)
    ways = []
    if up:
        p = [levels[0]]
        for i in range(1, n):
            p.append(levels[i] + factor * bilinear(levels[i], p[i - 1], up[i - 1], rooted=rooted))
        ways.append(np.stack(p))
    if down:
        q = {n - 1: levels[n - 1]}
        for i in range(n - 2, -1, -1):
            # The first step down starts at the last level but one.
            q[i] = levels[i] + factor * bilinear(levels[i], q[i + 1], down[n - 2 - i], rooted=rooted)
        ways.append(np.stack([q[i] for i in range(n)]))
    return np.mean(ways, axis=0) if ways else levels


def layer_norm(values: np.ndarray) -> np.ndarray:
    """Return values centred and scaled to variance 1, as a fresh LayerNorm does."""
    return (values - values.mean()) / np.sqrt(values.var() + 1e-5)


def bin_means(values: np.ndarray, bins: int) -> np.ndarray:
    """Return means over `bins` stretches of a vector; they overlap by one where it does not divide."""
    size = len(values)
    return np.array([values[i * size // bins : -(-(i + 1) * size // bins)].mean() for i in range(bins)])


def grid_means(maps: np.ndarray, bins: int) -> np.ndarray:
    """Return (C, bins, bins) means of the cells of (C, H, W) maps."""
    rows = np.apply_along_axis(bin_means, 1, maps, bins)
    return np.apply_along_axis(bin_means, 2, rows, bins)


def spread(values: np.ndarray, size: int) -> np.ndarray:
    """Return `size` values, each the one at its place among those given (nearest, downwards)."""
    return np.array([values[i * len(values) // size] for i in range(size)])


def window_means(values: np.ndarray, window: int) -> np.ndarray:
    """Return means over windows side by side; the last has what is left."""
    return np.array([values[i : i + window].mean() for i in range(0, len(values), window)])


def final_values(levels: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """Return (L,) what the final code is tanh of: level codes (n, L) weighted per bit."""
    return np.array([sum(mix[i, j] * levels[i, j] for i in range(len(mix))) for j in range(mix.shape[1])])
