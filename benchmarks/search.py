"""How fast is the search, beside FAISS and beside the machine's limits?

    python benchmarks/search.py [--rows 1000000] [--single-rows 10000000] [--rounds 7] [--only flat,ivf]
    python benchmarks/search.py --table 10000000 [--recipes BFlat,BIVF4096]

The second form measures the trade-off table of docs/search.md instead. Exact search: random codes, 128
queries, the same FAISS index for both sides. Inverted lists: codes around 4,096 random centres, one bit in
eight flipped, 1,000 queries drawn likewise, the same mapped FAISS file and as many lists visited for both
sides, as many as recall 0.99 takes; our time includes finding the lists. Batches run on one thread and are
timed in CPU seconds of that thread; sides take turns, and a ratio is the median over the rounds of its
per-round ratio. The single query runs on every core over a mapped part file, in wall time, beside a plain sum
of the same bytes on as many threads. Compiling comes before the first round and is in no figure but its own.
Prints a table to stderr and one JSON line.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import llvmlite.binding
import numba
import numpy as np
import pyarrow as pa

from pipeline.search import compiled
from pipeline.search.approximate import search
from pipeline.search.families import Effort, parse_recipe
from pipeline.search.partfiles import PartRecipe, write_codes
from pipeline.search.parts import Part, read_index
from pipeline.search.quantisers import Quantiser, load_quantiser, train_quantiser
from pipeline.search.ranking import PART, Ranking
from pipeline.search.scan import nearest
from pipeline.search.tuning import Sample, candidates, measure, table_lines

QUERIES = 128
FLAT = ((64, 10), (64, 100), (64, 1000), (128, 10), (128, 100), (128, 1000))
PARTS = 16

Clock = Callable[[], float]
Side = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="codes of the batch searches")
    parser.add_argument("--single-rows", type=int, default=10_000_000, help="codes of the single query")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="some of " + ",".join(MEASURED))
    parser.add_argument(
        "--table", type=int, metavar="ROWS", help="measure the trade-off table over so many codes"
    )
    parser.add_argument("--recipes", help="of the table; by default those that index.recipe auto measures")
    sizes = parser.parse_args()
    if sizes.table:
        recipes = sizes.recipes.split(",") if sizes.recipes else candidates(sizes.table, sizes.table, 64)
        table(sizes.table, recipes)
        return
    faiss.omp_set_num_threads(1)
    results: dict[str, Any] = {"machine": machine(), "rows": sizes.rows, "compile_seconds": warm_up()}
    ratios: dict[str, Any] = {}
    for name in (sizes.only or ",".join(MEASURED)).split(","):
        measured = MEASURED[name](sizes)
        ratios |= measured.pop("ratios")
        results |= measured
    report(results, ratios)


def machine() -> dict[str, Any]:
    features = llvmlite.binding.get_host_cpu_features()
    return {
        "processor": llvmlite.binding.get_host_cpu_name(),
        "vector_popcount": bool(features.get("avx512vpopcntdq")),
        "threads": len(os.sched_getaffinity(0)),
        "faiss": f"{faiss.__version__} {faiss.get_compile_options().strip()}",
        "numba": numba.__version__,
        "load_at_start": round(os.getloadavg()[0], 1),
    }


def warm_up() -> float:
    """Compile what is not in the cache yet; return the seconds it took."""
    started = time.perf_counter()
    codes = np.random.default_rng(0).integers(0, 256, (1000, 8), dtype=np.uint8)
    nearest([make_part(codes[:500], range(500)), make_part(codes[500:], range(500))], codes[:3], 2, threads=1)
    compiled.merge([], [rank(0), rank(1)], k=1)
    _add(np.zeros(9, np.uint64))
    return round(time.perf_counter() - started, 2)


def make_part(codes: np.ndarray, ids: Any) -> Part:
    index = faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.add(np.ascontiguousarray(codes))
    return Part(index, pa.table({"id": pa.array(ids, pa.int64())}))


def take_turns(sides: Mapping[str, Side], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Time each side once a round; the first round is thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            started = clock()
            side()
            if number:
                seconds[name].append(clock() - started)
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def flat(sizes: argparse.Namespace) -> dict[str, Any]:
    """Exact batches on one thread: ours beside IndexBinaryFlat over the same codes."""
    rates, ratios, equal = {}, {}, True
    for bits in (64, 128):
        codes, queries = draw(sizes.rows, bits)
        part = make_part(codes, range(len(codes)))
        for k in (k for length, k in FLAT if length == bits):
            distances, rows = part.index.search(queries, k)
            found = nearest([part], queries, k, threads=1)
            equal &= np.array_equal(found.distances, distances) and np.array_equal(found.row, rows)
            sides: dict[str, Side] = {
                "faiss": partial(part.index.search, queries, k),
                "ours": partial(nearest, [part], queries, k, threads=1),
            }
            seconds = take_turns(sides, sizes.rounds, time.thread_time)
            for side, taken in seconds.items():
                work = sizes.rows * QUERIES / statistics.median(taken)
                rates[f"flat_{bits}_k{k}_{side}"] = round(work / 1e9, 2)
            ratios[f"flat_{bits}_k{k}_vs_faiss"] = ratio(seconds["faiss"], seconds["ours"])
    return {"giga_distances_per_s": rates, "ratios": {**ratios, "equal_to_faiss": bool(equal)}}


def parts(sizes: argparse.Namespace) -> dict[str, Any]:
    """Time of 16 parts over that of one with the same rows; their ids interleave."""
    codes, queries = draw(sizes.rows, 64)
    ids = np.arange(len(codes))
    one = [make_part(codes, ids)]
    many = [make_part(codes[number::PARTS], ids[number::PARTS]) for number in range(PARTS)]
    ratios: dict[str, Any] = {}
    equal = True
    for k in (10, 100):
        found = [nearest(layout, queries, k, threads=1) for layout in (one, many)]
        equal &= np.array_equal(found[0].ids, found[1].ids)
        sides: dict[str, Side] = {
            "one": partial(nearest, one, queries, k, threads=1),
            "many": partial(nearest, many, queries, k, threads=1),
        }
        seconds = take_turns(sides, 3 * sizes.rounds, time.thread_time)
        ratios[f"parts_{PARTS}_vs_1_k{k}"] = ratio(seconds["many"], seconds["one"])
    return {"ratios": {**ratios, f"parts_{PARTS}_equal_1": bool(equal)}}


def single_query(sizes: argparse.Namespace) -> dict[str, Any]:
    """One query over a mapped part on all cores, beside reading the same bytes."""
    codes, queries = draw(sizes.single_rows, 64)
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        part = mapped(make_part(codes, range(len(codes))), Path(folder))
        number = iter(range(10**9))
        sides: dict[str, Side] = {
            "read": partial(read, whole_words(part), threads),
            "ours": lambda: nearest([part], queries[[next(number) % QUERIES]], 10, threads=threads),
            "faiss": lambda: part.index.search(queries[[next(number) % QUERIES]], 10),
        }
        seconds = take_turns(sides, 3 * sizes.rounds, time.perf_counter)
    rates = {side: round(codes.size / statistics.median(taken) / 1e9, 1) for side, taken in seconds.items()}
    return {
        "single_query_gigabytes_per_s": rates,
        "ratios": {
            "single_query_10m_vs_read_bandwidth": ratio(seconds["read"], seconds["ours"]),
            "single_query_10m_best_vs_best_read": round(min(seconds["read"]) / min(seconds["ours"]), 3),
            "single_query_10m_vs_faiss": ratio(seconds["faiss"], seconds["ours"]),
        },
    }


def merge(sizes: argparse.Namespace) -> dict[str, Any]:
    """Rankings of 16 shards, 100 hits each, brought together on one thread."""
    rankings = [rank(part, queries=QUERIES, k=100) for part in range(PARTS)]
    sides = {"merge": lambda: compiled.merge([], rankings, k=100)}
    seconds = take_turns(sides, 20 * sizes.rounds, time.thread_time)
    return {"ratios": {"merge_16x100_queries_per_s": round(QUERIES / statistics.median(seconds["merge"]))}}


def ivf(sizes: argparse.Namespace) -> dict[str, Any]:
    """Inverted lists on one thread: ours beside IndexBinaryIVF over the same mapped file."""
    rng = np.random.default_rng(3)
    centres = rng.integers(0, 256, (4096, 8), dtype=np.uint8)
    codes, queries = around(centres, sizes.rows, rng), around(centres, 1000, rng)
    recipe = f"BIVF{1 << round(np.log2(sizes.rows) / 2)}"
    with tempfile.TemporaryDirectory() as folder:
        part, quantiser = listed(codes, recipe, Path(folder))
        size = (Path(folder) / "part.faiss").stat().st_size / len(codes)
        nearest_ = nearest([make_part(codes, range(len(codes)))], queries, 10, threads=1).distances[:, -1:]
        nprobe, recall = 1, 0.0
        while recall < 0.99:
            nprobe *= 2
            effort = Effort(nprobe=nprobe)
            ours = partial(search, [part], queries, 10, effort=effort, quantiser=quantiser, threads=1)
            found = ours()
            recall = float((found.distances <= nearest_).mean())
        part.index.nprobe = nprobe
        equal = np.array_equal(found.distances, part.index.search(queries, 10)[0])
        sides: dict[str, Side] = {"faiss": partial(part.index.search, queries, 10), "ours": ours}
        seconds = take_turns(sides, sizes.rounds, time.thread_time)
    rates = {side: round(len(queries) / statistics.median(taken)) for side, taken in seconds.items()}
    return {
        "ivf": {"recipe": recipe, "nprobe": nprobe, "recall": round(recall, 4), "queries_per_s": rates},
        "ratios": {
            "ivf_recall99_vs_faiss": ratio(seconds["faiss"], seconds["ours"]),
            "ivf_distances_equal_to_faiss": bool(equal),
            "ivf_bytes_over_code": round(size - codes.shape[1], 3),
        },
    }


def listed(codes: np.ndarray, recipe: str, folder: Path) -> tuple[Part, Quantiser]:
    """Write a BIVF part and open it as a search does."""
    family = parse_recipe(recipe)
    sample = codes[
        np.random.default_rng(0).choice(len(codes), min(len(codes), 64 * family.lists), replace=False)
    ]
    quantiser = load_quantiser(train_quantiser(sample, family, seed=0))
    index, _ = write_codes(codes, PartRecipe(family, codes.shape[1], quantiser), folder)
    return Part(read_index(index, recipe), pa.table({"id": np.arange(len(codes))})), quantiser


def table(rows: int, recipes: list[str]) -> None:
    """Measure the trade-off table: what `index.recipe: auto` measures, over this many codes."""
    rng = np.random.default_rng(3)
    centres = rng.integers(0, 256, (rows // 256, 8), dtype=np.uint8)
    sample = Sample(around(centres, rows, rng), around(centres, 256, rng), rows, "drawn likewise")
    warm_up()
    trials = measure(sample, recipes, seed=0)
    for line in table_lines(trials):
        print(line, file=sys.stderr)
    print(json.dumps({"machine": machine(), "rows": rows, "trials": [asdict(trial) for trial in trials]}))


def around(centres: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Draw codes around random centres: one bit in eight is another."""
    blocks = []
    for start in range(0, rows, 1 << 18):
        count = min(1 << 18, rows - start)
        shape = (count, centres.shape[1])
        flips = np.bitwise_and.reduce([rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(3)])
        blocks.append(centres[rng.integers(0, len(centres), count)] ^ flips)
    return np.concatenate(blocks)


def draw(rows: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(bits)
    return (
        rng.integers(0, 256, (rows, bits // 8), dtype=np.uint8),
        rng.integers(0, 256, (QUERIES, bits // 8), dtype=np.uint8),
    )


def mapped(part: Part, folder: Path) -> Part:
    """Return the part as a search opens it: its file mapped."""
    faiss.write_index_binary(part.index, str(folder / "part.faiss"))
    return Part(faiss.read_index_binary(str(folder / "part.faiss"), faiss.IO_FLAG_MMAP_IFC), part.keys)


def rank(part: int, *, queries: int = 1, k: int = 1) -> Ranking:
    """Draw a ranking as a shard of many would give it: near distances, spread ids."""
    rng = np.random.default_rng(part)
    ranking = compiled.new_ranking(queries, k)
    distances, ids = rng.integers(8, 16, (queries, k)), rng.integers(0, 2**62, (queries, k))
    order = np.lexsort((ids, distances), axis=1)
    ranking.filled[:], ranking.places[:] = k, part << PART
    ranking.distances[:] = np.take_along_axis(distances, order, axis=1)
    ranking.ids[:] = np.take_along_axis(ids, order, axis=1)
    return ranking


def whole_words(part: Part) -> np.ndarray:
    """Return the part's own bytes as aligned words, but for a few at its ends."""
    values = part.codes.reshape(-1)
    values = values[-values.ctypes.data % 8 :]
    return values[: len(values) // 8 * 8].view(np.uint64)


def read(words: np.ndarray, threads: int) -> None:
    """Read all words once, an equal share in each thread, the first in this one."""
    first, *others = np.array_split(words, threads)
    with ThreadPoolExecutor(max(1, len(others))) as pool:
        shares = [pool.submit(_add, share) for share in others]
        _add(first)
        for share in shares:
            share.result()


@numba.njit(nogil=True, cache=True)
def _add(words: Any) -> Any:
    total = np.uint64(0)
    for word in words:
        total += word
    return total


def report(results: dict[str, Any], ratios: dict[str, Any]) -> None:
    goals = {
        "flat_64_k10_vs_faiss": 6,
        "flat_128_k10_vs_faiss": 4,
        "flat_64_k1000_vs_faiss": 4,
        "single_query_10m_vs_read_bandwidth": 0.7,
        "parts_16_vs_1_k10": 1.15,
        "parts_16_vs_1_k100": 1.3,
        "merge_16x100_queries_per_s": 150_000,
        "flat_128_k1000_vs_faiss": "",
        "ivf_recall99_vs_faiss": 2,
        "ivf_bytes_over_code": 8,
    }
    for name, value in ratios.items():
        print(f"{name:<40} {value!s:>10}   {goals.get(name, '')}", file=sys.stderr)
    print(json.dumps({**results, "ratios": ratios}))


MEASURED: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "flat": flat,
    "parts": parts,
    "single": single_query,
    "merge": merge,
    "ivf": ivf,
}


if __name__ == "__main__":
    main()
