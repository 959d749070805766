"""How fast are codes judged, beside what published evaluation code does?

    python benchmarks/evaluation.py [--rows 186577] [--queries 2000] [--slow-queries 16] [--large]

Random codes and label sets of 21 classes. The recipe is that of the published repositories: a float32 product
for the distances, numpy's argsort, and a gather, per query. It is timed on a few queries, our side on all of
them, both on one thread and per query, in turns and in CPU seconds (two threads beside one in wall time); a
ratio is the median over the rounds of those of a round. Set OMP_NUM_THREADS=1: the recipe is one thread too.
Values are compared within a definition: with the recipe's numbers where ties are ordered as it orders them
(stable), with numpy's closed form for the expectation. Compiling comes before the first round and is in no
figure. Prints a table to stderr and one JSON line.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.codes import pack, unpack
from pipeline.quality import metrics
from pipeline.quality.counting import Direction, Labels, count, rank, rank_nearest
from pipeline.quality.metrics import average_precision

CLASSES = 21
CUT = 50
PACKED = (1_000_000, 64)
WALL = ("one thread", "two threads")  # timed by the clock on the wall, all else in CPU seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=186_577, help="retrieval rows")
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--slow-queries", type=int, default=16, help="queries that the recipe is timed on")
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="also 5,000 queries x 1,000,000 rows, both ways")
    asked = parser.parse_args()
    direction, labels = draw(asked.queries, asked.rows, asked.bits)
    few = direction[0][: asked.slow_queries], direction[1]
    few_labels = {**labels, "query_labels": labels["query_labels"][: asked.slow_queries]}
    warm_up(asked.bits)
    seconds = time_in_turns(sides(direction, labels, few=few, few_labels=few_labels), asked.rounds)
    ratios = {
        f"{name}_vs_argsort": ratio(seconds["argsort"], seconds[name])
        for name in ("map_all_expected", "map_all_stable", "map_50")
    }
    ratios["two_threads_vs_one"] = ratio(seconds["one thread"], seconds["two threads"])
    ratios["pack_vs_recipe"] = packing(asked.rounds)
    result: dict[str, Any] = {
        "machine": {"threads": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)},
        "sizes": vars(asked),
        "microseconds_per_query": {
            name: round(1e6 * statistics.median(values), 1) for name, values in seconds.items()
        },
        "max_difference": largest_difference(few, few_labels),
    }
    if asked.large:
        result["large"] = large(asked.bits)
    report(result, ratios)


def draw(queries: int, rows: int, bits: int) -> tuple[Direction, dict[str, np.ndarray]]:
    """Return random codes, and label sets of one to a few of 21 classes."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (queries + rows, bits // 8), np.uint8)
    members = rng.random((queries + rows, CLASSES)) < 0.08
    members[np.arange(len(members)), rng.integers(0, CLASSES, len(members))] = True
    words = (members @ (1 << np.arange(CLASSES))).astype(np.uint64)[:, None]
    return (codes[:queries], codes[queries:]), {
        "query_labels": words[:queries],
        "retrieval_labels": words[queries:],
    }


def sides(
    direction: Direction, labels: Labels, *, few: Direction, few_labels: Labels
) -> dict[str, tuple[Callable[[], Any], int]]:
    """Return what is timed, and the number of queries in each."""
    queries, rows = len(direction[0]), len(direction[1])
    hashes = [unpack(codes).astype(np.float32) for codes in few]
    bits = 8 * direction[0].shape[1]

    def expected(threads: int) -> Any:
        return average_precision(count([direction], labels, threads=threads)[0]).expected.mean()

    def nearest() -> Any:
        counts = rank_nearest([direction], labels, k=CUT, threads=1)[0].counts
        return average_precision(counts, k=CUT).expected.mean()

    return {
        "argsort": (lambda: published(hashes[0], hashes[1], few_labels, bits), len(few[0])),
        "map_all_expected": (partial(expected, 1), queries),
        "map_all_stable": (lambda: rank([direction], labels, cuts=[rows], threads=1), queries),
        "map_50": (nearest, queries),
        "one thread": (partial(expected, 1), queries),
        "two threads": (partial(expected, 2), queries),
    }


def published(query: np.ndarray, retrieval: np.ndarray, labels: Labels, bits: int) -> list[float]:
    """Return each query's average precision as published code computes it; ties fall as argsort lets them."""
    values = []
    for row, code in enumerate(query):
        distances = 0.5 * (bits - code @ retrieval.T)
        order = np.argsort(distances)
        relevant = (labels["retrieval_labels"] & labels["query_labels"][row]).any(axis=1).astype(np.float32)
        ranks = np.flatnonzero(relevant[order] == 1) + 1.0
        values.append(float(np.mean(np.linspace(1, len(ranks), len(ranks)) / ranks)))
    return values


def time_in_turns(timed: dict[str, tuple[Callable[[], Any], int]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds per query of each side in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, (side, queries) in timed.items():
            clock = time.perf_counter if name in WALL else time.process_time
            started = clock()
            side()
            seconds[name].append((clock() - started) / queries)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 2)


def largest_difference(direction: Direction, labels: Labels) -> float:
    """Return the largest difference of an average precision from numpy's, within a definition."""
    rows = len(direction[1])
    exact = metrics.count_by_distance(*direction, **labels)
    ranked = rank([direction], labels, cuts=[CUT, rows])[0]
    nearest = rank_nearest([direction], labels, k=CUT)[0]
    differences = [
        average_precision(ranked.counts).expected - average_precision(exact).expected,
        average_precision(nearest.counts, k=CUT).expected - average_precision(exact, k=CUT).expected,
    ]
    for k, values in ((CUT, [ranked.stable[0], nearest.stable[0]]), (rows, [ranked.stable[1]])):
        stable = metrics.stable_average_precision(*direction, **labels, k=k)
        differences += [own - stable for own in values]
    return float(max(np.abs(difference).max() for difference in differences))


def packing(rounds: int) -> float:
    """Return how much faster relaxed codes are packed than by sign, compare and packbits row by row."""
    relaxed = np.random.default_rng(1).standard_normal(PACKED, np.float32)
    relaxed[relaxed == 0] = 1  # where the recipe's third symbol would be

    def recipe() -> np.ndarray:
        return np.packbits((np.sign(relaxed) > 0).astype(np.uint8), axis=1)

    if not np.array_equal(recipe(), pack(relaxed)):
        raise RuntimeError("the recipe packs other bits")
    seconds = time_in_turns({"recipe": (recipe, 1), "pack": (lambda: pack(relaxed), 1)}, rounds)
    return ratio(seconds["recipe"], seconds["pack"])


def large(bits: int) -> dict[str, float]:
    """Judge both directions of 5,000 queries x 1,000,000 rows on all cores; return seconds and memory."""
    (query, retrieval), labels = draw(5_000, 1_000_000, bits)
    directions = [(query, retrieval), (query[:, ::-1].copy(), retrieval[:, ::-1].copy())]
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak_memory()
    started = time.perf_counter()
    counts = count(directions, labels)
    found = [float(average_precision(each, k=k).expected.mean()) for each in counts for k in (None, CUT)]
    seconds = time.perf_counter() - started
    grown = (peak_memory() - before) / 1024
    return {"seconds": round(seconds, 1), "memory_mb": round(grown, 1), "map": round(found[0], 6)}


def peak_memory() -> int:
    """Return the largest resident memory since it was last forgotten, in KiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def warm_up(bits: int) -> None:
    """Compile what is not in the cache yet."""
    direction, labels = draw(3, 300, bits)
    count([direction], labels)
    rank([direction], labels, cuts=[300])
    rank_nearest([direction], labels, k=CUT)
    count([direction, direction], labels)


def report(result: dict[str, Any], ratios: dict[str, float]) -> None:
    for name, value in result["microseconds_per_query"].items():
        print(f"{name:<20} {value:>10.1f} microseconds a query", file=sys.stderr)
    for name, value in ratios.items():
        print(f"{name:<32} {value:>8.2f}", file=sys.stderr)
    print(json.dumps({**result, "ratios": ratios}))


if __name__ == "__main__":
    main()
