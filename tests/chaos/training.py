"""Kills while a run trains: `python -m tests.chaos.training [--kills 20] [--seed N]`.

So many runs with a killed rank, a killed raylet and a killed driver each, at a moment drawn by seed. After
each the run must end with the step count and the very weights of an undisturbed one: equal weights after
equal steps are only had when every row counted once in the history that survived.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from pipeline.corpus.scenes import write_corpus
from tests.jobs.training import committed, raylets, start, train_workers
from tests.processes import wait_until

SETTINGS = (
    "resources.workers=2",
    "resources.cpus_per_worker=1",
    "deepspeed.zero_optimization.stage=1",
    "train.epochs=8",
    "train.checkpoint_every_steps=2",
)
SECONDS = 300
Kill = Callable[[Cluster, subprocess.Popen[str]], None]


def a_rank(cluster: Cluster, job: subprocess.Popen[str]) -> None:
    """Kill one of the ranks that train."""
    ranks = [rank for node in cluster.worker_nodes for rank in train_workers(_raylet(node))]
    os.kill(ranks[-1], signal.SIGKILL)


def a_raylet(cluster: Cluster, job: subprocess.Popen[str]) -> None:
    """Kill a node that trains, and let another one join."""
    busy = next(node for node in cluster.worker_nodes if train_workers(_raylet(node)))
    cluster.remove_node(busy, allow_graceful=False)
    cluster.add_node(num_cpus=1)


def the_driver(cluster: Cluster, job: subprocess.Popen[str]) -> None:
    """Kill the job itself."""
    job.kill()
    job.wait()


KILLS: dict[str, Kill] = {"rank": a_rank, "raylet": a_raylet, "driver": the_driver}


def trial(cluster: Cluster, kill: Kill, folder: Path, *, name: str, checkpoints: int) -> dict[str, Any]:
    """Train with one kill, once so many checkpoints are kept; return the result line of the run's end."""
    job = run(cluster, folder, name)
    wait_until(lambda: job.poll() is not None or committed(folder / name) >= checkpoints, seconds=SECONDS)
    if job.poll() is None:
        kill(cluster, job)
    if job.poll() == -signal.SIGKILL:
        wait_until(lambda: not any(train_workers(_raylet(node)) for node in cluster.worker_nodes))
        job = run(cluster, folder, name)
    out, _ = job.communicate(timeout=SECONDS)
    try:
        return dict(json.loads(out.splitlines()[-1]))
    except (IndexError, ValueError):
        return {"error": f"code {job.returncode}, no result line: {out[-2000:]!r}"}


def run(cluster: Cluster, folder: Path, name: str) -> subprocess.Popen[str]:
    """Start a run on the cluster."""
    here = dict(os.environ) | {
        "RAY_ADDRESS": cluster.address,
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "25",
    }
    log = folder / f"{name}.log"
    return start(folder / "corpus", folder, *SETTINGS, f"run.name={name}", environment=here, log=log)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the kills; return 1 if a run did not end as the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    args = parser.parse_args(argv)
    print(f"seed {args.seed}", file=sys.stderr)
    draw, wrong = random.Random(args.seed), 0
    with raylets(0, 3) as cluster, tempfile.TemporaryDirectory(prefix="hashfleet-chaos-") as temporary:
        folder = Path(temporary)
        write_corpus(folder / "corpus", 96, 32, 7, split="train")
        calm = trial(cluster, lambda *_: None, folder, name="calm", checkpoints=1)
        for number in range(args.kills):
            for what, kill in KILLS.items():
                at = draw.randint(1, 2)
                found = trial(cluster, kill, folder, name=f"{what}-{number}", checkpoints=at)
                same = found.get("outputs") and found["outputs"]["digest"] == calm["outputs"]["digest"]
                good = bool(same) and found["counts"]["steps"] == calm["counts"]["steps"]
                wrong += not good
                again = found.get("counts", {}).get("steps_now")
                told = "ok" if good else f"WRONG {found.get('error', found)}"
                print(f"{what} {number}: {told}, {again} steps after the kill", file=sys.stderr, flush=True)
    print(f"{3 * args.kills} kills, {wrong} wrong, seed {args.seed}", file=sys.stderr)
    return 1 if wrong else 0


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


if __name__ == "__main__":
    sys.exit(main())
