"""Which index for this corpus? Measured on its own codes with queries that are not among them.

Queries of one side are codes of the other: that is who asks. Recall counts every row at the distance of the
k-th as a hit, and time is that of one thread that answers queries in batches. What is measured depends on the
machine; what is chosen is written into the release and kept.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.search import approximate, scan
from pipeline.search.families import Effort, parse_recipe
from pipeline.search.indexing import SETTINGS
from pipeline.search.order import NO_DISTANCE
from pipeline.search.partfiles import PartRecipe, write_codes
from pipeline.search.parts import Part, read_index, read_keys
from pipeline.search.quantisers import (
    MOST_TRAINING_CODES,
    Quantiser,
    load_quantiser,
    one_thread,
    train_quantiser,
)

K = 10
QUERIES = 256
_ROUNDS = 3
_ENOUGH = 0.9995  # recall beyond which more effort is not measured
_CODES_PER_LIST = 39  # fewer, and FAISS warns that centroids follow noise


@dataclass(frozen=True)
class Trial:
    """One line of the trade-off table."""

    recipe: str
    setting: str  # "nprobe=8", "" where there is none
    recall: float  # of the 10 nearest, ties counted as hits; mean over the queries
    ms: float  # a query over the codes that were measured, one thread, in batches
    bytes_per_code: float  # of the FAISS file
    build_seconds: float  # of the codes that were measured, training included


@dataclass(frozen=True)
class Sample:
    """What recipes are measured with."""

    codes: np.ndarray  # (N, S)
    queries: np.ndarray  # (Q, S), none of them from `codes`
    rows: int  # of the whole side
    held_out: str  # where the queries come from


@dataclass(frozen=True)
class Targets:
    """What is asked of a recipe."""

    recall: float
    ms: float | None = None
    bytes: int | None = None  # of the index of the whole side


def draw_sample(codes: np.ndarray, others: np.ndarray, *, rows: int, seed: int) -> Sample:
    """Take queries from the other side's codes, where there are none out of the codes themselves."""
    rng = np.random.default_rng(seed)
    if len(others):
        chosen = rng.choice(len(others), min(QUERIES, len(others)), replace=False)
        return Sample(codes, others[np.sort(chosen)], rows, "codes of the other side")
    asked = rng.permutation(len(codes)) < min(QUERIES, len(codes) // 2)
    return Sample(codes[~asked], codes[asked], rows, "codes of the same side, not indexed")


def candidates(rows: int, measured: int, code_length: int) -> list[str]:
    """Return the recipes that are worth measuring for a corpus.

    Lists about as many as the root of the rows, and four times that, as far as the codes at hand can train
    them; multi-index hashing with pieces of about as many bits as number the rows. Graphs and single hashes
    are not among them: both were slower at equal recall and larger wherever they were measured.
    """
    found = ["BFlat"]
    root = 1 << max(4, round(np.log2(max(rows, 1)) / 2))
    found += [f"BIVF{n}" for n in (root, 4 * root) if n * _CODES_PER_LIST <= measured]
    bits = min(24, max(8, round(np.log2(max(rows, 2)))))
    if code_length // bits >= 2:
        found.append(f"BHash{code_length // bits}x{bits}")
    return found


def measure(sample: Sample, recipes: Sequence[str], *, seed: int) -> list[Trial]:
    """Build every recipe over the sample and search it with more and more effort.

    Args:
        recipes: BFlat first: it says which rows are the nearest.
    """
    k = min(K, len(sample.codes))
    truth: np.ndarray | None = None
    trials: list[Trial] = []
    for recipe in recipes:
        started = time.perf_counter()
        part, quantiser, size = _build(sample.codes, recipe, seed=seed)
        seconds = time.perf_counter() - started
        if truth is None:
            truth = scan.nearest([part], sample.queries, k).distances[:, -1]
        slowest = max((trial.ms for trial in trials), default=np.inf)
        for effort, setting in _efforts(recipe):
            recall, ms = _search(part, sample.queries, truth, (k, effort, quantiser))
            trials.append(
                Trial(
                    recipe,
                    setting,
                    round(recall, 4),
                    round(ms, 5),
                    round(size / len(sample.codes), 2),
                    round(seconds, 1),
                )
            )
            if recall >= _ENOUGH or ms > 4 * slowest:
                break
    return trials


def _build(codes: np.ndarray, recipe: str, *, seed: int) -> tuple[Part, Quantiser | None, int]:
    """Return the open part, its quantiser, and the bytes of its FAISS file."""
    family = parse_recipe(recipe)
    quantiser = None
    if family.has_quantiser:
        rng = np.random.default_rng(seed)
        count = min(len(codes), MOST_TRAINING_CODES * family.lists)
        drawn = codes[rng.choice(len(codes), count, replace=False)]
        quantiser = load_quantiser(train_quantiser(drawn, family, seed=seed))
    with tempfile.TemporaryDirectory() as name:
        index, keys = write_codes(codes, PartRecipe(family, codes.shape[1], quantiser), Path(name))
        size = index.stat().st_size
        return Part(read_index(index, recipe), read_keys(keys, recipe)), quantiser, size


def _efforts(recipe: str) -> Iterator[tuple[Effort, str]]:
    """Yield how much is looked at, ever more, and what to call it."""
    family = parse_recipe(recipe)
    name = SETTINGS.get(family.kind)
    if name is None:
        yield Effort(), ""
        return
    most = {"nprobe": max(1, family.lists // 4), "nflip": 2, "ef_search": 1024}[name]
    value = {"nprobe": 1, "nflip": 0, "ef_search": 16}[name]
    while value <= most:
        yield Effort(**{name: value}), f"{name}={value}"
        value = value + 1 if name == "nflip" else 2 * value


def _search(
    part: Part, queries: np.ndarray, truth: np.ndarray, asked: tuple[int, Effort, Quantiser | None]
) -> tuple[float, float]:
    """Return recall and milliseconds a query."""
    k, effort, quantiser = asked
    seconds = []
    for _ in range(_ROUNDS):
        with one_thread():
            started = time.thread_time()
            found = approximate.search([part], queries, k, effort=effort, quantiser=quantiser, threads=1)
            seconds.append(time.thread_time() - started)
        if seconds[0] > 2:
            break
    hit = (found.distances <= truth[:, None]) & (found.distances < NO_DISTANCE)
    return float(hit.mean()), 1000 * min(seconds) / len(queries)


def choose(trials: Sequence[Trial], targets: Targets, *, rows: int, measured: int | None = None) -> Trial:
    """Return the fastest that reaches the recall; where a time is asked for, the best recall within it.

    Args:
        rows: of the whole side; bytes and times are taken to grow in proportion to them.
        measured: codes that the trials were measured over, by default all.

    Raises:
        ValueError: nothing that was measured is small or fast enough.
    """
    small = [
        trial for trial in trials if targets.bytes is None or trial.bytes_per_code * rows <= targets.bytes
    ]
    if not small:
        least = min(trial.bytes_per_code for trial in trials) * rows
        raise ValueError(
            f"index.target_bytes is {targets.bytes}, the smallest index of {rows} codes takes {least:.0f}"
        )
    if targets.ms is not None:
        scale = max(1.0, rows / (measured or rows))
        fast = [trial for trial in small if scale * trial.ms <= targets.ms]
        if not fast:
            least = scale * min(trial.ms for trial in small)
            raise ValueError(f"index.target_ms is {targets.ms}, the fastest search takes {least:.4g} ms")
        return max(fast, key=lambda trial: (trial.recall, -trial.ms))
    good = [trial for trial in small if trial.recall >= targets.recall]
    return min(good, key=lambda trial: trial.ms) if good else max(small, key=lambda trial: trial.recall)


def table_lines(trials: Sequence[Trial], chosen: Trial | None = None) -> list[str]:
    """Return the table as text, the chosen line marked."""
    head = (
        f"{'recipe':<16} {'setting':<12} {'recall@10':>9} {'ms/query':>9} {'bytes/code':>10} {'build s':>8}"
    )
    lines = [
        f"{t.recipe:<16} {t.setting:<12} {t.recall:>9.4f} {t.ms:>9.4f} {t.bytes_per_code:>10.1f} "
        f"{t.build_seconds:>8.1f}{'  <- chosen' if t == chosen else ''}"
        for t in trials
    ]
    return [head, *lines]
