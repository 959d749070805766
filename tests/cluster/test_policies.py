"""The storage policies let each of four users do its work and nothing else, as an S3 server enforces them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cmh_models.artefact import save_pretrained
from tests.cluster.permissions import add_user, demand_permissions, policy
from tests.encoding.sources import good_rows, tiny_method, write_rows
from tests.jobs.training import overrides
from tests.s3 import make_bucket, running_server, s3_environment

ROOT = Path(__file__).parents[2]
BUCKET = "bucket"
SEARCH = """
import sys
from pipeline.search.retrieval import Release
release = Release.open(sys.argv[1], cache=sys.argv[2])
print(release.rows("image"))
"""
WRITE = """
import sys
from pipeline.releases.storage import Storage
Storage(sys.argv[1]).write("x", b"x")
"""


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, str]]]:
    """A server that enforces policies, with a source and a model; yields the environment of each user."""
    import boto3

    folder = tmp_path_factory.mktemp("source")
    write_rows(folder / "0.parquet", good_rows(0, 8))
    save_pretrained(tiny_method(), folder / "model", card={})
    with running_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        for name, value in s3_environment(endpoint).items():
            patch.setenv(name, value)
        make_bucket(endpoint, BUCKET)
        s3 = boto3.Session().client("s3")
        s3.upload_file(str(folder / "0.parquet"), BUCKET, "clip/0.parquet")
        for file in (folder / "model").iterdir():
            s3.upload_file(str(file), BUCKET, f"runs/model/{file.name}")
        found = {}
        for user in ("trainer", "writer", "reader", "keeper"):
            own = s3_environment(endpoint) | add_user(user, policy(user, BUCKET))
            found[user] = clean | own | {"PYTHONPATH": str(ROOT)}
        demand_permissions(endpoint)
        yield found


def run(environment: dict[str, str], *words: str) -> Any:
    return subprocess.run(
        [sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_writer_publishes_the_reader_searches_and_neither_can_do_more(
    users: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    night = run(
        users["writer"],
        *(
            "jobs/nightly.py",
            "--set",
            f"data.path=s3://{BUCKET}/clip",
            "--set",
            f"store.uri=s3://{BUCKET}/store",
        ),
        *("--set", f"encode.model=s3://{BUCKET}/runs/model", "--set", f"run.dir=s3://{BUCKET}/runs"),
    )
    assert night.returncode == 0, night.stderr
    found = run(users["reader"], "-c", SEARCH, f"s3://{BUCKET}/store", str(tmp_path / "cache"))
    assert found.stdout.strip() == "8", found.stderr
    for user, place in (("reader", "store"), ("writer", "clip"), ("trainer", "store"), ("keeper", "runs")):
        refused = run(users[user], "-c", WRITE, f"s3://{BUCKET}/{place}")
        assert refused.returncode, f"{user} wrote into {place}"
        assert "PermissionError" in refused.stderr or "AccessDenied" in refused.stderr


@pytest.mark.slow
def test_the_trainer_trains_and_who_may_not_keep_runs_is_refused_before_it_starts(
    users: dict[str, dict[str, str]],
) -> None:
    places = overrides(f"s3://{BUCKET}/clip", f"s3://{BUCKET}/runs", "train.global_batch_size=4")
    here = ("resources.workers=0", "train.epochs=1")
    words = [word for value in (*places, *here) for word in ("--set", value)]
    trained = run(users["trainer"], "jobs/train.py", *words)
    assert trained.returncode == 0, trained.stderr
    elsewhere = ("--set", f"run.dir=s3://{BUCKET}/store")
    for user, more, told in (
        ("keeper", (), r"bucket/clip/0\.parquet: cannot be read \(.*\); check its name and who may read it"),
        ("trainer", elsewhere, r"s3://bucket/store/run/train/config\.yaml: S3 refused access \(.*\); check"),
    ):
        refused = run(users[user], "jobs/train.py", *words, *more)
        assert refused.returncode == 1
        lines = [line for line in refused.stderr.splitlines() if line.startswith("train: ")]
        assert len(lines) == 1 and re.search(told, lines[0]), refused.stderr
