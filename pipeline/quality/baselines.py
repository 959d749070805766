"""Codes to compare a method with: random, CCA, CMFH, and ridge regression on label codes. numpy only.

Each works on the fixed features that the method itself starts from. What has to be chosen (the regulariser,
the best code length) is chosen on validation rows taken out of train, never on query rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from pipeline.codes import check_code_length, code_size, pack
from pipeline.quality.counting import count
from pipeline.quality.metrics import average_precision, pack_labels

SIDES = ("image", "text")
REGULARISERS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
LENGTHS = (8, 16, 32, 64, 128)
VALIDATION_SHARE = 0.15


@dataclass(frozen=True)
class Features:
    """Complete pairs as features, for one baseline to learn from."""

    image: np.ndarray  # (N, D_image) float
    text: np.ndarray  # (N, D_text) float
    labels: Sequence[Sequence[int] | np.ndarray]

    def take(self, rows: np.ndarray) -> "Features":
        return Features(self.image[rows], self.text[rows], [self.labels[row] for row in rows])

    def at_unit_length(self) -> "Features":
        return Features(_unit(self.image), _unit(self.text), self.labels)


@dataclass(frozen=True)
class Projection:
    """A linear map whose signs are the code, one bit per column."""

    mean: np.ndarray  # (D,)
    weight: np.ndarray  # (D, L)
    bias: np.ndarray | float = 0.0  # (L,)

    def relaxed(self, features: np.ndarray, *, code_length: int | None = None) -> np.ndarray:
        """Return the first `code_length` columns, all by default, and columns of 0 up to a whole byte.

        The bits of these are equal in all codes: no distance knows of them.
        """
        values = ((features - self.mean) @ self.weight + self.bias)[:, :code_length]
        return np.pad(values, ((0, 0), (0, -values.shape[1] % 8)))

    def codes(self, features: np.ndarray, *, code_length: int | None = None) -> np.ndarray:
        """Return the packed signs of `relaxed`."""
        return pack(self.relaxed(features, code_length=code_length))


Pair = dict[str, Projection]
"""The projections of both sides: `image` and `text`."""
Fit = Callable[[Features, float], Pair]
"""Learns from features with a regulariser."""


@dataclass(frozen=True)
class Choice:
    """What validation chose, fitted anew on all train rows."""

    projections: Pair
    code_length: int
    regulariser: float
    validation_map: float  # mean of both directions, mAP@all expected over ties
    unit: bool = False  # rows are brought to unit length first

    def relaxed(self, features: Features) -> dict[str, np.ndarray]:
        """Return the relaxed codes of both sides."""
        features = features.at_unit_length() if self.unit else features
        return {
            side: projection.relaxed(getattr(features, side), code_length=self.code_length)
            for side, projection in self.projections.items()
        }

    def codes(self, features: Features) -> dict[str, np.ndarray]:
        """Return the packed codes of both sides."""
        return {side: pack(values) for side, values in self.relaxed(features).items()}


def random_codes(rows: int, *, code_length: int, seed: int) -> dict[str, np.ndarray]:
    """Return codes that know nothing: drawn independently for both sides."""
    drawn = np.random.default_rng(seed).integers(0, 256, (2, rows, code_size(code_length)), dtype=np.uint8)
    return {"image": drawn[0], "text": drawn[1]}


def fit_cca(features: Features, regulariser: float, *, code_length: int) -> Pair:
    """Fit canonical correlation analysis: pairs of directions along which the two sides agree most.

    Args:
        regulariser: added to the diagonal of each side's covariance, as a multiple of its mean.
        code_length: number of directions, strongest first.
    Raises:
        ValueError: the narrower side has fewer features than bits.
    Source: Hotelling 1936, in the ridge form of Vinod 1976.
    """
    narrow = min(features.image.shape[1], features.text.shape[1])
    if not 1 <= code_length <= narrow:
        raise ValueError(f"CCA gives at most {narrow} bits on these features, got code_length {code_length}")
    image_mean, image, image_root = _whitened(features.image, regulariser)
    text_mean, text, text_root = _whitened(features.text, regulariser)
    cross = np.linalg.solve(image_root, image.T @ text) / len(image)
    left, _, right = np.linalg.svd(np.linalg.solve(text_root, cross.T).T, full_matrices=False)
    return {
        "image": Projection(image_mean, np.linalg.solve(image_root.T, left[:, :code_length])),
        "text": Projection(text_mean, np.linalg.solve(text_root.T, right[:code_length].T)),
    }


def fit_ridge(features: Features, regulariser: float, *, code_length: int, seed: int = 0) -> Pair:
    """Fit ridge regression of each side on label codes: signs of random projections of the label sets."""
    classes = _classes(features.labels)
    members = np.zeros((len(features.labels), len(classes)))
    for row, labels in enumerate(features.labels):
        members[row, np.searchsorted(classes, labels)] = 1
    mixing = np.random.default_rng(seed).standard_normal((len(classes), check_code_length(code_length)))
    targets = np.where(members @ mixing >= 0, 1.0, -1.0)
    bias = targets.mean(axis=0)
    pair = {}
    for side in SIDES:
        mean, centred, root = _whitened(getattr(features, side), regulariser)
        half = np.linalg.solve(root, centred.T @ (targets - bias) / len(targets))
        pair[side] = Projection(mean, np.linalg.solve(root.T, half), bias)
    return pair


def fit_cmfh(
    features: Features, regulariser: float, *, code_length: int, seed: int = 0, rounds: int = 30
) -> Pair:
    """Fit collective matrix factorisation hashing: one hidden vector a pair rebuilds both of its sides.

    Minimises  sum over sides of |X - V U|^2 / 2 + mu |V - X P|^2 + gamma (|V|^2 + |U|^2 + |P|^2)  by turns;
    the signs of X P are the code.

    Args:
        regulariser: gamma, where features are scaled to variance 1 on average.
    Source: Ding, Guo and Zhou, CVPR 2014, with its equal weights of both sides and mu = 100.
    """
    half, mu = 0.5, 100.0
    views = []
    for side in SIDES:
        mean, centred, _ = _whitened(getattr(features, side), regulariser)
        views.append((mean, centred / max(float(centred.std()), 1e-12)))
    rows = len(features.labels)
    hidden = np.random.default_rng(seed).standard_normal((rows, check_code_length(code_length)))
    eye = np.eye(code_length)
    solvers = [
        np.linalg.solve(x.T @ x + (regulariser * rows / mu) * np.eye(x.shape[1]), x.T) for _, x in views
    ]
    for _ in range(rounds):
        bases = [
            np.linalg.solve(hidden.T @ hidden + (regulariser * rows / half) * eye, hidden.T @ x)
            for _, x in views
        ]
        projected = [x @ (solver @ hidden) for (_, x), solver in zip(views, solvers, strict=True)]
        gram = half * sum(base @ base.T for base in bases) + (2 * mu + regulariser) * eye
        pulled = sum(
            half * x @ base.T + mu * own for (_, x), base, own in zip(views, bases, projected, strict=True)
        )
        hidden = np.linalg.solve(gram, np.asarray(pulled).T).T
    return {
        side: Projection(mean, solver @ hidden)
        for side, (mean, _), solver in zip(SIDES, views, solvers, strict=True)
    }


def choose(
    fit: Fit,
    features: Features,
    *,
    lengths: Sequence[int],
    seed: int,
    regularisers: Sequence[float] = REGULARISERS,
    groups: Sequence[str] | None = None,
) -> dict[int, Choice]:
    """Choose the regulariser of each code length on validation rows and fit anew on all rows.

    Whether rows are brought to unit length first is chosen with it. Validation rows ask, the other train rows
    are searched.

    Args:
        fit: gives max(lengths) bits, the shorter codes being its first bits.
        seed: of the draw of validation rows.
        groups: rows of one group stand on one side of that draw; None: every row for itself.
    """
    names, members = np.unique(range(len(features.labels)) if groups is None else groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    held = np.isin(members, order[: max(1, round(VALIDATION_SHARE * len(order)))])
    validation, rest = features.take(np.flatnonzero(held)), features.take(np.flatnonzero(~held))
    scores: dict[int, list[float]] = {code_length: [] for code_length in lengths}
    settings = list(product((False, True), regularisers))
    for unit, regulariser in settings:
        pair = fit(rest.at_unit_length() if unit else rest, regulariser)
        for code_length in lengths:
            choice = Choice(pair, code_length, regulariser, 0.0, unit)
            scores[code_length].append(_score(choice, validation, rest))
    best = {code_length: int(np.argmax(values)) for code_length, values in scores.items()}
    final = {}
    for index in sorted(set(best.values())):
        unit, regulariser = settings[index]
        final[index] = fit(features.at_unit_length() if unit else features, regulariser)
    return {
        code_length: Choice(
            final[index], code_length, settings[index][1], scores[code_length][index], settings[index][0]
        )
        for code_length, index in best.items()
    }


def choose_cca(
    features: Features,
    *,
    code_length: int,
    seed: int,
    others: Sequence[int] = (),
    groups: Sequence[str] | None = None,
) -> dict[str, Choice]:
    """Return CCA at a code length (`cca`) and at the length that validation likes best (`cca_best`).

    Each of the other lengths asked for comes as `cca_<length>`. A length is missing where the narrower side
    has fewer features than bits; as many bits as it has features are tried for the best then.
    """
    narrow = min(features.image.shape[1], features.text.shape[1])
    wanted = {*LENGTHS, *others, code_length}
    lengths = sorted({length for length in wanted if length <= narrow} | {min(narrow, max(wanted))})

    def fit(rows: Features, regulariser: float) -> Pair:
        return fit_cca(rows, regulariser, code_length=lengths[-1])

    choices = choose(fit, features, lengths=lengths, seed=seed, groups=groups)
    best = max(choices.values(), key=lambda choice: choice.validation_map)
    named = {"cca": code_length} | {f"cca_{length}": length for length in others}
    chosen = {name: choices[length] for name, length in named.items() if length in choices}
    return chosen | {"cca_best": best}


def _whitened(features: np.ndarray, regulariser: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, centred features, and the Cholesky root of their regularised covariance."""
    wide = np.asarray(features, np.float64)
    mean = wide.mean(axis=0)
    centred = wide - mean
    covariance = centred.T @ centred / len(centred)
    # A feature that never varied would make the covariance singular; it also carries nothing.
    floor = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    covariance[np.diag_indices_from(covariance)] += regulariser * floor
    return mean, centred, np.linalg.cholesky(covariance)


def _unit(rows: np.ndarray) -> np.ndarray:
    wide = np.asarray(rows, np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def _score(choice: Choice, validation: Features, rest: Features) -> float:
    """Return the mean mAP@all of both directions."""
    classes = _classes([*validation.labels, *rest.labels])
    asked, found = choice.codes(validation), choice.codes(rest)
    labels = {
        "query_labels": pack_labels(validation.labels, classes=classes),
        "retrieval_labels": pack_labels(rest.labels, classes=classes),
    }
    directions = [(asked["image"], found["text"]), (asked["text"], found["image"])]
    scores = [average_precision(counts).expected.mean() for counts in count(directions, labels)]
    return float(np.mean(scores))


def _classes(labels: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.asarray(row, np.int64) for row in labels]))
