"""Slow, obvious oracles: plain loops over what the definitions say. Never imported by the product."""

import itertools
import math
from fractions import Fraction
from typing import Any

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


def jdsh_similarity(
    image: np.ndarray,
    text: np.ndarray,
    population: tuple[np.ndarray, np.ndarray],
    *,
    form: str,
    weights: tuple,
) -> np.ndarray:
    """Return JDSH's (N, N) joint similarity, before DSDW, of rows of unit features.

    Args:
        population: image and text features of the rows over which rows of S^I and S^T run.
        form: released (2cos-1, then fuse), fused (fuse, then 2x-1) or centred (no map).
        weights: alpha, beta, lambda.
    """

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    def side(features: np.ndarray, others: np.ndarray) -> np.ndarray:
        cosines = np.array([[cosine(a, b) for b in others] for a in features])
        return 2 * cosines - 1 if form == "released" else cosines

    own_image, own_text = side(image, image), side(text, text)
    long_image, long_text = side(image, population[0]), side(text, population[1])
    cross = np.array([[cosine(a, b) for b in long_text] for a in long_image])
    fused = weights[0] * own_image + weights[1] * own_text + weights[2] * (cross + cross.T) / 2
    return 2 * fused - 1 if form == "fused" else fused


def jdsh_target(fused: np.ndarray, thresholds: tuple, gains: tuple, scale: float) -> np.ndarray:
    """Return JDSH's target: confident similarities amplified (DSDW), everything scaled.

    Args:
        thresholds: left, right, lowest, highest; beyond the last two an amplification grows no more.
        gains: L1 (dissimilar) and L2 (similar).
    """
    left, right, lowest, highest = thresholds
    target = np.empty_like(fused)
    for index, value in np.ndenumerate(fused):
        gain = 1.0
        if value < left:
            gain = 1 + gains[0] * min(1.0, np.exp(-(value - lowest)))
        elif value > right:
            gain = 1 + gains[1] * min(1.0, np.exp(value - highest))
        target[index] = scale * gain * value
    return target


def jdsh_terms(
    image: Any, text: Any, target: np.ndarray, classes: np.ndarray | None = None
) -> dict[str, Any]:
    """Return JDSH's unweighted terms from (N, L) torch codes, as means over all pairs of different rows.

    Args:
        classes: (N, N) number of each pair's class; None: one class of all pairs.
    """
    image = [row / row.norm() for row in image]
    text = [row / row.norm() for row in text]
    rows = range(len(image))
    classes = np.zeros(target.shape, int) if classes is None else classes
    terms = {}
    for name, a, b in (("image_image", image, image), ("text_text", text, text), ("image_text", image, text)):
        for kind in sorted(set(classes.ravel())):
            pairs = [(i, j) for i in rows for j in rows if i != j and classes[i, j] == kind]
            errors = sum((a[i] @ b[j] - target[i, j]) ** 2 for i, j in pairs)
            terms[name, int(kind)] = errors / max(len(pairs), 1)
    terms["paired"] = sum((image[i] @ text[i] - target[i, i]) ** 2 for i in rows) / len(image)
    terms["coherence"] = -sum(image[i] @ text[i] for i in rows) / len(image)
    return terms


def djsrh_target(image: np.ndarray, text: np.ndarray, *, form: str, weights: tuple) -> np.ndarray:
    """Return DJSRH's (N, N) target of rows of unit features.

    Args:
        form: released (2cos-1) or centred (cos).
        weights: b of images, eta of the second order, mu.
    """
    share, second, scale = weights
    rows = range(len(image))
    cosines = np.array(
        [[share * (image[i] @ image[j]) + (1 - share) * (text[i] @ text[j]) for j in rows] for i in rows]
    )
    fused = 2 * cosines - 1 if form == "released" else cosines
    neighbours = np.array([[np.mean([fused[i, k] * fused[k, j] for k in rows]) for j in rows] for i in rows])
    return scale * ((1 - second) * fused + second * neighbours)


def djsrh_terms(image: Any, text: Any, target: np.ndarray) -> dict[str, Any]:
    """Return DJSRH's unweighted terms from (N, L) torch codes, as means over all pairs."""
    image = [row / row.norm() for row in image]
    text = [row / row.norm() for row in text]
    rows = range(len(image))
    return {
        name: sum((a[i] @ b[j] - target[i, j]) ** 2 for i in rows for j in rows) / len(image) ** 2
        for name, a, b in (
            ("image_image", image, image),
            ("text_text", text, text),
            ("image_text", image, text),
        )
    }


def picture_descriptor(pixels: np.ndarray, cells: int = 4) -> list[float]:
    """Return the descriptor of one (S, S, 3) picture, pixel by pixel: colour grid, directions, colours."""
    size = len(pixels)
    inner = size - 2
    values = pixels.astype(int)
    sums, counts = np.zeros((6, 6, 3)), np.zeros((6, 6, 1))
    directions, colours = np.zeros((cells, cells, 8)), np.zeros(64)
    for y in range(size):
        for x in range(size):
            cell = y * 6 // size, x * 6 // size
            sums[cell] += values[y, x] / 255
            counts[cell] += 1
            red, green, blue = values[y, x] // 64
            colours[16 * red + 4 * green + blue] += 1
    grey = values.sum(axis=2)
    for y in range(inner):
        for x in range(inner):
            dx = grey[y + 1, x + 2] - grey[y + 1, x]
            dy = grey[y + 2, x + 1] - grey[y, x + 1]
            octant = 4 * (dx > 0) + 2 * (dy > 0) + (abs(dx) > abs(dy))
            directions[y * cells // inner, x * cells // inner, octant] += round(np.sqrt(dx**2 + dy**2))
    directions /= 765 * inner**2 / cells**2
    return [*(sums / counts).ravel(), *np.sqrt(directions).ravel(), *np.sqrt(colours / size**2)]


def adaptive_tanh(value: float, form: str, *, slope: float, shape: float, epoch: int) -> float:
    """Return the adaptive tanh of one value; `shape` is p of power, beta of cubic and asinh."""
    if form == "power":
        size = (value**2 + 0.01) ** (shape / 2)
        return math.tanh(slope * size * value / math.sqrt(value**2 + 0.01))
    scaled = {
        "fixed": value,
        "schedule": math.sqrt(epoch + 1) * value,
        "linear": slope * value,
        "cubic": slope * value + shape * value**3,
        "asinh": slope * math.asinh(shape * value) / shape,
    }
    return math.tanh(scaled[form])


def reconstruction_error(data: str, rebuilt: Any, described: Any, standardised: Any) -> Any:
    """Return the error of one row of torch values rebuilt as dense values, tags or counts."""
    total = rebuilt.new_zeros(())
    if data == "dense":
        for mine, wanted in zip(rebuilt, standardised, strict=True):
            total = total + (mine - wanted) ** 2 / len(rebuilt)
    elif data == "tags":
        for logit, value in zip(rebuilt, described, strict=True):
            chance = 1 / (1 + (-logit).exp())
            total = total - (chance if value > 0 else 1 - chance).log() / len(rebuilt)
    else:
        partition = sum(logit.exp() for logit in rebuilt)
        for logit, count in zip(rebuilt, described, strict=True):
            total = total - count / sum(described) * (logit.exp() / partition).log()
    return total


def label_pair_losses(a: Any, b: Any, labels: Any, *, kind: str, scale: float) -> dict[str, Any]:
    """Return means of DSCMH's pair losses of (N, L) torch codes over all (i, j): all, similar, dissimilar."""
    found: dict[str, list] = {"all": [], "similar": [], "dissimilar": []}
    for i, j in itertools.product(range(len(a)), repeat=2):
        shared = labels[i] @ labels[j]
        cosine = shared / max(labels[i].norm() * labels[j].norm(), 1e-12)
        if kind == "divergence":
            r = (a[i] @ b[j] / (a[i].norm() * b[j].norm())).relu()
            loss = (cosine - r) * ((cosine + 1e-5) / (r + 1e-5)).log()
        else:
            theta = scale * (a[i] @ b[j])
            target = float(shared > 0) if kind == "likelihood" else cosine
            loss = (1 + theta.exp()).log() - target * theta
        found["all"].append(loss)
        found["similar" if shared > 0 else "dissimilar"].append(loss)
    return {name: sum(losses) / max(len(losses), 1) for name, losses in found.items()}


def binarisation_error(image: Any, text: Any, label: Any, *, share: float, with_label: bool) -> Any:
    """Return the mean squared distance per bit, summed over the networks, of torch codes from B."""
    total = image.new_zeros(())
    for f, g, h in zip(image, text, label, strict=True):
        for bit in range(len(f)):
            target = 1.0 if f[bit] + g[bit] + share * h[bit] >= 0 else -1.0
            for code in (f, g, h) if with_label else (f, g):
                total = total + (target - code[bit]) ** 2 / len(f) / len(image)
    return total


def bit_correlation(codes: Any) -> Any:
    """Return |F'F / N - I|^2 / L of (N, L) torch codes, entry by entry."""
    total, length = codes.new_zeros(()), codes.shape[1]
    for j, k in itertools.product(range(length), repeat=2):
        moment = sum(row[j] * row[k] for row in codes) / len(codes)
        total = total + (moment - float(j == k)) ** 2 / length
    return total


def read_out_error(codes: Any, labels: Any, ridge: float) -> Any:
    """Return mean |l - P' b|^2 + ridge |P|^2 of torch codes, with P from the normal equations."""
    penalty = codes.new_zeros(codes.shape[1], codes.shape[1]).fill_diagonal_(ridge * len(codes))
    rows = list(zip(codes, labels, strict=True))
    best = (sum(b.outer(b) for b, _ in rows) + penalty).inverse() @ sum(b.outer(own) for b, own in rows)
    missed = [own - best.T @ b for b, own in rows]
    return sum(each @ each for each in missed) / len(codes) + ridge * best.square().sum()
