"""Training on several raylets: through kills of all that can die, and over hosts with their own addresses."""

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
from tests.chaos.training import Moment, a_rank, a_raylet, the_driver, trial
from tests.jobs.training import TWO_RANKS, raylets, start
from tests.nodes import nodes, why_no_namespaces

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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that gives no CPU, and three nodes of one CPU each."""
    with raylets(0, 3) as cluster:
        yield cluster


KILLED = (
    (a_rank, Moment(4, 0.0)),
    (a_raylet, Moment(10, 0.3)),
    (the_driver, Moment(16, 0.1)),
    (the_driver, Moment(22, 0.4)),
    (a_raylet, Moment(28, 0.0)),
    (a_rank, Moment(34, 0.2)),
)


def test_two_kills_each_of_rank_raylet_and_driver_cost_no_step_that_was_kept(
    undisturbed: Result, cluster: Cluster, scenes: Path, tmp_path: Path
) -> None:
    (tmp_path / "corpus").symlink_to(scenes)
    found = trial(cluster, tmp_path, "killed", KILLED)
    assert found is not None, "the run was over before its last kill"
    assert len(found.kills) == 6
    assert found.as_undisturbed(undisturbed.outputs["digest"]), found
    assert (
        len(list((tmp_path / "killed").glob("checkpoint_*/"))) == 2
    )  # those that died uploading left nothing


def test_without_a_node_to_spare_the_run_ends_in_one_line(
    cluster: Cluster, scenes: Path, tmp_path: Path
) -> None:
    for node in list(cluster.worker_nodes)[1:]:
        cluster.remove_node(node, allow_graceful=False)
    log = tmp_path / "log"
    here = dict(os.environ) | {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "25"}
    job = start(scenes, tmp_path, *APART, "resources.worker_timeout=5", environment=here, log=log)
    last = finish(job, log)
    assert last["status"] == "failed"
    told = (
        "the run asks for 2 CPUs and the cluster has 1",
        "the cluster did not give 2 ranks of 1 CPUs each",
    )
    assert any(words in last["error"] for words in told)


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
