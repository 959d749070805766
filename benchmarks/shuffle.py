"""How well a window of chunks mixes the rows of a source, and what that is worth to a trained model.

    OMP_NUM_THREADS=1 python benchmarks/shuffle.py [--train 1 8 64] [--seeds 1 2 3]

The worst order there is: rows sorted by class, so that each chunk of 1,024 holds one class of 16. Beside a
shuffle of all rows, for windows of so many chunks: `same_chunk`, the share of pairs of a batch that stand in
one chunk; `class_error`, the mean distance (total variation) between the classes of a batch and those of the
corpus; `met_again`, the share of pairs of a batch that share a batch in the next epoch too.
`--train`: JDSH on drawn scenes sorted by their first label, in 64 chunks of 125 rows, trained with windows of
so many chunks; mAP@all on rows kept out, mean over the seeds. Table to stderr, one JSON line to stdout.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmh_models.method import HashMethod
from jobs.config import load_config
from jobs.training.plan import TrainingRun, plan_run
from jobs.training.validation import validator
from pipeline.corpus.dataset import Feed, FeedConfig, PieceReader
from pipeline.corpus.plan import EpochPlan
from pipeline.corpus.scenes import write_corpus
from pipeline.learning.engine import make_engine
from pipeline.learning.training import fit, validated

CHUNK, CLASSES, BATCH = 1024, 16, 256
SORTED_ROWS, SORTED_CHUNK = 8000, 125


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, nargs="+", default=[64, 1024], help="of the corpora on paper")
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--train", type=int, nargs="+", default=[], help="windows on sorted scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    asked = parser.parse_args()
    figures: dict[str, Any] = {"plans": []}
    for chunks in asked.chunks:
        for window in [*asked.windows, chunks]:
            found = {"chunks": chunks, "window": window, **look([CHUNK] * chunks, window)}
            figures["plans"].append(found)
            say("  ".join(f"{name} {value:.4g}" for name, value in found.items()))
    if asked.train:
        figures["map"] = train_sorted(asked.train, asked.seeds)
    print(json.dumps(figures))


def look(counts: list[int], window: int) -> dict[str, float]:
    """Return how well one epoch is mixed, and how alike the next one is."""
    batches, following = (batches_of(counts, window, epoch) for epoch in (0, 1))
    chunk = batches // CHUNK
    kind = chunk % CLASSES
    shares = np.stack([(kind == number).mean(axis=1) for number in range(CLASSES)], axis=1)
    next_batch = np.full(sum(counts), -1)
    next_batch[following.ravel()] = np.arange(following.size) // BATCH
    return {
        "same_chunk": pairs_alike(chunk),
        "class_error": float(np.abs(shares - 1 / CLASSES).sum(axis=1).mean() / 2),
        "met_again": pairs_alike(next_batch[batches]),
    }


def batches_of(counts: list[int], window: int, epoch: int) -> np.ndarray:
    """Return (steps, BATCH) the rows of an epoch."""
    plan = EpochPlan(counts, seed=1, epoch=epoch, global_batch_size=BATCH, mix_chunks=window, mix_rows=0)
    return np.concatenate(list(plan.windows())).reshape(-1, BATCH)


def pairs_alike(groups: np.ndarray) -> float:
    """Return the share of pairs of a row of (S, B) whose two values are equal, over all rows."""
    alike = [np.square(np.unique(row, return_counts=True)[1]).sum() - len(row) for row in groups]
    return float(np.mean(alike)) / (groups.shape[1] * (groups.shape[1] - 1))


def train_sorted(windows: list[int], seeds: list[int]) -> dict[str, dict[str, Any]]:
    """Train on sorted scenes with windows of several sizes; return mAP by window."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_sorted(Path(scratch))
        for window in windows:
            runs = [train_once(folder, window, seed) for seed in seeds]
            ways = {way: [run[f"validation_{way}"] for run in runs] for way in ("map_i2t", "map_t2i")}
            found[str(window)] = {
                way: {"mean": round(statistics.mean(each), 4), "spread": round(max(each) - min(each), 4)}
                for way, each in ways.items()
            }
            say(f"windows of {window} chunks: {found[str(window)]}")
    return found


def write_sorted(folder: Path) -> Path:
    """Draw scenes, sort them by their first label, and write them in files of one chunk."""
    drawn = folder / "drawn"
    write_corpus(drawn, SORTED_ROWS, 1000, 1, split="train", workers=1)
    table = pa.concat_tables([pq.read_table(file) for file in sorted(drawn.glob("*.parquet"))])
    first = np.array([labels[0] if labels else -1 for labels in table.column("labels").to_pylist()])
    table = table.take(np.argsort(first, kind="stable"))
    target = folder / "sorted"
    target.mkdir()
    for start in range(0, len(table), SORTED_CHUNK):
        pq.write_table(table.slice(start, SORTED_CHUNK), target / f"{start:06d}.parquet")
    return target


def train_once(source: Path, window: int, seed: int) -> dict[str, float]:
    """Train in this process and return what rows that were kept out say of the model."""
    run = plan(source, seed)
    method = run.build()
    engine = make_engine(method, run.train, {})
    reader = PieceReader(run.filesystem, run.recipe, run.listing.classes)
    config = FeedConfig(seed, run.train.global_batch_size, mix_chunks=window, mix_rows=0)
    feed = Feed(run.listing, reader, config)
    fit(engine, feed, run.train, seed=seed)
    return judge(run, engine.method)


def judge(run: TrainingRun, method: HashMethod) -> dict[str, float]:
    validate = validator(run)
    if validate is None:
        raise ValueError("no rows are kept out: data.split.validation is 0")
    return validated(method, validate)


def plan(source: Path, seed: int) -> TrainingRun:
    settings = (
        "method.name=jdsh",
        "method.code_length=64",
        "towers.image={name: descriptor}",
        "towers.text={name: bag}",
        "train.epochs=8",
        "train.global_batch_size=256",
        "train.validate_every_epochs=100",
        "data.split.validation=0.15",
        "resources.workers=0",
        f"data.path={source}",
        f"run.dir={source.parent / 'runs'}",
        f"run.seed={seed}",
    )
    return plan_run(load_config(None, settings, {}))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
