"""Kills while a run trains: `python -m tests.chaos.training [--kills 20] [--seed N]`.

So many runs with a killed rank, a killed raylet and a killed driver each, at a moment drawn by seed. After
each the run must go on from no older checkpoint than stood when the kill came, and end with the step count
and the very weights of an undisturbed one: equal weights after equal steps are only had when every row
counted once in the history that survived.
"""

import argparse
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from pipeline.corpus.scenes import write_corpus
from pipeline.learning.checkpoint import whole_checkpoints
from pipeline.releases.storage import Storage
from tests.jobs.training import TWO_RANKS, raylets, start, train_workers
from tests.processes import wait_until

SETTINGS = (*TWO_RANKS, "resources.cpus_per_worker=1", "train.checkpoint_every_steps=2")
SECONDS = 300
STEPS = 48  # of the undisturbed run: 8 epochs of 96 rows in batches of 16
Kill = Callable[[Cluster, subprocess.Popen[str]], None]


def a_rank(cluster: Cluster, job: subprocess.Popen[str]) -> None:
    """Kill one of the ranks that train."""
    os.kill(ranks(cluster)[-1], signal.SIGKILL)


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


@dataclass(frozen=True)
class Moment:
    """When to kill: once a checkpoint of so many steps is kept (0: once ranks run), and a little later."""

    steps: int
    seconds: float

    @classmethod
    def drawn(cls, draw: random.Random) -> "Moment":
        """Draw one: anywhere in the run but its last two checkpoints."""
        return cls(draw.randrange(0, STEPS - 4, 2), draw.uniform(0, 0.5))

    def wait(self, cluster: Cluster, job: subprocess.Popen[str], run: Path) -> bool:
        """Wait for it; return whether there still are ranks to kill."""

        def there() -> bool:
            return len(ranks(cluster)) > 1 and (not self.steps or kept(run) >= self.steps)

        wait_until(lambda: job.poll() is not None or there(), seconds=SECONDS)
        time.sleep(self.seconds)  # not to wait for anything: the moment itself
        return job.poll() is None and len(ranks(cluster)) > 1


@dataclass(frozen=True)
class Ended:
    """How a run ended that was killed."""

    line: Mapping[str, Any]  # its result
    kills: list[tuple[int, int]]  # steps kept when each came, and steps done where the run went on

    def as_undisturbed(self, digest: str) -> bool:
        """Return whether it ended with the undisturbed weights, and made no kept step again."""
        return (
            self.line.get("status") == "done"
            and self.line["outputs"]["digest"] == digest
            and self.line["counts"]["steps"] == STEPS
            and self.line["counts"]["steps_now"] == STEPS - self.kills[-1][1]
            and all(resumed >= kept for kept, resumed in self.kills)
        )


def ranks(cluster: Cluster) -> list[int]:
    """Return the process ids of the ranks that train."""
    return [rank for node in cluster.worker_nodes for rank in train_workers(_raylet(node))]


def kept(run: Path) -> int:
    """Return how many steps the newest whole checkpoint of a run has."""
    whole = whole_checkpoints(Storage(run.parent), run.name) if run.is_dir() else []
    return int(whole[0][1]["step"]) if whole else 0


def trial(cluster: Cluster, folder: Path, name: str, kills: Sequence[tuple[Kill, Moment]]) -> Ended | None:
    """Train through kills, one after the other; None where one came too late.

    The next one comes no sooner than a checkpoint was kept that the one before had not seen.
    """
    job, came = run(cluster, folder, name), list[tuple[int, int]]()
    for kill, moment in kills:
        after = came[-1][0] + 1 if came else 0
        if not Moment(max(moment.steps, after), moment.seconds).wait(cluster, job, folder / name):
            job.communicate(timeout=SECONDS)
            return None
        before, restarts = kept(folder / name), len(resumed(folder, name))
        kill(cluster, job)
        if job.poll() == -signal.SIGKILL:
            wait_until(lambda: not ranks(cluster))
            job = run(cluster, folder, name)
        came.append((before, restarts))
        wait_until(lambda: job.poll() is not None or not before or len(resumed(folder, name)) > restarts)  # noqa: B023
    line, told = finished(job), resumed(folder, name)
    return Ended(line, [(before, told[at] if at < len(told) else 0) for before, at in came])


def resumed(folder: Path, name: str) -> list[int]:
    """Return the steps that a run said it had done wherever it went on."""
    told = (folder / f"{name}.log").read_text()
    return [int(step) for step in re.findall(r"going on from epoch \d+, step (\d+)", told)]


def finished(job: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the result line of a run that goes on to its end."""
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
        # How often Ray Train looks at its ranks. A report waits for the look after the one before it: at two
        # seconds, Ray's default, a run that keeps every second step would do little else than wait.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
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
    logging.getLogger("pipeline").setLevel(logging.ERROR)  # not a line for each checkpoint being written
    draw, wrong = random.Random(args.seed), 0
    with raylets(0, 3) as cluster, tempfile.TemporaryDirectory(prefix="hashfleet-chaos-") as temporary:
        folder = Path(temporary)
        write_corpus(folder / "corpus", 96, 32, 7, split="train")
        calm = finished(run(cluster, folder, "calm"))
        if calm.get("counts", {}).get("steps") != STEPS:
            print(f"the undisturbed run must make {STEPS} steps, got {calm}", file=sys.stderr)
            return 1
        for number in range(args.kills):
            for what, kill in KILLS.items():
                moment = Moment.drawn(draw)
                found = trial(cluster, folder, f"{what}-{number}", [(kill, moment)])
                good = found is not None and found.as_undisturbed(calm["outputs"]["digest"])
                wrong += not good
                told = "ok" if good else f"WRONG: {found or 'it ended before the kill'}"
                went = found and "{} steps were kept, it went on from {}".format(*found.kills[0])
                print(f"{what} {number} at {moment}: {told}; {went}", file=sys.stderr, flush=True)
    print(f"{3 * args.kills} kills, {wrong} wrong, seed {args.seed}", file=sys.stderr)
    return 1 if wrong else 0


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


if __name__ == "__main__":
    sys.exit(main())
