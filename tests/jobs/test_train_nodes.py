"""Training on several raylets: over hosts with addresses of their own, and through the loss of a node."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from jobs.command import Result
from tests.jobs.training import TWO_RANKS, committed, raylets, start, train_workers
from tests.nodes import nodes, why_no_namespaces
from tests.processes import wait_until

APART = (*TWO_RANKS, "resources.cpus_per_worker=1")  # a rank on each node

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="hf", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def finish(job: subprocess.Popen[str], log: Path, seconds: float = 300) -> dict[str, Any]:
    """Return the result line of a job."""
    out, _ = job.communicate(timeout=seconds)
    assert out.strip(), log.read_text()[-3000:]
    return dict(json.loads(out.splitlines()[-1]))


@pytest.fixture
def three() -> Iterator[Cluster]:
    """Three nodes of one CPU, one of them the head."""
    with raylets(1, 2) as cluster:
        yield cluster


def test_a_lost_node_costs_the_steps_since_the_last_checkpoint_and_without_one_to_spare_the_run_ends(
    undisturbed: Result, three: Cluster, scenes: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    here = dict(os.environ) | {"RAY_ADDRESS": three.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "25"}
    workers = sorted(three.worker_nodes, key=lambda node: node.node_id)

    def train(*others: str) -> subprocess.Popen[str]:
        return start(scenes, tmp_path, *APART, *others, environment=here, log=log)

    job = train("run.name=lost")
    wait_until(lambda: job.poll() is not None or committed(tmp_path / "lost"))
    assert job.poll() is None, log.read_text()[-3000:]
    busy = [node for node in workers if train_workers_of(node)]
    three.remove_node(busy[0], allow_graceful=False)
    lost = finish(job, log)
    assert lost["status"] == "done" and lost["counts"]["steps"] == undisturbed.counts["steps"]
    assert lost["counts"]["steps_now"] < undisturbed.counts["steps_now"]
    assert lost["outputs"]["digest"] == undisturbed.outputs["digest"]
    if not os.environ.get("TEST_LONG"):
        return
    left = [node for node in workers if node is not busy[0]]
    three.remove_node(left[0], allow_graceful=False)  # one node is left for two ranks
    last = finish(train("train.epochs=9", "run.name=lost", "resources.worker_timeout=5"), log)
    assert last["status"] == "failed"
    told = (
        "the run asks for 2 CPUs and the cluster has 1",
        "the cluster did not give 2 ranks of 1 CPUs each",
    )
    assert any(words in last["error"] for words in told)


def train_workers_of(node: Any) -> list[int]:
    """Return the training ranks that a raylet started."""
    raylet = node.all_processes["raylet"][0].process.pid
    return train_workers(raylet)


@pytest.mark.skipif(bool(why_no_namespaces()), reason=f"no network namespaces: {why_no_namespaces()}")
def test_ranks_on_hosts_of_their_own_train_what_two_ranks_on_one_host_do(
    undisturbed: Result, short: Path, scenes: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with nodes(short, spaces=3) as cluster:
        cluster.add()
        cluster.add()
        where = {"environment": cluster.environment, "inside": cluster.command()}
        job = start(scenes, tmp_path, *APART, "run.name=apart", log=log, **where)
        apart = finish(job, log)
    assert apart["status"] == "done", log.read_text()[-3000:]
    assert apart["outputs"]["digest"] == undisturbed.outputs["digest"]
