"""Our Slurm script on a real Slurm of two nodes: trained over both, ended in mid-run, told what went wrong.

Run by `make test-slurm` alone: it takes minutes, and what it needs is not installed everywhere.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cmh_models.artefact import artefact_digest
from tests.jobs.training import committed, overrides, train_workers
from tests.processes import wait_until
from tests.slurm import ENDED, Slurm, running_slurm, why_no_slurm

ROOT = Path(__file__).parents[2]
LONG = ("train.epochs=8", "deepspeed.zero_optimization.stage=2", "resources.cpus_per_worker=1")
SCRIPT = "cluster/slurm/train.sbatch"

WHY_NOT = why_no_slurm() if os.environ.get("TEST_SLURM") else "`make test-slurm` runs it"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=f"no Slurm: {WHY_NOT}")]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with running_slurm(nodes=2, cpus=2, gpus=2) as started:
        yield started


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a clone in which `make setup` has run."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("jobs", "pipeline", "cmh_models", "cluster"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


@pytest.fixture
def submit(slurm: Slurm, clone: Path, scenes: Path) -> Callable[..., str]:
    """Submit the script as its page says, with fewer and smaller nodes; returns the job's number."""

    def submitted(*settings: str, nodes: int = 2, gpus: int = 0) -> str:
        sizes = (f"--nodes={nodes}", "--cpus-per-task=1", f"--gpus-per-node={gpus}", "--time=20")
        values = overrides(scenes, clone / "runs", *LONG, *settings)
        words = [word for value in values for word in ("--set", value)]
        return slurm.command("sbatch", "--parsable", *sizes, SCRIPT, *words, cwd=clone)

    return submitted


def finish(slurm: Slurm, clone: Path, job: str) -> dict[str, Any]:
    """Return the last result line of a job that is to end well."""
    wait_until(lambda: slurm.state(job) in ENDED, what=f"job {job}")
    told = (clone / f"slurm-{job}.out").read_text()
    assert slurm.state(job) == "COMPLETED", told
    return dict(json.loads([line for line in told.splitlines() if line.startswith('{"job"')][-1]))


def test_a_run_over_two_nodes_and_one_that_is_cancelled_and_submitted_again_end_in_the_same_model(
    slurm: Slurm, clone: Path, submit: Callable[..., str]
) -> None:
    whole = finish(slurm, clone, submit("run.name=whole"))
    assert whole["status"] == "done" and whole["counts"]["steps_now"] == 48
    assert artefact_digest(clone / "runs" / "whole" / "model") == whole["outputs"]["digest"]

    first = submit("run.name=stopped")
    wait_until(lambda: slurm.state(first) in ENDED or committed(clone / "runs" / "stopped"))
    assert slurm.state(first) == "RUNNING", (clone / f"slurm-{first}.out").read_text()
    assert [len(train_workers(node)) for node in slurm.nodes] == [1, 1], "a rank on each node"
    slurm.command("scancel", first)
    wait_until(lambda: slurm.state(first) == "CANCELLED")
    stopped = finish(slurm, clone, submit("run.name=stopped"))
    assert stopped["counts"]["steps"] == 48
    assert 0 < stopped["counts"]["steps_now"] < 48, "it went on from a checkpoint"
    assert stopped["outputs"]["digest"] == whole["outputs"]["digest"]


def test_a_job_that_fails_fails_for_slurm_and_gpus_are_counted(
    slurm: Slurm, clone: Path, submit: Callable[..., str]
) -> None:
    job = submit("train.epochs=-3", nodes=1, gpus=2)
    wait_until(lambda: slurm.state(job) in ENDED)
    told = (clone / f"slurm-{job}.out").read_text()
    assert slurm.state(job) == "FAILED" and "ExitCode=2:0" in slurm.command("scontrol", "show", "job", job)
    assert "train.epochs: input should be greater than or equal to 1, got -3" in told
    assert "'resources.workers=2', '--set', 'resources.gpu=true'" in told
