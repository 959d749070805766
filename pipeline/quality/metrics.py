"""What ranked lists and codes are worth: average precision with exact ties, precision curves, bit health.

Hamming distances take few values, so ranked lists are full of ties. All but the stable order is computed
from the number of retrieval rows, and of relevant ones, at each distance: no list is ever sorted. A row is
relevant to a query when the two share a label. numpy only; memory is bounded by the block, not by Q x N.

Average precision at k: the mean, over the relevant rows among the first k, of the precision at their ranks;
a query without any counts as 0. The divisor is the number of relevant rows *among the first k*.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.codes import hamming, unpack

BLOCK = 1 << 18  # (query, retrieval) pairs held at once, some 40 bytes each: what a cache holds
_DIRECT = 64  # harmonic numbers below are summed, from here on given by their asymptotic series
_HARMONIC = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, _DIRECT + 1))])


@dataclass(frozen=True)
class DistanceCounts:
    """How many retrieval rows, and how many relevant ones, lie at each distance from each query."""

    total: np.ndarray  # (Q, L + 1) int64
    relevant: np.ndarray  # (Q, L + 1) int64


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision of each query, (Q,) float64, over all orders of the rows that are tied."""

    expected: np.ndarray  # mean over tie orders, all equally likely
    lowest: np.ndarray
    highest: np.ndarray


def pack_labels(labels: Sequence[Sequence[int] | np.ndarray], *, classes: np.ndarray) -> np.ndarray:
    """Return label sets as bits, 64 classes per word.

    Args:
        labels: N label sets; an empty set shares nothing with any row.
        classes: (C,) sorted distinct labels; the same array for queries and retrieval rows.
    Returns:
        (N, max(1, ceil(C / 64))) uint64.
    Raises:
        ValueError: a label is not among the classes.
    """
    bits = np.zeros((len(labels), max(1, -(-len(classes) // 64))), np.uint64)
    rows = np.repeat(np.arange(len(labels)), [len(row) for row in labels])
    values = np.concatenate([np.asarray(row, np.int64) for row in labels]) if len(rows) else rows
    position = np.searchsorted(classes, values)
    if len(values) and not np.array_equal(classes[np.minimum(position, len(classes) - 1)], values):
        raise ValueError(f"labels must be among the {len(classes)} classes given")
    np.bitwise_or.at(bits, (rows, position // 64), np.uint64(1) << (position % 64).astype(np.uint64))
    return bits


def shares_label(query_labels: np.ndarray, retrieval_labels: np.ndarray) -> np.ndarray:
    """Return the (Q, N) relevance of retrieval rows to queries, both given as packed label bits."""
    relevant = np.zeros((len(query_labels), len(retrieval_labels)), bool)
    for word in range(query_labels.shape[1]):
        relevant |= (query_labels[:, word, None] & retrieval_labels[None, :, word]) != 0
    return relevant


def count_by_distance(
    query: np.ndarray, retrieval: np.ndarray, *, query_labels: np.ndarray, retrieval_labels: np.ndarray
) -> DistanceCounts:
    """Count the retrieval rows, and the relevant ones, at each Hamming distance from each query.

    Args:
        query: (Q, S) packed codes.
        retrieval: (N, S) packed codes, N at least 1.
        query_labels: (Q, W) packed label bits.
        retrieval_labels: (N, W) packed label bits.
    """
    check_sets(query, retrieval, query_labels, retrieval_labels)
    bins = 2 * (8 * query.shape[1] + 1)
    counts = np.zeros((len(query), bins), np.int64)
    columns = max(1, min(len(retrieval), BLOCK))
    for start in range(0, len(retrieval), columns):
        part = slice(start, start + columns)
        for rows in _row_blocks(len(query), columns):
            cell = hamming(query[rows], retrieval[part]).astype(np.int64)
            cell += cell + shares_label(query_labels[rows], retrieval_labels[part])
            cell += (np.arange(len(cell)) * bins)[:, None]
            counts[rows] += np.bincount(cell.ravel(), minlength=len(cell) * bins).reshape(-1, bins)
    return DistanceCounts(counts[:, ::2] + counts[:, 1::2], counts[:, 1::2])


def average_precision(counts: DistanceCounts, *, k: int | None = None) -> AveragePrecision:
    """Return each query's average precision at k as expectation, minimum and maximum over tie orders.

    Every order of the rows at one distance is equally likely. Where the cut at k falls inside such a group,
    the number of relevant rows before the cut is itself random (hypergeometric), and with it the divisor;
    the expectation is that of the whole quotient, summed exactly over that number.

    Args:
        counts: of every query, over the same retrieval set.
        k: cut-off in ranks; None ranks all.
    Raises:
        ValueError: k is not within 1 and the size of the retrieval set.
    Source: the closed form within a group is McSherry and Najork, ECIR 2008; the cut is ours.
    """
    k = _check_cut(k, counts)
    total, relevant = counts.total, counts.relevant
    before, found = np.cumsum(total, axis=1) - total, np.cumsum(relevant, axis=1) - relevant
    cut = np.argmax(before + total >= k, axis=1)[:, None]
    whole = np.arange(total.shape[1]) < cut
    sums = [(group * whole).sum(axis=1) for group in _group_sums(total, relevant, before, found)]
    at_cut = [np.take_along_axis(array, cut, axis=1)[:, 0] for array in (total, relevant, before, found)]
    return _finish_at_cut(sums, at_cut, k)


def stable_average_precision(
    query: np.ndarray,
    retrieval: np.ndarray,
    *,
    query_labels: np.ndarray,
    retrieval_labels: np.ndarray,
    k: int | None = None,
) -> np.ndarray:
    """Return each query's average precision at k with ties in the order of the retrieval rows.

    This one sorts: N log N per query. Give the rows in (id, key) order to get the order of search answers.

    Returns:
        (Q,) float64.
    """
    check_sets(query, retrieval, query_labels, retrieval_labels)
    k = check_cut(k, len(retrieval))
    values = np.zeros(len(query))
    for rows in _row_blocks(len(query), len(retrieval)):
        order = np.argsort(hamming(query[rows], retrieval), axis=1, kind="stable")[:, :k]
        hits = np.take_along_axis(shares_label(query_labels[rows], retrieval_labels), order, axis=1)
        precision = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
        values[rows] = (precision * hits).sum(axis=1) / np.maximum(hits.sum(axis=1), 1)
    return values


def precision_at(counts: DistanceCounts, ranks: Sequence[int]) -> np.ndarray:
    """Return the mean precision among the first n rows, expected over tie orders, for each n of `ranks`."""
    before = np.cumsum(counts.total, axis=1) - counts.total
    share = counts.relevant / np.maximum(counts.total, 1)
    means = []
    for rank in ranks:
        n = _check_cut(rank, counts)
        taken = np.clip(n - before, 0, counts.total)
        means.append(float((taken * share).sum(axis=1).mean() / n))
    return np.array(means)


def precision_recall_by_radius(counts: DistanceCounts) -> tuple[np.ndarray, np.ndarray]:
    """Return mean precision and mean recall inside each Hamming radius 0..L, its end included.

    A query with no row inside the radius counts as precision 0, one without relevant rows as recall 0.

    Returns:
        two (L + 1,) float64.
    """
    inside, hits = np.cumsum(counts.total, axis=1), np.cumsum(counts.relevant, axis=1)
    precision = hits / np.maximum(inside, 1)
    recall = hits / np.maximum(hits[:, -1:], 1)
    return precision.mean(axis=0), recall.mean(axis=0)


def ann_recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the share of the k nearest rows that an approximate search found; ties with the last count.

    Args:
        found: (Q, k) distances of the rows found, of rows that differ; negative or above L where none was.
        exact: (Q, k) distances of the k nearest rows.
    Raises:
        ValueError: the shapes differ, or a row found is nearer than the nearest can be.
    """
    if found.shape != exact.shape or found.ndim != 2 or not found.size:
        raise ValueError(f"distances found and exact must be (Q, k) alike, got {found.shape}, {exact.shape}")
    last = exact.max(axis=1, keepdims=True)
    hits = (found >= 0) & (found <= last)
    nearest = np.sort(np.where(hits, found.astype(np.int64), np.iinfo(np.int64).max), axis=1)
    if (nearest < np.sort(exact, axis=1)).any():
        raise ValueError(
            "rows were found that are nearer than the exact answer: the two are of different data"
        )
    return float(hits.mean())


def bit_health(packed: np.ndarray) -> dict[str, float]:
    """Describe how well a set of codes uses its bits.

    Args:
        packed: (N, S) packed codes, N at least 1.
    Returns:
        balance: mean over bits of |mean of the bit in {-1, +1}|, 0 at best; worst_balance: the largest of
        them; entropy: mean over bits, 1 at best; dead_bits: bits that are equal in all rows;
        distinct_codes; collisions: share of rows whose code an earlier row has.
    """
    if len(packed) == 0:
        raise ValueError("bit health needs at least one code, got none")
    means = sum(
        (unpack(packed[rows]).sum(axis=0, dtype=np.int64) for rows in _row_blocks(len(packed), 64)),
        start=np.zeros(8 * packed.shape[1], np.int64),
    ) / len(packed)
    ones = np.clip((means + 1) / 2, 1e-300, 1 - 1e-16)
    entropy = -(ones * np.log2(ones) + (1 - ones) * np.log2(1 - ones))
    distinct = len(np.unique(np.ascontiguousarray(packed).view(f"V{packed.shape[1]}")))
    return {
        "balance": float(np.abs(means).mean()),
        "worst_balance": float(np.abs(means).max()),
        "entropy": float(np.clip(entropy, 0, 1).mean()),
        "dead_bits": int((np.abs(means) == 1).sum()),
        "distinct_codes": distinct,
        "collisions": 1 - distinct / len(packed),
    }


def _finish_at_cut(sums: list[np.ndarray], at_cut: list[np.ndarray], k: int) -> AveragePrecision:
    """Average over the number of relevant rows that the cut takes from its tied group.

    Args:
        sums: lowest, expected and highest sum of precisions over the groups before the cut.
        at_cut: of the group at the cut: its rows, its relevant rows, and both counts before it.
    """
    total, relevant, before, found = at_cut
    taken = k - before
    least, most = np.maximum(0, taken - (total - relevant)), np.minimum(taken, relevant)
    lowest, highest = np.full(len(total), np.inf), np.zeros(len(total))
    mean, norm, weight = np.zeros(len(total)), np.zeros(len(total)), np.ones(len(total))
    for step in range(int((most - least).max(initial=0)) + 1):
        hits = least + step
        possible = hits <= most
        hits = np.minimum(hits, most)
        divisor = np.maximum(found + hits, 1)
        low, expected, high = (
            (above + group) / divisor
            for above, group in zip(sums, _group_sums(taken, hits, before, found), strict=True)
        )
        lowest = np.where(possible, np.minimum(lowest, low), lowest)
        highest = np.where(possible, np.maximum(highest, high), highest)
        weight = weight * possible
        mean, norm = mean + weight * expected, norm + weight
        # Ratio of neighbouring hypergeometric probabilities; rescaled, as the first may be 1e-300 of others.
        ways = (relevant - hits) * (taken - hits) / ((hits + 1) * (total - relevant - taken + hits + 1.0))
        weight = weight * np.where(possible, ways, 0)
        scale = np.maximum(weight, 1)
        weight, mean, norm = weight / scale, mean / scale, norm / scale
    return AveragePrecision(mean / norm, lowest, highest)


def _group_sums(
    total: np.ndarray, relevant: np.ndarray, before: np.ndarray, found: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lowest, expected and highest sum of the precisions at the relevant rows of a tied group.

    Args:
        total, relevant: rows and relevant rows of the group.
        before, found: rows and relevant rows ranked above it.
    """
    last = before + total - relevant
    lowest = relevant + (found - last) * _harmonic(last, relevant)
    highest = relevant + (found - before) * _harmonic(before, relevant)
    ranks = _harmonic(before, total)
    others = (relevant - 1) / np.maximum(total - 1, 1) * (total - (before + 1) * ranks)
    expected = relevant / np.maximum(total, 1) * ((found + 1) * ranks + others)
    return lowest, expected, highest


def _harmonic(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the sum of 1 / (start + j) for j = 1..count, to a few units in the last place.

    A table of harmonic numbers would lose the digits that cancel between two large ones.
    """
    end = start + count
    direct = _HARMONIC[np.minimum(end, _DIRECT)] - _HARMONIC[np.minimum(start, _DIRECT)]
    low, high = np.maximum(start, _DIRECT).astype(float), np.maximum(end, _DIRECT).astype(float)
    return direct + np.log1p((high - low) / low) + _series(high) - _series(low)


def _series(m: np.ndarray) -> np.ndarray:
    """Return the asymptotic series of H(m) - ln(m) - gamma; exact to 1e-17 from m = 64 on."""
    square = 1 / (m * m)
    return 0.5 / m - square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))


def _row_blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(columns, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _check_cut(k: int | None, counts: DistanceCounts) -> int:
    sizes = counts.total.sum(axis=1)
    size = int(sizes.min(initial=0)) if len(sizes) == 0 else int(sizes[0])
    if (sizes != size).any():
        raise ValueError("the counts must be over one retrieval set, but its size differs between queries")
    return check_cut(k, size)


def check_cut(k: int | None, size: int) -> int:
    """Return a cut-off in ranks, all rows for None.

    Raises:
        ValueError: k is not within 1 and the number of retrieval rows.
    """
    k = size if k is None else k
    if not 1 <= k <= size:
        raise ValueError(f"k must be within 1 and the {size} retrieval rows, got {k}")
    return k


def check_sets(
    query: np.ndarray, retrieval: np.ndarray, query_labels: np.ndarray, retrieval_labels: np.ndarray
) -> None:
    """Refuse sets that cannot be judged.

    Raises:
        ValueError: a set is empty, or codes and labels do not belong together.
    """
    if len(query) == 0 or len(retrieval) == 0:
        raise ValueError(f"both sets need rows, got {len(query)} queries and {len(retrieval)} retrieval rows")
    for codes, labels, name in ((query, query_labels, "query"), (retrieval, retrieval_labels, "retrieval")):
        if len(codes) != len(labels):
            raise ValueError(f"{name} set: {len(codes)} codes but {len(labels)} label sets")
    if query_labels.shape[1] != retrieval_labels.shape[1]:
        raise ValueError("query and retrieval labels must be packed with the same classes")
