"""Write the codes of a release as files that other libraries read. Forgotten keys are left out.

The folder also holds keys.parquet: its row n is row n of the codes. With --queries, a .npy file of packed
codes (Q, bits / 8), queries.u8bin and groundtruth.ibin come along: the rows of the k exact nearest of each,
ties by (id, key).

example:
  hashfleet export_codes --set store.uri=runs/store --format faiss --side image --to runs/codes
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts jobs/ first on sys.path, where `import evaluate` would find ours
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from jobs.cli import main

    sys.exit(main(["export_codes", *sys.argv[1:]]))

import argparse
import logging

import numpy as np

from jobs.command import Result
from jobs.config import Config
from pipeline.search.export import KINDS, Questions, export_codes
from pipeline.search.retrieval import Release

WRITES = True

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", required=True, choices=list(KINDS), help="what to write")
    parser.add_argument("--side", required=True, choices=["image", "text"], help="whose codes")
    parser.add_argument("--to", required=True, metavar="FOLDER", type=Path, help="a new folder")
    parser.add_argument("--release", metavar="DIGEST", help="default: the newest of store.channel")
    parser.add_argument("--queries", metavar="FILE", type=Path, help="packed codes, .npy, for ground truth")
    parser.add_argument("-k", type=int, default=100, help="answers per query (default: 100)")


def run(config: Config, args: argparse.Namespace) -> Result:
    """Open the release and write the folder."""
    release = Release.open(
        config.require("store.uri"), config.store.channel, digest=args.release, sides=[args.side]
    )
    counts = {"codes": release.rows(args.side)}
    if args.dry_run:
        log.info("would write %d codes of release %s to %s", counts["codes"], release.digest, args.to)
        return Result(outputs={"release": release.digest}, counts=counts)
    questions = Questions(_read(args.queries), args.k) if args.queries else None
    folder = export_codes(release, args.to, side=args.side, kind=args.format, queries=questions)
    return Result(outputs={"folder": str(folder), "release": release.digest}, counts=counts)


def _read(file: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise ValueError(f"--queries must be a .npy file of packed codes, {file}: {error}") from error
