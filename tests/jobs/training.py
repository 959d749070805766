"""A small training run for the tests of the train job, and how to watch and end its processes."""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs import train
from jobs.command import Result
from jobs.config import load_config

ROOT = Path(__file__).parents[2]
SMALL = (
    "method.name=jdsh",
    "method.code_length=16",
    "method.feature_rounds=2",
    "method.moment_rounds=2",
    "method.threshold_rounds=2",
    "towers.image={name: descriptor, image_size: 16, hidden: 8}",
    "towers.text={name: bag, word_buckets: 64, pair_buckets: 0, hidden: 8}",
    "train.global_batch_size=16",
    "train.epochs=2",
    "resources.cpus_per_worker=0.5",
)


def overrides(source: Path | str, runs: Path | str, *others: str) -> list[str]:
    """Return the `--set` values of a small run."""
    return [f"data.path={source}", f"run.dir={runs}", *SMALL, *others]


def run(source: Path | str, runs: Path | str, *others: str, dry_run: bool = False) -> Result:
    """Run the train job in this process."""
    config = load_config(None, overrides(source, runs, *others), {})
    return train.run(config, argparse.Namespace(dry_run=dry_run))


def start(
    source: Path | str,
    runs: Path | str,
    *others: str,
    environment: Mapping[str, str],
    log: Path,
    inside: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Start the train job as a process of its own, on the cluster that the environment names.

    Args:
        log: takes what it says; its result line goes to `stdout`.
        inside: words before the command's own: where it is to run.
    """
    settings = [word for value in overrides(source, runs, *others) for word in ("--set", value)]
    with log.open("w") as told:
        return subprocess.Popen(
            [*inside, sys.executable, "jobs/train.py", *settings],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=told,
            text=True,
        )


def committed(run: Path) -> int:
    """Return how many checkpoints a restart would find: Ray Train commits some time after the report."""
    snapshot = run / "checkpoint_manager_snapshot.json"
    return snapshot.read_text().count("checkpoint_dir_name") if snapshot.is_file() else 0


def train_workers(ancestor: int | None = None) -> list[int]:
    """Return the process ids of the training ranks below a process, by default this one; from /proc."""
    ranks = [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and _read(folder / "cmdline").startswith("ray::RayTrainWorker")
    ]
    return sorted(rank for rank in ranks if (ancestor or os.getpid()) in _ancestors(rank))


def _ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        process = int((_read(Path(f"/proc/{process}/stat")).rpartition(") ")[2].split() or ["0", "0"])[1])
        found.append(process)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
