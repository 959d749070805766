"""A small training run for the tests of the train job, and how to watch and end its processes."""

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ray.cluster_utils import Cluster

from jobs import train
from jobs.command import Result
from jobs.config import load_config
from tests.processes import descendants

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
TWO_RANKS = ("resources.workers=2", "train.epochs=8", "deepspeed.zero_optimization.stage=2")


def overrides(source: Path | str, runs: Path | str, *others: str) -> list[str]:
    """Return the `--set` values of a small run."""
    return [f"data.path={source}", f"run.dir={runs}", *SMALL, *others]


@contextlib.contextmanager
def raylets(head_cpus: int, others: int) -> Iterator[Cluster]:
    """A head and so many nodes of one CPU, each a raylet of this host; a dead one is known in seconds."""
    quick = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 3,
    }
    head = {"num_cpus": head_cpus, "include_dashboard": False, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    try:
        for _ in range(others):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


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
        log: takes what it says, after what others have said there; its result line goes to `stdout`.
        inside: words before the command's own: where it is to run.
    """
    settings = [word for value in overrides(source, runs, *others) for word in ("--set", value)]
    with log.open("a") as told:
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
    """Return the process ids of the training ranks below a process, by default this one."""
    return descendants("ray::RayTrainWorker", ancestor)
