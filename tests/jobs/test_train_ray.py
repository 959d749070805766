"""The train job on a Ray cluster: two ranks, a rank that hangs, a store that is away, submitted jobs."""

import argparse
import contextlib
import json
import math
import os
import re
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cmh_models.artefact import artefact_digest
from jobs import export
from jobs.command import Result
from jobs.config import load_config
from pipeline.releases.storage import Storage
from pipeline.releases.storage.retries import SILENT_SECONDS
from tests.jobs.training import TWO_RANKS, overrides, run, start, train_workers
from tests.processes import free_port, keep, let_go, ray_environment, wait_until
from tests.proxy import Fault, Proxy, Request, running_proxy
from tests.s3 import BUCKET, s3_endpoint

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_two_ranks_train_under_ray_and_deepspeed(undisturbed: Result, tmp_path: Path) -> None:
    assert undisturbed.counts == {"rows": 96, "steps": 48, "steps_now": 48, "rows_replaced": 0}
    storage = Storage(f"s3://{BUCKET}/ray-runs")
    storage.download_folder("undisturbed/model", tmp_path / "model")
    assert artefact_digest(tmp_path / "model") == undisturbed.outputs["digest"]
    kept = [file for file in storage.list("undisturbed") if file.endswith("/checkpoint.json")]
    assert len(kept) == 2
    files = json.loads(storage.read(kept[-1]))["files"]
    assert sum("optim_states" in file for file in files) == 2  # each rank's share is in the one folder
    assert {f"{Path(kept[-1]).parent}/{file}" for file in files} < set(storage.list("undisturbed"))


def test_a_model_is_exported_from_the_shares_of_two_ranks_without_ray(
    undisturbed: Result, scenes: Path
) -> None:
    settings = overrides(scenes, f"s3://{BUCKET}/ray-runs", *TWO_RANKS, "run.name=undisturbed")
    found = export.run(load_config(None, settings, {}), argparse.Namespace(best=False, dry_run=False))
    assert found.outputs["digest"] == undisturbed.outputs["digest"]


def test_a_run_goes_from_one_process_to_a_cluster_and_back(
    ray_cluster: str, scenes: Path, tmp_path: Path
) -> None:
    for workers, epochs in (0, 1), (2, 2), (0, 3):
        moved = run(scenes, tmp_path, f"resources.workers={workers}", f"train.epochs={epochs}")
        assert (moved.counts["steps"], moved.counts["steps_now"]) == (6 * epochs, 6)


class Away:
    """A plan by which the store is gone for a while, from the moment when a checkpoint is committed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = 0.0

    def __call__(self, request: Request) -> Fault | None:
        if self._until:
            return Fault("refuse") if time.monotonic() < self._until else None
        if request.method == "PUT" and request.path.endswith("checkpoint_manager_snapshot.json"):
            self._until = time.monotonic() + self._seconds
        return None


def train_behind(
    proxy: Proxy, scenes: Path, name: str, log: Path, **environment: str
) -> tuple[int, dict[str, Any]]:
    """Train by a job of its own whose store stands behind a proxy; return its exit code and result."""
    here = os.environ | {"AWS_ENDPOINT_URL": proxy.endpoint} | environment
    settings = (*TWO_RANKS, f"run.name={name}")
    job = start(scenes, f"s3://{BUCKET}/ray-runs", *settings, environment=here, log=log)
    out, _ = job.communicate(timeout=400)
    assert out.strip(), log.read_text()[-3000:]
    return job.returncode, json.loads(out.splitlines()[-1])


LONG = pytest.mark.skipif(not os.environ.get("TEST_LONG"), reason="takes minutes: make test-long")


@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=LONG)])
def test_storage_that_is_away_for_a_while_is_waited_for(
    seconds: float, undisturbed: Result, scenes: Path, tmp_path: Path
) -> None:
    with running_proxy(s3_endpoint(), Away(seconds)) as proxy:
        code, line = train_behind(proxy, scenes, f"away-{seconds}", tmp_path / "log")
    assert code == 0, line
    assert proxy.done["refuse"] > 0
    assert line["counts"]["steps_now"] == 48  # no rank had to start again
    assert line["outputs"]["digest"] == undisturbed.outputs["digest"]
    if seconds > SILENT_SECONDS:
        assert "object storage has not answered for" in (tmp_path / "log").read_text()


@LONG
def test_storage_that_does_not_come_back_ends_the_run_in_one_line_and_it_goes_on_later(
    undisturbed: Result, scenes: Path, tmp_path: Path
) -> None:
    with running_proxy(s3_endpoint(), Away(math.inf)) as proxy:
        code, line = train_behind(proxy, scenes, "gone", tmp_path / "log", AWS_MAX_ATTEMPTS="2")
        assert code == 1
        assert "S3" in line["error"] and "\n" not in line["error"]
        proxy.plan = None
        code, line = train_behind(proxy, scenes, "gone", tmp_path / "log")
    assert code == 0, line
    assert 0 < line["counts"]["steps_now"] < 48
    assert line["outputs"]["digest"] == undisturbed.outputs["digest"]


class Stuck:
    """A plan by which one request for rows is not answered once ranks read them."""

    def __init__(self, free: threading.Event) -> None:
        self._free, self._stuck = free, False

    def __call__(self, request: Request) -> Fault | None:
        if self._stuck or request.method != "GET" or "/hang/" not in request.path or not train_workers():
            return None
        self._stuck = True
        return Fault(before=lambda _: self._free.wait())  # type: ignore[arg-type, return-value]


def test_a_rank_that_hangs_ends_the_run_in_one_line_after_the_stacks_of_all_ranks(
    s3_server: str, scenes: Path, tmp_path: Path
) -> None:
    Storage(f"s3://{BUCKET}").upload_folder(scenes, "hang")
    free, log = threading.Event(), tmp_path / "log"
    settings = (*TWO_RANKS, "train.step_timeout=5", "resources.max_restarts=0")
    with running_proxy(s3_endpoint(), Stuck(free)) as proxy:
        here = os.environ | {"AWS_ENDPOINT_URL": proxy.endpoint}
        job = start(f"s3://{BUCKET}/hang", tmp_path, *settings, environment=here, log=log)
        out, _ = job.communicate(timeout=200)
        free.set()
    told = log.read_text()
    kept = {file.name: file.read_text() for file in (tmp_path / "run/train/stacks").iterdir()}
    for rank in range(2):
        own = [text for name, text in kept.items() if f"-rank-{rank}-" in name]
        assert len(own) == 1 and own[0].startswith(f"rank {rank}: ")
        assert re.search(rf"rank {rank}\|   File .*training\.py\", line \d+ in fit", own[0]), own[0]
        assert all(line in told for line in own[0].splitlines()), told[-5000:]
    line = json.loads(out.splitlines()[-1])
    assert (job.returncode, line["status"]) == (1, "failed")
    assert f"longer than train.step_timeout, 5 s: where 2 ranks stood is kept in {tmp_path}" in line["error"]
    assert "\n" not in line["error"]


def test_more_workers_than_the_cluster_has_are_said_in_one_line(
    ray_cluster: str, scenes: Path, tmp_path: Path
) -> None:
    settings = ("resources.workers=8", "resources.cpus_per_worker=1", "resources.worker_timeout=1")
    with pytest.raises(
        RuntimeError, match=r"asks for 8 CPUs and the cluster has 4: lower resources\.workers"
    ):
        run(scenes, tmp_path, *settings)


def test_a_gpu_that_the_cluster_has_not_is_said_in_one_line(
    ray_cluster: str, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=r"resources\.gpu is true but the cluster has no GPU"):
        run(scenes, tmp_path, "resources.gpu=true", "resources.worker_timeout=1")


def train_command(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@contextlib.contextmanager
def head(folder: Path) -> Iterator[dict[str, str]]:
    """Start a Ray head of its own, with a dashboard and token authentication; yield how to reach it.

    METRICS is where it shows the metrics of the node.
    """
    options = (
        "port",
        "dashboard-port",
        "ray-client-server-port",
        "dashboard-agent-listen-port",
        "metrics-export-port",
    )
    ports = [free_port() for _ in options]
    environment = ray_environment() | {"RAY_metrics_report_interval_ms": "500"}
    arguments = [f"--{option}={port}" for option, port in zip(options, ports, strict=True)]
    command = ["ray", "start", "--head", "--block", "--num-cpus=4", f"--temp-dir={folder}", *arguments]
    keeper = keep(command, environment=environment, log=folder / "head.log")
    try:
        told = {
            "RAY_ADDRESS": f"http://127.0.0.1:{ports[1]}",
            "METRICS": f"http://127.0.0.1:{ports[-1]}/metrics",
        }
        yield environment | told
    finally:
        let_go(keeper)


def _answers(address: str) -> bool:
    host, port = address.removeprefix("http://").split("/")[0].split(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


def shown(metrics: str) -> set[str]:
    """Return the names of our metrics that a node shows, as Prometheus would read them."""
    with contextlib.suppress(OSError), urllib.request.urlopen(metrics, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
        ours = (re.match(r'(ray_hashfleet_train_\w+)\{.*run="scenes_', line) for line in lines)
        return {found[1] for found in ours if found}
    return set()


def test_the_recipe_runs_as_a_submitted_job_and_its_metrics_are_shown(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    runs = tmp_path_factory.mktemp("runs")
    settings = (
        f"data.path={runs}/corpus",
        "data.scenes.rows=200",
        "train.global_batch_size=64",
        "train.epochs=1",
        f"run.dir={runs}",
        "train.log_every=1",
    )
    words = [
        "python",
        "jobs/train.py",
        "--config",
        "jobs/configs/scenes_jdsh_64.yaml",
        *train_command([*settings]),
    ]
    dashboard = (ROOT / "cluster/grafana/hashfleet.json").read_text()
    asked = set(re.findall("ray_hashfleet_train_[a-z_]+", dashboard))
    # Ray's sockets stand in this folder, and their paths must be short.
    short = tempfile.TemporaryDirectory(prefix="hf", ignore_cleanup_errors=True)
    with short as folder, head(Path(folder)) as environment:
        wait_until(lambda: all(_answers(environment[name]) for name in ("RAY_ADDRESS", "METRICS")))
        submitted = subprocess.Popen(
            ["ray", "job", "submit", "--working-dir", ".", "--", *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(submitted.communicate, timeout=400)
            wait_until(lambda: reading.done() or asked <= shown(environment["METRICS"]), seconds=400)
            in_time = not reading.done()
            told, _ = reading.result()
    assert submitted.returncode == 0, told[-6000:]
    assert in_time, "the metrics that the dashboard asks for were not shown while the job ran"
    results = [line for line in told.splitlines() if line.startswith('{"job": "train"')]
    assert json.loads(results[-1])["outputs"]["model"] == f"{runs}/scenes_jdsh_64/model"
    assert artefact_digest(runs / "scenes_jdsh_64" / "model") == json.loads(results[-1])["outputs"]["digest"]
