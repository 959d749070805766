"""What a plot shows of codes and a single number hides: curves over radius and rank, and one bit at a time.

Also how well the relaxed codes rank before their signs are taken: what binarisation costs. numpy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.codes import unpack
from pipeline.quality.counting import count
from pipeline.quality.evaluation import DIRECTIONS, CodedPairs, label_bits
from pipeline.quality.metrics import precision_at, precision_recall_by_radius, shares_label

STEPS = (1, 2, 5)
"""Ranks at which a topN curve is measured: these times the powers of ten."""
_QUERIES = 256  # ranked at once


@dataclass(frozen=True)
class Curves:
    """One direction of search, averaged over its queries."""

    precision: np.ndarray  # (L + 1,) inside each Hamming radius
    recall: np.ndarray  # (L + 1,)
    ranks: np.ndarray  # (R,)
    precision_at: np.ndarray  # (R,) among the first so many rows, expected over ties
    related: np.ndarray  # (L + 1,) share of the relevant pairs at each distance
    unrelated: np.ndarray  # (L + 1,) share of the others
    chance: float  # share of relevant (query, retrieval row) pairs: the precision of a random order


@dataclass(frozen=True)
class BitProfile:
    """Every bit of a set of codes."""

    ones: np.ndarray  # (L,) share of rows in which the bit is 1
    correlation: np.ndarray  # (L, L); a bit that never changes has correlation 0 with the others
    sharing: int  # rows whose code some other row has too


def measure_curves(query: CodedPairs, retrieval: CodedPairs) -> dict[str, Curves]:
    """Return the curves of both directions, by the names of `evaluation.DIRECTIONS`."""
    labels = label_bits(query, retrieval)
    ranks = rank_steps(len(retrieval.keys))
    curves = {}
    pairs = [(query.codes[asked], retrieval.codes[found]) for asked, found in DIRECTIONS.values()]
    for direction, counts in zip(DIRECTIONS, count(pairs, labels), strict=True):
        precision, recall = precision_recall_by_radius(counts)
        total, relevant = counts.total.sum(axis=0), counts.relevant.sum(axis=0)
        curves[direction] = Curves(
            precision,
            recall,
            ranks,
            precision_at(counts, ranks.tolist()),
            related=relevant / max(relevant.sum(), 1),
            unrelated=(total - relevant) / max((total - relevant).sum(), 1),
            chance=float(relevant.sum() / total.sum()),
        )
    return curves


def pair_distances(pairs: CodedPairs) -> np.ndarray:
    """Return the (N,) Hamming distances between the two sides of each pair."""
    differing = pairs.codes["image"] ^ pairs.codes["text"]
    return np.bitwise_count(differing).sum(axis=1, dtype=np.int64)


def rank_steps(rows: int) -> np.ndarray:
    """Return 1, 2, 5, 10, 20, 50, ... below the number of rows, and that number."""
    steps = [step * 10**power for power in range(len(str(rows))) for step in STEPS]
    return np.array([*(step for step in steps if step < rows), rows])


def profile_bits(packed: np.ndarray) -> BitProfile:
    """Describe each bit of (N, S) packed codes, N at least 1."""
    bits = unpack(packed).astype(np.float32)
    mean = bits.mean(axis=0)
    centred = bits - mean
    covariance = centred.T @ centred / len(bits)
    spread = np.sqrt(np.diag(covariance))
    correlation = covariance / np.maximum(np.outer(spread, spread), 1e-12)
    _, counts = np.unique(np.ascontiguousarray(packed).view(f"V{packed.shape[1]}"), return_counts=True)
    return BitProfile((mean + 1) / 2, correlation, int(counts[counts > 1].sum()))


def evaluate_relaxed(
    query: CodedPairs, retrieval: CodedPairs, *, ks: Sequence[int | None] = (None,)
) -> dict[str, list[float]]:
    """Return mAP@k of both directions when relaxed codes are ranked by their cosine.

    Floats hardly tie; where they do, the order of the retrieval rows decides.

    Args:
        query, retrieval: `codes` hold (N, L) relaxed codes.
        ks: cut-offs in ranks; None ranks all.
    """
    labels = label_bits(query, retrieval)
    values = {}
    for direction, (asked, found) in DIRECTIONS.items():
        units = [_unit(query.codes[asked]), _unit(retrieval.codes[found])]
        precisions = [
            _precisions(
                units[0][rows], units[1], labels["query_labels"][rows], labels["retrieval_labels"], ks
            )
            for rows in (slice(start, start + _QUERIES) for start in range(0, len(query.keys), _QUERIES))
        ]
        values[direction] = np.concatenate(precisions, axis=1).mean(axis=1).tolist()
    return values


def _precisions(
    query: np.ndarray,
    retrieval: np.ndarray,
    query_labels: np.ndarray,
    retrieval_labels: np.ndarray,
    ks: Sequence[int | None],
) -> np.ndarray:
    """Return (len(ks), Q) average precisions."""
    order = np.argsort(-(query @ retrieval.T), axis=1, kind="stable")
    hits = np.take_along_axis(shares_label(query_labels, retrieval_labels), order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return np.stack(
        [(precision * hits)[:, :k].sum(axis=1) / np.maximum(hits[:, :k].sum(axis=1), 1) for k in ks]
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
