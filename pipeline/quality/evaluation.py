"""How well the codes of one side find those of the other, in both directions, with the protocol beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.codes import pack
from pipeline.quality.counting import rank
from pipeline.quality.metrics import AveragePrecision, average_precision, pack_labels
from pipeline.quality.protocol import JOINT, OWN, Coding, Protocol
from pipeline.releases.addresses import digest_json

CUT = 50
DIRECTIONS: dict[str, tuple[str, str]] = {"i2t": ("image", "text"), "t2i": ("text", "image")}
"""Name of a direction -> side of the query, side of the retrieval set."""

DEFINITIONS = {
    "relevant": "a retrieval row is relevant to a query when the two share at least one label",
    "map": "mAP@all: all retrieval rows ranked by Hamming distance; a query's average precision is the mean "
    "precision at the ranks of its relevant rows, 0 where it has none; the mean over all queries",
    f"map{CUT}": f"mAP@{CUT}: the same over the first {CUT} ranks; the divisor is the number of relevant "
    "rows among them, and a query with none counts as 0",
    "ties": "the expectation over all orders of rows at equal distance; 'stable' orders them by (id, key), "
    "'lowest' and 'highest' are the worst and the best order",
}


@dataclass(frozen=True)
class CodedPairs:
    """Pairs with the packed codes of both sides, and the labels to judge them by."""

    keys: Sequence[str]
    ids: np.ndarray  # (N,) int64
    labels: Sequence[Sequence[int] | np.ndarray]
    codes: Mapping[str, np.ndarray]  # side -> (N, S) uint8 packed codes, or (N, L) relaxed ones


@dataclass(frozen=True)
class Evaluation:
    """Metrics by name, how far ties could move each of them, and what was measured on what."""

    metrics: dict[str, float]
    ties: dict[str, dict[str, float]]
    protocol: Protocol

    def with_protocol(self, **known: Any) -> "Evaluation":
        """Return it with what only the caller knows of its protocol."""
        return replace(self, protocol=replace(self.protocol, **known))


def evaluate_codes(
    query: CodedPairs, retrieval: CodedPairs, *, allow_overlap: bool = False, coding: Coding = OWN
) -> Evaluation:
    """Return mAP@all and mAP@50 of both directions.

    Args:
        query: pairs to ask with.
        retrieval: pairs to find, in any order.
        allow_overlap: let a query stand in its own retrieval set, where it finds itself.
        coding: how the codes came about; goes into the protocol.
    Raises:
        ValueError: a set is empty, no query has a label, a query is in the retrieval set, or the code
            lengths differ.
    """
    if len(query.keys) == 0 or len(retrieval.keys) == 0:
        raise ValueError(
            f"both sets need rows, got {len(query.keys)} queries and {len(retrieval.keys)} retrieval rows"
        )
    if not any(len(row) for row in query.labels):
        raise ValueError(f"none of {len(query.keys)} queries has a label: nothing can be relevant to them")
    shared = set(query.keys) & set(retrieval.keys)
    if shared and not allow_overlap:
        raise ValueError(
            f"{len(shared)} of {len(query.keys)} queries are in the retrieval set, {min(shared)!r} first; "
            "give them another split, or set evaluate.allow_overlap=true"
        )
    retrieval = in_id_order(retrieval)
    labels = label_bits(query, retrieval)
    metrics: dict[str, float] = {}
    ties: dict[str, dict[str, float]] = {}
    cuts = {"map": len(retrieval.keys), f"map{CUT}": min(CUT, len(retrieval.keys))}
    pairs = [(query.codes[asked], retrieval.codes[found]) for asked, found in DIRECTIONS.values()]
    for direction, ranked in zip(DIRECTIONS, rank(pairs, labels, cuts=list(cuts.values())), strict=True):
        for (name, k), stable in zip(cuts.items(), ranked.stable, strict=True):
            over_ties = average_precision(ranked.counts, k=k)
            metrics[f"{name}_{direction}"] = float(over_ties.expected.mean())
            ties[f"{name}_{direction}"] = _tie_bounds(over_ties, stable)
    protocol = _protocol(query, retrieval, coding=coding, shared=len(shared))
    return Evaluation(dict(sorted(metrics.items())), ties, protocol)


def evaluate_relaxed_codes(
    query: CodedPairs, retrieval: CodedPairs, *, allow_overlap: bool = False
) -> dict[Coding, Evaluation]:
    """Judge relaxed codes under both codings of the retrieval set: by side, and one code for both sides.

    Args:
        query, retrieval: `codes` hold (N, L) relaxed codes.
    """
    asked = replace(query, codes={side: pack(values) for side, values in query.codes.items()})
    joint = pack(np.sum(list(retrieval.codes.values()), axis=0))
    codes: dict[Coding, dict[str, np.ndarray]] = {
        OWN: {side: pack(values) for side, values in retrieval.codes.items()},
        JOINT: dict.fromkeys(retrieval.codes, joint),
    }
    return {
        coding: evaluate_codes(
            asked, replace(retrieval, codes=found), allow_overlap=allow_overlap, coding=coding
        )
        for coding, found in codes.items()
    }


def label_bits(query: CodedPairs, retrieval: CodedPairs) -> dict[str, np.ndarray]:
    """Return the packed labels of both sets over their common classes, by argument name of `metrics`."""
    classes = np.unique(np.concatenate([np.ravel(row) for row in (*query.labels, *retrieval.labels)]))
    return {
        "query_labels": pack_labels(query.labels, classes=classes.astype(np.int64)),
        "retrieval_labels": pack_labels(retrieval.labels, classes=classes.astype(np.int64)),
    }


def in_id_order(pairs: CodedPairs) -> CodedPairs:
    """Return the pairs sorted by (id, key), the order in which search answers resolve ties."""
    order = sorted(range(len(pairs.keys)), key=lambda row: (int(pairs.ids[row]), pairs.keys[row]))
    return replace(
        pairs,
        keys=[pairs.keys[row] for row in order],
        ids=pairs.ids[order],
        labels=[pairs.labels[row] for row in order],
        codes={side: codes[order] for side, codes in pairs.codes.items()},
    )


def data_digest(pairs: CodedPairs) -> str:
    """Return a digest of a set's keys and labels, whatever their order."""
    rows = zip(pairs.keys, pairs.labels, strict=True)
    return digest_json(sorted([key, sorted(int(label) for label in labels)] for key, labels in rows))


def _tie_bounds(over_ties: AveragePrecision, stable: np.ndarray) -> dict[str, float]:
    return {
        "lowest": float(over_ties.lowest.mean()),
        "stable": float(stable.mean()),
        "highest": float(over_ties.highest.mean()),
    }


def _protocol(query: CodedPairs, retrieval: CodedPairs, *, coding: Coding, shared: int) -> Protocol:
    return Protocol(
        code_length=8 * next(iter(query.codes.values())).shape[1],
        queries=len(query.keys),
        retrieval_rows=len(retrieval.keys),
        query_digest=data_digest(query),
        retrieval_digest=data_digest(retrieval),
        cut_off=CUT,
        coding=coding,
        queries_in_retrieval_set=shared,
    )
