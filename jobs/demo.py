"""Run the whole chain on this machine: draw a corpus, train JDSH at 64 bits on it, run the night, judge the
model on pairs of another seed beside its baselines, and search the release.

Everything is written below --dir (default: demo). A second run starts from nothing again.

example:
  hashfleet demo --dir demo
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["demo", *sys.argv[1:]]))

import argparse
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow.parquet as pq

from jobs import evaluate, nightly, search, train
from jobs.command import Result
from jobs.config import Config, load_config
from pipeline.corpus.scenes import write_corpus

WRITES = True
RECIPES = Path(__file__).parent / "configs"
TRAIN_SEED, HELD_OUT_SEED = 1, 2
QUERIES = (
    "a small red circle on a green field",
    "two blue squares",
    "a striped yellow triangle above a star",
    "a big dotted heart at night",
    "purple hexagon next to an orange ring",
)

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", default="demo", help="folder for all that the demo makes")
    parser.add_argument("--rows", type=int, default=8000, help="pairs to train and encode")


def run(config: Config, args: argparse.Namespace) -> Result:
    """Run the stages one after another; the result line holds metrics, baselines and seconds per stage."""
    folder = Path(args.dir).resolve()
    if args.dry_run:
        log.info("would draw %d pairs, train, encode, publish, judge and search in %s", args.rows, folder)
        return Result()
    clock = Clock()
    with clock("corpus"):
        draw(folder, args.rows)
    with clock("train"):
        trained = train.run(settings(folder, "scenes_jdsh_64"), args)
    model = f"encode.model={trained.outputs['model']}"
    night = settings(folder, "scenes_nightly", model)
    with clock("night"):
        published = nightly.run(night, args)
    with clock("second night"):
        nothing = nightly.run(night, args)
    held_out = (f"data.path={folder}/heldout", f"evaluate.train={folder}/corpus", "evaluate.baselines=true")
    judged_by = settings(folder, "scenes_jdsh_64", model, *held_out)
    with clock("evaluate"):
        judged = evaluate.run(judged_by, args)
    with clock("search"):
        for text in QUERIES:
            look_up(night, text=text)
        for picture in pictures(folder):
            look_up(night, image=picture)
    return Result(
        outputs={"model": trained.outputs["model"], "release": published.outputs["release"]},
        metrics=judged.metrics,
        counts=published.counts | {"second_night_rows_encoded": nothing.counts["rows_encoded"]},
        details={"baselines": judged.details["baselines"], "stages": clock.seconds},
    )


def draw(folder: Path, rows: int) -> None:
    """Draw the corpus to learn from and encode, and pairs of another seed to judge by."""
    shutil.rmtree(folder, ignore_errors=True)
    write_corpus(folder / "corpus", rows, 1000, TRAIN_SEED, split="train")
    for split, start, count in (("query", 0, 1000), ("retrieval", 1000, 4000)):
        write_corpus(folder / "heldout" / split, count, 1000, HELD_OUT_SEED, start=start, split=split)


def settings(folder: Path, recipe: str, *overrides: str) -> Config:
    """Load a recipe with its paths moved into the demo's folder."""
    paths = (f"data.path={folder}/corpus", f"run.dir={folder}/runs", f"store.uri={folder}/store")
    return load_config(str(RECIPES / f"{recipe}.yaml"), [*paths, *overrides])


class Clock:
    """Seconds per stage, in the order in which they ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        log.info("\n== %s", stage)
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 2)
        log.info("== %s: %.1f s", stage, self.seconds[stage])


def look_up(config: Config, **query: Any) -> Result:
    """Search the newest release as `hashfleet search` does."""
    arguments = {"text": None, "image": None, "code": None, "k": 5, "direction": None} | query
    return search.run(config, argparse.Namespace(**arguments))


def pictures(folder: Path) -> list[str]:
    """Save two held-out pictures as files to search with."""
    source = sorted((folder / "heldout" / "query").glob("*.parquet"))[0]
    rows = pq.read_table(source, columns=["key", "image"]).slice(0, 2).to_pylist()
    for row in rows:
        (folder / f"{row['key']}.jpg").write_bytes(row["image"])
    return [str(folder / f"{row['key']}.jpg") for row in rows]
